//! The gates of a recording: which allocators have one, and why the others have none.

use std::{error::Error, ops::Range, path::PathBuf, sync::Arc, time::Duration};

use profiler_common::counters::{Counter, Counters};

use super::{
    recording::RecordError,
    sites::{Site, behind_gate},
};
use crate::{
    gate::{
        code::{Frame, Function},
        plan::{self, Obstacle},
    },
    gated::{self, Counts, Departure, Feeder, Gate, GateError, Known, Plan, Prepared},
    source::gate::{Gating, Refused},
    target::{
        allocator::{Allocator, Findings},
        maps::{AddressSpace, Content},
        process::ProcessError,
    },
};

/// What is wanted of gates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GateWish {
    /// The mean number of bytes from one sample to the next.
    pub interval_bytes: u64,
    /// Whether a recording without is not wanted.
    pub is_required: bool,
}

/// More blocks than this are not expected: the table has room for them, and what has none costs more and is counted.
const MOST_BLOCKS: u64 = 1 << 17;

/// So many blocks without room make a table crowded: each has a bucket of which all frees are let through.
const CROWDED: u64 = 64;

/// What a process's table is sized by, beside what it has resident: it may grow.
const BLOCKS_TO_COME: u64 = 1 << 12;

/// A gate that is ready: the probes can go in, and then the jumps. Dropping it takes its memory from the process again.
pub(super) struct Ready {
    /// The allocator's place among those that were found.
    pub(super) allocator: usize,
    module: usize,
    prepared: Option<Prepared>,
    plan: Plan,
    pub(super) sites: Vec<Site>,
}

impl Ready {
    /// Its calls, for those who walk stacks.
    pub(super) fn frames(&self) -> &[Frame] {
        self.prepared.as_ref().map(Prepared::frames).unwrap_or_default()
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        if let Some(prepared) = self.prepared.take() {
            withdraw(prepared);
        }
    }
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
    /// The longest time that the process stood still.
    stood: Duration,
    /// What has become of them.
    departures: Vec<Departure>,
    /// What those had counted that others have taken the place of.
    past: Counts,
    /// Why some are in still.
    remain: Vec<String>,
    /// The allocators, with their modules, that had one and were unloaded.
    unloaded: Vec<(usize, usize)>,
}

