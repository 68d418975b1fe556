//! By what allocators are attached to: gates where they are wanted and can be, ordinary probes otherwise.
//!
//! The order matters, and is the same for a recording that begins and for one that goes on. Gates are made ready; the probes go in,
//! those in the gates and the ordinary ones; only when it counts, and it is known how to walk through a gate, jumps lead there; and what
//! none could be led to gets ordinary probes after all.

use std::sync::Mutex;

use super::{
    attach::Probes,
    follow::{Wanted, attach_to},
    gates::{Gates, Ready},
    inherited::Inherited,
    kernel::Kernel,
    recording::RecordError,
    sites::Part,
};
use crate::target::{Process, allocator::Findings, maps::AddressSpace};

/// Allocators of a process that are to be attached to.
pub(super) struct Approach<'found> {
    process: &'found Process,
    findings: &'found Findings,
    space: &'found AddressSpace,
    /// The gates that jumps do not lead to yet.
    ready: Vec<Ready>,
    /// The allocators without one, by their places.
    ungated: Vec<usize>,
}

impl<'found> Approach<'found> {
    /// Makes gates ready for those of the allocators at these places that can have one; for none where `gates` are not wanted.
    pub(super) fn of(
        gates: Option<&mut Gates>,
        process: &'found Process,
        findings: &'found Findings,
        places: &[usize],
        space: &'found AddressSpace,
    ) -> Self {
        let (ready, ungated) = match gates {
            Some(gates) => {
                let ready = gates.prepare(findings, places, space, process.rss_bytes());
                let ungated = gates.ungated(places, &ready);
                (ready, ungated)
            }
            None => (Vec::new(), places.to_vec()),
        };
        Self { process, findings, space, ready, ungated }
    }

    /// The gates that are ready.
    pub(super) fn ready(&self) -> &[Ready] {
        &self.ready
    }

    /// Where probes are to be before jumps lead to the gates; in the loader as well, unless it is one of those given.
    pub(super) fn wanted(&self, known_loaders: Option<&'found [usize]>) -> Wanted<'found> {
        let gated: Vec<usize> = self.ready.iter().map(|ready| ready.allocator).collect();
        Wanted {
            gates: self.ready.iter().flat_map(|ready| ready.sites.clone()).collect(),
            known_loaders,
            ..Wanted::of(self.findings, &self.ungated, Part::All).and(self.findings, &gated, Part::Beside)
        }
    }

    /// Has jumps lead to the gates, now that they are probed and counted; gives the probes of the allocators where that failed.
    pub(super) fn enter(
        self,
        gates: Option<&mut Gates>,
        labels: &[String],
        kernel: &Kernel,
        inherited: Option<&Mutex<Option<Inherited>>>,
    ) -> Result<Probes, RecordError> {
        let failed = gates.map(|gates| gates.enter(self.ready, labels)).unwrap_or_default();
        if failed.is_empty() {
            return Ok(Probes::default());
        }
        // The others of their functions are probed already.
        let wanted = Wanted::of(self.findings, &failed, Part::Gated);
        attach_to(kernel, inherited, self.process, &wanted, self.space)
    }
}
