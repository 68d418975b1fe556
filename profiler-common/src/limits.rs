//! Capacities of the kernel maps, with their arithmetic.

use crate::event::StackEvent;

/// Frames kept of one stack, counted from the leaf.
///
/// 127 is what the kernel's own `PERF_MAX_STACK_DEPTH` has, so that profiles compare.
pub const MAX_FRAMES: usize = 127;

/// Processes that one set of programs can watch at a time.
pub const MAX_TARGETS: u32 = 1024;

/// Allocator calls that can be under way at a time, which is one per thread.
///
/// 64 Ki entries of 72 B of key and value and 48 B of the kernel's own: 8 MiB, preallocated.
pub const MAX_INFLIGHT: u32 = 1 << 16;

/// Default number of live blocks that can be followed.
///
/// The bucket array has 16 B for each: 64 MiB. Entries are allocated as they come: 32 B of key and value and 48 B of
/// the kernel's own, in slots of 96 B; 384 MiB when all of them are in use.
pub const DEFAULT_MAX_LIVE: u32 = 1 << 22;

/// Default number of (stack, size class) pairs that can be told apart.
///
/// The bucket array has 4 MiB. Entries are allocated as they come: 56 B of key and value and 48 B of the kernel's
/// own, in slots of 128 B; 32 MiB when all of them are in use.
pub const DEFAULT_MAX_TOTALS: u32 = 1 << 18;

/// Default size of the ring buffer that carries new stacks to user space, in bytes.
///
/// A [`StackEvent`] is a little over 1 KiB: room for some 8,000 new stacks between two reads.
pub const DEFAULT_RING_BYTES: u32 = 1 << 23;

const _: () = assert!(MAX_FRAMES <= u16::MAX as usize, "depths are stored in 16 bits");
const _: () = assert!(
    DEFAULT_RING_BYTES as usize / (size_of::<StackEvent>() + 8) >= 4096,
    "a burst of new stacks at start-up must fit"
);
