//! Gates that take the place of others while a recording goes on: with more room, or a longer interval.

use std::sync::Mutex;

use super::{
    follow::{Wanted, attach_to},
    gates::Gates,
    kernel::Kernel,
    recording::{RecordError, Recording, lock},
};
use crate::gated::GateError;

impl Recording {
    /// Gives gates more room whose tables are crowded. To be called now and then; gives how many that were.
    pub fn tend_gates(&self) -> Result<usize, RecordError> {
        let crowded = match &*lock(&self.gates) {
            Some(gates) => gates.crowded(),
            None => return Ok(0),
        };
        for place in &crowded {
            self.succeed(*place, None)?;
        }
        Ok(crowded.len())
    }

    /// Keeps fewer allocations from now on; gives the new mean interval in bytes, or `None` where it cannot be longer.
    ///
    /// Where there are several gates it stays: they would have to change at the same moment.
    pub(super) fn sample_less_behind_gate(&self) -> Result<Option<u64>, RecordError> {
        let Some(interval_bytes) = lock(&self.common.kernel).sampling.next_behind_gate() else {
            return Ok(None);
        };
        let Some(place) = lock(&self.gates).as_ref().and_then(Gates::only) else { return Ok(None) };
        self.succeed(place, Some(interval_bytes))?;
        Ok(Some(interval_bytes))
    }

    fn succeed(&self, place: usize, interval_bytes: Option<u64>) -> Result<(), RecordError> {
        let pid = self.process.pid();
        let old = lock(&self.gates).as_ref().and_then(|gates| gates.code_of(place));
        if let Some(old) = old.clone() {
            self.common.drain.tell(pid, move |learner, _| learner.gate_may_go(&old));
        }
        // The answer comes behind that.
        let space = self.ask(|table| table.space.clone())?;
        let findings = lock(&self.findings);
        let mut kernel = lock(&self.common.kernel);
        if lock(&self.ended).is_some() {
            return Ok(());
        }
        let mut probes = lock(&self.probes);
        let mut gates = lock(&self.gates);
        let Some(gates) = &mut *gates else { return Ok(()) };
        let ready = gates.prepare_successor(place, interval_bytes, &findings)?;
        let wanted = Wanted { gates: ready.sites.clone(), ..Wanted::default() };
        let inherited = self.common.inherited.as_ref();
        probes.extend(attach_to(&kernel, inherited, &self.process, &wanted, &space)?);
        self.teach_gates(std::slice::from_ref(&ready));
        let kernel = Mutex::new(&mut *kernel);
        let blocks = || live_blocks(&lock(&kernel), pid);
        // Nobody is between the gate and its probe at that moment.
        let at_turn = || match interval_bytes {
            Some(interval_bytes) => lock(&kernel)
                .sampling
                .set_behind_gate(interval_bytes)
                .map(drop)
                .map_err(|error| GateError::Turn(Box::new(error))),
            None => Ok(()),
        };
        gates.succeed(place, ready, blocks, at_turn)?;
        if let Some(old) = old {
            self.common.drain.tell(pid, move |learner, _| learner.forget_gate(&old));
        }
        Ok(())
    }
}

/// The addresses of a process's blocks that are in the sample.
fn live_blocks(kernel: &Kernel, pid: u32) -> Vec<u64> {
    let own = |owner: u64| owner as u32 == pid;
    let fresh = kernel.fresh.iter().filter_map(Result::ok).filter(|block| own(block.owner));
    let mut addresses: Vec<u64> = fresh.map(|block| block.address).collect();
    match kernel.live.read() {
        Ok(blocks) => {
            addresses.extend(blocks.iter().filter(|(key, _)| own(key.owner)).map(|(key, _)| key.address));
        }
        Err(error) => {
            tracing::warn!(%error, "blocks for which the gate had no room are taken to be in use for longer");
        }
    }
    addresses
}
