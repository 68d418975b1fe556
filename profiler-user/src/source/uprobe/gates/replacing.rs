//! Gates that take the place of others: with more room, or another interval.

use std::ops::Range;

use super::{
    super::recording::RecordError,
    Entry, Gates, Ready,
    ready::{Hindrance, withdraw},
};
use crate::{
    gated::{GateError, Known},
    source::gate::Stood,
    target::{allocator::Findings, process::ProcessError},
};

impl Gates {
    /// The places of those that are in, among all, for which there should be more room.
    pub(in super::super) fn crowded(&self) -> Vec<usize> {
        let is_crowded = |entry: &Entry| {
            let has_more = entry.gate.layout().larger().is_some();
            !entry.is_gone && !entry.is_stuck() && has_more && entry.gate.is_crowded()
        };
        let places = self.gates.iter().enumerate().filter(|(_, entry)| is_crowded(entry));
        places.map(|(place, _)| place).collect()
    }

    /// The place of the one that is in, where it is the only one.
    pub(in super::super) fn only(&self) -> Option<usize> {
        let mut there = self.gates.iter().enumerate().filter(|(_, entry)| !entry.is_gone);
        there.next().filter(|_| there.next().is_none()).map(|(place, _)| place)
    }

    /// Makes a gate ready that is to take the place of another one, with more room or another interval.
    pub(in super::super) fn prepare_successor(
        &mut self,
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
            Err(hindrance) => {
                if let Some(entry) = self.gates.get_mut(place) {
                    entry.failures = entry.failures.saturating_add(1);
                }
                match hindrance {
                    Hindrance::Gate(error) => Err(error.into()),
                    Hindrance::Plan(_) => Err(ended()),
                }
            }
        }
    }

    /// Where the code is of the one at this place.
    pub(in super::super) fn code_of(&self, place: usize) -> Option<Range<u64>> {
        self.gates.get(place).map(|entry| entry.gate.code().clone())
    }

    /// Has one that is ready take the place of another one. `blocks` gives those in the sample, and `at_turn` is called when it counts.
    pub(in super::super) fn succeed(
        &mut self,
        place: usize,
        mut ready: Ready,
        blocks: impl Fn() -> Vec<u64>,
        at_turn: impl Fn() -> Result<(), GateError>,
    ) -> Result<(), RecordError> {
        let Some(entry) = self.gates.get_mut(place) else { return Ok(()) };
        let Some(prepared) = ready.prepared.take() else { return Ok(()) };
        let before = entry.before;
        let known = || {
            // First the count, for what comes behind it is then noticed.
            let overflows = entry.gate.counts().unwrap_or_default().overflows;
            Known { blocks: blocks(), overflows }
        };
        let fed = prepared.feed(ready.plan.interval_bytes);
        match prepared.succeed(&entry.gate, known, at_turn) {
            Ok((gate, stood, counts)) => {
                self.past.add(counts.since(before));
                self.stood.extend(Stood { entering: stood, ..Stood::default() });
                self.wish.interval_bytes = ready.plan.interval_bytes;
                self.feeder.add(fed);
                entry.gate = gate;
                // What it lacks from the beginning, the old one has counted.
                entry.count_anew();
                entry.plan = ready.plan.clone();
                entry.sites = std::mem::take(&mut ready.sites);
                Ok(())
            }
            Err((error, prepared)) => {
                entry.failures = entry.failures.saturating_add(1);
                withdraw(*prepared);
                Err(error.into())
            }
        }
    }
}
