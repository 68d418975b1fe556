//! Gates that are ready: made by a plan and with their memory in the process, where nothing leads to them yet.

use std::{error::Error, ops::Range, path::PathBuf, time::Duration};

use super::{
    super::sites::{Site, behind_gate},
    Gates,
};
use crate::{
    gate::{
        code::{Frame, Function},
        plan::{self, Obstacle},
    },
    gated::{GateError, Plan, Prepared},
    source::gate::Stood,
    target::{
        allocator::{Allocator, Findings},
        maps::{AddressSpace, Content},
    },
};

/// More blocks than this are not expected: the table has room for them, and what has none costs more and is counted.
const MOST_BLOCKS: u64 = 1 << 17;

/// What a process's table is sized by, beside what it has resident: it may grow.
const BYTES_TO_COME: u64 = 16 << 20;

/// A gate that is ready: the probes can go in, and then the jumps. Dropping it takes its memory from the process again.
pub(in super::super) struct Ready {
    /// The allocator's place among those that were found.
    pub(in super::super) allocator: usize,
    pub(super) module: usize,
    pub(super) prepared: Option<Prepared>,
    pub(super) plan: Plan,
    pub(in super::super) sites: Vec<Site>,
}

impl Ready {
    /// Its calls, for those who walk stacks.
    pub(in super::super) fn frames(&self) -> &[Frame] {
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

/// Why an allocator has no gate.
#[derive(Debug, thiserror::Error)]
pub(super) enum Hindrance {
    /// Its functions are not such that there can be one.
    #[error("{}", all(.0))]
    Plan(Vec<Obstacle>),
    /// There could, and it cannot be put in.
    #[error(transparent)]
    Gate(#[from] GateError),
}

impl Gates {
    /// Makes gates ready for those of the allocators at these places that are mapped; notes why not for the others.
    pub(in super::super) fn prepare(
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
                    self.stood.extend(Stood { preparing: stood, ..Stood::default() });
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
        let expected = rss_bytes.saturating_add(BYTES_TO_COME) / self.wish.interval_bytes.max(1);
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
    pub(super) fn ready(
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

/// Takes its memory from the process again.
pub(super) fn withdraw(prepared: Prepared) {
    if let Err(error) = prepared.withdraw() {
        let error: &dyn Error = &error;
        tracing::warn!(error, "memory that was to be a gate stays; `heaptap detach` takes it out");
    }
}
