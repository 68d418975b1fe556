//! A recording of one process: attached, counting, read out, detached.

use std::{
    io,
    num::NonZeroU32,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime},
};

use profiler_common::{
    counters::{Counters, REGISTRY, Severity},
    heap::{OVERFLOW_STACK, Totals, TotalsKey, UNLEARNED_STACK},
};

use super::{
    attach::{AttachError, Probes, attach, attach_lifecycle, attach_loader},
    capture::{Capture, CaptureError},
    drain::{Drain, Notice},
    kernel::{Capacities, Kernel, KernelError, Targets, map_refused},
    learn::Learner,
    object::OBJECT,
    stacks::StackTable,
};
use crate::{
    source::{RawEntry, RawHeap, StackRef, memory::Watch},
    target::{
        Process,
        allocator::{self, Findings},
        container,
        maps::AddressSpace,
        process::{ProcessError, live_threads},
        rows::RowSource,
        separate::Places,
    },
};

/// Why a recording could not begin or be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The process is not, or no longer, there to be recorded.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Nothing in the process can be probed.
    #[error("process {pid} ({comm}) has no allocator that heaptap knows; looked at {looked_at}")]
    NoAllocator {
        /// The process's PID.
        pid: u32,
        /// Its name.
        comm: String,
        /// The files that were looked at, each with what was found.
        looked_at: String,
    },
    /// The kernel side could not be set up.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The probes could not be attached.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The thread that drains the ring buffer could not be started.
    #[error("cannot start to drain the ring buffer")]
    Drain(#[source] io::Error),
    /// That thread has failed: a defect of heaptap.
    #[error("the thread that drains the ring buffer has failed")]
    Drained,
}

/// The numbers of the live line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vitals {
    /// Blocks allocated since the recording began.
    pub alloc_objects: u64,
    /// Blocks freed since then, of those allocated since then.
    pub freed_objects: u64,
    /// Bytes in use, of those allocated since then.
    pub inuse_bytes: u64,
    /// Distinct stacks.
    pub stacks: usize,
    /// Sum of the counters that speak of a loss.
    pub losses: u64,
}

/// A recording that is under way. Dropping it detaches.
pub struct Recording {
    process: Process,
    findings: Mutex<Findings>,
    /// What to call each allocator.
    labels: Mutex<Vec<String>>,
    /// Where debug files are.
    places: Places,
    probes: Mutex<Probes>,
    /// The thread that takes them out at the end.
    detaching: Mutex<Option<JoinHandle<()>>>,
    targets: Mutex<Targets>,
    kernel: Mutex<Kernel>,
    drain: Drain,
    started: SystemTime,
    began: Instant,
    ended: Mutex<Option<Duration>>,
    /// How long calls were not seen.
    blind: Mutex<Duration>,
    container: Option<String>,
    watch: Mutex<Option<Watch>>,
}

impl Recording {
    /// Attaches to every allocator of the process and begins to count.
    ///
    /// Unwind information that was split off is looked for in `debug_dirs` too. `diagnostics` lets the kernel side write a
    /// log. Every new stack is kept in `capture`, with the memory that it was walked in. `on_notice` is called from a
    /// thread of its own.
    pub fn start(
        process: Process,
        capacities: &Capacities,
        debug_dirs: Vec<PathBuf>,
        diagnostics: bool,
        capture: Option<Capture>,
        on_notice: impl FnMut(Notice) + Send + 'static,
    ) -> Result<Self, RecordError> {
        Self::start_with(OBJECT, process, capacities, debug_dirs, diagnostics, capture, on_notice)
    }

    /// Does what [`Recording::start`] does by other kernel programs: `object` is an ELF file with programs and maps of the
    /// same names and shapes. For benchmarks that compare one way with another.
    pub fn start_with(
        object: &[u8],
        process: Process,
        capacities: &Capacities,
        debug_dirs: Vec<PathBuf>,
        diagnostics: bool,
        capture: Option<Capture>,
        on_notice: impl FnMut(Notice) + Send + 'static,
    ) -> Result<Self, RecordError> {
        let pid = process.pid();
        let mut space = AddressSpace::default();
        space.refresh(pid)?;
        let places = Places::of(pid, debug_dirs);
        let mut findings = Findings::default();
        allocator::find(&space, &places, &mut findings);
        if findings.allocators.is_empty() {
            if process.has_ended() {
                return Err(ProcessError::Gone { pid }.into());
            }
            let looked_at = looked_at(&findings, &space);
            return Err(RecordError::NoAllocator { pid, comm: process.comm().to_owned(), looked_at });
        }
        let labels = findings.labels(&space);
        let (mut kernel, mut targets, teaching, rings) = Kernel::load(object, capacities, diagnostics)?;
        let probes = attach_to(&kernel, &process, &findings, 0, &space)?;
        attach_lifecycle(&kernel)?;
        let is_witnessed = capture.is_some();
        let source = RowSource::new(pid, places.clone());
        let mut learner = Learner::new(pid, capacities.stack_depth, teaching, source, capture);
        learner.prepare(&space);
        for allocator in &findings.allocators {
            learner.teach_ahead(allocator.module, allocator.calls.clone(), &mut space);
        }
        let drain = Drain::start(rings, pid, learner, StackTable::new(space), on_notice);
        let drain = drain.map_err(RecordError::Drain)?;
        kernel
            .totals
            .insert(TotalsKey::overflow(pid), overflow_totals(), 0)
            .map_err(map_refused("TOTALS"))?;
        kernel.counters.insert(pid, Counters::default(), 0).map_err(map_refused("COUNTERS"))?;
        let watch = Watch::begin(pid);
        // From here on it counts: all functions at once.
        targets.insert(pid, capacities.stack_depth, is_witnessed)?;
        Ok(Self {
            process,
            labels: Mutex::new(labels),
            findings: Mutex::new(findings),
            places,
            probes: Mutex::new(probes),
            detaching: Mutex::default(),
            targets: Mutex::new(targets),
            kernel: Mutex::new(kernel),
            drain,
            started: SystemTime::now(),
            began: Instant::now(),
            ended: Mutex::new(None),
            blind: Mutex::default(),
            container: container::of(pid),
            watch: Mutex::new(watch),
        })
    }

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

