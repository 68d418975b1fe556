//! The gates of a recording: which allocators have one, and why the others have none.

mod entry;

mod ready;

mod going;

mod replacing;

use std::{error::Error, sync::Arc, time::Duration};

use profiler_common::counters::{Counter, Counters};

use super::{recording::RecordError, sites::Site};
use crate::{
    causes::with_causes,
    gated::{self, Counts, Departure, Feeder, GateError},
    source::gate::{Gating, Refused, Stood},
};

use entry::Entry;
pub(super) use ready::Ready;

/// What is wanted of gates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GateWish {
    /// The mean number of bytes from one sample to the next.
    pub interval_bytes: u64,
    /// Whether a recording without is not wanted.
    pub is_required: bool,
}

/// The gates of a recording.
pub(super) struct Gates {
    pid: u32,
    wish: GateWish,
    /// Of the process and of its children.
    feeder: Arc<Feeder>,
    /// Those that are in, and those that are gone with their program: their files are kept, for that is how probes are known.
    gates: Vec<Entry>,
    refused: Vec<Refused>,
    /// How many of the refused have been told of.
    told: usize,
    stood: Stood,
    /// What has become of them.
    departures: Vec<Departure>,
    /// What those had counted that others have taken the place of.
    past: Counts,
    /// Why some are in still.
    remain: Vec<String>,
    /// The allocators, with their modules, that had one and were unloaded.
    unloaded: Vec<(usize, usize)>,
}

/// Gates that others had left, and that were taken out.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TakenOver {
    /// How many.
    pub(super) gates: usize,
    /// The longest time that the process stood still.
    pub(super) stood: Duration,
}

/// Takes out what others have left in a process. Whatever way it is recorded: an ordinary probe may not lie where a jump does.
///
/// # Errors
///
/// Somebody else counts by one, or it cannot be taken out.
pub(super) fn take_over(pid: u32) -> Result<TakenOver, GateError> {
    let mut taken = TakenOver::default();
    for left in gated::find(pid)? {
        let departure = left.leave()?;
        taken.stood = taken.stood.max(departure.stood);
        // What nothing leads to any more is as good as gone.
        taken.gates += usize::from(departure.taken_out > 0 || departure.stays.is_none());
    }
    Ok(taken)
}

impl Gates {
    /// Gates for a process, none of them there yet, which has stood still for as long as was `taken` by those before.
    pub(super) fn of(pid: u32, wish: GateWish, taken: TakenOver) -> Result<Self, RecordError> {
        let feeder = Feeder::start().map_err(RecordError::Feeder)?;
        let mut gates = Self::none(pid, wish, Arc::new(feeder));
        gates.stood.leaving = taken.stood;
        Ok(gates)
    }

    fn none(pid: u32, wish: GateWish, feeder: Arc<Feeder>) -> Self {
        Self {
            pid,
            wish,
            feeder,
            gates: Vec::new(),
            refused: Vec::new(),
            told: 0,
            stood: Stood::default(),
            departures: Vec::new(),
            past: Counts::default(),
            remain: Vec::new(),
            unloaded: Vec::new(),
        }
    }

    /// The gates of a child of the process, which it has from that: there is nothing to be put in.
    pub(super) fn of_child(&self, child: u32) -> Self {
        let mut gates = Self::none(child, self.wish, Arc::clone(&self.feeder));
        gates.refused.clone_from(&self.refused);
        gates.told = self.refused.len();
        gates.unloaded.clone_from(&self.unloaded);
        for entry in &self.gates {
            match entry.of_child(child) {
                Ok(Some(entry)) => {
                    gates.feeder.add(entry.gate.feed(self.wish.interval_bytes));
                    gates.gates.push(entry);
                }
                Ok(None) => {}
                Err(error) => {
                    let error: &dyn Error = &error;
                    tracing::warn!(error, "process {child} keeps its gate");
                }
            }
        }
        gates
    }

