//! A recording of one process: attached, counting, read out, detached.

mod error;

mod start;

mod vitals;

mod snapshot;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

pub use error::RecordError;
pub use start::Options;
pub use vitals::Vitals;

use super::{
    attach::Probes, capture::CaptureError, children::Common, gates::Gates, meter::Meter, stacks::StackTable,
};
use crate::{
    source::{cost::Excess, memory::Watch},
    target::{Process, allocator::Findings, cpu_time::Activity, process::Program, separate::Places},
};

/// The programs of a process, one after the other.
pub(super) struct Programs {
    pub(super) former: Vec<Program>,
    pub(super) current: Program,
}

/// A recording that is under way. Dropping it detaches.
pub struct Recording {
    pub(super) process: Process,
    pub(super) programs: Mutex<Programs>,
    pub(super) findings: Mutex<Findings>,
    /// What to call each allocator.
    pub(super) labels: Mutex<Vec<String>>,
    /// Where debug files are.
    pub(super) places: Places,
    pub(super) probes: Mutex<Probes>,
    /// Whether the thread has ended that the probes were attached for, which are in all the same.
    pub(super) has_lost_leader: Mutex<bool>,
    pub(super) started: SystemTime,
    pub(super) began: Instant,
    pub(super) ended: Mutex<Option<Duration>>,
    /// How often the process had replaced its program when the recording ended.
    pub(super) last_image: Mutex<u32>,
    /// How long calls were not seen.
    pub(super) blind: Mutex<Duration>,
    pub(super) container: Option<String>,
    pub(super) watch: Mutex<Option<Watch>>,
    /// Blocks of replaced programs that the others know of.
    pub(super) gone: Mutex<u64>,
    /// The process that it is a child of, where that was recorded, too.
    pub(super) parent: Option<u32>,
    /// Whether all allocations are to be kept.
    pub(super) stays_exact: bool,
    /// Whether the process has computed.
    pub(super) activity: Mutex<Activity>,
    /// What measures the cost, where that is possible.
    pub(super) meter: Option<Meter>,
    /// The gates, where they are wanted.
    pub(super) gates: Mutex<Option<Gates>>,
    /// How many were taken out that another heaptap had left.
    pub(super) removed_gates: usize,
    pub(super) common: Arc<Common>,
}

impl Recording {
    /// The process that is recorded.
    pub const fn process(&self) -> &Process {
        &self.process
    }

    /// The allocators that are probed, each by its name, with the number of its functions.
    pub fn probed(&self) -> Vec<(String, usize)> {
        let findings = lock(&self.findings);
        let functions = findings
            .allocators
            .iter()
            .map(|allocator| allocator.hooks.iter().map(|hook| hook.names.len()).sum());
        lock(&self.labels).iter().cloned().zip(functions).collect()
    }

    /// Debug files that were given and belong to nothing that is mapped.
    pub fn unused(&self) -> Vec<PathBuf> {
        let Ok(space) = self.ask(|table| table.space.clone()) else { return Vec::new() };
        self.places.unused(&space)
    }

    /// Files of the process that have an allocator of their own, which is not probed.
    pub fn unprobed(&self) -> Vec<String> {
        let Ok(space) = self.ask(|table| table.space.clone()) else { return Vec::new() };
        lock(&self.findings).unprobed(&space)
    }

    /// Keeps fewer allocations from now on, so that it costs less; gives the new mean interval in bytes, or `None` where it
    /// cannot be longer, or all are to be kept.
    pub fn sample_less(&self) -> Result<Option<u64>, RecordError> {
        if self.stays_exact {
            return Ok(None);
        }
        if lock(&self.gates).is_some() {
            return self.sample_less_behind_gate();
        }
        Ok(lock(&self.common.kernel).sampling.lengthen()?)
    }

    /// Notes for the profile that the recording is ended for what it costs.
    pub fn ends_for(&self, excess: Excess) {
        if let Some(meter) = &self.meter {
            meter.exceeded(excess);
        }
    }

    /// Notes for the profile that calls were not seen for a time.
    pub fn was_blind_for(&self, time: Duration) {
        *lock(&self.blind) += time;
    }

    /// Stops counting, all functions at once, begins to take the probes out, and reads the ring buffer to its end. The numbers stay readable.
    /// Where children are followed, who may go on, the last two are left to [`Recording::release`] and
    /// [`Recording::finish`].
    ///
    /// # Errors
    ///
    /// Fails where the file of stacks could not be written; everything else is as without one.
    pub fn stop(&self) -> Result<(), CaptureError> {
        let mut ended = lock(&self.ended);
        if ended.is_some() {
            return Ok(());
        }
        *lock(&self.last_image) = lock(&self.common.targets).remove(self.process.pid()).unwrap_or_default();
        *ended = Some(self.began.elapsed());
        if let Some(gates) = &mut *lock(&self.gates) {
            gates.leave();
        }
        if let Some(watch) = &mut *lock(&self.watch) {
            watch.finish();
        }
        if self.follows_children() {
            return Ok(());
        }
        if let Some(meter) = &self.meter {
            meter.stop();
        }
        self.common.detach(std::mem::take(&mut *lock(&self.probes)));
        self.common.drain.finish()
    }

    /// The answer to a question about the stacks of the process.
    pub(super) fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&StackTable) -> T + Send + 'static,
    ) -> Result<T, RecordError> {
        self.common.drain.ask(self.process.pid(), question).ok_or(RecordError::Drained)
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        // Whoever wants to know of an error has stopped it.
        let _ = self.stop();
    }
}

/// Whatever is guarded here is whole between two calls, whatever happened to the thread that made the last one.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
