//! Loading the kernel programs and reaching their maps.

use std::{
    borrow::Cow,
    io,
    os::fd::AsFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, ScopedJoinHandle},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{Array, HashMap, MapData, MapError, RingBuf},
    programs::{
        ProbeKind, Program, ProgramError, RawTracePoint, RawTracePointRunOptions, TestRun, TracePoint, UProbe,
    },
};
use aya_log::EbpfLogger;
use profiler_common::{
    counters::Counters,
    heap::{RowKey, Totals, TotalsKey},
    target::{Home, Target},
    unwind::{CachedRow, Row, WalkEnd},
};

use super::{
    batch::Table,
    capacity::Capacities,
    multi::{self, Multi},
    run_counts::RunCounts,
    sampling::Sampling,
    tracefs,
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

/// The programs that are attached to functions, one by one.
const UPROBES: [&str; 8] = [
    "alloc_enter",
    "alloc_return",
    "alloc_ret",
    "free_enter",
    "loss_enter",
    "map_enter",
    "unmap_enter",
    "loader_change",
];

/// That of them which is attached to returns.
pub(super) const RETURNS: &str = "alloc_return";

/// That of them which is attached to `ret` instructions, which are single-stepped.
pub(super) const STEPPED: &str = "alloc_ret";

/// The program that is attached to functions that allocate, and sees their returns as well, and to those that free.
pub(super) const CALL: &str = "alloc_call";

/// The program that is attached to functions that free.
pub(super) const FREE: &str = "free_enter";

/// The programs that most processes need, of those that are attached to many places at once, where one program can see both entries and
/// returns, and where none can. The largest come first.
const MOSTLY: [&[&str]; 2] = [&[CALL, "loader_change"], &["alloc_enter", RETURNS, FREE, "loader_change"]];

/// What is attached to new threads where children are not followed, and probes are of a kind that stays in them.
const STAYING: (&str, &str) = ("child_made", "task_newtask");

/// The program that is attached to new threads where children are followed.
const NEWTASK: &str = "process_fork";

/// The program that user space runs itself to make room for blocks.
pub(super) const SWEEP: &str = "sweep";

/// The programs that are attached to the ends of all threads and programs.
const LIFECYCLE: [(&str, &str); 2] =
    [("thread_exit", "sched_process_exit"), ("process_exec", "sched_process_exec")];

/// Those that are attached as well where children are followed.
const CHILDREN: [(&str, &str); 2] =
    [("child_exit", "sched_process_exit"), ("child_exec", "sched_process_exec")];

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
    pub(super) sampling: Sampling,
}

/// The maps that say which processes are watched.
pub(super) struct Targets {
    /// The first one; it stays the one whose place this is.
    home: Array<MapData, Home>,
    others: HashMap<MapData, u32, Target>,
}

impl Targets {
    /// Begins to watch a process, of whose stacks `depth` frames are kept; with `is_witnessed` each new one is sent with
    /// the memory that it was walked in.
    ///
    /// With `follows` the kernel side adds its children.
    pub(super) fn insert(
        &mut self,
        pid: u32,
        depth: u32,
        is_witnessed: bool,
        follows: bool,
    ) -> Result<(), KernelError> {
        let target =
            Target { depth, is_witnessed: is_witnessed.into(), follows: follows.into(), ..Target::default() };
        if self.home().tgid != 0 {
            return self.others.insert(pid, target, 0).map_err(map_refused("TARGETS"));
        }
        // Whose it is comes when the rest is there, for the programs read it meanwhile.
        for tgid in [0, pid] {
            let home = Home { target, tgid, nothing: 0 };
            self.home.set(0, home, 0).map_err(map_refused("HOME"))?;
        }
        Ok(())
    }

    /// How often a process has replaced its program; `None` where it is not watched.
    pub(super) fn image(&self, pid: u32) -> Option<u32> {
        let Home { target, tgid, .. } = self.home();
        if tgid == pid {
            return Some(target.image);
        }
        self.others.get(&pid, 0).ok().map(|target| target.image)
    }

    /// Watches a process no longer; gives how often it has replaced its program, if it was watched.
    pub(super) fn remove(&mut self, pid: u32) -> Option<u32> {
        let image = self.image(pid);
        if self.home().tgid == pid {
            // Failing is not possible where there is such a value.
            let _ = self.home.set(0, Home::default(), 0);
        } else {
            // Failing means that it is not watched.
            let _ = self.others.remove(&pid);
        }
        image
    }

