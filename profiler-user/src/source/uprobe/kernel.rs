//! Loading the kernel programs and reaching their maps.

use std::{
    borrow::Cow,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use aya::{
    Ebpf, EbpfError,
    maps::{Array, HashMap, MapData, MapError, RingBuf},
    programs::{
        ProbeKind, Program, ProgramError, RawTracePoint, RawTracePointRunOptions, TestRun, TracePoint, UProbe,
    },
};
use aya_log::EbpfLogger;
use profiler_common::{
    counters::Counters,
    heap::{FreshBlock, LiveBlock, LiveKey, Totals, TotalsKey},
};

use super::{
    batch::Table,
    capacity::Capacities,
    loading::{self, CHILDREN, LIFECYCLE, NEWTASK, RETURNS, STAYING, SWEEP, UPROBES, load_single},
    multi::{self, Multi},
    run_counts::RunCounts,
    sampling::Sampling,
    targets::Targets,
    teaching::Teaching,
};

/// Why the kernel side could not be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// The kernel refused the object as a whole.
    #[error("cannot load heaptap's kernel programs")]
    Load(#[source] Box<EbpfError>),
    /// The kernel refused a program.
    #[error("the kernel refused the program `{program}`")]
    Program {
        /// Which one.
        program: &'static str,
        /// What it said.
        #[source]
        source: Box<ProgramError>,
    },
    /// The kernel refused something about a map.
    #[error("the kernel refused the map `{map}`")]
    Map {
        /// Which one.
        map: &'static str,
        /// What it said.
        #[source]
        source: Box<MapError>,
    },
    /// The embedded object cannot be made ready for this kernel: a defect of this build.
    #[error("heaptap's kernel programs cannot be made ready: {reason}")]
    Object {
        /// Why.
        reason: String,
    },
    /// The embedded object lacks something: a defect of this build.
    #[error("the embedded kernel object has no `{name}`")]
    Missing {
        /// What it lacks.
        name: &'static str,
    },
    /// The kernel's tracepoint of new threads is not as it was.
    #[error("the tracepoint task:task_newtask cannot be used: {reason}")]
    Newtask {
        /// Why.
        reason: String,
    },
    /// A map cannot be read.
    #[error("cannot read the map `{map}`")]
    Read {
        /// Which one.
        map: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Kernel-side diagnostics cannot be read.
    #[error("cannot read the kernel side's diagnostics")]
    Log(#[source] Box<aya_log::Error>),
}

/// The loaded programs and their maps. Dropping it, and what it came with, takes everything out of the kernel.
pub(super) struct Kernel {
    programs: Mutex<Ebpf>,
    /// The programs that are attached to many places at once, where the kernel can do that and children are not followed.
    multi: Option<Arc<Multi>>,
    /// How often those run that are attached to functions.
    pub(super) run_counts: Arc<RunCounts>,
    sweep: RawTracePoint,
    follows_children: bool,
    pub(super) counters: HashMap<MapData, u32, Counters>,
    pub(super) totals: Table<TotalsKey, Totals>,
    pub(super) overflows: Table<TotalsKey, Totals>,
    pub(super) live: Table<LiveKey, LiveBlock>,
    pub(super) fresh: Array<MapData, FreshBlock>,
    pub(super) sampling: Sampling,
}

/// The ring buffers that the kernel side writes.
pub(super) struct Rings {
    pub(super) events: RingBuf<MapData>,
    pub(super) log: Option<EbpfLogger<&'static dyn log::Log>>,
}

impl Kernel {
    /// Loads the programs of an ELF file; nothing fires yet. `diagnostics` lets them write a log, `may_be_witnessed` lets stacks be sent
    /// with their memory, and with `follows_children` those are loaded that do so.
    pub(super) fn load(
        object: &[u8],
        capacities: &Capacities,
        diagnostics: bool,
        may_be_witnessed: bool,
        follows_children: bool,
    ) -> Result<(Self, Targets, Teaching, Rings), KernelError> {
        // The same file twice, at the same time: aya keeps to itself what it has read.
        let (ebpf, parsed) = thread::scope(|scope| {
            let parsing = scope.spawn(|| if follows_children { Ok(None) } else { multi::parse(object) });
            let ebpf =
                loading::load_object(object, capacities, diagnostics, may_be_witnessed, follows_children);
            (ebpf, loading::join(parsing))
        });
        let mut ebpf = ebpf?;
        let first: &mut RawTracePoint = program(&mut ebpf, SWEEP)?;
        loading::load(SWEEP, || first.load())?;
        let run_counts = Arc::new(RunCounts::default());
        let multi = match parsed? {
            Some(parsed) => Multi::of(parsed, &ebpf, Arc::clone(&run_counts))?,
            None => None,
        };
        loading::load_programs(&mut ebpf, multi.as_ref(), &run_counts, follows_children)?;
        run_counts.set_returns(map(&mut ebpf, "RETURNS")?);
        let log = if diagnostics {
            Some(EbpfLogger::init(&mut ebpf).map_err(|source| KernelError::Log(Box::new(source)))?)
        } else {
            None
        };
        let rings = Rings { events: map(&mut ebpf, "EVENTS")?, log };
        let targets = Targets { home: map(&mut ebpf, "HOME")?, others: map(&mut ebpf, "TARGETS")? };
        let (rows, cache) = (map(&mut ebpf, "ROWS")?, map(&mut ebpf, "ROW_CACHE")?);
        let (trampolines, generation) = (map(&mut ebpf, "TRAMPOLINES")?, map(&mut ebpf, "GENERATION")?);
        let (counters, totals) = (map(&mut ebpf, "COUNTERS")?, map(&mut ebpf, "TOTALS")?);
        let (overflows, live) = (map(&mut ebpf, "OVERFLOWS")?, map(&mut ebpf, "LIVE")?);
        let fresh = map(&mut ebpf, "FRESH")?;
        let sampling = Sampling::new(map(&mut ebpf, "RATE")?, map(&mut ebpf, "THRESHOLDS")?);
        // To be run while others are being attached, which takes long.
        let mut handle = |name: &'static str| {
            let program: &mut RawTracePoint = program(&mut ebpf, name)?;
            let info = program.info().map_err(|source| refused(name, source))?;
            RawTracePoint::from_program_info(info, Cow::Borrowed(name))
                .map_err(|source| refused(name, source))
        };
        let [code_gone, sweep] = ["code_gone", SWEEP].map(&mut handle);
        let teaching =
            Teaching { rows, cache, generation, generations: 0, trampolines, code_gone: code_gone? };
        let kernel = Self {
            programs: Mutex::new(ebpf),
            multi: multi.map(Arc::new),
            run_counts,
            sweep: sweep?,
            follows_children,
            counters,
            totals,
            overflows,
            live,
            fresh,
            sampling,
        };
        Ok((kernel, targets, teaching, rings))
    }

    /// Attaches to the ends of threads and to programs being replaced, and to new processes where children are followed; of
    /// every process: the programs pick.
    pub(super) fn attach_lifecycle(&self) -> Result<(), KernelError> {
        let mut programs = self.programs();
        // In this order: a process that is watched from its exec on has not replaced a program that was watched.
        let staying = Some(&STAYING).filter(|_| self.multi.is_some());
        let of_children = CHILDREN.iter().filter(|_| self.follows_children);
        for (name, tracepoint) in LIFECYCLE.iter().chain(of_children).chain(staying) {
            let program: &mut RawTracePoint = program(&mut programs.programs, name)?;
            program.attach(tracepoint).map_err(|source| refused(name, source))?;
        }
        if self.follows_children {
            let program: &mut TracePoint = program(&mut programs.programs, NEWTASK)?;
            program.attach("task", "task_newtask").map_err(|source| refused(NEWTASK, source))?;
        }
        Ok(())
    }

    /// Makes room for blocks by forgetting those of programs that were replaced and of processes that are no longer watched:
    /// up to a fifth of a second of work for millions of them.
    pub(super) fn sweep(&self) -> Result<(), KernelError> {
        run(&self.sweep, SWEEP, 0)
    }

    /// Loads the programs that are attached to functions one by one, so that attaching them will take no time.
    pub(super) fn load_single(&self) -> Result<(), KernelError> {
        let mut programs = self.programs();
        UPROBES.into_iter().try_for_each(|name| programs.uprobe(name).map(drop))
    }

    /// A further handle of a program that is attached to functions one by one: it has links of its own and needs no lock.
    pub(super) fn handle(&self, name: &'static str) -> Result<UProbe, KernelError> {
        let mut programs = self.programs();
        let info = programs.uprobe(name)?.info().map_err(|source| refused(name, source))?;
        let kind = if name == RETURNS { ProbeKind::Return } else { ProbeKind::Entry };
        // SAFETY: it is the info of a uprobe program, which was loaded as one of this kind.
        let handle = unsafe { UProbe::from_program_info(info, Cow::Borrowed(name), kind) };
        handle.map_err(|source| refused(name, source))
    }

    /// The programs that are attached to many places at once; `None` where the kernel cannot do that, or children are followed.
    pub(super) const fn multi(&self) -> Option<&Arc<Multi>> {
        self.multi.as_ref()
    }

    /// The programs, for as long as they are needed.
    pub(super) fn programs(&self) -> Programs<'_> {
        Programs { programs: lock(&self.programs), run_counts: &self.run_counts }
    }
}

/// The loaded programs. Until this is dropped nobody else has them.
pub(super) struct Programs<'kernel> {
    programs: MutexGuard<'kernel, Ebpf>,
    run_counts: &'kernel RunCounts,
}