    /// Whether an allocator is not to be gated.
    fn is_refused(&self, allocator: usize) -> bool {
        self.refused.iter().any(|refused| refused.allocator == allocator)
    }

    /// Whether there may be nothing at all: where a gate is required, and one was refused.
    pub(super) fn require(&self) -> Result<(), RecordError> {
        if self.wish.is_required && !self.refused.is_empty() { Err(self.not_gated()) } else { Ok(()) }
    }

    /// The allocators that are counted by ordinary probes: of those at the places, those that are neither gated nor to be so or not at all.
    pub(super) fn ungated(&self, places: &[usize], ready: &[Ready]) -> Vec<usize> {
        let is_ready = |place: usize| ready.iter().any(|ready| ready.allocator == place);
        places.iter().copied().filter(|place| !is_ready(*place) && !self.is_left_out(*place)).collect()
    }

    /// Whether an allocator is not counted at all: it cannot be gated, and was to be.
    pub(super) fn is_left_out(&self, place: usize) -> bool {
        self.wish.is_required && self.is_refused(place)
    }

    /// Those that were refused since this was last asked, for people.
    pub(super) fn news(&mut self) -> Vec<String> {
        let news = self.refused.get(self.told..).unwrap_or_default();
        let behind = if self.wish.is_required {
            "it is not counted at all (--gate=require)"
        } else {
            "it has ordinary probes"
        };
        let news = news.iter().map(|refused| format!("{refused}; {behind}")).collect();
        self.told = self.refused.len();
        news
    }

    fn refuse(&mut self, label: &str, allocator: usize, functions: usize, error: &(dyn Error + 'static)) {
        let reason = with_causes(error);
        self.refused.push(Refused { label: label.to_owned(), allocator, functions, reason });
    }

    fn not_gated(&self) -> RecordError {
        let reasons: Vec<String> = self.refused.iter().map(ToString::to_string).collect();
        RecordError::NotGated { pid: self.pid, reasons: reasons.join("; ") }
    }

    /// The allocators that have one, by their places.
    pub(super) fn allocators(&self) -> impl Iterator<Item = usize> {
        self.gates.iter().filter(|entry| !entry.is_gone).map(|entry| entry.allocator)
    }

    /// Where programs are to run in those that are in.
    pub(super) fn sites(&self) -> Vec<Site> {
        let there = self.gates.iter().filter(|entry| !entry.is_gone);
        there.flat_map(|entry| entry.sites.iter().cloned()).collect()
    }

    /// Adds what they have counted themselves.
    pub(super) fn count(&self, counters: &mut Counters) {
        let mut all = self.past;
        self.gates.iter().for_each(|entry| all.add(entry.counts()));
        counters.add(Counter::GateOverflows, all.overflows);
        counters.add(Counter::GateLostBudgets, all.lost_budgets);
        // What resizes nothing is seen when it has come back; the gate knows of the others.
        let away = counters.get(Counter::GateCalls).saturating_sub(counters.get(Counter::GateReturns));
        counters.add(Counter::GateCalls, all.inside.saturating_sub(away));
    }

    /// How they are.
    pub(super) fn gating(&self, labels: &[String]) -> Gating {
        let mut gated: Vec<(usize, (String, usize))> = Vec::new();
        for entry in &self.gates {
            // One may have had several, one after the other.
            if gated.iter().all(|(allocator, _)| *allocator != entry.allocator) {
                let label = labels.get(entry.allocator).cloned().unwrap_or_default();
                gated.push((entry.allocator, (label, entry.gate.functions())));
            }
        }
        Gating {
            interval_bytes: self.wish.interval_bytes,
            gated: gated.into_iter().map(|(_, gated)| gated).collect(),
            refused: self.refused.clone(),
            stood: self.stood,
            stays: self.departures.iter().filter_map(|departure| departure.stays).collect(),
            remain: self.remain.clone(),
            left_alone: self.departures.iter().map(|departure| departure.left_alone).sum(),
        }
    }
}
