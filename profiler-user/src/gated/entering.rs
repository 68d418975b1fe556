//! Putting the jumps in: the only moment at which a gate changes what the process executes.

use std::{
    ops::Range,
    thread,
    time::{Duration, Instant},
};

use super::{
    Description, Gate, GateError, Jump, Prepared, STOP_TRIES, files::is_mapped, prepared::LookedAt,
    sharing::Alone, stop,
};
use crate::target::{cover::JUMP_BYTES, stopped::Stopped};

/// How often it is tried where a thread would return into what is to be covered, and the pause before it is tried again.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(2);

impl Prepared {
    /// Lets the process's calls go through the gate from now on; gives how long it stood still for that.
    ///
    /// # Errors
    ///
    /// All functions are then as they were, and the gate is ready as before.
    pub fn enter(self) -> Result<(Gate, Duration), (GateError, Box<Self>)> {
        match self.try_enter() {
            Ok(stood) => {
                let Self { pid, file, words, description, .. } = self;
                Ok((Gate { pid, file, words, description }, stood))
            }
            Err(error) => Err((error, Box::new(self))),
        }
    }

    fn try_enter(&self) -> Result<Duration, GateError> {
        let began = Instant::now();
        for tries in 1.. {
            let alone = Alone::before_stop(self.pid);
            let stopped = stop(self.pid, STOP_TRIES)?;
            if self.jump(&stopped, alone)? {
                return Ok(stopped.release());
            }
            drop(stopped);
            if tries == TRIES {
                return Err(GateError::Busy { pid: self.pid, tries, waited: began.elapsed() });
            }
            thread::sleep(PAUSE);
        }
        // The loop has no other end.
        Err(GateError::Busy { pid: self.pid, tries: TRIES, waited: began.elapsed() })
    }

    /// Writes the jumps; false where some thread would return into what they cover.
    fn jump(&self, stopped: &Stopped, alone: Alone) -> Result<bool, GateError> {
        let (pid, Description { code, data, .. }) = (self.pid, &self.description);
        // Another program may have the same code at the same addresses.
        if ![code, data].into_iter().all(|range| is_mapped(pid, range, &self.file)) {
            return Err(GateError::Replaced { pid });
        }
        if let Some(other) = alone.first_other(stopped) {
            return Err(GateError::Shared { pid, other });
        }
        let jumps = &self.description.jumps;
        for LookedAt { function, address, bytes } in &self.looked_at {
            let is = stopped.read(*address, bytes.len())?;
            if is != *bytes {
                return Err(GateError::Changed { pid, function: function.clone(), address: *address, is });
            }
        }
        // A thread that stands there goes on in the copy, jump or no jump.
        stopped.move_threads(&self.gates.copies)?;
        let covered: Vec<Range<u64>> =
            jumps.iter().map(|jump| jump.address..jump.address + JUMP_BYTES as u64).collect();
        // What a handler of signals returns to is on its stack, far within what is looked at. No call returns there.
        if stopped.find_words(&covered)?.has_interrupted() {
            return Ok(false);
        }
        for (written, jump) in jumps.iter().enumerate() {
            if let Err(error) = stopped.write_code(jump.address, &jump.jump) {
                take_out(stopped, jumps.get(..=written).unwrap_or(jumps))?;
                return Err(error.into());
            }
        }
        Ok(true)
    }
}

/// How many jumps were put back.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TakenOut {
    /// So many were there.
    pub(super) there: usize,
    /// So many were not, for somebody else has changed what is.
    pub(super) changed: usize,
}

/// Puts back what jumps have taken the place of; leaves alone what is no longer there, or has been changed since.
pub(super) fn take_out(stopped: &Stopped, jumps: &[Jump]) -> Result<TakenOut, GateError> {
    let mut taken = TakenOut::default();
    for jump in jumps {
        // The library may have been unloaded.
        let Ok(is) = stopped.read(jump.address, JUMP_BYTES) else { continue };
        let Some(from) = jump.is_there(&is) else {
            taken.changed += 1;
            continue;
        };
        let rest = jump.original.get(from..).unwrap_or_default();
        stopped.write_code(jump.address + from as u64, rest)?;
        taken.there += 1;
    }
    Ok(taken)
}
