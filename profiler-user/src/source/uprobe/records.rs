//! The records of the ring buffer, read out of its bytes.

use std::{mem::offset_of, time::Instant};

use profiler_common::{
    event::{
        ChunkEvent, EventKind, ForkEvent, MappingAction, MappingEvent, ProcessEvent, SmallMiss, StackEvent,
    },
    unwind::{Regs, WalkEnd},
};

use super::{
    mappings::{MappingChange, MappingSite},
    watched::{Forked, Notice},
};

/// A record.
pub(super) enum Record<'bytes> {
    /// A stack that the kernel has walked.
    Stack { hash: u64, pcs: Words<'bytes>, end: WalkEnd },
    /// A stack that it could not walk.
    Miss(Miss<'bytes>),
    /// A child is watched from now on.
    Fork(Forked),
    /// Something about the process as a whole.
    Notice(Notice),
    /// More of the stack of a miss.
    Chunk { stack: u64, copy: Copied<'bytes>, is_last: bool },
    /// Code was or is about to be unmapped.
    CodeChange,
    /// Code was added.
    CodeAdded,
    /// The program has mapped or unmapped something.
    Mapping(MappingChange),
}

/// A stack that the kernel could not walk to its end.
pub(super) struct Miss<'bytes> {
    /// The id under which the allocation is counted; 0 for none.
    pub(super) stack: u64,
    /// The epoch in which rows are missing.
    pub(super) epoch: u32,
    /// The registers at the last of `pcs`.
    pub(super) regs: Regs,
    /// The frames walked, leaf first.
    pub(super) pcs: Words<'bytes>,
    /// The stack from `regs.sp` on.
    pub(super) copy: Copied<'bytes>,
    /// Whether more of it follows.
    pub(super) continues: bool,
    /// How the kernel's walk ended, where it walked the stack itself and wants the walk to be seen: then the registers are
    /// those at the first of `pcs`.
    pub(super) walked: Option<WalkEnd>,
}

/// A copied piece of a stack.
#[derive(Clone, Copy)]
pub(super) struct Copied<'bytes> {
    pub(super) bytes: &'bytes [u8],
    /// A bit for each page that is missing in `bytes`, the lowest for that of the first byte.
    pub(super) missing: u32,
    /// Whether the stack goes on behind it.
    pub(super) is_cut: bool,
}

/// The 64-bit words of a byte slice.
#[derive(Clone)]
pub(super) struct Words<'bytes>(std::slice::ChunksExact<'bytes, u8>);

impl Iterator for Words<'_> {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        word(self.0.next()?, 0)
    }
}

/// The record that these bytes are, and the process that it is of; `None` where they are none.
pub(super) fn decode(bytes: &[u8]) -> Option<(u32, Record<'_>)> {
    let kind = EventKind::from_raw(half(bytes, offset_of!(ProcessEvent, kind))?)?;
    // Every record begins with the two.
    Some((half(bytes, offset_of!(ProcessEvent, tgid))?, decode_kind(kind, bytes)?))
}