    /// Looks for allocators in what was mapped since, and attaches to those; gives their names.
    ///
    /// What they gave before is not known.
    pub fn attach_to_new(&self) -> Result<Vec<String>, RecordError> {
        let space = self.drain.ask(|table| table.space.clone()).ok_or(RecordError::Drained)?;
        let mut findings = lock(&self.findings);
        let known = findings.allocators.len();
        allocator::find(&space, &self.places, &mut findings);
        if findings.allocators.len() == known {
            return Ok(Vec::new());
        }
        let labels = findings.labels(&space);
        let new = labels.get(known..).unwrap_or_default().to_vec();
        *lock(&self.labels) = labels;
        let kernel = lock(&self.kernel);
        if lock(&self.ended).is_none() {
            let probes = attach_to(&kernel, &self.process, &findings, known, &space)?;
            lock(&self.probes).extend(probes);
            for allocator in findings.allocators.iter().skip(known) {
                let (module, calls) = (allocator.module, allocator.calls.clone());
                self.drain.tell(move |learner, stacks| learner.teach_ahead(module, calls, &mut stacks.space));
            }
        }
        Ok(new)
    }

    /// Files of the process that have an allocator of their own, which is not probed.
    pub fn unprobed(&self) -> Vec<String> {
        let Some(space) = self.drain.ask(|table| table.space.clone()) else { return Vec::new() };
        lock(&self.findings).unprobed(&space)
    }

    /// How the recording is going. What the process has resident is noted, in case that it ends.
    pub fn vitals(&self) -> Result<Vitals, RecordError> {
        let stacks = self.drain.ask(|table| table.stacks().len()).ok_or(RecordError::Drained)?;
        let kernel = lock(&self.kernel);
        let pid = self.process.pid();
        let mut vitals = Vitals { stacks, ..Vitals::default() };
        for (_, totals) in totals_of(&kernel)? {
            vitals.alloc_objects += totals.alloc_objects;
            vitals.freed_objects += totals.freed_objects;
            vitals.inuse_bytes += totals.alloc_bytes.saturating_sub(totals.freed_bytes);
        }
        let counters = kernel.counters.get(&pid, 0).map_err(map_refused("COUNTERS"))?;
        let losses = REGISTRY.iter().filter(|description| description.severity == Severity::Loss);
        vitals.losses = losses.map(|description| counters.get(description.counter)).sum();
        if let (None, Some(watch)) = (*lock(&self.ended), &mut *lock(&self.watch)) {
            watch.note(vitals.inuse_bytes);
        }
        Ok(vitals)
    }

    /// Attaches once more, through a thread that goes on.
    ///
    /// To be called when the first thread has ended: the kernel took the probes out with it.
    pub fn reattach(&self) -> Result<(), RecordError> {
        let kernel = lock(&self.kernel);
        let space = self.drain.ask(|table| table.space.clone()).ok_or(RecordError::Drained)?;
        *lock(&self.probes) = attach_to(&kernel, &self.process, &lock(&self.findings), 0, &space)?;
        Ok(())
    }

    /// Notes for the profile that calls were not seen for a time.
    pub fn was_blind_for(&self, time: Duration) {
        *lock(&self.blind) += time;
    }

