//! What a profiler's own processes use.

use crate::bench::memory::{kernel_maps_mb, peak_mb, shared_mb};

/// The most memory that was seen.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Memory {
    /// The processes' own, in MB.
    pub(super) own_mb: f64,
    /// The kernel's maps that they hold, in MB.
    pub(super) kernel_mb: f64,
    shared_mb: f64,
}

impl Memory {
    /// All that processes have, the kernel's part included. One that has just ended has nothing.
    pub(super) fn of(pids: &[u32]) -> Self {
        let sum = |measure: fn(u32) -> anyhow::Result<f64>| -> f64 {
            pids.iter().map(|pid| measure(*pid).unwrap_or_default()).sum()
        };
        let mut memory = Self { own_mb: 0.0, kernel_mb: sum(kernel_maps_mb), shared_mb: sum(shared_mb) };
        memory.look(pids);
        memory
    }

    /// Looks again whether the processes have more of their own.
    pub(super) fn look(&mut self, pids: &[u32]) {
        let peaks: f64 = pids.iter().map(|pid| peak_mb(*pid).unwrap_or_default()).sum();
        self.own_mb = self.own_mb.max(peaks - self.shared_mb);
    }
}
