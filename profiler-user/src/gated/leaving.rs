//! Taking a gate out: first the jumps into it, then its memory, once nobody is in there any more.

use std::{fmt, fs::File, ops::Range, thread, time::Duration};

use super::{
    Counts, Description, Gate, GateError, Jump, STOP_TRIES_TO_LEAVE,
    entering::take_out,
    files::{is_mapped, is_open},
    memory::{close, take_back},
    sharing::Alone,
    stop,
};
use crate::target::{
    cover::JUMP_BYTES,
    stopped::{StackWord, StopError, Stopped},
};

/// How often it is looked whether all threads have left the gate, and the pause before the next look, which doubles.
const LOOKS: u32 = 9;
const FIRST_PAUSE: Duration = Duration::from_millis(1);

/// What has become of a gate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Departure {
    /// For how long the process stood still at most.
    pub stood: Duration,
    /// How many functions were what they had been made: they are what they were before.
    pub taken_out: usize,
    /// How many were not: somebody else has changed them since.
    pub left_alone: usize,
    /// How many descriptors were open still, and are closed.
    pub closed: usize,
    /// What it had counted; `None` where its memory was gone.
    pub counts: Option<Counts>,
    /// Why its memory is there still; `None` where it is gone.
    pub stays: Option<Stay>,
}

impl Departure {
    /// The gate is gone with the process, or with the program that it ran, and so are the functions that it had changed.
    fn with_its_program(self) -> Self {
        Self { left_alone: 0, stays: None, ..self }
    }
}

/// Why a gate's memory stays in its process, where nothing leads to it any more as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stay {
    /// A call in its sample has not come back: a thread is in it, or never will be again.
    Inside,
    /// Somebody has changed a function meanwhile, and may lead there.
    Changed,
    /// No thread of the process can make the system call that takes it away.
    NoCall,
    /// Another process has the same memory.
    Shared,
    /// It does not say what it has changed, or not so that we understand it.
    Unknown,
}

impl fmt::Display for Stay {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Inside => "a call in its sample has not come back yet, or never will",
            Self::Changed => "a function was changed by somebody else, and may lead there",
            Self::NoCall => "none of its threads can make a system call for heaptap, as where calls are filtered (seccomp)",
            Self::Shared => "another process has the same memory",
            Self::Unknown => "it is of another version of heaptap, or none of its",
        })
    }
}

/// What there is of a gate in a process.
#[derive(Debug, Default)]
pub(super) struct Remains {
    /// What it has changed; `None` where that has not been begun, or is not known.
    pub(super) description: Option<Description>,
    /// Whether it may have changed something else.
    pub(super) is_unknown: bool,
    /// How many functions it says that it has changed.
    pub(super) functions: usize,
    /// Those of its jumps that may be taken out again.
    pub(super) jumps: Vec<Jump>,
    /// Where its file is mapped.
    pub(super) ranges: Vec<Range<u64>>,
    /// By which descriptors the process has its file open.
    pub(super) descriptors: Vec<u64>,
}

impl Remains {
    /// All that there is of a gate that this describes.
    pub(super) fn of(description: &Description) -> Self {
        let Description { code, data, jumps, .. } = description;
        Self {
            functions: jumps.len(),
            jumps: jumps.clone(),
            ranges: vec![code.clone(), data.clone()],
            description: Some(description.clone()),
            ..Self::default()
        }
    }
}

impl Gate {
    /// Takes the gate out of its process. One that has replaced its program, or ended, has none.
    pub fn leave(&self) -> Result<Departure, GateError> {
        leave(self.pid, &self.file, &Remains::of(&self.description))
    }
}