impl Programs<'_> {
    /// A uprobe or uretprobe program, which is loaded if it was not needed before.
    pub(super) fn uprobe(&mut self, name: &'static str) -> Result<&mut UProbe, KernelError> {
        let program: &mut UProbe = program(&mut self.programs, name)?;
        if program.fd().is_err() {
            load_single(name, program, self.run_counts)?;
        }
        Ok(program)
    }
}

/// The programs are whole between two calls, whatever happened to the thread that made the last one.
fn lock(programs: &Mutex<Ebpf>) -> MutexGuard<'_, Ebpf> {
    programs.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a program that no tracepoint runs, with a process as its argument.
pub(super) fn run(program: &RawTracePoint, name: &'static str, pid: u32) -> Result<(), KernelError> {
    let mut arguments = [0; 12];
    if let Some(first) = arguments.first_mut() {
        *first = pid.into();
    }
    let options = RawTracePointRunOptions { args: arguments, cpu: None };
    program.test_run(options).map_err(|source| refused(name, source))?;
    Ok(())
}

/// The error for a map that refused something.
pub(super) fn map_refused(map: &'static str) -> impl FnOnce(MapError) -> KernelError {
    move |source| KernelError::Map { map, source: Box::new(source) }
}

/// The error for a program that was refused.
pub(super) fn refused(program: &'static str, source: ProgramError) -> KernelError {
    KernelError::Program { program, source: Box::new(source) }
}

fn program<'ebpf, P>(ebpf: &'ebpf mut Ebpf, name: &'static str) -> Result<&'ebpf mut P, KernelError>
where
    &'ebpf mut P: TryFrom<&'ebpf mut Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(name).ok_or(KernelError::Missing { name })?;
    program.try_into().map_err(|source| refused(name, source))
}

fn map<M: TryFrom<aya::maps::Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<M, KernelError> {
    let map = ebpf.take_map(name).ok_or(KernelError::Missing { name })?;
    map.try_into().map_err(map_refused(name))
}
