//! A gate takes the place of another: with more room, or another interval. No block of the sample is forgotten.

use std::{
    os::unix::fs::FileExt,
    thread,
    time::{Duration, Instant},
};

use super::{Counts, Description, Gate, GateError, Jump, Prepared, STOP_TRIES, memory::unmap, stop};
use crate::{
    gate::table::Table,
    target::{cover::JUMP_BYTES, stopped::Stopped},
};

/// How often it is tried where a thread is in the old gate, and the pause before it is tried again.
const TRIES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(3);

/// Blocks that are in the sample, as somebody else knows them.
pub struct Known {
    /// Their addresses, and those of others that have been freed since.
    pub blocks: Vec<u64>,
    /// How many had no room in the old gate's table before these were looked up.
    pub overflows: u64,
}

impl Prepared {
    /// Lets the process's calls go through this gate instead of `old`, whose memory goes with it. `known` is asked for the blocks that
    /// the old table had no room for, and `at_turn` is called while everything stands still. Gives how long that was, and what the old one
    /// had counted.
    ///
    /// # Errors
    ///
    /// The old gate is then in as before, and this one is ready as before.
    pub fn succeed(
        self,
        old: &Gate,
        known: impl Fn() -> Known,
        at_turn: impl Fn() -> Result<(), GateError>,
    ) -> Result<(Gate, Duration, Counts), (GateError, Box<Self>)> {
        match self.try_succeed(old, known, at_turn) {
            Ok((stood, counts)) => {
                let Self { pid, file, words, description, .. } = self;
                Ok((Gate { pid, file, words, description }, stood, counts))
            }
            Err(error) => Err((error, Box::new(self))),
        }
    }

    fn try_succeed(
        &self,
        old: &Gate,
        known: impl Fn() -> Known,
        at_turn: impl Fn() -> Result<(), GateError>,
    ) -> Result<(Duration, Counts), GateError> {
        let began = Instant::now();
        for _ in 0..TRIES {
            let known = known();
            let stopped = stop(self.pid, STOP_TRIES)?;
            if let Some(counts) = self.turn(old, &known, &stopped)? {
                if let Err(error) = at_turn() {
                    self.turn_back(old, self.description.jumps.len(), &stopped)?;
                    return Err(error);
                }
                // Nobody is in there. Calls go through this gate from now on, whatever becomes of the other's memory.
                let Description { code, data, .. } = &old.description;
                if let Err(error) = unmap(&stopped, code).and_then(|()| unmap(&stopped, data)) {
                    tracing::warn!(%error, "the memory of a gate stays that another has taken the place of");
                }
                return Ok((stopped.release(), counts));
            }
            drop(stopped);
            thread::sleep(PAUSE);
        }
        Err(GateError::Busy { pid: self.pid, tries: TRIES, waited: began.elapsed() })
    }

    /// Leads the jumps here, and gives what the old gate has counted; `None` where a thread is in that, or it has met blocks meanwhile for
    /// which it had no room.
    fn turn(&self, old: &Gate, known: &Known, stopped: &Stopped) -> Result<Option<Counts>, GateError> {
        let (layout, data) = (old.description.layout(), old.description.data.start);
        let Some(counts) = Counts::of_stopped(&old.description, stopped)? else { return Ok(None) };
        let code = std::slice::from_ref(&old.description.code);
        let is_over = |word: u64| old.description.returns.contains(&word);
        if counts.inside != 0
            || counts.overflows != known.overflows
            || stopped.find_words(code)?.found.iter().any(|found| found.at.is_none() || !is_over(found.word))
        {
            return Ok(None);
        }
        let length = (layout.table() - layout.filter() + layout.buckets() * 64) as usize;
        let bytes = stopped.read(data + layout.filter(), length)?;
        let room = || GateError::TooLarge { bytes: length as u64, room: 0 };
        let table = Table::of_bytes(layout, bytes).ok_or_else(room)?;
        self.take_over(&table, known)?;
        for (written, (jump, former)) in self.pairs(old).enumerate() {
            let is = stopped.read(jump.address, JUMP_BYTES)?;
            if is != former.jump {
                // Another tool's breakpoint may be there: it is left alone, with the gate that it was put on.
                self.turn_back(old, written, stopped)?;
                let (pid, function) = (self.pid, "a gated function".to_owned());
                return Err(GateError::Changed { pid, function, address: jump.address, is });
            }
            if let Err(error) = stopped.write_code(jump.address, &jump.jump) {
                self.turn_back(old, written, stopped)?;
                return Err(error.into());
            }
        }
        Ok(Some(counts))
    }

    fn pairs<'gates>(&'gates self, old: &'gates Gate) -> impl Iterator<Item = (&'gates Jump, &'gates Jump)> {
        self.description.jumps.iter().zip(&old.description.jumps)
    }

    /// Leads the first jumps to the old gate again.
    fn turn_back(&self, old: &Gate, written: usize, stopped: &Stopped) -> Result<(), GateError> {
        for (_, former) in self.pairs(old).take(written) {
            stopped.write_code(former.address, &former.jump)?;
        }
        Ok(())
    }

    /// Writes the blocks of the old table into the file, of which the process has no copy of its own yet.
    fn take_over(&self, old: &Table, known: &Known) -> Result<(), GateError> {
        let layout = self.description.layout();
        let mut table = Table::new(layout);
        let lacking = known.blocks.iter().copied().filter(|block| old.may_lack(*block));
        for block in old.blocks().chain(lacking) {
            table.insert(block);
        }
        let begin = self.description.code.end - self.description.code.start;
        self.file
            .write_all_at(table.bytes(), begin + layout.filter())
            .and_then(|()| self.file.write_all_at(&table.overflows.to_le_bytes(), begin + layout.overflows()))
            .map_err(GateError::file(self.pid, "written"))
    }
}
