//! The gates of a recording: which allocators have one, and why the others have none.

use std::{ops::Range, path::PathBuf, time::Duration};

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
    gated::{self, Departure, Feeder, Gate, GateError, Plan, Prepared},
    source::gate::{Gating, Refused},
    target::{
        allocator::{Allocator, Findings},
        maps::{AddressSpace, Content},
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

/// What a process's table is sized by, beside what it has resident: it may grow.
const BLOCKS_TO_COME: u64 = 1 << 12;

/// A gate that is ready: the probes can go in, and then the jumps. Dropping it takes its memory from the process again.
pub(super) struct Ready {
    /// The allocator's place among those that were found.
    pub(super) allocator: usize,
    prepared: Option<Prepared>,
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
    feeder: Feeder,
    /// Those that are in, and those that are gone with their program: their files are kept, for that is how probes are known.
    gates: Vec<Entry>,
    refused: Vec<Refused>,
    /// Those that others had left.
    removed: usize,
    /// The longest time that the process stood still.
    stood: Duration,
    /// What has become of them.
    departures: Vec<Departure>,
}

/// What was taken out that somebody had left.
pub(super) struct Taken {
    gates: usize,
    stood: Duration,
}

/// Takes out of a process what somebody has left there.
pub(super) fn take_over(pid: u32) -> Result<Taken, GateError> {
    let mut taken = Taken { gates: 0, stood: Duration::ZERO };
    for left in gated::find(pid)? {
        let departure = left.leave()?;
        let (functions, stays) = (departure.taken_out, departure.stays.map(|reason| reason.to_string()));
        tracing::warn!(
            pid,
            functions,
            stays,
            "an earlier heaptap was killed, and had left a gate: it is taken out"
        );
        taken.stood = taken.stood.max(departure.stood);
        taken.gates += 1;
    }
    Ok(taken)
}

struct Entry {
    allocator: usize,
    gate: Gate,
    sites: Vec<Site>,
    /// Whether the program has gone that it was in.
    is_gone: bool,
}

impl Gates {
    /// Gates for a process, none of them there yet, nor those that were `left`.
    pub(super) fn of(pid: u32, wish: GateWish, left: Taken) -> Result<Self, RecordError> {
        let feeder = Feeder::start().map_err(RecordError::Feeder)?;
        Ok(Self {
            pid,
            wish,
            feeder,
            gates: Vec::new(),
            refused: Vec::new(),
            removed: left.gates,
            stood: left.stood,
            departures: Vec::new(),
        })
    }

    /// Whether it was found that an allocator cannot be gated.
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
    ) -> Result<Vec<Ready>, RecordError> {
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
        if self.wish.is_required && !self.refused.is_empty() {
            return Err(self.not_gated());
        }
        Ok(ready)
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
        Ok((Ready { allocator: place, prepared: Some(prepared), sites }, stood))
    }

    /// Puts those in that are ready; gives the places of the allocators for which that could not be done.
    pub(super) fn enter(&mut self, ready: Vec<Ready>, labels: &[String]) -> Result<Vec<usize>, RecordError> {
        let mut failed = Vec::new();
        for mut one in ready {
            let (allocator, sites) = (one.allocator, std::mem::take(&mut one.sites));
            let Some(prepared) = one.prepared.take() else { continue };
            let fed = prepared.feed(self.wish.interval_bytes);
            match prepared.enter() {
                Ok((gate, stood)) => {
                    self.stood = self.stood.max(stood);
                    self.feeder.add(fed);
                    self.gates.push(Entry { allocator, gate, sites, is_gone: false });
                }
                Err((error, prepared)) => {
                    let label = labels.get(allocator).map_or("?", String::as_str);
                    self.refuse(label, allocator, prepared.sites().count(), &error);
                    withdraw(*prepared);
                    failed.push(allocator);
                }
            }
        }
        if self.wish.is_required && !failed.is_empty() {
            self.leave();
            return Err(self.not_gated());
        }
        Ok(failed)
    }

    fn refuse(&mut self, label: &str, allocator: usize, functions: usize, error: &dyn std::fmt::Display) {
        let reason = error.to_string();
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

    /// The program has gone, and they with it.
    pub(super) fn program_has_gone(&mut self) {
        for entry in &mut self.gates {
            entry.is_gone = true;
        }
        // Another program may have what this one had not.
        self.refused.clear();
    }

    /// Adds what they have counted themselves.
    pub(super) fn count(&self, counters: &mut Counters) {
        for counts in self.gates.iter().filter(|entry| !entry.is_gone).filter_map(|entry| entry.gate.counts())
        {
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
                    self.departures.push(departure);
                }
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(error, pid = self.pid, "the gate stays in; `heaptap detach` takes it out");
                }
            }
            entry.is_gone = true;
        }
    }

    /// How they are.
    pub(super) fn gating(&self, labels: &[String]) -> Gating {
        let gated = self.gates.iter().map(|entry| {
            let label = labels.get(entry.allocator).cloned().unwrap_or_default();
            (label, entry.gate.functions())
        });
        Gating {
            interval_bytes: self.wish.interval_bytes,
            gated: gated.collect(),
            refused: self.refused.clone(),
            removed: self.removed,
            stood: self.stood,
            stays: self.departures.iter().filter_map(|gone| Some(gone.stays?.to_string())).collect(),
            left_alone: self.departures.iter().map(|departure| departure.left_alone).sum(),
        }
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
        let error: &dyn std::error::Error = &error;
        tracing::warn!(error, "memory that was to be a gate stays; `heaptap detach` takes it out");
    }
}
