//! One of the gates of a recording, and what it has counted.

use std::cell::Cell;

use super::super::sites::Site;
use crate::gated::{Counts, Gate, GateError, Plan};

/// A thread may be where it is in the way for once, or get no processor in time.
const MOST_FAILURES: u8 = 3;

/// A gate of a recording.
pub(super) struct Entry {
    /// Its allocator's place among those that were found.
    pub(super) allocator: usize,
    pub(super) plan: Plan,
    /// The module that the allocator is in.
    pub(super) module: usize,
    pub(super) gate: Gate,
    pub(super) sites: Vec<Site>,
    /// Whether it is out, or the program has gone that it was in.
    pub(super) is_gone: bool,
    /// How often nothing could take its place.
    pub(super) failures: u8,
    /// What it had counted that is not its own here: for a process of which this is a child, or for the gate whose place it has taken.
    pub(super) before: Counts,
    /// What it had counted when this was last looked at.
    seen: Cell<Counts>,
}

impl Entry {
    /// A gate that counts from now on, by this plan, with its probes at these sites.
    pub(super) fn new(allocator: usize, module: usize, plan: Plan, sites: Vec<Site>, gate: Gate) -> Self {
        let (before, seen) = (Counts::default(), Cell::default());
        Self { allocator, plan, module, gate, sites, is_gone: false, failures: 0, before, seen }
    }

    /// The same gate in a child of its process; `None` where that has it no more.
    pub(super) fn of_child(&self, child: u32) -> Result<Option<Self>, GateError> {
        let Some(gate) = self.gate.of_child(child)?.filter(Gate::is_led_to) else { return Ok(None) };
        let (plan, sites) = (self.plan.clone(), self.sites.clone());
        let mut entry =
            Self { failures: self.failures, ..Self::new(self.allocator, self.module, plan, sites, gate) };
        entry.count_anew();
        Ok(Some(entry))
    }

    /// Whether so often nothing could take its place that this need not be tried again.
    pub(super) const fn is_stuck(&self) -> bool {
        self.failures >= MOST_FAILURES
    }

    /// Counts only what comes from now on.
    pub(super) fn count_anew(&mut self) {
        self.before = self.gate.counts().unwrap_or_default();
        self.seen.set(self.before);
    }

    /// The gate is out, or has gone with its program; it had counted so much where that is known.
    pub(super) fn is_over(&mut self, counts: Option<Counts>) {
        self.look(counts);
        self.is_gone = true;
    }

    /// Takes in what it has counted by now; where its memory is gone, it is not known who was inside.
    fn look(&self, counts: Option<Counts>) {
        self.seen.set(counts.unwrap_or(Counts { inside: 0, ..self.seen.get() }));
    }

    /// What it has counted for this process. Where its memory is gone, what it had when this was last asked.
    pub(super) fn counts(&self) -> Counts {
        if !self.is_gone {
            self.look(self.gate.counts());
        }
        self.seen.get().since(self.before)
    }
}