fn decode_kind(kind: EventKind, bytes: &[u8]) -> Option<Record<'_>> {
    match kind {
        EventKind::Fork => Some(Record::Fork(Forked {
            pid: half(bytes, offset_of!(ForkEvent, tgid))?,
            parent: half(bytes, offset_of!(ForkEvent, parent))?,
            image: half(bytes, offset_of!(ForkEvent, image))?,
            epoch: half(bytes, offset_of!(ForkEvent, epoch))?,
            is_empty: half(bytes, offset_of!(ForkEvent, is_empty))? != 0,
        })),
        EventKind::Exec => Some(Record::Notice(Notice::Exec { seen: Instant::now() })),
        EventKind::LeaderExit => Some(Record::Notice(Notice::LeaderExit { seen: Instant::now() })),
        EventKind::ChildMade => Some(Record::Notice(Notice::ChildMade)),
        EventKind::CodeChange => Some(Record::CodeChange),
        EventKind::CodeAdded => Some(Record::CodeAdded),
        EventKind::Chunk => {
            let length = usize::try_from(half(bytes, offset_of!(ChunkEvent, length))?).ok()?;
            Some(Record::Chunk {
                stack: word(bytes, offset_of!(ChunkEvent, stack))?,
                copy: Copied {
                    bytes: bytes.get(offset_of!(ChunkEvent, bytes)..)?.get(..length)?,
                    missing: half(bytes, offset_of!(ChunkEvent, missing))?,
                    is_cut: half(bytes, offset_of!(ChunkEvent, is_cut))? != 0,
                },
                is_last: half(bytes, offset_of!(ChunkEvent, is_last))? != 0,
            })
        }
        EventKind::Mapping => Some(Record::Mapping(MappingChange {
            action: MappingAction::from_raw(half(bytes, offset_of!(MappingEvent, action))?)?,
            image: half(bytes, offset_of!(MappingEvent, image))?,
            thread: half(bytes, offset_of!(MappingEvent, thread))?,
            site: MappingSite {
                stack: word(bytes, offset_of!(MappingEvent, stack))?,
                allocator: u8::try_from(half(bytes, offset_of!(MappingEvent, allocator))?).ok()?,
                is_inherited: false,
            },
            address: word(bytes, offset_of!(MappingEvent, address))?,
            length_bytes: word(bytes, offset_of!(MappingEvent, length_bytes))?,
        })),
        EventKind::Stack => Some(Record::Stack {
            hash: word(bytes, offset_of!(StackEvent<1>, stack))?,
            pcs: words(
                bytes,
                offset_of!(StackEvent<1>, pcs),
                half(bytes, offset_of!(StackEvent<1>, depth))?,
            )?,
            end: WalkEnd::from_raw(half(bytes, offset_of!(StackEvent<1>, end))?)?,
        }),
        EventKind::Miss | EventKind::Witness => {
            let size = |field| usize::try_from(half(bytes, field)?).ok();
            let room = size(offset_of!(SmallMiss, frames))?.checked_mul(size_of::<u64>())?;
            let copied = bytes.get(offset_of!(SmallMiss, pcs).checked_add(room)?..)?;
            let regs = offset_of!(SmallMiss, regs);
            let walked = match kind {
                EventKind::Witness => Some(WalkEnd::from_raw(half(bytes, offset_of!(SmallMiss, end))?)?),
                _ => None,
            };
            Some(Record::Miss(Miss {
                stack: word(bytes, offset_of!(SmallMiss, stack))?,
                epoch: half(bytes, offset_of!(SmallMiss, epoch))?,
                regs: Regs {
                    pc: word(bytes, regs + offset_of!(Regs, pc))?,
                    sp: word(bytes, regs + offset_of!(Regs, sp))?,
                    fp: word(bytes, regs + offset_of!(Regs, fp))?,
                },
                pcs: words(bytes, offset_of!(SmallMiss, pcs), half(bytes, offset_of!(SmallMiss, depth))?)?,
                copy: Copied {
                    bytes: copied.get(..size(offset_of!(SmallMiss, length))?)?,
                    missing: half(bytes, offset_of!(SmallMiss, missing))?,
                    is_cut: half(bytes, offset_of!(SmallMiss, is_cut))? != 0,
                },
                continues: half(bytes, offset_of!(SmallMiss, continues))? != 0,
                walked,
            }))
        }
    }
}

fn words(bytes: &[u8], offset: usize, count: u32) -> Option<Words<'_>> {
    let length = usize::try_from(count).ok()?.checked_mul(8)?;
    Some(Words(bytes.get(offset..)?.get(..length)?.chunks_exact(8)))
}

fn word(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}

fn half(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stack_event(depth: u32, pcs: &[u64]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend((EventKind::Stack as u32).to_ne_bytes());
        bytes.extend(1_u32.to_ne_bytes());
        bytes.extend(0xabc_u64.to_ne_bytes());
        bytes.extend(depth.to_ne_bytes());
        bytes.extend((WalkEnd::Cut as u32).to_ne_bytes());
        bytes.extend(pcs.iter().flat_map(|pc| pc.to_ne_bytes()));
        bytes
    }

    #[test]
    fn a_stack_record_gives_its_hash_its_frames_and_its_end() {
        let bytes = stack_event(2, &[5, 6, 7]);
        let Some((1, Record::Stack { hash, pcs, end })) = decode(&bytes) else { panic!("not a stack") };
        assert_eq!((hash, pcs.collect::<Vec<_>>(), end), (0xabc, vec![5, 6], WalkEnd::Cut));
    }

    #[test]
    fn records_that_are_short_or_unknown_are_refused() {
        let bytes = stack_event(2, &[5, 6]);
        for length in 0..bytes.len() {
            assert!(decode(&bytes[..length]).is_none(), "{length} bytes");
        }
        assert!(decode(&stack_event(u32::MAX, &[1])).is_none());
        assert!(decode(&99_u64.to_ne_bytes()).is_none());
    }
}
