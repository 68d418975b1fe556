//! Taking a gate out: first the jumps into it, then its memory, once nobody is in there any more.

use std::{fmt, fs::File, thread, time::Duration};

use super::{
    Counts, Description, Gate, GateError, Jump,
    entering::take_out,
    memory::{is_mapped, unmap},
    sharing, stop,
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
    /// What it had counted.
    pub counts: Counts,
    /// Why its memory is there still; `None` where it is gone.
    pub stays: Option<Stay>,
}

/// Why a gate's memory stays where nothing leads to it any more.
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
}

impl fmt::Display for Stay {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Inside => "a call in its sample has not come back yet, or never will",
            Self::Changed => "a function was changed by somebody else, and may lead there",
            Self::NoCall => "none of its threads can make a system call for heaptap, as where calls are filtered (seccomp)",
            Self::Shared => "another process has the same memory",
        })
    }
}

impl Gate {
    /// Takes the gate out of its process. One that has replaced its program, or ended, has none.
    pub fn leave(&self) -> Result<Departure, GateError> {
        leave(self.pid, &self.file, &self.description)
    }
}

/// Takes out the gate that this describes.
pub(super) fn leave(pid: u32, file: &File, description: &Description) -> Result<Departure, GateError> {
    let mut departure = Departure::default();
    let mut pause = FIRST_PAUSE;
    let mut is_taken_out = false;
    for look in 0..LOOKS {
        if look > 0 {
            thread::sleep(pause);
            pause *= 2;
        }
        let stopped = match stop(pid) {
            Ok(stopped) => stopped,
            Err(StopError::Gone { .. }) => return Ok(Departure { stays: None, ..departure }),
            Err(error) => return Err(error.into()),
        };
        if !is_mapped(pid, &description.code, file) {
            return Ok(Departure { stays: None, ..departure });
        }
        let other = sharing::first_of(pid);
        if let Some(other) = other {
            if !is_taken_out && look == LOOKS - 1 {
                return Err(GateError::Shared { pid, other });
            }
            departure.stays = Some(Stay::Shared);
            continue;
        }
        if !is_taken_out {
            let taken = take_out(&stopped, &description.jumps)?;
            (departure.taken_out, departure.left_alone) = (taken.there, taken.changed);
            is_taken_out = true;
            let word = |address| {
                let bytes = stopped.read(address, 8).ok()?;
                bytes.first_chunk().map(|word| u64::from_le_bytes(*word))
            };
            departure.counts = Counts::read(description, word).unwrap_or_default();
        }
        departure.stays = unmap_if_empty(&stopped, description)?;
        departure.stood = departure.stood.max(stopped.release());
        if !matches!(departure.stays, Some(Stay::Inside)) {
            break;
        }
    }
    Ok(departure)
}

/// Takes the gate's memory from the process, unless a thread is in there, or may come back to it.
fn unmap_if_empty(stopped: &Stopped, description: &Description) -> Result<Option<Stay>, GateError> {
    let Description { code, data, .. } = description;
    let inside = stopped.read(data.start + description.layout().inside(), 8)?;
    let words = stopped.find_words(std::slice::from_ref(code))?.found;
    if inside != [0; 8] || words.iter().any(|word| leads_back(stopped, description, word)) {
        return Ok(Some(Stay::Inside));
    }
    // Functions that somebody else has changed may still lead here by way of what they have taken along.
    let is_changed = |jump: &Jump| stopped.read(jump.address, JUMP_BYTES).is_ok_and(|is| !jump.is_out(&is));
    if description.jumps.iter().any(is_changed) {
        return Ok(Some(Stay::Changed));
    }
    match unmap(stopped, code).and_then(|()| unmap(stopped, data)) {
        Err(StopError::NoThread { .. } | StopError::NoInstruction { .. }) => Ok(Some(Stay::NoCall)),
        unmapped => Ok(unmapped.map(|()| None)?),
    }
}

/// Whether a word on a stack may lead a thread into the gate, of whose counted calls none is under way: what returns otherwise, or goes on
/// there when a signal's handler has returned. Others are left over from calls that have returned.
fn leads_back(stopped: &Stopped, description: &Description, word: &StackWord) -> bool {
    let Some(at) = word.at else { return true };
    // Behind the address of the instruction, the kernel has put the flags and the segments (struct sigcontext_64).
    let is_of_handler = || {
        let Ok(behind) = stopped.read(at.saturating_add(8), 16) else { return true };
        let (Some(flags), Some(segment)) = (behind.first_chunk::<8>(), behind.get(8..10)) else {
            return true;
        };
        let flags = u64::from_le_bytes(*flags);
        flags & ALWAYS_SET != 0 && flags < FLAGS_END && segment == USER_CODE.to_le_bytes()
    };
    description.returns.contains(&word.word) || is_of_handler()
}

/// A bit that the flags have always, and the first one that they never have (Intel SDM, volume 1, figure 3-8).
const ALWAYS_SET: u64 = 1 << 1;
const FLAGS_END: u64 = 1 << 22;

/// `__USER_CS`
const USER_CODE: u16 = 0x33;
