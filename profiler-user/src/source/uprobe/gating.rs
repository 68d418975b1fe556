//! Attaching to allocators while a recording goes on, by a gate where one is wanted and there can be one.

use super::{
    approach::Approach,
    attach::Probes,
    follow::attach_to,
    gates::{Gates, Ready},
    kernel::Kernel,
    recording::{RecordError, Recording, lock},
};
use crate::{source::gate::Gating, target::allocator::Findings, target::maps::AddressSpace};

impl Recording {
    /// Attaches to those of the allocators that were found, by their places, and where the `known_loaders` are given, to the loader unless
    /// it is one of them.
    pub(super) fn attach_to_places(
        &self,
        kernel: &Kernel,
        findings: &Findings,
        places: &[usize],
        known_loaders: Option<&[usize]>,
        space: &AddressSpace,
    ) -> Result<Probes, RecordError> {
        let inherited = self.common.inherited.as_ref();
        let mut gates = lock(&self.gates);
        let approach = Approach::of(gates.as_mut(), &self.process, findings, places, space);
        let wanted = approach.wanted(known_loaders);
        let mut probes = attach_to(kernel, inherited, &self.process, &wanted, space)?;
        self.teach_gates(approach.ready());
        let labels = lock(&self.labels).clone();
        probes.extend(approach.enter(gates.as_mut(), &labels, kernel, inherited)?);
        Ok(probes)
    }

    /// Teaches the rows of the calls in gates.
    pub(super) fn teach_gates(&self, ready: &[Ready]) {
        for one in ready {
            let frames = one.frames().to_vec();
            self.common.drain.tell(self.process.pid(), move |learner, stacks| {
                learner.teach_gate(&frames, &mut stacks.space);
            });
        }
    }

    /// How it is gated; `None` where that is not wanted.
    pub fn gating(&self) -> Option<Gating> {
        let labels = lock(&self.labels).clone();
        lock(&self.gates).as_ref().map(|gates| gates.gating(&labels))
    }

    /// The gates of a program that has been replaced: gives the places of the allocators that had one.
    pub(super) fn gates_have_gone(&self) -> Vec<usize> {
        lock(&self.gates).as_mut().map(Gates::program_has_gone).unwrap_or_default()
    }

    /// The gates of libraries that were unloaded: gives the places of the allocators that are there again, without one.
    pub(super) fn gates_unloaded(&self, space: &AddressSpace) -> Vec<usize> {
        lock(&self.gates).as_mut().map(|gates| gates.unloaded(space)).unwrap_or_default()
    }

    /// Whether an allocator is not counted at all, as it cannot be gated.
    pub(super) fn is_left_out(&self, place: usize) -> bool {
        lock(&self.gates).as_ref().is_some_and(|gates| gates.is_left_out(place))
    }

    /// The allocators that could not be gated since this was last asked, each with the reason.
    pub fn newly_refused(&self) -> Vec<String> {
        lock(&self.gates).as_mut().map(Gates::news).unwrap_or_default()
    }

    /// How many gates were taken out that another heaptap had left.
    pub const fn removed_gates(&self) -> usize {
        self.removed_gates
    }
}
