//! Taking a gate out: first the jumps into it, then its memory, once nobody is in there any more.

use std::{fs::File, thread, time::Duration};

use super::{
    Description, Gate, GateError,
    entering::take_out,
    memory::{is_mapped, unmap},
    stop,
};
use crate::target::stopped::{StopError, Stopped};

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
    /// Whether its memory is there still, because a thread is in it.
    pub stays: bool,
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
    for look in 0..LOOKS {
        if look > 0 {
            thread::sleep(pause);
            pause *= 2;
        }
        let stopped = match stop(pid) {
            Ok(stopped) => stopped,
            Err(StopError::Gone { .. }) => return Ok(Departure { stays: false, ..departure }),
            Err(error) => return Err(error.into()),
        };
        if !is_mapped(pid, &description.code, file) {
            return Ok(Departure { stays: false, ..departure });
        }
        let taken_out = take_out(&stopped, &description.jumps)?;
        if look == 0 {
            departure.taken_out = taken_out;
            departure.left_alone = description.jumps.len() - taken_out;
        }
        departure.stays = !unmap_if_empty(&stopped, description)?;
        departure.stood = departure.stood.max(stopped.release());
        if !departure.stays {
            break;
        }
    }
    Ok(departure)
}

/// Takes the gate's memory from the process; false where a thread is in there, or may come back to it.
fn unmap_if_empty(stopped: &Stopped, description: &Description) -> Result<bool, GateError> {
    let Description { code, data, .. } = description;
    let inside = stopped.read(data.start + description.layout().inside(), 8)?;
    let is_left = |address: u64| stopped.read(address, 5).is_ok();
    let words = stopped.find_words(std::slice::from_ref(code))?;
    // A call that will never return is counted as inside for ever; then nothing may lead back at all.
    let is_certain = words.found.is_empty() && words.unseen.is_empty();
    if words.has_interrupted() || (inside != [0; 8] && !is_certain) {
        return Ok(false);
    }
    // Functions that somebody else has changed may still lead here by way of what they have taken along.
    for jump in &description.jumps {
        if is_left(jump.address) && stopped.read(jump.address, 5)? != jump.original {
            return Ok(false);
        }
    }
    match unmap(stopped, code).and_then(|()| unmap(stopped, data)) {
        // A filter that has come since.
        Err(StopError::Filtered { .. } | StopError::NoThread { .. }) => Ok(false),
        unmapped => Ok(unmapped.map(|()| true)?),
    }
}