    fn home(&self) -> Home {
        // Failing is not possible where there is such a value.
        self.home.get(&0, 0).unwrap_or_default()
    }
}

/// The maps through which user space teaches the kernel side to walk.
pub(super) struct Teaching {
    rows: HashMap<MapData, RowKey, u64>,
    cache: Array<MapData, CachedRow>,
    generation: Array<MapData, u64>,
    /// How often rows were taken back that stacks may have been walked by.
    generations: u64,
    trampolines: HashMap<MapData, u32, u64>,
    code_gone: RawTracePoint,
}

/// The same, for all who teach.
pub(super) type SharedTeaching = Arc<Mutex<Teaching>>;

impl Teaching {
    /// Teaches a row. One that cannot be kept is missed and taught again.
    pub(super) fn insert_row(&mut self, pid: u32, epoch: u32, pc: u64, row: Row) {
        let key = RowKey { pc, tgid: pid, epoch };
        if let Err(error) = self.rows.insert(key, row.to_raw(), 0) {
            tracing::debug!(%error, "a row was not taken");
        }
        if let Err(error) = self.cache.set(CachedRow::slot(key), CachedRow::new(key, row), 0) {
            tracing::debug!(%error, "a row will take longer to be found");
        }
    }

    /// Has the kernel side ask for a row again, in an epoch that goes on. What was walked by it is no longer taken for known.
    pub(super) fn unlearn_row(&mut self, pid: u32, epoch: u32, pc: u64) {
        // In the place of the row that may be kept in a second place.
        self.insert_row(pid, epoch, pc, Row::stop(WalkEnd::MissingRow));
        // Behind that: a walk that was told the row has begun before, and is of an earlier generation.
        self.generations += 1;
        if let Err(error) = self.generation.set(0, self.generations, 0) {
            tracing::warn!(%error, "stacks may be taken for those of before");
        }
    }

    /// Takes a row back, of an epoch that is over.
    pub(super) fn remove_row(&mut self, pid: u32, epoch: u32, pc: u64) {
        // Failing means that it was never taken.
        let _ = self.rows.remove(&RowKey { pc, tgid: pid, epoch });
    }

    /// Forgets where hijacked return addresses point: the process has ended.
    pub(super) fn remove_trampoline(&mut self, pid: u32) {
        // Failing means that it was never known.
        let _ = self.trampolines.remove(&pid);
    }

    /// Begins a new epoch: code has gone.
    pub(super) fn raise_epoch(&mut self, pid: u32) -> Result<(), KernelError> {
        run(&self.code_gone, "code_gone", pid)
    }

    /// Tells where the page of hijacked return addresses is.
    pub(super) fn set_trampoline(&mut self, pid: u32, trampoline: u64) {
        if let Err(error) = self.trampolines.insert(pid, trampoline, 0) {
            tracing::warn!(%error, "the kernel side goes on guessing where hijacked return addresses point");
        }
    }
}

/// Loads the programs that are needed, all at the same time: the kernel takes tens of milliseconds to prove that one does no harm.
fn load_programs(
    ebpf: &mut Ebpf,
    multi: Option<&Multi>,
    run_counts: &RunCounts,
    follows_children: bool,
) -> Result<(), KernelError> {
    let raw = LIFECYCLE.iter().chain(CHILDREN.iter().filter(|_| follows_children)).map(|(name, _)| *name);
    let of_children = Some(NEWTASK).filter(|_| follows_children);
    let staying = Some(STAYING.0).filter(|_| multi.is_some());
    let single = UPROBES.into_iter().filter(|_| multi.is_none());
    let names: Vec<&'static str> =
        single.chain(["code_gone"]).chain(raw).chain(of_children).chain(staying).collect();
    if let Some(&name) = names.iter().find(|name| ebpf.program(name).is_none()) {
        return Err(KernelError::Missing { name });
    }
    thread::scope(|scope| {
        let mut loading = Vec::new();
        if let Some(multi) = multi {
            let [with_sessions, without] = MOSTLY;
            let mostly = if multi.has_sessions() { with_sessions } else { without };
            loading.extend(mostly.iter().map(|name| scope.spawn(move || multi.load(name).map(drop))));
        }
        for (name, program) in ebpf.programs_mut() {
            let Some(name) = names.iter().copied().find(|wanted| *wanted == name) else { continue };
            loading.push(scope.spawn(move || match program {
                Program::UProbe(program) => load_single(name, program, run_counts),
                Program::RawTracePoint(program) => program.load().map_err(|source| refused(name, source)),
                Program::TracePoint(program) => program.load().map_err(|source| refused(name, source)),
                _ => Err(refused(name, ProgramError::UnexpectedProgramType)),
            }));
        }
        loading.into_iter().map(join).collect::<Result<Vec<()>, _>>().map(drop)
    })
}