struct Entry {
    allocator: usize,
    plan: Plan,
    /// The module that the allocator is in.
    module: usize,
    gate: Gate,
    sites: Vec<Site>,
    /// Whether it is out, or the program has gone that it was in.
    is_gone: bool,
    /// Whether nothing could take its place, so that this need not be tried again.
    is_stuck: bool,
    /// What it had counted for another process, of which this is a child.
    before: Counts,
    /// What it had counted when it was taken out.
    last: Option<Counts>,
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
        gates.stood = taken.stood;
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
            stood: Duration::ZERO,
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
            let gate = match entry.gate.of_child(child) {
                Ok(Some(gate)) => gate,
                Ok(None) => continue,
                Err(error) => {
                    let error: &dyn Error = &error;
                    tracing::warn!(error, "process {child} keeps its gate");
                    continue;
                }
            };
            if !gate.is_led_to() {
                continue;
            }
            gates.feeder.add(gate.feed(self.wish.interval_bytes));
            let before = gate.counts().unwrap_or_default();
            let (plan, sites) = (entry.plan.clone(), entry.sites.clone());
            let Entry { allocator, module, is_stuck, .. } = *entry;
            let (is_gone, last) = (false, None);
            gates.gates.push(Entry { allocator, plan, module, gate, sites, is_gone, is_stuck, before, last });
        }
        gates
    }

    /// Whether an allocator is not to be gated.
    fn is_refused(&self, allocator: usize) -> bool {
        self.refused.iter().any(|refused| refused.allocator == allocator)
    }

    /// Makes gates ready for those of the allocators at these places that are mapped; notes why not for the others.
    pub(super) fn prepare(
        &mut self,
        findings: &Findings,
        places: &[usize],
        space: &AddressSpace,
        rss_bytes: u64,
    ) -> Vec<Ready> {
        let mut ready = Vec::new();
        let found = findings.numbered().enumerate().filter(|(place, _)| places.contains(place));
        for (place, (number, allocator)) in found {
            if allocator.family.gives_mappings || !space.has(allocator.module) || self.is_refused(place) {
                continue;
            }
            match self.prepare_one(place, number, allocator, space, rss_bytes) {
                Ok((one, stood)) => {
                    self.stood = self.stood.max(stood);
                    ready.push(one);
                }
                Err(error) => {
                    let functions =
                        allocator.hooks.iter().filter(|hook| plan::takes_part(hook.shape)).count();
                    self.refuse(&allocator.label(space), place, functions, &error);
                }
            }
        }
        ready
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

    fn prepare_one(
        &self,
        place: usize,
        number: u8,
        allocator: &Allocator,
        space: &AddressSpace,
        rss_bytes: u64,
    ) -> Result<(Ready, Duration), Hindrance> {
        let planned = plan::of(allocator, space).map_err(Hindrance::Plan)?;
        let (places, functions): (Vec<usize>, Vec<Function>) = planned.into_iter().unzip();
        let hook = |place: &usize| allocator.hooks.get(*place);
        let names = places.iter().filter_map(hook).map(|hook| hook.names.join(", ")).collect();
        let expected = (rss_bytes / self.wish.interval_bytes.max(1)).saturating_add(BLOCKS_TO_COME);
        let plan = Plan {
            module: whole(space, allocator.module),
            functions,
            names,
            interval_bytes: self.wish.interval_bytes,
            blocks: expected.min(MOST_BLOCKS),
        };
        self.ready(place, allocator.module, number, plan)
    }

    /// Makes a gate ready by a plan.
    fn ready(
        &self,
        place: usize,
        module: usize,
        number: u8,
        plan: Plan,
    ) -> Result<(Ready, Duration), Hindrance> {
        let prepared = Prepared::make(self.pid, &plan)?;
        let path = prepared.path();
        let sites = prepared
            .sites()
            .filter_map(|(site, offset)| {
                let function = plan.functions.get(site.function)?;
                let name = plan.names.get(site.function)?.clone();
                Some(behind_gate(function.shape, number, site.stop, name, PathBuf::from(&path), offset))
            })
            .collect();
        let stood = prepared.stood;
        Ok((Ready { allocator: place, module, prepared: Some(prepared), plan, sites }, stood))
    }

    /// Puts those in that are ready; gives the places of the allocators that are to have ordinary probes, as that could not be done.
    pub(super) fn enter(&mut self, ready: Vec<Ready>, labels: &[String]) -> Vec<usize> {
        let mut failed = Vec::new();
        for mut one in ready {
            let (allocator, module, sites) = (one.allocator, one.module, std::mem::take(&mut one.sites));
            let plan = one.plan.clone();
            let Some(prepared) = one.prepared.take() else { continue };
            let fed = prepared.feed(self.wish.interval_bytes);
            match prepared.enter() {
                Ok((gate, stood)) => {
                    self.stood = self.stood.max(stood);
                    self.feeder.add(fed);
                    let before = Counts::default();
                    let (is_gone, is_stuck) = (false, false);
                    self.gates.push(Entry {
                        allocator,
                        plan,
                        module,
                        gate,
                        sites,
                        is_gone,
                        is_stuck,
                        before,
                        last: None,
                    });
                }
                Err((error, prepared)) => {
                    let label = labels.get(allocator).map_or("?", String::as_str);
                    self.refuse(label, allocator, prepared.sites().count(), &error);
                    withdraw(*prepared);
                    failed.push(allocator);
                }
            }
        }
        if self.wish.is_required {
            failed.clear();
        }
        failed
    }

    fn refuse(&mut self, label: &str, allocator: usize, functions: usize, error: &dyn Error) {
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

    /// The program has gone, and they with it, but for those that were put into the next one already. Gives the places of the
    /// allocators that they were for.
    pub(super) fn program_has_gone(&mut self) -> Vec<usize> {
        let mut places = Vec::new();
        for entry in self.gates.iter_mut().filter(|entry| !entry.is_gone && !entry.gate.is_mapped()) {
            entry.is_gone = true;
            places.push(entry.allocator);
        }
        places.extend(self.unloaded.drain(..).map(|(place, _)| place));
        // Another program may have what this one had not.
        self.refused.clear();
        self.told = 0;
        places
    }

    /// Takes those out whose library was unloaded. Gives the places of the allocators that are there again, without one.
    pub(super) fn unloaded(&mut self, space: &AddressSpace) -> Vec<usize> {
        for place in 0..self.gates.len() {
            let Some(entry) = self.gates.get_mut(place).filter(|entry| !entry.is_gone) else { continue };
            if entry.gate.is_led_to() {
                continue;
            }
            let (gone, pid) = ((entry.allocator, entry.module), self.pid);
            // There is nothing to be put back, which is not told of.
            match entry.gate.leave() {
                Ok(departure) => {
                    entry.last = Some(departure.counts);
                    self.departures.push(Departure { left_alone: 0, ..departure });
                }
                Err(error) => {
                    let error: &dyn Error = &error;
                    tracing::warn!(error, pid, "the gate of a library that was unloaded stays");
                }
            }
            entry.is_gone = true;
            self.unloaded.push(gone);
        }
        let again: Vec<usize> =
            self.unloaded.iter().filter(|(_, module)| space.has(*module)).map(|(place, _)| *place).collect();
        self.unloaded.retain(|(_, module)| !space.has(*module));
        again
    }

    /// Adds what they have counted themselves.
    pub(super) fn count(&self, counters: &mut Counters) {
        counters.add(Counter::GateOverflows, self.past.overflows);
        counters.add(Counter::GateLostBudgets, self.past.lost_budgets);
        for counts in self.gates.iter().filter_map(Entry::counts) {
            counters.add(Counter::GateOverflows, counts.overflows);
            counters.add(Counter::GateLostBudgets, counts.lost_budgets);
        }
    }

    /// Takes them all out.
    pub(super) fn leave(&mut self) {
        for entry in self.gates.iter_mut().filter(|entry| !entry.is_gone) {
            match entry.gate.leave() {
                Ok(departure) => {
                    self.stood = self.stood.max(departure.stood);
                    entry.last = Some(departure.counts);
                    self.departures.push(departure);
                }
                Err(error) => {
                    self.remain.push(with_causes(&error));
                }
            }
            entry.is_gone = true;
        }
    }

    /// The places of those that are in, among all, for which there should be more room.
    pub(super) fn crowded(&self) -> Vec<usize> {
        let is_crowded = |entry: &Entry| {
            let has_more = entry.gate.layout().larger().is_some();
            !entry.is_gone
                && !entry.is_stuck
                && has_more
                && entry.counts().is_some_and(|counts| counts.overflows >= CROWDED)
        };
        let places = self.gates.iter().enumerate().filter(|(_, entry)| is_crowded(entry));
        places.map(|(place, _)| place).collect()
    }

    /// The place of the one that is in, where it is the only one.
    pub(super) fn only(&self) -> Option<usize> {
        let mut there = self.gates.iter().enumerate().filter(|(_, entry)| !entry.is_gone);
        there.next().filter(|_| there.next().is_none()).map(|(place, _)| place)
    }

    /// Makes a gate ready that is to take the place of another one, with more room or another interval.
    pub(super) fn prepare_successor(
        &self,
        place: usize,
        interval_bytes: Option<u64>,
        findings: &Findings,
    ) -> Result<Ready, RecordError> {
        let ended = || RecordError::Process(ProcessError::Gone { pid: self.pid });
        let entry = self.gates.get(place).ok_or_else(ended)?;
        let (number, _) = findings.numbered().nth(entry.allocator).ok_or_else(ended)?;
        let mut plan = entry.plan.clone();
        match interval_bytes {
            Some(interval_bytes) => plan.interval_bytes = interval_bytes,
            None => plan.blocks = entry.gate.layout().larger().unwrap_or(plan.blocks),
        }
        match self.ready(entry.allocator, entry.module, number, plan) {
            Ok((ready, _)) => Ok(ready),
            Err(Hindrance::Gate(error)) => Err(error.into()),
            Err(Hindrance::Plan(_)) => Err(ended()),
        }
    }

    /// Has one that is ready take the place of another one. `blocks` gives those in the sample, and `at_turn` is called when it counts.
    pub(super) fn succeed(
        &mut self,
        place: usize,
        mut ready: Ready,
        blocks: impl Fn() -> Vec<u64>,
        at_turn: impl Fn() -> Result<(), GateError>,
    ) -> Result<(), RecordError> {
        let Some(entry) = self.gates.get_mut(place) else { return Ok(()) };
        let Some(prepared) = ready.prepared.take() else { return Ok(()) };
        let old = entry.counts().unwrap_or_default();
        let known = || {
            // First the count, for what comes behind it is then noticed.
            let overflows = entry.gate.counts().unwrap_or_default().overflows;
            Known { blocks: blocks(), overflows }
        };
        let fed = prepared.feed(ready.plan.interval_bytes);
        match prepared.succeed(&entry.gate, known, at_turn) {
            Ok((gate, stood)) => {
                self.past.add(old);
                self.stood = self.stood.max(stood);
                self.wish.interval_bytes = ready.plan.interval_bytes;
                self.feeder.add(fed);
                // What it lacks from the beginning, the old one has counted.
                entry.before = gate.counts().unwrap_or_default();
                entry.gate = gate;
                entry.plan = ready.plan.clone();
                entry.sites = std::mem::take(&mut ready.sites);
                Ok(())
            }
            Err((error, prepared)) => {
                entry.is_stuck = true;
                withdraw(*prepared);
                Err(error.into())
            }
        }
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

impl Entry {
    /// What it has counted for this process; `None` where its memory is gone.
    fn counts(&self) -> Option<Counts> {
        let now = || self.gate.counts().filter(|_| !self.is_gone);
        let counts = self.last.or_else(now)?;
        Some(Counts {
            inside: counts.inside,
            overflows: counts.overflows.saturating_sub(self.before.overflows),
            lost_budgets: counts.lost_budgets.saturating_sub(self.before.lost_budgets),
        })
    }
}

impl Drop for Gates {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Why an allocator has no gate.
#[derive(Debug, thiserror::Error)]
enum Hindrance {
    /// Its functions are not such that there can be one.
    #[error("{}", all(.0))]
    Plan(Vec<Obstacle>),
    /// There could, and it cannot be put in.
    #[error(transparent)]
    Gate(#[from] GateError),
}

/// An error with all that has led to it.
fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text += &format!(": {next}");
        cause = next.source();
    }
    text
}

fn all(obstacles: &[Obstacle]) -> String {
    obstacles.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// From where a module is mapped to where it ends.
fn whole(space: &AddressSpace, module: usize) -> Range<u64> {
    let ranges = || space.current().filter(|range| range.content == Content::Module(module));
    let start = ranges().map(|range| range.start).min().unwrap_or_default();
    start..ranges().map(|range| range.end).max().unwrap_or_default()
}

fn withdraw(prepared: Prepared) {
    if let Err(error) = prepared.withdraw() {
        let error: &dyn Error = &error;
        tracing::warn!(error, "memory that was to be a gate stays; `heaptap detach` takes it out");
    }
}
