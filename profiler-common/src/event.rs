//! Records that the kernel side sends through the ring buffer.

use crate::{
    limits::{COPY_BYTES, FEW_FRAMES, MAX_FRAMES, SMALL_COPY_BYTES},
    unwind::Regs,
};

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
    /// A [`MissEvent`].
    Miss = 4,
    /// A [`ProcessEvent`]: code was or is about to be unmapped, and the epoch raised.
    CodeChange = 5,
    /// A [`ChunkEvent`].
    Chunk = 6,
    /// A [`ProcessEvent`]: the loader has added code.
    CodeAdded = 7,
    /// A [`MissEvent`] of a stack that the kernel has walked, from its leaf on.
    Witness = 8,
}

impl EventKind {
    /// The kind that a record's first four bytes stand for.
    pub const fn from_raw(raw: u32) -> Option<Self> {
        Some(match raw {
            1 => Self::Stack,
            2 => Self::Exec,
            3 => Self::LeaderExit,
            4 => Self::Miss,
            5 => Self::CodeChange,
            6 => Self::Chunk,
            7 => Self::CodeAdded,
            8 => Self::Witness,
            _ => return None,
        })
    }
}

/// The frames of a stack that user space has not seen; there is room for `FRAMES` of them.
///
/// Most stacks fit a small record, and so several thousand of them the ring buffer.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct StackEvent<const FRAMES: usize> {
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
    pub pcs: [u64; FRAMES],
}

/// A stack that the kernel cannot walk to its end yet, with what user space needs to do so and to teach it; there is room
/// for `FRAMES` frames and `BYTES` bytes.
///
/// The same of a stack that it has walked, for user space to check the walk: then the registers are those at the first of
/// `pcs`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct MissEvent<const FRAMES: usize, const BYTES: usize> {
    /// [`EventKind::Miss`] or [`EventKind::Witness`].
    pub kind: u32,
    /// The target's tgid.
    pub tgid: u32,
    /// The id under which `TOTALS` counts the allocation; 0 when only the rows are wanted.
    pub stack: u64,
    /// Number of frames in `pcs`.
    pub depth: u32,
    /// The epoch in which rows are missing.
    pub epoch: u32,
    /// The registers at the frame whose row is missing, which is the last in `pcs`; of a witness, at the first.
    pub regs: Regs,
    /// Number of bytes in `bytes`.
    pub length: u32,
    /// Number of frames that `pcs` has room for.
    pub frames: u32,
    /// 1 where [`ChunkEvent`]s follow with more of the stack; they hold whole pages.
    pub continues: u32,
    /// How the walk ended, a [`crate::unwind::WalkEnd`].
    pub end: u32,
    /// A bit for each page that could not be copied, the lowest for the one of the first byte.
    pub missing: u32,
    /// 1 where the stack goes on behind the copy.
    pub is_cut: u32,
    /// The frames that the kernel has walked, leaf first.
    pub pcs: [u64; FRAMES],
    /// The stack from `regs.sp` on.
    pub bytes: [u8; BYTES],
}

/// More of a stack that did not fit its [`LargeMiss`].
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ChunkEvent {
    /// [`EventKind::Chunk`].
    pub kind: u32,
    /// The target's tgid.
    pub tgid: u32,
    /// The id of the [`LargeMiss`] that this belongs to.
    pub stack: u64,
    /// Number of bytes in `bytes`.
    pub length: u32,
    /// 1 for the last one.
    pub is_last: u32,
    /// A bit for each page that could not be copied, the lowest for the one of the first byte.
    pub missing: u32,
    /// 1 where the stack goes on behind this.
    pub is_cut: u32,
    /// The stack, from where the one before ended.
    pub bytes: [u8; COPY_BYTES],
}

/// A [`MissEvent`] for any stack.
pub type LargeMiss = MissEvent<MAX_FRAMES, COPY_BYTES>;

/// A [`MissEvent`] for when there are many of them.
pub type SmallMiss = MissEvent<FEW_FRAMES, SMALL_COPY_BYTES>;

/// Something that happened to a target as a whole.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ProcessEvent {
    /// The [`EventKind`].
    pub kind: u32,
    /// The target's tgid.
    pub tgid: u32,
}

const _: () = assert!(size_of::<StackEvent<MAX_FRAMES>>() == 24 + 8 * MAX_FRAMES, "no padding");
const _: () = assert!(size_of::<LargeMiss>() == 72 + 8 * MAX_FRAMES + COPY_BYTES, "no padding");
const _: () = assert!(size_of::<SmallMiss>() == 72 + 8 * FEW_FRAMES + SMALL_COPY_BYTES, "no padding");
const _: () = assert!(size_of::<ChunkEvent>() == 32 + COPY_BYTES, "no padding");
const _: () = assert!(size_of::<ProcessEvent>() == 8, "no padding");
