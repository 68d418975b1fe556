//! The programs of the object: which there are, and loading those that are needed.

use std::{
    io,
    os::fd::AsFd,
    thread::{self, ScopedJoinHandle},
};

use aya::{
    Ebpf, EbpfLoader,
    programs::{Program, ProgramError, UProbe},
};

use super::{
    capacity::Capacities,
    kernel::{KernelError, refused},
    multi::Multi,
    run_counts::RunCounts,
    tracefs,
};

/// The programs that are attached to functions, one by one.
pub(super) const UPROBES: [&str; 12] = [
    "alloc_enter",
    "alloc_return",
    "alloc_ret",
    "free_enter",
    "loss_enter",
    "map_enter",
    "unmap_enter",
    "loader_change",
    GATE_WHOLE,
    GATE_CALL,
    GATE_RETURN,
    GATE_FREE,
];

/// That of them which is attached to returns.
pub(super) const RETURNS: &str = "alloc_return";

/// That of them which is attached to `ret` instructions, which are single-stepped.
pub(super) const STEPPED: &str = "alloc_ret";

/// The program that is attached to functions that allocate, and sees their returns as well, and to those that free.
pub(super) const CALL: &str = "alloc_call";

/// The program that is attached to functions that free.
pub(super) const FREE: &str = "free_enter";

/// The programs in gates: calls in the sample that have come back, calls that resize and their returns, and frees of what is in the sample.
pub(super) const GATE_WHOLE: &str = "gate_whole";
/// See [`GATE_WHOLE`].
pub(super) const GATE_CALL: &str = "gate_call";
/// See [`GATE_WHOLE`].
pub(super) const GATE_RETURN: &str = "gate_return";
/// See [`GATE_WHOLE`].
pub(super) const GATE_FREE: &str = "gate_free";

/// The programs that most processes need, of those that are attached to many places at once, where one program can see both entries and
/// returns, and where none can. The largest come first.
const MOSTLY: [&[&str]; 2] = [&[CALL, "loader_change"], &["alloc_enter", RETURNS, FREE, "loader_change"]];

/// What is attached to new threads where children are not followed, and probes are of a kind that stays in them.
pub(super) const STAYING: (&str, &str) = ("child_made", "task_newtask");

/// The program that is attached to new threads where children are followed.
pub(super) const NEWTASK: &str = "process_fork";

/// The program that user space runs itself to make room for blocks.
pub(super) const SWEEP: &str = "sweep";

/// The programs that are attached to the ends of all threads and programs.
pub(super) const LIFECYCLE: [(&str, &str); 2] =
    [("thread_exit", "sched_process_exit"), ("process_exec", "sched_process_exec")];

/// Those that are attached as well where children are followed.
pub(super) const CHILDREN: [(&str, &str); 2] =
    [("child_exit", "sched_process_exit"), ("child_exec", "sched_process_exec")];

/// How often a program is loaded at most, where signals break off its proof; libbpf's `PROG_LOAD_ATTEMPTS`.
const ATTEMPTS: usize = 5;

/// Loads the programs that are needed, all at the same time: the kernel takes tens of milliseconds to prove that one does no harm.
pub(super) fn load_programs(
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
                Program::RawTracePoint(program) => load(name, || program.load()),
                Program::TracePoint(program) => load(name, || program.load()),
                _ => Err(refused(name, ProgramError::UnexpectedProgramType)),
            }));
        }
        loading.into_iter().map(join).collect::<Result<Vec<()>, _>>().map(drop)
    })
}

/// Loads a program by `load`, again if need be: the kernel breaks off its proof with `EAGAIN` where the thread is sent a signal
/// (`do_check` of kernel/bpf/verifier.c, Linux 6.1).
pub(super) fn load<T>(
    name: &'static str,
    mut load: impl FnMut() -> Result<T, ProgramError>,
) -> Result<T, KernelError> {
    for _ in 1..ATTEMPTS {
        match load() {
            Err(ProgramError::LoadError { io_error, .. }) if io_error.kind() == io::ErrorKind::WouldBlock => {
            }
            loaded => return loaded.map_err(|source| refused(name, source)),
        }
    }
    load().map_err(|source| refused(name, source))
}

/// What a thread has come to.
pub(super) fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Makes the maps, and the programs ready to be loaded.
pub(super) fn load_object(
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
    let places = capacities.fresh_blocks();
    loader
        .map_max_entries("FRESH", places)
        .override_global("FRESH_SHIFT", &(u64::BITS - places.ilog2()), true)
        .map_max_entries("LIVE", capacities.live_blocks)
        .map_max_entries("TOTALS", capacities.totals)
        .map_max_entries("EVENTS", capacities.ring_bytes)
        .override_global("AYA_LOG_LEVEL", &level, true)
        .override_global("MAY_BE_WITNESSED", &u8::from(may_be_witnessed), true)
        .load(object)
        .map_err(|source| KernelError::Load(Box::new(source)))
}

/// Loads a program that is attached to functions one by one.
pub(super) fn load_single(
    name: &'static str,
    program: &mut UProbe,
    run_counts: &RunCounts,
) -> Result<(), KernelError> {
    load(name, || program.load())?;
    run_counts.add(name, program.fd().map_err(|source| refused(name, source))?.as_fd());
    Ok(())
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

#[cfg(test)]
mod tests {
    use aya_obj::VerifierLog;

    use super::*;

    /// What comes of a load that fails so often, each time with this error of the system.
    fn failing(times: usize, error: i32) -> (Result<usize, KernelError>, usize) {
        let mut loads = 0;
        let loaded = load("some_program", || {
            loads += 1;
            let io_error = io::Error::from_raw_os_error(error);
            let verifier_log = VerifierLog::new(String::new());
            if loads > times { Ok(loads) } else { Err(ProgramError::LoadError { io_error, verifier_log }) }
        });
        (loaded, loads)
    }

    #[test]
    fn a_load_that_a_signal_broke_off_is_repeated() {
        assert!(matches!(failing(0, libc::EAGAIN), (Ok(1), 1)));
        assert!(matches!(failing(4, libc::EAGAIN), (Ok(5), 5)));
    }

    #[test]
    fn a_load_that_fails_otherwise_or_too_often_is_an_error() {
        assert!(matches!(failing(1, libc::EACCES), (Err(KernelError::Program { .. }), 1)));
        let (loaded, loads) = failing(5, libc::EAGAIN);
        assert!(loaded.unwrap_err().to_string().contains("some_program"));
        assert_eq!(loads, 5);
    }

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
