//! How a recording begins: probes first, then counting by all of them at once, then jumps into gates.

use std::{
    sync::{Arc, Mutex},
    thread,
    time::{Instant, SystemTime},
};

use profiler_common::counters::Counters;

use super::{
    super::{
        approach::Approach,
        capacity::Capacities,
        capture::Capture,
        children::Common,
        drain::Drain,
        follow::attach_to,
        gates::{self, GateWish, Gates},
        inherited::Inherited,
        kernel::{Kernel, map_refused},
        learn::Learner,
        meter::Meter,
        object::OBJECT,
        own_code::OwnCode,
        stacks::StackTable,
        survey::Survey,
        watched::Notice,
    },
    Programs, RecordError, Recording, lock,
};
use crate::{
    source::memory::Watch,
    target::{Process, container, cpu_time::Activity, given::Given},
};

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
        let mapped = space.clone();
        let approach = Approach::of(gates.as_mut(), &process, &findings, &all, &mapped);
        if let Some(gates) = &gates {
            gates.require()?;
        }
        let wanted = approach.wanted(Some(&[]));
        // Attaching is waiting, mostly: for all processors to have seen the probes.
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
            for one in approach.ready() {
                learner.teach_gate(one.frames(), &mut space);
            }
            let watch = Watch::begin(pid);
            (attaching.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), watch)
        });
        let mut probes = probes?;
        let stacks = StackTable::new(space, own_code, capacities.stack_bytes);
        let interval_bytes = gate.map(|wish| wish.interval_bytes).or(sample_bytes).unwrap_or(1);
        let drain = Drain::start(rings, pid, learner, stacks, interval_bytes, on_notice);
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
        probes.extend(approach.enter(gates.as_mut(), &labels, &kernel, inherited.as_ref())?);
        if let Some(gates) = &mut gates {
            gates.require()?;
            // People are told of these when it has begun.
            gates.news();
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
}

/// Gives the system back what was needed to begin, such as the kernel's types, which aya reads.
fn give_back_memory() {
    // SAFETY: it may be called at any time by any thread.
    unsafe { libc::malloc_trim(0) };
}
