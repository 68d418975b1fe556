//! Gates that go in and come out: at the beginning and the end, and with the programs and the libraries that they are in front of.

use std::error::Error;

use super::{Entry, Gates, Ready, ready::withdraw};
use crate::{causes::with_causes, gated::Departure, source::gate::Stood, target::maps::AddressSpace};

impl Gates {
    /// Puts those in that are ready; gives the places of the allocators that are to have ordinary probes, as that could not be done.
    pub(in super::super) fn enter(&mut self, ready: Vec<Ready>, labels: &[String]) -> Vec<usize> {
        let mut failed = Vec::new();
        for mut one in ready {
            let (allocator, module, sites) = (one.allocator, one.module, std::mem::take(&mut one.sites));
            let plan = one.plan.clone();
            let Some(prepared) = one.prepared.take() else { continue };
            let fed = prepared.feed(self.wish.interval_bytes);
            match prepared.enter() {
                Ok((gate, stood)) => {
                    self.stood.extend(Stood { entering: stood, ..Stood::default() });
                    self.feeder.add(fed);
                    self.gates.push(Entry::new(allocator, module, plan, sites, gate));
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

    /// The program has gone, and they with it, but for those that were put into the next one already. Gives the places of the
    /// allocators that they were for.
    pub(in super::super) fn program_has_gone(&mut self) -> Vec<usize> {
        let mut places = Vec::new();
        for entry in self.gates.iter_mut().filter(|entry| !entry.is_gone && !entry.gate.is_mapped()) {
            entry.is_over(None);
            places.push(entry.allocator);
        }
        places.extend(self.unloaded.drain(..).map(|(place, _)| place));
        // Another program may have what this one had not.
        self.refused.clear();
        self.told = 0;
        places
    }

    /// Takes those out whose library was unloaded. Gives the places of the allocators that are there again, without one.
    pub(in super::super) fn unloaded(&mut self, space: &AddressSpace) -> Vec<usize> {
        for place in 0..self.gates.len() {
            let Some(entry) = self.gates.get_mut(place).filter(|entry| !entry.is_gone) else { continue };
            if entry.gate.is_led_to() {
                continue;
            }
            let (gone, pid) = ((entry.allocator, entry.module), self.pid);
            // There is nothing to be put back, which is not told of.
            match entry.gate.leave() {
                Ok(departure) => {
                    entry.is_over(departure.counts);
                    self.departures.push(Departure { left_alone: 0, ..departure });
                }
                Err(error) => {
                    entry.is_over(None);
                    let error: &dyn Error = &error;
                    tracing::warn!(error, pid, "the gate of a library that was unloaded stays");
                }
            }
            self.unloaded.push(gone);
        }
        let again: Vec<usize> =
            self.unloaded.iter().filter(|(_, module)| space.has(*module)).map(|(place, _)| *place).collect();
        self.unloaded.retain(|(_, module)| !space.has(*module));
        again
    }

    /// Takes them all out.
    pub(in super::super) fn leave(&mut self) {
        for entry in self.gates.iter_mut().filter(|entry| !entry.is_gone) {
            match entry.gate.leave() {
                Ok(departure) => {
                    self.stood.extend(Stood { leaving: departure.stood, ..Stood::default() });
                    entry.is_over(departure.counts);
                    self.departures.push(departure);
                }
                Err(error) => {
                    entry.is_over(None);
                    self.remain.push(with_causes(&error));
                }
            }
        }
    }
}

impl Drop for Gates {
    fn drop(&mut self) {
        self.leave();
    }
}