    /// What has been counted so far. Neither stops nor resets anything.
    pub fn snapshot(&self) -> Result<RawHeap, RecordError> {
        let ended = *lock(&self.ended);
        let duration = ended.unwrap_or_else(|| self.began.elapsed());
        let (entries, counters) = {
            let kernel = lock(&self.kernel);
            let counters = kernel.counters.get(&self.process.pid(), 0).map_err(map_refused("COUNTERS"))?;
            (totals_of(&kernel)?, counters)
        };
        let memory = lock(&self.watch).as_ref().and_then(|watch| match ended {
            Some(duration) => watch.last(self.began + duration),
            None => watch.glance().or_else(|| watch.last(Instant::now())),
        });
        // Stacks are asked for after the counts were read, so that those of the entries have arrived.
        let resolve = move |table: &StackTable| {
            let entries = entries
                .into_iter()
                .filter(|(_, totals)| totals.alloc_objects != 0)
                .map(|(key, totals)| {
                    let stack = match key.stack {
                        OVERFLOW_STACK => StackRef::Overflow,
                        UNLEARNED_STACK => StackRef::Unsent,
                        hash => table.find(hash).map_or(StackRef::Unsent, StackRef::Known),
                    };
                    RawEntry { stack, totals, allocator: key.allocator() }
                })
                .collect();
            (entries, table.stacks().to_vec(), table.space.clone())
        };
        let (entries, stacks, space) = self.drain.ask(resolve).ok_or(RecordError::Drained)?;
        Ok(RawHeap {
            pid: self.process.pid(),
            comm: self.process.comm().to_owned(),
            exe: self.process.exe().to_string_lossy().trim_end_matches(" (deleted)").to_owned(),
            container: self.container.clone(),
            started: self.started,
            duration,
            blind: *lock(&self.blind),
            stacks,
            entries,
            unprobed: lock(&self.findings).unprobed(&space),
            allocators: lock(&self.labels).clone(),
            space,
            counters,
            memory,
        })
    }

    /// Stops counting, all functions at once, begins to take the probes out, and reads the ring buffer to its end. The numbers stay readable.
    ///
    /// # Errors
    ///
    /// Fails where the file of stacks could not be written; everything else is as without one.
    pub fn stop(&self) -> Result<(), CaptureError> {
        let mut ended = lock(&self.ended);
        if ended.is_some() {
            return Ok(());
        }
        lock(&self.targets).remove(self.process.pid());
        *ended = Some(self.began.elapsed());
        if let Some(watch) = &mut *lock(&self.watch) {
            watch.finish();
        }
        // It takes seconds to take all of them out, in which the numbers can be looked at.
        let probes = std::mem::take(&mut *lock(&self.probes));
        *lock(&self.detaching) =
            std::thread::Builder::new().name("heaptap-detach".to_owned()).spawn(move || drop(probes)).ok();
        self.drain.finish()
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        // Whoever wants to know of an error has stopped it.
        let _ = self.stop();
        if let Some(detaching) = lock(&self.detaching).take()
            && detaching.join().is_err()
        {
            tracing::error!("the thread that takes the probes out failed");
        }
    }
}

/// Whatever is guarded here is whole between two calls, whatever happened to the thread that made the last one.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How often to look for a thread through which to attach: while they are looked at, some may end and others begin.
const TRIES: u32 = 100;

/// Attaches to all but the first `known` allocators, and where none is known yet, to the loader.
fn attach_to(
    kernel: &Kernel,
    process: &Process,
    findings: &Findings,
    known: usize,
    space: &AddressSpace,
) -> Result<Probes, RecordError> {
    let gone = || ProcessError::Gone { pid: process.pid() };
    for _ in 0..TRIES {
        let mut threads = live_threads(process.pid()).filter_map(NonZeroU32::new).peekable();
        if threads.peek().is_none() {
            return Err(gone().into());
        }
        for thread in threads {
            match attach(kernel, findings.numbered().skip(known), space, thread) {
                Ok(mut probes) => {
                    if known > 0 {
                        return Ok(probes);
                    }
                    if let Err(error) = attach_loader(kernel, &mut probes, space, thread) {
                        tracing::warn!(%error, "libraries that are unloaded will not be noticed");
                    }
                    return Ok(probes);
                }
                Err(_) if process.has_ended() => return Err(gone().into()),
                // One that is ending takes no probe any more, and is not shown as ended at once.
                Err(error) if error.thread_is_gone() => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    // What there is of it is ending.
    Err(gone().into())
}

const fn overflow_totals() -> Totals {
    // It has no frames that could be sent.
    Totals { freed_objects: 0, freed_bytes: 0, alloc_objects: 0, alloc_bytes: 0, sent: 1 }
}

/// Reads `TOTALS` through. Entries are never deleted, so that none is met twice or passed over.
fn totals_of(kernel: &Kernel) -> Result<Vec<(TotalsKey, Totals)>, KernelError> {
    kernel.totals.iter().collect::<Result<_, _>>().map_err(map_refused("TOTALS"))
}

fn looked_at(findings: &Findings, space: &AddressSpace) -> String {
    let file = |passed: &allocator::Passed| {
        let path = space.modules().get(passed.module).map_or("?", |module| module.path.as_str());
        format!("{path} ({})", passed.verdict.text())
    };
    let files: Vec<_> = findings.passed.iter().map(file).collect();
    if files.is_empty() { "no file: nothing is mapped executable".to_owned() } else { files.join(", ") }
}
