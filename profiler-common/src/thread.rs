//! What the kernel programs know of each thread that allocates.

use crate::call::InFlight;

/// A thread, the value of the `THREADS` map; the key is its pid_tgid.
///
/// Made at the thread's first call, and there until it ends: a call takes one look at the map when it begins and one when it
/// comes back, and changes nothing in it. Only the thread's own programs write it, one after the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Thread {
    /// Its outermost allocator call.
    pub call: InFlight,
    /// 1 while that is under way; what `call` holds otherwise means nothing.
    pub is_inside: u32,
    /// How often a stack of it was walked without its having a place where walks are remembered.
    pub walks: u32,
}

impl Thread {
    /// A thread that has yet to allocate.
    pub const NEW: Self = Self { call: InFlight::NONE, is_inside: 0, walks: 0 };
}

const _: () = assert!(size_of::<Thread>() == 96, "no padding");
