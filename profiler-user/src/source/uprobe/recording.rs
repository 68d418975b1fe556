//! A recording of one process: attached, counting, read out, detached.

use std::{
    io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant, SystemTime},
};

use profiler_common::{
    counters::{Counter, Counters, REGISTRY, Severity},
    heap::{OVERFLOW_STACK, Totals, UNLEARNED_STACK},
};

use super::{
    attach::{AttachError, Probes},
    capacity::Capacities,
    capture::{Capture, CaptureError},
    children::Common,
    drain::Drain,
    follow::{Wanted, attach_to},
    gates::{self, GateWish, Gates},
    inherited::Inherited,
    kernel::{Kernel, KernelError, map_refused},
    learn::Learner,
    mappings::MappingSite,
    meter::Meter,
    object::OBJECT,
    own_code::OwnCode,
    stacks::StackTable,
    survey::Survey,
    totals::Read,
    watched::Notice,
};
use crate::{
    gated::GateError,
    source::{
        Inheritance, RawEntry, RawHeap, StackRef,
        cost::{Cost, Excess},
        memory::Watch,
    },
    target::{
        Process,
        allocator::Findings,
        container,
        cpu_time::Activity,
        given::Given,
        process::{ProcessError, Program},
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
    /// Somebody has written over a function that would be probed.
    #[error(
        "{function} at {address:#x} of process {pid} is not what its file has there, but {is:02x?}: another tool has changed it, and a probe there would break it"
    )]
    Changed {
        /// The process's PID.
        pid: u32,
        /// The function.
        function: String,
        /// Where.
        address: u64,
        /// What is there.
        is: Vec<u8>,
    },
    /// A gate is wanted, and there is none.
    #[error("process {pid} cannot be gated: {reasons}")]
    NotGated {
        /// The process's PID.
        pid: u32,
        /// Why.
        reasons: String,
    },
    /// The same, and why.
    #[error(transparent)]
    Gate(#[from] GateError),
    /// The thread that draws the gates' gaps could not be started.
    #[error("cannot start to draw the gate's gaps")]
    Feeder(#[source] io::Error),
    /// The thread that drains the ring buffer could not be started.
    #[error("cannot start to drain the ring buffer")]
    Drain(#[source] io::Error),
    /// That thread has failed: a defect of heaptap.
    #[error("the thread that drains the ring buffer has failed")]
    Drained,
}

/// What is wanted of a recording.
#[derive(Default)]
pub struct Options {
    /// How much the kernel side may keep.
    pub capacities: Capacities,
    /// Where to look for what was split off files.
    pub given: Given,
    /// Whether memory is counted that the program maps itself.
    pub with_mappings: bool,
    /// Whether the processes that it makes are recorded as well, each by itself.
    pub follow_forks: bool,
    /// The mean number of bytes from one allocation that is kept to the next; `None` for every allocation.
    pub sample_bytes: Option<u64>,
    /// Whether all allocations are to be kept, whatever that costs.
    pub stays_exact: bool,
    /// Whether the kernel side writes a log.
    pub with_diagnostics: bool,
    /// What every new stack is kept in, with the memory that it was walked in.
    pub capture: Option<Capture>,
    /// What is wanted of gates; `None` for ordinary probes, which write nothing into the process.
    pub gate: Option<GateWish>,
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
    /// What was lost or guessed.
    pub counters: Counters,
}

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
    /// Attaches to every allocator of the process and begins to count.
    ///
    /// `on_notice` is called from a thread of its own, with the process that something is to be noted of.
    pub fn start(
        process: Process,
        options: Options,
        on_notice: impl FnMut(u32, Notice) + Send + 'static,
    ) -> Result<Self, RecordError> {
        Self::start_with(OBJECT, process, options, on_notice)
    }

    /// Does what [`Recording::start`] does by other kernel programs: `object` is an ELF file with programs and maps of the
    /// same names and shapes. For benchmarks that compare one way with another.
    pub fn start_with(
        object: &[u8],
        process: Process,
        options: Options,
        on_notice: impl FnMut(u32, Notice) + Send + 'static,
    ) -> Result<Self, RecordError> {
        let Options {
            capacities,
            given,
            with_mappings,
            follow_forks,
            sample_bytes,
            stays_exact,
            with_diagnostics,
            capture,
            gate,
        } = options;
        let pid = process.pid();
        let is_witnessed = capture.is_some();
        let taken = gates::take_over(pid)?;
        // First, for it finds the file system by which the kernel's tracepoints are described.
        let inherited = if follow_forks { Some(Mutex::new(Some(Inherited::new()?))) } else { None };
        // The kernel looks through the programs while we look through the process's files.
        let (survey, loaded) = thread::scope(|scope| {
            let loading = scope
                .spawn(|| Kernel::load(object, &capacities, with_diagnostics, is_witnessed, follow_forks));
            let survey = Survey::of(&process, given, with_mappings, capacities.unwind_bytes);
            (survey, loading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        let Survey { mut space, places, findings, source } = survey?;
        let (mut kernel, targets, teaching, rings) = loaded?;
        let labels = findings.labels(&space);
        let targets = Arc::new(Mutex::new(targets));
        let teaching = Arc::new(Mutex::new(teaching));
        let mut learner =
            Learner::new(pid, capacities.stack_depth, teaching, Arc::clone(&targets), source, capture);
        let mut own_code = OwnCode::default();
        let all: Vec<usize> = (0..findings.allocators.len()).collect();
        let mut gates = gate.map(|wish| Gates::of(pid, wish, taken)).transpose()?;
        let ready = match &mut gates {
            Some(gates) => gates.prepare(&findings, &all, &space, process.rss_bytes()),
            None => Vec::new(),
        };
        let ungated = match &gates {
            Some(gates) => {
                gates.require()?;
                gates.ungated(&all, &ready)
            }
            None => all,
        };
        let wanted = Wanted {
            gates: ready.iter().flat_map(|ready| ready.sites.clone()).collect(),
            known_loaders: Some(&[]),
            ..Wanted::of(&findings, &ungated)
        };
        // Attaching is waiting, mostly: for all processors to have seen the probes.
        let mapped = space.clone();
        let (probes, watch) = thread::scope(|scope| {
            let attaching = scope.spawn(|| {
                let probes = attach_to(&kernel, inherited.as_ref(), &process, &wanted, &mapped)?;
                kernel.attach_lifecycle()?;
                Ok::<_, RecordError>(probes)
            });
            for allocator in &findings.allocators {
                learner.teach_ahead(allocator.module, allocator.calls.clone(), &mut space);
                own_code.add(allocator, &space, process.exe());
            }
            for one in &ready {
                learner.teach_gate(one.frames(), &mut space);
            }
            let watch = Watch::begin(pid);
            (attaching.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), watch)
        });
        let mut probes = probes?;
        let stacks = StackTable::new(space, own_code, capacities.stack_bytes);
        let drain = Drain::start(rings, pid, learner, stacks, on_notice);
        let drain = drain.map_err(RecordError::Drain)?;
        if let Some(interval_bytes) = sample_bytes {
            kernel.sampling.begin(interval_bytes)?;
        }
        if let Some(GateWish { interval_bytes, .. }) = gate {
            kernel.sampling.set_behind_gate(interval_bytes)?;
        }
        kernel.counters.insert(pid, Counters::default(), 0).map_err(map_refused("COUNTERS"))?;
        // From here on it counts: all functions at once.
        lock(&targets).insert(pid, capacities.stack_depth, is_witnessed, follow_forks)?;
        if let Some(gates) = &mut gates {
            let failed = gates.enter(ready, &labels);
            gates.require()?;
            // People are told of these when it has begun.
            gates.news();
            if !failed.is_empty() {
                let wanted = Wanted::of(&findings, &failed);
                probes.extend(attach_to(&kernel, inherited.as_ref(), &process, &wanted, &mapped)?);
            }
        }
        let meter = Meter::start(&kernel, pid, follow_forks);
        give_back_memory();
        let programs = Programs { former: Vec::new(), current: process.program().clone() };
        Ok(Self {
            process,
            programs: Mutex::new(programs),
            labels: Mutex::new(labels),
            findings: Mutex::new(findings),
            places,
            probes: Mutex::new(probes),
            has_lost_leader: Mutex::default(),
            started: SystemTime::now(),
            began: Instant::now(),
            ended: Mutex::new(None),
            last_image: Mutex::default(),
            blind: Mutex::default(),
            container: container::of(pid),
            watch: Mutex::new(watch),
            gone: Mutex::default(),
            parent: None,
            stays_exact,
            activity: Mutex::new(Activity::of(pid)),
            meter,
            gates: Mutex::new(gates),
            removed_gates: taken.gates,
            common: Arc::new(Common::new(kernel, targets, drain, inherited, capacities.live_blocks)),
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

    /// Whether anything may have changed since this was last asked: a process that sleeps allocates nothing.
    pub fn may_have_changed(&self) -> bool {
        lock(&self.activity).look() || self.follows_children()
    }

    /// How the recording is going. What the process has resident is noted, in case that it ends.
    pub fn vitals(&self) -> Result<Vitals, RecordError> {
        let look = |table: &StackTable| {
            let mapped: Vec<Totals> = table.mappings.totals().map(|(_, totals)| totals).collect();
            (table.stacks().len(), mapped, table.counters())
        };
        let (stacks, mapped, guessed) = self.ask(look)?;
        let kernel = lock(&self.common.kernel);
        let pid = self.process.pid();
        let mut vitals = Vitals { stacks, ..Vitals::default() };
        for totals in self.totals(&kernel)?.entries.into_iter().map(|(_, totals)| totals).chain(mapped) {
            vitals.alloc_objects += totals.alloc_objects;
            vitals.freed_objects += totals.freed_objects;
            vitals.inuse_bytes += totals.alloc_bytes.saturating_sub(totals.freed_bytes);
        }
        if let Some(meter) = &self.meter {
            meter.note(vitals.alloc_objects, vitals.freed_objects);
        }
        let mut counters = kernel.counters.get(&pid, 0).map_err(map_refused("COUNTERS"))?;
        counters.add_all(&guessed);
        if let Some(gates) = &*lock(&self.gates) {
            gates.count(&mut counters);
        }
        let losses = REGISTRY.iter().filter(|description| description.severity == Severity::Loss);
        vitals.losses = losses.map(|description| counters.get(description.counter)).sum();
        vitals.counters = counters;
        if let (None, Some(watch)) = (*lock(&self.ended), &mut *lock(&self.watch)) {
            watch.note(vitals.inuse_bytes);
        }
        Ok(vitals)
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

    /// What it has cost the process so far; with children, what it has cost all of them. `None` where that is not known, or not
    /// yet.
    pub fn cost(&self) -> Option<Cost> {
        self.meter.as_ref().and_then(Meter::cost)
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

    /// What has been counted so far. Neither stops nor resets anything.
    pub fn snapshot(&self) -> Result<RawHeap, RecordError> {
        let ended = *lock(&self.ended);
        let duration = ended.unwrap_or_else(|| self.began.elapsed());
        let (entries, mut counters, intervals_bytes) = {
            let kernel = lock(&self.common.kernel);
            let mut counters =
                kernel.counters.get(&self.process.pid(), 0).map_err(map_refused("COUNTERS"))?;
            let Read { entries, gone_objects } = self.totals(&kernel)?;
            counters.add(Counter::GoneBlocks, gone_objects);
            if let Some(gates) = &*lock(&self.gates) {
                gates.count(&mut counters);
            }
            (entries, counters, kernel.sampling.intervals_bytes())
        };
        let memory = lock(&self.watch).as_ref().and_then(|watch| match ended {
            Some(duration) => watch.last(self.began + duration),
            None => watch.glance().or_else(|| watch.last(Instant::now())),
        });
        // Stacks are asked for after the counts were read, so that those of the entries have arrived.
        let resolve = move |table: &StackTable| {
            let blocks = entries.into_iter().map(|(key, totals)| {
                let (allocator, is_inherited) = (key.allocator(), key.is_inherited());
                (MappingSite { stack: key.stack, allocator, is_inherited }, totals)
            });
            let entries = blocks
                .chain(table.mappings.totals())
                .filter(|(_, totals)| totals.alloc_objects != 0)
                .map(|(site, totals)| {
                    let stack = match site.stack {
                        OVERFLOW_STACK => StackRef::Overflow,
                        UNLEARNED_STACK => StackRef::Unsent,
                        hash => table.find(hash).map_or(StackRef::Unsent, StackRef::Known),
                    };
                    RawEntry { stack, totals, allocator: site.allocator, is_inherited: site.is_inherited }
                })
                .collect();
            let (stacks, made) = (table.stacks().to_vec(), table.made.clone());
            (entries, stacks, made, table.space.clone(), table.counters())
        };
        let (entries, stacks, made, space, guessed): (Vec<RawEntry>, _, _, _, _) = self.ask(resolve)?;
        counters.add_all(&guessed);
        let gate = self.gating();
        let exe = |program: &Program| program.exe.to_string_lossy().trim_end_matches(" (deleted)").to_owned();
        let (comm, current, former) = {
            let Programs { current, former } = &*lock(&self.programs);
            (current.comm.clone(), exe(current), former.iter().map(exe).collect())
        };
        Ok(RawHeap {
            pid: self.process.pid(),
            comm,
            exe: current,
            former,
            inheritance: self.parent.map(|parent| Inheritance::of(parent, &entries)),
            container: self.container.clone(),
            started: self.started,
            duration,
            blind: *lock(&self.blind),
            stacks,
            made,
            entries,
            intervals_bytes,
            unprobed: lock(&self.findings).unprobed(&space),
            allocators: lock(&self.labels).clone(),
            space,
            counters,
            memory,
            cost: self.cost(),
            gate,
        })
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

/// Gives the system back what was needed to begin, such as the kernel's types, which aya reads.
fn give_back_memory() {
    // SAFETY: it may be called at any time by any thread.
    unsafe { libc::malloc_trim(0) };
}

/// Whatever is guarded here is whole between two calls, whatever happened to the thread that made the last one.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
