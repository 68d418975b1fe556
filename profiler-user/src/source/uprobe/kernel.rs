//! Loading the kernel programs and reaching their maps.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{Array, HashMap, MapData, MapError, RingBuf},
    programs::{Program, ProgramError, RawTracePoint, RawTracePointRunOptions, TestRun, UProbe},
};
use aya_log::EbpfLogger;
use profiler_common::{
    counters::Counters,
    heap::{RowKey, Totals, TotalsKey},
    limits,
    target::Target,
    unwind::{CachedRow, Row},
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
    /// Frames kept of a stack, counted from the leaf: at least 1, at most [`limits::MAX_FRAMES`].
    pub stack_depth: u32,
}

impl Capacities {
    /// Live blocks to follow in a process with so much memory: one for every 64 bytes, which is more than most programs
    /// have, within the limits that keep an empty table affordable.
    pub fn live_blocks_for(rss_bytes: u64) -> u32 {
        let blocks = (rss_bytes / 64)
            .clamp(limits::DEFAULT_MAX_LIVE.into(), limits::LARGEST_DEFAULT_MAX_LIVE.into())
            .next_power_of_two();
        u32::try_from(blocks).unwrap_or(limits::LARGEST_DEFAULT_MAX_LIVE)
    }
}

impl Default for Capacities {
    fn default() -> Self {
        Self {
            live_blocks: limits::DEFAULT_MAX_LIVE,
            totals: limits::DEFAULT_MAX_TOTALS,
            ring_bytes: limits::DEFAULT_RING_BYTES,
            stack_depth: limits::DEFAULT_FRAMES,
        }
    }
}

/// The loaded programs and their maps. Dropping it, and what it came with, takes everything out of the kernel.
pub(super) struct Kernel {
    programs: Arc<Mutex<Ebpf>>,
    pub(super) counters: HashMap<MapData, u32, Counters>,
    pub(super) totals: HashMap<MapData, TotalsKey, Totals>,
}

/// The map that says which processes are watched.
pub(super) struct Targets(HashMap<MapData, u32, Target>);

impl Targets {
    /// Begins to watch a process, of whose stacks `depth` frames are kept; with `is_witnessed` each new one is sent with
    /// the memory that it was walked in.
    pub(super) fn insert(&mut self, pid: u32, depth: u32, is_witnessed: bool) -> Result<(), KernelError> {
        let target = Target { depth, is_witnessed: is_witnessed.into(), ..Target::default() };
        self.0.insert(pid, target, 0).map_err(map_refused("TARGETS"))
    }

    /// Watches a process no longer.
    pub(super) fn remove(&mut self, pid: u32) {
        // Failing means that the process replaced its program, upon which the kernel side took it out.
        let _ = self.0.remove(&pid);
    }
}

/// The maps through which user space teaches the kernel side to walk.
pub(super) struct Teaching {
    rows: HashMap<MapData, RowKey, u64>,
    cache: Array<MapData, CachedRow>,
    trampolines: HashMap<MapData, u32, u64>,
    programs: Arc<Mutex<Ebpf>>,
}

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

    /// Takes a row back.
    pub(super) fn remove_row(&mut self, pid: u32, epoch: u32, pc: u64) {
        // Failing means that it was never taken.
        let _ = self.rows.remove(&RowKey { pc, tgid: pid, epoch });
    }

    /// Begins a new epoch: code has gone.
    pub(super) fn raise_epoch(&mut self, pid: u32) -> Result<(), KernelError> {
        const NAME: &str = "code_gone";
        let mut programs = lock(&self.programs);
        let program: &mut RawTracePoint = program(&mut programs, NAME)?;
        let mut arguments = [0; 12];
        if let Some(first) = arguments.first_mut() {
            *first = pid.into();
        }
        let options = RawTracePointRunOptions { args: arguments, cpu: None };
        program.test_run(options).map_err(|source| refused(NAME, source))?;
        Ok(())
    }

    /// Tells where the page of hijacked return addresses is.
    pub(super) fn set_trampoline(&mut self, pid: u32, trampoline: u64) {
        if let Err(error) = self.trampolines.insert(pid, trampoline, 0) {
            tracing::warn!(%error, "the kernel side goes on guessing where hijacked return addresses point");
        }
    }
}

/// The ring buffers that the kernel side writes.
pub(super) struct Rings {
    pub(super) events: RingBuf<MapData>,
    pub(super) log: Option<EbpfLogger<&'static dyn log::Log>>,
}

impl Kernel {
    /// Loads the programs of an ELF file; nothing fires yet. `diagnostics` lets them write a log.
    pub(super) fn load(
        object: &[u8],
        capacities: &Capacities,
        diagnostics: bool,
    ) -> Result<(Self, Targets, Teaching, Rings), KernelError> {
        // The programs' log statements are behind a constant that the kernel removes them by.
        let level = if diagnostics { log::Level::Debug as u8 } else { 0 };
        let mut ebpf = EbpfLoader::new()
            .map_max_entries("LIVE", capacities.live_blocks)
            // One more, for what has no entry of its own.
            .map_max_entries("TOTALS", capacities.totals.saturating_add(1))
            .map_max_entries("EVENTS", capacities.ring_bytes)
            .override_global("AYA_LOG_LEVEL", &level, true)
            .load(object)
            .map_err(|source| KernelError::Load(Box::new(source)))?;
        for name in ["alloc_enter", "alloc_return", "alloc_ret", "free_enter", "loss_enter", "loader_change"]
        {
            let program: &mut UProbe = program(&mut ebpf, name)?;
            program.load().map_err(|source| refused(name, source))?;
        }
        for name in ["thread_exit", "process_exec", "code_gone"] {
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
        let (rows, cache) = (map(&mut ebpf, "ROWS")?, map(&mut ebpf, "ROW_CACHE")?);
        let trampolines = map(&mut ebpf, "TRAMPOLINES")?;
        let (counters, totals) = (map(&mut ebpf, "COUNTERS")?, map(&mut ebpf, "TOTALS")?);
        let programs = Arc::new(Mutex::new(ebpf));
        let teaching = Teaching { rows, cache, trampolines, programs: Arc::clone(&programs) };
        Ok((Self { programs, counters, totals }, targets, teaching, rings))
    }

    /// The programs, for as long as they are needed.
    pub(super) fn programs(&self) -> Programs<'_> {
        Programs(lock(&self.programs))
    }
}

/// The loaded programs. Until this is dropped nobody else has them.
pub(super) struct Programs<'kernel>(MutexGuard<'kernel, Ebpf>);

impl Programs<'_> {
    /// A uprobe or uretprobe program.
    pub(super) fn uprobe(&mut self, name: &'static str) -> Result<&mut UProbe, KernelError> {
        program(&mut self.0, name)
    }

    /// A raw tracepoint program.
    pub(super) fn tracepoint(&mut self, name: &'static str) -> Result<&mut RawTracePoint, KernelError> {
        program(&mut self.0, name)
    }
}

/// The programs are whole between two calls, whatever happened to the thread that made the last one.
fn lock(programs: &Mutex<Ebpf>) -> MutexGuard<'_, Ebpf> {
    programs.lock().unwrap_or_else(PoisonError::into_inner)
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
    fn room_for_live_blocks_grows_with_the_process_within_limits() {
        assert_eq!(Capacities::live_blocks_for(0), 1 << 21);
        assert_eq!(Capacities::live_blocks_for((128 << 20) + 64), 1 << 22);
        assert_eq!(Capacities::live_blocks_for(u64::MAX), 1 << 24);
    }
}
