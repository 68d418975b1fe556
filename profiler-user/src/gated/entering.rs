//! Putting the jumps in: the only moment at which a gate changes what the process executes.

use std::{
    ops::Range,
    thread,
    time::{Duration, Instant},
};

use super::{Gate, GateError, Jump, Prepared, STOP_TRIES, stop};
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
            let stopped = stop(self.pid, STOP_TRIES)?;
            if self.jump(&stopped)? {
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
    fn jump(&self, stopped: &Stopped) -> Result<bool, GateError> {
        let jumps = &self.description.jumps;
        for (jump, (function, covered)) in jumps.iter().zip(&self.covered) {
            let is = stopped.read(jump.address, covered.len())?;
            if is != *covered {
                let (pid, function) = (self.pid, function.clone());
                return Err(GateError::Changed { pid, function, address: jump.address, is });
            }
        }
        // A thread that stands there goes on in the copy, jump or no jump.
        stopped.move_threads(&self.gates.copies)?;
        let covered: Vec<Range<u64>> =
            jumps.iter().map(|jump| jump.address..jump.address + JUMP_BYTES as u64).collect();
        // What a handler of signals returns to is on its stack, far within what is looked at.
        if !stopped.find_words(&covered)?.found.is_empty() {
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

/// Puts back what jumps have taken the place of; leaves alone what is no longer there, or has been changed since. Gives how many
/// were there.
pub(super) fn take_out(stopped: &Stopped, jumps: &[Jump]) -> Result<usize, GateError> {
    let mut taken = 0;
    for jump in jumps {
        if stopped.read(jump.address, JUMP_BYTES).is_ok_and(|is| is == jump.jump) {
            stopped.write_code(jump.address, &jump.original)?;
            taken += 1;
        }
    }
    Ok(taken)
}
