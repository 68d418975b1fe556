//! Records that the kernel side sends through the ring buffer.

use crate::limits::MAX_FRAMES;

/// What a ring-buffer record is, its first four bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum EventKind {
    /// A [`StackEvent`].
    Stack = 1,
    /// A [`ProcessEvent`]: the target replaced its program.
    Exec = 2,
    /// A [`ProcessEvent`]: the target's first thread has ended; others may go on.
    LeaderExit = 3,
}

impl EventKind {
    /// The kind that a record's first four bytes stand for.
    pub const fn from_raw(raw: u32) -> Option<Self> {
        Some(match raw {
            1 => Self::Stack,
            2 => Self::Exec,
            3 => Self::LeaderExit,
            _ => return None,
        })
    }
}

/// The frames of a stack that user space has not seen.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct StackEvent {
    /// [`EventKind::Stack`].
    pub kind: u32,
    /// The target's tgid.
    pub tgid: u32,
    /// The hash under which `TOTALS` counts it.
    pub stack: u64,
    /// Number of frames that follow.
    pub depth: u32,
    /// How the walk ended, a [`crate::unwind::WalkEnd`].
    pub end: u32,
    /// The frames, leaf first: the pc of the caller of the allocator, then return addresses.
    pub pcs: [u64; MAX_FRAMES],
}

/// Something that happened to a target as a whole.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ProcessEvent {
    /// The [`EventKind`].
    pub kind: u32,
    /// The target's tgid.
    pub tgid: u32,
}

const _: () = assert!(size_of::<StackEvent>() == 24 + 8 * MAX_FRAMES, "no padding");
const _: () = assert!(size_of::<ProcessEvent>() == 8, "no padding");
