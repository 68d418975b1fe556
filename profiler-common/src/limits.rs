//! Capacities of the kernel maps, with their arithmetic.

use crate::event::{LargeMiss, SmallMiss, StackEvent};

/// Most frames that can be kept of one stack, counted from the leaf.
pub const MAX_FRAMES: usize = 512;

/// Frames that fit a small record on its way to user space.
pub const FEW_FRAMES: usize = 48;

/// Frames kept of one stack unless something else is asked for.
///
/// 127 is what the kernel's own `PERF_MAX_STACK_DEPTH` has, so that profiles compare.
pub const DEFAULT_FRAMES: u32 = 127;

/// Bytes of a stack that are copied in one piece for user space to learn from; up to a page less, to the end of a page.
///
/// Debian's python3 and sqlite3 stay below 16 KiB in ordinary use; a page more costs the target a quarter of a microsecond.
pub const COPY_BYTES: usize = 8 * 4096;

/// Pieces that may follow the first: half a MiB of stack in all.
pub const MAX_CHUNKS: u32 = 15;

/// Bytes copied of a stack that is not larger, or while the ring buffer is filling up; up to a page less, to the end of a page.
pub const SMALL_COPY_BYTES: usize = 3 * 4096;

/// Rows that can be known at a time: return addresses on the way to an allocation.
///
/// The bucket array has 4 MiB. Entries are allocated as they come: 24 B of key and value and 48 B of the kernel's own, in
/// slots of 96 B; a JVM has some 20,000.
pub const MAX_ROWS: u32 = 1 << 18;

/// Processes that one set of programs can watch at a time.
pub const MAX_TARGETS: u32 = 1024;

/// Threads that can allocate at a time.
///
/// The bucket array has 1 MiB. Entries are allocated as they come: 104 B of key and value and 48 B of the kernel's own, in
/// slots of 192 B.
pub const MAX_THREADS: u32 = 1 << 16;

/// Threads of which walks are remembered at a time; further ones walk each time.
///
/// The bucket array has 8 KiB. Entries are allocated as they come, in slots of 32 KiB: 16 MiB when all of them are in use. The kernel
/// keeps one to three more for each CPU.
pub const MAX_REMEMBERING: u32 = 1 << 9;

/// Live blocks that can be followed in a process of ordinary size.
///
/// The bucket array has 16 B for each: 32 MiB. Entries are allocated as they come: 32 B of key and value and 48 B of
/// the kernel's own, in slots of 96 B; 192 MiB when all of them are in use.
pub const DEFAULT_MAX_LIVE: u32 = 1 << 21;

/// For how many live blocks that can be followed one has a place where it is found without a hash: 40 B for each place, 2.5 MiB in a
/// process of ordinary size.
pub const LIVE_PER_FRESH: u32 = 32;

/// Most such places, a power of two: 40 MiB.
pub const MAX_FRESH: u32 = 1 << 20;

/// The same in a process that does nothing when it is attached to: buckets of 16 MiB.
pub const LEAST_DEFAULT_MAX_LIVE: u32 = 1 << 20;

/// Live blocks that can be followed at least where only a sample of them is: buckets of 2 MiB. As many mappings as Linux allows a process
/// (`vm.max_map_count`), which are not sampled, have room besides.
pub const LEAST_SAMPLED_MAX_LIVE: u32 = 1 << 17;

/// Live blocks that can be followed in the largest processes unless something else is asked for: buckets of 256 MiB.
pub const LARGEST_DEFAULT_MAX_LIVE: u32 = 1 << 24;

/// Default number of (stack, size class) pairs that can be told apart.
///
/// The bucket array has 4 MiB. Entries are allocated as they come: 56 B of key and value and 48 B of the kernel's
/// own, in slots of 128 B; 32 MiB when all of them are in use.
pub const DEFAULT_MAX_TOTALS: u32 = 1 << 18;

/// The same of a process that does nothing when it is attached to: buckets of 2 MiB.
pub const QUIET_MAX_TOTALS: u32 = 1 << 17;

/// Size classes that can be counted of what has no room among the (stack, size class) pairs, for all processes: some 200 for each of
/// their programs and allocators.
///
/// Entries are allocated as they come; the bucket array has 1 MiB.
pub const MAX_OVERFLOWS: u32 = 1 << 16;

/// Default size of the ring buffer that carries new stacks to user space, in bytes.
///
/// A [`StackEvent`] has half a KiB, or 4 where it is deep; a stack that is yet to be learned is a [`SmallMiss`] of 12 KiB, or a
/// [`LargeMiss`] of 36 where it is larger, as long as half of the buffer is free: room for 450 and 1,300 of them, which is
/// what a busy program allocates before user space gets to run.
pub const DEFAULT_RING_BYTES: u32 = 1 << 25;

const _: () = assert!(MAX_FRAMES <= u16::MAX as usize, "depths are stored in 16 bits");
const _: () = assert!(
    DEFAULT_RING_BYTES as usize / 2 / (size_of::<SmallMiss>() + 8) >= 1_300
        && size_of::<StackEvent<MAX_FRAMES>>() < size_of::<LargeMiss>(),
    "a burst of new stacks at start-up must fit"
);
