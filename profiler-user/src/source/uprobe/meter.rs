//! What the process pays, once a second, by a thread of its own.
//!
//! The kernel counts how often a program runs and for how long, but only where it is asked to, which costs each run some
//! 40 ns: it is asked for a tenth of each second, and that stands for the whole.

use std::{
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use aya::sys::{Stats, enable_stats};

use super::{
    attach::Link,
    calibrate::{Means, calibrate},
    kernel::Kernel,
    recording::lock,
    run_counts::RunCounts,
};
use crate::{
    source::cost::{Cost, Estimate, Excess, Hits, Tally, TrapCost},
    target::cpu_time::CpuClock,
};

/// How long runs are counted.
const SLICE: Duration = Duration::from_millis(100);

/// From the end of one slice to the start of the next.
const PAUSE: Duration = Duration::from_millis(900);

/// The same before the first, so that also recordings of a second have an estimate.
const FIRST_PAUSE: Duration = Duration::from_millis(300);

/// Measures what the recorded process pays. Dropping it ends that.
pub(super) struct Meter {
    shared: Arc<Shared>,
    /// Dropped to end the thread.
    running: Mutex<Option<Sender<()>>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    tally: Mutex<Tally>,
    /// Blocks that were allocated and freed, as somebody has last seen them.
    allocated: AtomicU64,
    freed: AtomicU64,
}

impl Meter {
    /// Begins to measure; `None` where that is not possible, which is logged. With `with_children` the programs also run for
    /// others than the process, whose CPU time then says nothing.
    pub(super) fn start(kernel: &Kernel, pid: u32, with_children: bool) -> Option<Self> {
        let shared = Arc::new(Shared::default());
        let (running, stop) = mpsc::channel();
        let means = Means::of(kernel).map_err(|error| failed(&error)).ok()?;
        let work = Work {
            shared: Arc::clone(&shared),
            stop,
            means,
            run_counts: Arc::clone(&kernel.run_counts),
            clock: if with_children { None } else { CpuClock::of(pid) },
        };
        let thread = std::thread::Builder::new().name("heaptap-meter".to_owned());
        let thread = thread.spawn(move || work.run()).map_err(|error| failed(&error)).ok()?;
        Some(Self { shared, running: Mutex::new(Some(running)), thread: Some(thread) })
    }

    /// What it has cost so far; `None` where that is not known, or not yet.
    pub(super) fn cost(&self) -> Option<Cost> {
        lock(&self.shared.tally).cost()
    }

    /// Notes why the recording is ended.
    pub(super) fn exceeded(&self, excess: Excess) {
        lock(&self.shared.tally).exceeded(excess);
    }

    /// Notes what was counted, for kernels that do not say how often programs run.
    pub(super) fn note(&self, allocated: u64, freed: u64) {
        self.shared.allocated.store(allocated, Ordering::Relaxed);
        self.shared.freed.store(freed, Ordering::Relaxed);
    }

    /// Ends it. What it has measured stays.
    pub(super) fn stop(&self) {
        drop(lock(&self.running).take());
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.stop();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that measures the cost failed");
        }
    }
}

fn failed(error: &(dyn std::error::Error + 'static)) {
    tracing::warn!(error, "what the recording costs is not known");
}

/// What the thread has.
struct Work {
    shared: Arc<Shared>,
    stop: Receiver<()>,
    means: Means,
    run_counts: Arc<RunCounts>,
    /// The process's CPU time, unless the programs also run for others.
    clock: Option<CpuClock>,
}

impl Work {
    fn run(mut self) {
        let Some((trap, links)) = self.calibrate() else { return };
        tracing::debug!(?trap, "calibrated");
        lock(&self.shared.tally).calibrated(trap);
        // By another thread, for it takes a tenth of a second each. Where there is none, the closure is dropped here.
        let detaching = std::thread::Builder::new().name("heaptap-meter".to_owned());
        let detaching = detaching.spawn(move || drop(links)).ok();
        let mut before = (Instant::now(), self.cpu_time());
        let mut pause = FIRST_PAUSE;
        while self.wait(pause) {
            pause = PAUSE;
            // A process that sleeps pays nothing, and counting is what costs us most beside one that does.
            let is_asleep = before.1.is_some() && self.cpu_time() == before.1;
            let slice = if is_asleep { Some((Hits::default(), SLICE)) } else { self.slice() };
            let Some((hits, time)) = slice else { break };
            let now = (Instant::now(), self.cpu_time());
            let window = now.0.duration_since(before.0);
            let taken = now.1.zip(before.1).map(|(now, before)| now.saturating_sub(before));
            let taken_cpu = taken.map(|taken| taken.as_secs_f64() / window.as_secs_f64());
            before = now;
            let estimate = Estimate::new(now.0, hits, time.as_secs_f64(), trap, taken_cpu);
            lock(&self.shared.tally).add(estimate, window);
        }
        if detaching.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that takes the calibration's probes out failed");
        }
    }

    fn calibrate(&mut self) -> Option<(TrapCost, Vec<Link>)> {
        calibrate(&mut self.means).map_err(|error| failed(&error)).ok()
    }

    /// Waits; `false` when it is over.
    fn wait(&self, time: Duration) -> bool {
        matches!(self.stop.recv_timeout(time), Err(RecvTimeoutError::Timeout))
    }

    /// The hits of a while, and how long that was; `None` when it is over.
    fn slice(&self) -> Option<(Hits, Duration)> {
        let stats: Option<OwnedFd> = enable_stats(Stats::RunTime)
            .inspect_err(|error| tracing::debug!(%error, "the kernel does not count runs"))
            .ok();
        let hits = || match &stats {
            Some(_) => self.run_counts.hits().ok(),
            None => Some(self.counted()),
        };
        let time = if stats.is_some() { SLICE } else { PAUSE };
        let (start, before, returns) = (Instant::now(), hits()?, self.run_counts.returns());
        if !self.wait(time) {
            return None;
        }
        let (now, elapsed) = (hits()?, start.elapsed());
        let returns = self.run_counts.returns().saturating_sub(returns);
        Some((now.since(before).with_returns(returns), elapsed))
    }

    /// What was counted of blocks: less than happens, for calls within calls and what the programs do are not in it.
    fn counted(&self) -> Hits {
        let allocated = self.shared.allocated.load(Ordering::Relaxed);
        let freed = self.shared.freed.load(Ordering::Relaxed);
        Hits { entries: allocated + freed, returns: allocated, ..Hits::default() }
    }

    /// The CPU time of the process.
    fn cpu_time(&self) -> Option<Duration> {
        self.clock.and_then(CpuClock::now)
    }
}
