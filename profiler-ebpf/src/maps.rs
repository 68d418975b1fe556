//! The maps, all of them. Capacities are set by the loader; those here are the defaults.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{Array, HashMap, PerCpuArray, ProgramArray, RingBuf},
};
use profiler_common::{
    call::InFlight,
    counters::Counters,
    heap::{LiveBlock, LiveKey, RowKey, Totals, TotalsKey},
    limits, sampling,
    target::{Sharing, Target},
    unwind::CachedRow,
};

/// tgid → what to do for that process; without an entry, nothing.
#[map]
pub static TARGETS: HashMap<u32, Target> = HashMap::with_max_entries(limits::MAX_TARGETS, 0);

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

/// pid_tgid → the thread's outermost allocator call.
#[map]
pub static INFLIGHT: HashMap<u64, InFlight> = HashMap::with_max_entries(limits::MAX_INFLIGHT, 0);

/// Block → its size and stack.
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

/// The rate at which allocations are sampled now.
#[map]
pub static RATE: Array<u32> = Array::with_max_entries(1, 0);

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

/// What is to be done for a process; `None` when nothing is.
#[inline(always)]
pub fn target(tgid: u32) -> Option<Target> {
    // SAFETY: user space replaces an entry as a whole, and one that is a moment old is as good.
    Some(unsafe { *TARGETS.get_ptr(tgid)? })
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
    RATE.get_ptr(0).map_or(0, |rate| unsafe { rate.read_volatile() })
}

/// Where hijacked return addresses point in a process; 0 where that is not known.
#[inline(always)]
pub fn trampoline(tgid: u32) -> u64 {
    // SAFETY: an aligned word of a map value.
    TRAMPOLINES.get_ptr(tgid).map_or(0, |trampoline| unsafe { *trampoline })
}