/// What a thread has come to.
fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Makes the maps, and the programs ready to be loaded.
fn load_object(
    object: &[u8],
    capacities: &Capacities,
    diagnostics: bool,
    may_be_witnessed: bool,
    follows_children: bool,
) -> Result<Ebpf, KernelError> {
    // The programs' log statements are behind a constant that the kernel removes them by.
    let level = if diagnostics { log::Level::Debug as u8 } else { 0 };
    let newtask = if follows_children { Newtask::of_this_kernel()? } else { Newtask::default() };
    let mut loader = EbpfLoader::new();
    if follows_children {
        loader.override_global("NEWTASK_PID_OFFSET", &newtask.pid_offset, true).override_global(
            "NEWTASK_FLAGS_OFFSET",
            &newtask.flags_offset,
            true,
        );
    }
    loader
        .map_max_entries("LIVE", capacities.live_blocks)
        .map_max_entries("TOTALS", capacities.totals)
        .map_max_entries("EVENTS", capacities.ring_bytes)
        .override_global("AYA_LOG_LEVEL", &level, true)
        .override_global("MAY_BE_WITNESSED", &u8::from(may_be_witnessed), true)
        .load(object)
        .map_err(|source| KernelError::Load(Box::new(source)))
}

/// Loads a program that is attached to functions one by one.
fn load_single(name: &'static str, program: &mut UProbe, run_counts: &RunCounts) -> Result<(), KernelError> {
    program.load().map_err(|source| refused(name, source))?;
    run_counts.add(name, program.fd().map_err(|source| refused(name, source))?.as_fd());
    Ok(())
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
            let ebpf = load_object(object, capacities, diagnostics, may_be_witnessed, follows_children);
            (ebpf, join(parsing))
        });
        let mut ebpf = ebpf?;
        let first: &mut RawTracePoint = program(&mut ebpf, SWEEP)?;
        first.load().map_err(|source| refused(SWEEP, source))?;
        let run_counts = Arc::new(RunCounts::default());
        let multi = match parsed? {
            Some(parsed) => Multi::of(parsed, &ebpf, Arc::clone(&run_counts))?,
            None => None,
        };
        load_programs(&mut ebpf, multi.as_ref(), &run_counts, follows_children)?;
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
        let overflows = map(&mut ebpf, "OVERFLOWS")?;
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

/// Where the fields of the tracepoint of new threads lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Newtask {
    pid_offset: u32,
    flags_offset: u32,
}

impl Newtask {
    fn of_this_kernel() -> Result<Self, KernelError> {
        let format = tracefs::read("events/task/task_newtask/format");
        let format = format.map_err(|error| KernelError::Newtask { reason: error.to_string() })?;
        Self::parse(&format).ok_or_else(|| KernelError::Newtask { reason: format!("its format is {format}") })
    }

    /// Reads lines such as `field:pid_t pid; offset:8; size:4; signed:1;`.
    fn parse(format: &str) -> Option<Self> {
        let offset = |field: &str, size: &str| {
            let line =
                format.lines().find(|line| line.split(';').next().is_some_and(|of| of.ends_with(field)))?;
            let mut values = line.split(';').filter_map(|value| value.trim().split_once(':'));
            let of = |name| values.clone().find_map(|(key, value)| (key == name).then_some(value));
            let found = of("offset").filter(|_| of("size") == Some(size))?.parse().ok();
            values.next().and(found)
        };
        Some(Self { pid_offset: offset(" pid", "4")?, flags_offset: offset(" clone_flags", "8")? })
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
fn run(program: &RawTracePoint, name: &'static str, pid: u32) -> Result<(), KernelError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_of_a_tracepoint_are_found_by_name_and_size() {
        let format = "name: task_newtask\nID: 205\nformat:\n\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n\n\
            \tfield:pid_t pid;\toffset:8;\tsize:4;\tsigned:1;\n\tfield:char comm[16];\toffset:12;\tsize:16;\tsigned:0;\n\
            \tfield:unsigned long clone_flags;\toffset:32;\tsize:8;\tsigned:0;\n";
        assert_eq!(Newtask::parse(format), Some(Newtask { pid_offset: 8, flags_offset: 32 }));
        assert_eq!(Newtask::parse(&format.replace("size:8", "size:4")), None);
        assert_eq!(Newtask::parse(""), None);
    }
}
