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
    /// A [`MappingEvent`].
    Mapping = 9,
    /// A [`ForkEvent`].
    Fork = 10,
    /// A [`ProcessEvent`]: the target has made a child that is not followed, with a copy of its memory.
    ChildMade = 11,
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
            9 => Self::Mapping,
            10 => Self::Fork,
            11 => Self::ChildMade,
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

/// What a program has done to its mappings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MappingAction {
    /// Anonymous memory was mapped, where there was nothing.
    Map = 1,
    /// Something else was mapped in the place of what was there.
    Cover = 2,
    /// Memory is about to be unmapped.
    Unmap = 3,
    /// Memory is about to be moved or given another length, by the thread.
    Leave = 4,
    /// What left is here now, by this length.
    Arrive = 5,
    /// What was to leave has stayed as it was.
    Stay = 6,
    /// Anonymous memory was mapped in the place of what was there.
    Replace = 7,
}

impl MappingAction {
    /// The action that a record's number stands for.
    pub const fn from_raw(raw: u32) -> Option<Self> {
        Some(match raw {
            1 => Self::Map,
            2 => Self::Cover,
            3 => Self::Unmap,
            4 => Self::Leave,
            5 => Self::Arrive,
            6 => Self::Stay,
            7 => Self::Replace,
            _ => return None,
        })
    }
}

/// A change of mappings that the allocators did not make. What takes memory away is sent before that happens, what brings some
/// after it: so two threads' records of the same addresses are in order.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct MappingEvent {
    /// [`EventKind::Mapping`].
    pub kind: u32,
    /// The target's tgid.
    pub tgid: u32,
    /// The [`MappingAction`].
    pub action: u32,
    /// How often the target had replaced its program.
    pub image: u32,
    /// The thread that does it.
    pub thread: u32,
    /// The number of the functions' "allocator".
    pub allocator: u32,
    /// The first address.
    pub address: u64,
    /// The length, in bytes.
    pub length_bytes: u64,
    /// Hash of the stack, as in `TOTALS`; 0 where none is wanted.
    pub stack: u64,
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

/// A process that is watched from now on: a child of one that is. Sent before its first instruction, and behind all that its
/// parent sent before.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ForkEvent {
    /// [`EventKind::Fork`].
    pub kind: u32,
    /// The child's tgid.
    pub tgid: u32,
    /// The parent's tgid.
    pub parent: u32,
    /// What its [`crate::target::Target::image`] begins with.
    pub image: u32,
    /// What its [`crate::target::Target::epoch`] begins with.
    pub epoch: u32,
    /// 1 where it has replaced its program already, and has nothing of its parent's.
    pub is_empty: u32,
}

const _: () = assert!(size_of::<StackEvent<MAX_FRAMES>>() == 24 + 8 * MAX_FRAMES, "no padding");
const _: () = assert!(size_of::<LargeMiss>() == 72 + 8 * MAX_FRAMES + COPY_BYTES, "no padding");
const _: () = assert!(size_of::<SmallMiss>() == 72 + 8 * FEW_FRAMES + SMALL_COPY_BYTES, "no padding");
const _: () = assert!(size_of::<ChunkEvent>() == 32 + COPY_BYTES, "no padding");
const _: () = assert!(size_of::<MappingEvent>() == 48, "no padding");
const _: () = assert!(size_of::<ProcessEvent>() == 8, "no padding");
const _: () = assert!(size_of::<ForkEvent>() == 24, "no padding");
