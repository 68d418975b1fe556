//! Loading the kernel programs and reaching their maps.

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{HashMap, MapData, MapError, RingBuf},
    programs::{Program, ProgramError, RawTracePoint, UProbe},
};
use aya_log::EbpfLogger;
use profiler_common::{
    counters::Counters,
    heap::{Totals, TotalsKey},
    limits,
    target::Target,
};

use super::object::OBJECT;

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
    /// The embedded object lacks something: a defect of this build.
    #[error("the embedded kernel object has no `{name}`")]
    Missing {
        /// What it lacks.
        name: &'static str,
    },
    /// Kernel-side diagnostics cannot be read.
    #[error("cannot read the kernel side's diagnostics")]
    Log(#[source] Box<aya_log::Error>),
}

/// How much the kernel side may keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacities {
    /// Live blocks that are followed.
    pub live_blocks: u32,
    /// Pairs of a stack and a size class that are told apart.
    pub totals: u32,
    /// Size of the ring buffer, in bytes: a power of two, at least a page.
    pub ring_bytes: u32,
}

impl Default for Capacities {
    fn default() -> Self {
        Self {
            live_blocks: limits::DEFAULT_MAX_LIVE,
            totals: limits::DEFAULT_MAX_TOTALS,
            ring_bytes: limits::DEFAULT_RING_BYTES,
        }
    }
}

/// The loaded programs and their maps. Dropping it takes everything out of the kernel.
pub(super) struct Kernel {
    ebpf: Ebpf,
    pub(super) counters: HashMap<MapData, u32, Counters>,
    pub(super) totals: HashMap<MapData, TotalsKey, Totals>,
}

/// The map that says which processes are watched.
pub(super) struct Targets(HashMap<MapData, u32, Target>);

/// `BPF_EXIST` of include/uapi/linux/bpf.h: replace an entry, but make none.
const BPF_EXIST: u64 = 2;

impl Targets {
    /// Begins to watch a process.
    pub(super) fn insert(&mut self, pid: u32, trampoline: Option<u64>) -> Result<(), KernelError> {
        self.0.insert(pid, target(trampoline.unwrap_or_default()), 0).map_err(map_refused("TARGETS"))
    }

    /// Tells where the page of hijacked return addresses is.
    pub(super) fn set_trampoline(&mut self, pid: u32, trampoline: u64) {
        // Failing means that the kernel side took the process out, which must stay so.
        let _ = self.0.insert(pid, target(trampoline), BPF_EXIST);
    }

    /// Watches a process no longer.
    pub(super) fn remove(&mut self, pid: u32) {
        // Failing means that the process replaced its program, upon which the kernel side took it out.
        let _ = self.0.remove(&pid);
    }
}

const fn target(trampoline: u64) -> Target {
    Target { epoch: 0, flags: 0, trampoline }
}

/// The ring buffers that the kernel side writes.
pub(super) struct Rings {
    pub(super) events: RingBuf<MapData>,
    pub(super) log: Option<EbpfLogger<&'static dyn log::Log>>,
}

impl Kernel {
    /// Loads the programs; nothing fires yet. `diagnostics` lets them write a log.
    pub(super) fn load(
        capacities: &Capacities,
        diagnostics: bool,
    ) -> Result<(Self, Targets, Rings), KernelError> {
        // The programs' log statements are behind a constant that the kernel removes them by.
        let level = if diagnostics { log::Level::Debug as u8 } else { 0 };
        let mut ebpf = EbpfLoader::new()
            .map_max_entries("LIVE", capacities.live_blocks)
            // One more, for what has no entry of its own.
            .map_max_entries("TOTALS", capacities.totals.saturating_add(1))
            .map_max_entries("EVENTS", capacities.ring_bytes)
            .override_global("AYA_LOG_LEVEL", &level, true)
            .load(OBJECT)
            .map_err(|source| KernelError::Load(Box::new(source)))?;
        for name in ["alloc_enter", "alloc_return", "free_enter"] {
            let program: &mut UProbe = program(&mut ebpf, name)?;
            program.load().map_err(|source| refused(name, source))?;
        }
        for name in ["thread_exit", "process_exec"] {
            let program: &mut RawTracePoint = program(&mut ebpf, name)?;
            program.load().map_err(|source| refused(name, source))?;
        }
        let log = if diagnostics {
            Some(EbpfLogger::init(&mut ebpf).map_err(|source| KernelError::Log(Box::new(source)))?)
        } else {
            None
        };
        let rings = Rings { events: map(&mut ebpf, "EVENTS")?, log };
        let targets = Targets(map(&mut ebpf, "TARGETS")?);
        let kernel = Self { counters: map(&mut ebpf, "COUNTERS")?, totals: map(&mut ebpf, "TOTALS")?, ebpf };
        Ok((kernel, targets, rings))
    }

    /// A uprobe or uretprobe program.
    pub(super) fn uprobe(&mut self, name: &'static str) -> Result<&mut UProbe, KernelError> {
        program(&mut self.ebpf, name)
    }

    /// A raw tracepoint program.
    pub(super) fn tracepoint(&mut self, name: &'static str) -> Result<&mut RawTracePoint, KernelError> {
        program(&mut self.ebpf, name)
    }
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