/// Takes out what there is of the gate that has this file.
pub(super) fn leave(pid: u32, file: &File, remains: &Remains) -> Result<Departure, GateError> {
    let mut departure = Departure { left_alone: remains.functions, ..Departure::default() };
    let mut pause = FIRST_PAUSE;
    let mut is_taken_out = false;
    for look in 0..LOOKS {
        if look > 0 {
            thread::sleep(pause);
            pause *= 2;
        }
        let alone = Alone::before_stop(pid);
        let stopped = match stop(pid, STOP_TRIES_TO_LEAVE) {
            Ok(stopped) => stopped,
            Err(StopError::Gone { .. }) => return Ok(departure.with_its_program()),
            Err(error) => return Err(error.into()),
        };
        let other = alone.first_other(&stopped);
        if let Some(other) = other {
            if !is_taken_out && look == LOOKS - 1 {
                return Err(GateError::Shared { pid, other });
            }
            departure.stays = Some(Stay::Shared);
            continue;
        }
        for descriptor in remains.descriptors.iter().filter(|descriptor| is_open(pid, **descriptor, file)) {
            close(&stopped, *descriptor)?;
            departure.closed += 1;
        }
        // Somebody else may have the addresses by now.
        let there: Vec<&Range<u64>> =
            remains.ranges.iter().filter(|range| is_mapped(pid, range, file)).collect();
        if there.is_empty() {
            return Ok(departure.with_its_program());
        }
        let described = remains.description.as_ref().filter(|described| there.contains(&&described.code));
        if described.is_some() && !is_taken_out {
            let taken = take_out(&stopped, &remains.jumps)?;
            (departure.taken_out, departure.left_alone) = (taken.there, taken.changed);
            // Those that nobody may write back.
            departure.left_alone += remains.functions - remains.jumps.len();
            is_taken_out = true;
        }
        // Those that were inside may have come out since.
        if let Some(description) = described {
            departure.counts = Counts::of_stopped(description, &stopped).ok().flatten();
        }
        departure.stays =
            if remains.is_unknown { Some(Stay::Unknown) } else { use_of(&stopped, described, &there)? };
        let ranges: Vec<Range<u64>> = there.into_iter().cloned().collect();
        departure.stood = departure.stood.max(stopped.release());
        if departure.stays.is_none() {
            // Nobody is in there, and nobody gets there any more: this does not take all threads.
            departure.stays = give_back(pid, file, &ranges)?;
        }
        if !matches!(departure.stays, Some(Stay::Inside)) {
            break;
        }
    }
    Ok(departure)
}

/// What a gate's memory is in use for, if it is.
fn use_of(
    stopped: &Stopped,
    described: Option<&Description>,
    there: &[&Range<u64>],
) -> Result<Option<Stay>, GateError> {
    let all = || there.iter().copied().cloned().collect();
    let code = described.map_or_else(all, |description| vec![description.code.clone()]);
    let words = stopped.find_words(&code)?;
    if words.found.iter().any(|word| leads_back(described, word)) {
        return Ok(Some(Stay::Inside));
    }
    if let Some(description) = described {
        let Description { data, jumps, .. } = description;
        // Also where no stack leads back: it may be one that nobody stands on at the moment.
        let inside = data.start + description.layout().inside();
        if there.contains(&data) && stopped.read(inside, 8)? != [0; 8] {
            return Ok(Some(Stay::Inside));
        }
        // Functions that somebody else has changed may still lead here by way of what they have taken along.
        let is_changed =
            |jump: &Jump| stopped.read(jump.address, JUMP_BYTES).is_ok_and(|is| !jump.is_out(&is));
        if jumps.iter().any(is_changed) {
            return Ok(Some(Stay::Changed));
        }
    }
    Ok(None)
}

/// Takes a gate's memory from the process, which is in no use; gives why not where that cannot be.
fn give_back(pid: u32, file: &File, ranges: &[Range<u64>]) -> Result<Option<Stay>, GateError> {
    match take_back(pid, file, ranges) {
        Ok(()) => Ok(None),
        // A filter that has come since, or threads that wait for a disk.
        Err(GateError::Stop(
            StopError::NoThread { .. }
            | StopError::NoInstruction { .. }
            | StopError::NotInTime { .. }
            | StopError::TooMany { .. },
        )) => Ok(Some(Stay::NoCall)),
        Err(error) => Err(error),
    }
}

/// Whether a word may lead a thread into the gate again. Where calls return to is left over from one that has returned, or is counted
/// as inside.
fn leads_back(described: Option<&Description>, word: &StackWord) -> bool {
    let is_return = described.is_some_and(|description| description.returns.contains(&word.word));
    word.at.is_none() || (word.is_interrupted && !is_return)
}
