//! The maps, all of them. Capacities are set by the loader; those here are the defaults.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{Array, HashMap, PerCpuArray, ProgramArray, RingBuf},
};
use profiler_common::{
    counters::Counters,
    heap::{FreshBlock, LiveBlock, LiveKey, RowKey, Totals, TotalsKey},
    limits,
    sampling::{self, NOT_KEPT},
    target::{Home, Sharing, Target},
    thread::Thread,
    unwind::{CachedRow, remembered::Walks},
};

/// What to do for the process that is watched first: looked at first, because it takes no call of a helper.
#[map]
static HOME: Array<Home> = Array::with_max_entries(1, 0);

/// tgid → what to do for that process, of all further ones; without an entry, nothing.
#[map]
static TARGETS: HashMap<u32, Target> = HashMap::with_max_entries(limits::MAX_TARGETS, 0);

/// `BPF_NOEXIST` of include/uapi/linux/bpf.h: insert only where there is no entry.
pub const NO_EXIST: u64 = 1;

/// tgid → start of the page to which hijacked return addresses point; without an entry, it is not known.
#[map]
pub static TRAMPOLINES: HashMap<u32, u64> = HashMap::with_max_entries(limits::MAX_TARGETS, 0);

/// tgid → what to do for a process once it has replaced its program; until then it has the memory of a watched one.
#[map]
pub static SHARING: HashMap<u32, Sharing> = HashMap::with_max_entries(limits::MAX_TARGETS, 0);

/// Return address → how to go on from there, a `Row`.
#[map]
pub static ROWS: HashMap<RowKey, u64> = HashMap::with_max_entries(limits::MAX_ROWS, BPF_F_NO_PREALLOC);

/// Slot → one of the `ROWS`: looked at first, because it takes no call of a helper.
#[map]
pub static ROW_CACHE: Array<CachedRow> = Array::with_max_entries(1 << CachedRow::SLOTS_LOG2, 0);

/// tgid → what was lost or guessed.
#[map]
pub static COUNTERS: HashMap<u32, Counters> = HashMap::with_max_entries(limits::MAX_TARGETS, 0);

/// How often rows were taken back, of all processes.
#[map]
static GENERATION: Array<u64> = Array::with_max_entries(1, 0);

/// pid_tgid → what is known of a thread: its outermost allocator call.
#[map]
pub static THREADS: HashMap<u64, Thread> = HashMap::with_max_entries(limits::MAX_THREADS, BPF_F_NO_PREALLOC);

/// [`Walks`], as the words that they are made of: a static must be one that threads may share, and these no thread does.
pub type WalksWords = [u64; size_of::<Walks>() / 8];

/// pid_tgid → walks of the thread that are known again, of threads that allocate much.
#[map]
pub static WALKS: HashMap<u64, WalksWords> =
    HashMap::with_max_entries(limits::MAX_REMEMBERING, BPF_F_NO_PREALLOC);

/// Place of a block → the block: looked at first, because it takes no call of a helper.
#[map]
pub static FRESH: Array<FreshBlock> = Array::with_max_entries(2, 0);

/// Block → its size and stack, of all further ones.
#[map]
pub static LIVE: HashMap<LiveKey, LiveBlock> =
    HashMap::with_max_entries(limits::DEFAULT_MAX_LIVE, BPF_F_NO_PREALLOC);

/// Stack and size class → allocated and freed.
#[map]
pub static TOTALS: HashMap<TotalsKey, Totals> =
    HashMap::with_max_entries(limits::DEFAULT_MAX_TOTALS, BPF_F_NO_PREALLOC);

/// The same, of what has no room there: by size class alone.
#[map]
pub static OVERFLOWS: HashMap<TotalsKey, Totals> =
    HashMap::with_max_entries(limits::MAX_OVERFLOWS, BPF_F_NO_PREALLOC);

/// The rate at which allocations are sampled now, and that of those that a gate has sampled.
#[map]
static RATE: Array<u32> = Array::with_max_entries(sampling::RATE_SLOTS, 0);

/// Rate and size class, by [`sampling::slot`] → what a random number must be below for an allocation to be kept; 0 for all. User
/// space fills in a rate before it is used, and leaves it so.
#[map]
pub static THRESHOLDS: Array<u32> = Array::with_max_entries(sampling::RATES * sampling::CLASSES, 0);

/// Returns that a program has seen which sees entries as well: what the kernel says of its runs has both.
#[map]
pub static RETURNS: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// New stacks and lifecycle notices on their way to user space.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(limits::DEFAULT_RING_BYTES, 0);

/// Empty for ever; see [`Target::keep_kernel_stack`]. For uprobe programs only: the kernel lets programs of one
/// type share such a map.
#[map]
pub static NO_PROGRAMS: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Where it says what is to be done for a process; `None` when nothing is.
#[inline(always)]
pub fn target_ptr(tgid: u32) -> Option<*mut Target> {
    let home = HOME.get_ptr_mut(0)?;
    // SAFETY: an aligned word of a map value.
    if unsafe { (&raw const (*home).tgid).read_volatile() } == tgid {
        // SAFETY: a part of the map value.
        return Some(unsafe { &raw mut (*home).target });
    }
    TARGETS.get_ptr_mut(tgid)
}

/// What is to be done for a process; `None` when nothing is.
#[inline(always)]
pub fn target(tgid: u32) -> Option<Target> {
    // SAFETY: what is written there meanwhile are single words, and one that is a moment old is as good. Read here and now, so
    // that the verifier need not tell apart where it was any longer.
    Some(unsafe { target_ptr(tgid)?.read_volatile() })
}

/// Begins to watch a process; false where there is no room for it, or it is watched already.
#[inline(always)]
pub fn add_target(tgid: u32, target: &Target) -> bool {
    target_ptr(tgid).is_none() && TARGETS.insert(tgid, *target, NO_EXIST).is_ok()
}

/// Watches a process no longer that [`add_target`] has added.
#[inline(always)]
pub fn remove_target(tgid: u32) {
    // Failing means that it is not watched.
    let _ = TARGETS.remove(tgid);
}

/// How often rows were taken back.
#[inline(always)]
pub fn generation() -> u64 {
    // SAFETY: an aligned word of a map value.
    GENERATION.get_ptr(0).map_or(0, |generation| unsafe { generation.read_volatile() })
}

/// Counts a return. One may be lost to another thread that comes in between, which is no matter: what is made of it is an estimate.
#[inline(always)]
pub fn note_return() {
    if let Some(returns) = RETURNS.get_ptr_mut(0) {
        // SAFETY: an aligned word of a map value.
        unsafe { returns.write_volatile(returns.read_volatile() + 1) };
    }
}

/// The rate at which allocations are sampled now; 0 where all are kept.
#[inline(always)]
pub fn rate() -> u32 {
    // SAFETY: an aligned word of a map value.
    RATE.get_ptr(sampling::RATE_SLOT).map_or(0, |rate| unsafe { rate.read_volatile() })
}

/// The rate of allocations that a gate has sampled.
#[inline(always)]
pub fn rate_behind_gate() -> u64 {
    // SAFETY: an aligned word of a map value.
    RATE.get_ptr(sampling::GATE_RATE_SLOT).map_or(NOT_KEPT, |rate| unsafe { rate.read_volatile() }.into())
}

/// Where hijacked return addresses point in a process; 0 where that is not known.
#[inline(always)]
pub fn trampoline(tgid: u32) -> u64 {
    // SAFETY: an aligned word of a map value.
    TRAMPOLINES.get_ptr(tgid).map_or(0, |trampoline| unsafe { *trampoline })
}
