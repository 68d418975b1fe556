//! How a recording is going: the numbers of the live line, and what it costs the process.

use profiler_common::{
    counters::{Counters, REGISTRY, Severity},
    heap::Totals,
};

use super::{
    super::{kernel::map_refused, meter::Meter, stacks::StackTable},
    RecordError, Recording, lock,
};
use crate::source::cost::Cost;

/// The numbers of the live line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vitals {
    /// Blocks allocated since the recording began.
    pub alloc_objects: u64,
    /// Blocks freed since then, of those allocated since then.
    pub freed_objects: u64,
    /// Bytes in use, of those allocated since then.
    pub inuse_bytes: u64,
    /// Distinct stacks.
    pub stacks: usize,
    /// Sum of the counters that speak of a loss.
    pub losses: u64,
    /// What was lost or guessed.
    pub counters: Counters,
}

impl Recording {
    /// Whether anything may have changed since this was last asked: a process that sleeps allocates nothing.
    pub fn may_have_changed(&self) -> bool {
        lock(&self.activity).look() || self.follows_children()
    }

    /// How the recording is going. What the process has resident is noted, in case that it ends.
    pub fn vitals(&self) -> Result<Vitals, RecordError> {
        let look = |table: &StackTable| {
            let mapped: Vec<Totals> = table.mappings.totals().map(|(_, totals)| totals).collect();
            (table.stacks().len(), mapped, table.counters())
        };
        let (stacks, mapped, guessed) = self.ask(look)?;
        let kernel = lock(&self.common.kernel);
        let pid = self.process.pid();
        let mut vitals = Vitals { stacks, ..Vitals::default() };
        for totals in self.totals(&kernel)?.entries.into_iter().map(|(_, totals)| totals).chain(mapped) {
            vitals.alloc_objects += totals.alloc_objects;
            vitals.freed_objects += totals.freed_objects;
            vitals.inuse_bytes += totals.alloc_bytes.saturating_sub(totals.freed_bytes);
        }
        if let Some(meter) = &self.meter {
            meter.note(vitals.alloc_objects, vitals.freed_objects);
        }
        let mut counters = kernel.counters.get(&pid, 0).map_err(map_refused("COUNTERS"))?;
        counters.add_all(&guessed);
        if let Some(gates) = &*lock(&self.gates) {
            gates.count(&mut counters);
        }
        let losses = REGISTRY.iter().filter(|description| description.severity == Severity::Loss);
        vitals.losses = losses.map(|description| counters.get(description.counter)).sum();
        vitals.counters = counters;
        if let (None, Some(watch)) = (*lock(&self.ended), &mut *lock(&self.watch)) {
            watch.note(vitals.inuse_bytes);
        }
        Ok(vitals)
    }

    /// What it has cost the process so far; with children, what it has cost all of them. `None` where that is not known, or not
    /// yet.
    pub fn cost(&self) -> Option<Cost> {
        self.meter.as_ref().and_then(Meter::cost)
    }
}
