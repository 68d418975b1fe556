//! Taking a gate out: first the jumps into it, then its memory, once nobody is in there any more.

use std::{fmt, fs::File, ops::Range, thread, time::Duration};

use super::{
    Description, Gate, GateError, Jump, STOP_TRIES_TO_LEAVE,
    entering::take_out,
    files::{is_mapped, is_open},
    memory::{close, unmap},
    stop,
};
use crate::target::{
    cover::JUMP_BYTES,
    stopped::{StopError, Stopped},
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
    /// How many were not: somebody else has changed them since, or their library has gone.
    pub left_alone: usize,
    /// How many descriptors were open still, and are closed.
    pub closed: usize,
    /// Why its memory is there still.
    pub stays: Option<Stays>,
}

/// Why a gate's memory stays in its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stays {
    /// A thread is in it, or may come back to it.
    Inside,
    /// A function may still lead there.
    LedTo,
    /// The process can make no system call for us.
    NoCall,
    /// It does not say what it has changed, or not so that we understand it.
    Unknown,
}

impl fmt::Display for Stays {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Inside => "a thread is in it, or may come back to it",
            Self::LedTo => {
                "a function that it was put in front of is not what it was, and may still lead there"
            }
            Self::NoCall => "the process has its system calls filtered by now",
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

impl Gate {
    /// Takes the gate out of its process. One that has replaced its program, or ended, has none.
    pub fn leave(&self) -> Result<Departure, GateError> {
        let Description { code, data, jumps, .. } = &self.description;
        let remains = Remains {
            functions: jumps.len(),
            jumps: jumps.clone(),
            ranges: vec![code.clone(), data.clone()],
            description: Some(self.description.clone()),
            ..Remains::default()
        };
        leave(self.pid, &self.file, &remains)
    }
}

/// Takes out what there is of the gate that has this file.
pub(super) fn leave(pid: u32, file: &File, remains: &Remains) -> Result<Departure, GateError> {
    let mut departure = Departure { left_alone: remains.functions, ..Departure::default() };
    let mut pause = FIRST_PAUSE;
    for look in 0..LOOKS {
        if look > 0 {
            thread::sleep(pause);
            pause *= 2;
        }
        let stopped = match stop(pid, STOP_TRIES_TO_LEAVE) {
            Ok(stopped) => stopped,
            Err(StopError::Gone { .. }) => return Ok(Departure { stays: None, ..departure }),
            Err(error) => return Err(error.into()),
        };
        for descriptor in remains.descriptors.iter().filter(|descriptor| is_open(pid, **descriptor, file)) {
            close(&stopped, *descriptor)?;
            departure.closed += 1;
        }
        // Somebody else may have the addresses by now.
        let there: Vec<&Range<u64>> =
            remains.ranges.iter().filter(|range| is_mapped(pid, range, file)).collect();
        if there.is_empty() {
            return Ok(Departure { stays: None, ..departure });
        }
        let described = remains.description.as_ref().filter(|described| there.contains(&&described.code));
        if described.is_some() {
            let taken_out = take_out(&stopped, &remains.jumps)?;
            if look == 0 {
                departure.taken_out = taken_out;
                departure.left_alone = remains.functions - taken_out;
            }
        }
        departure.stays = if remains.is_unknown {
            Some(Stays::Unknown)
        } else {
            unmap_if_empty(&stopped, described, &there)?
        };
        departure.stood = departure.stood.max(stopped.release());
        if departure.stays != Some(Stays::Inside) {
            break;
        }
    }
    Ok(departure)
}

/// Takes a gate's memory from the process; gives why not where it is in use.
fn unmap_if_empty(
    stopped: &Stopped,
    described: Option<&Description>,
    there: &[&Range<u64>],
) -> Result<Option<Stays>, GateError> {
    if let Some(description) = described {
        let Description { data, jumps, .. } = description;
        if there.contains(&data) && stopped.read(data.start + description.layout().inside(), 8)? != [0; 8] {
            return Ok(Some(Stays::Inside));
        }
        // Functions that somebody else has changed may still lead here by way of what they have taken along.
        let is_other = |address: u64, original: &[u8]| {
            stopped.read(address, JUMP_BYTES).is_ok_and(|bytes| bytes != original)
        };
        if jumps.iter().any(|jump| is_other(jump.address, &jump.original)) {
            return Ok(Some(Stays::LedTo));
        }
    }
    let ranges: Vec<Range<u64>> = there.iter().copied().cloned().collect();
    let code = described.map_or_else(|| ranges.clone(), |description| vec![description.code.clone()]);
    // Nobody is inside who would be counted: of a call that is over, the address may lie about where a function has yet to write.
    let is_over = |word: u64| described.is_some_and(|description| description.returns.contains(&word));
    if stopped.find_words(&code)?.found.iter().any(|found| found.at.is_none() || !is_over(found.word)) {
        return Ok(Some(Stays::Inside));
    }
    for range in ranges {
        match unmap(stopped, &range) {
            Ok(()) => {}
            // A filter that has come since.
            Err(StopError::Filtered { .. } | StopError::NoThread { .. }) => return Ok(Some(Stays::NoCall)),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}
