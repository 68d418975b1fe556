//! Sending stacks to user space: the frames of new ones, and what it takes to learn from those that cannot be walked yet.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_RING_SIZE},
    helpers::generated::bpf_loop,
};
use profiler_common::{
    event::{ChunkEvent, EventKind, MissEvent, StackEvent},
    limits::{COPY_BYTES, FEW_FRAMES, MAX_CHUNKS, MAX_FRAMES, SMALL_COPY_BYTES},
};

use crate::{
    maps::EVENTS,
    memory::{copy_stack, holds, stack_end},
    transcript::transcribe,
    unwind::Stack,
};

/// 1 where some process's stacks are to be sent with their memory: otherwise the kernel need not look at what does so.
#[unsafe(no_mangle)]
static MAY_BE_WITNESSED: u8 = 1;

/// Sends the frames of a stack under the hash `id`; false when the ring buffer is full.
#[inline(always)]
pub fn send_stack(id: u64, stack: &Stack) -> bool {
    send_frames(id, stack) != 0
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn send_frames(id: u64, stack: *const Stack) -> u64 {
    // SAFETY: `send_stack` passes a stack of its own.
    let Some(stack) = (unsafe { stack.as_ref() }) else { return 0 };
    // SAFETY: a constant of the object, which the loader has set.
    let may_be_witnessed = unsafe { (&raw const MAY_BE_WITNESSED).read_volatile() } != 0;
    u64::from(if may_be_witnessed && stack.is_witnessed != 0 {
        send_copied(EventKind::Witness, id, stack, stack_end(stack.regs.sp))
    } else if stack.walked as usize <= FEW_FRAMES {
        send_stack_of::<FEW_FRAMES>(id, stack)
    } else {
        send_stack_of::<MAX_FRAMES>(id, stack)
    })
}

#[inline(always)]
fn send_stack_of<const FRAMES: usize>(id: u64, stack: &Stack) -> bool {
    let Some(mut entry) = EVENTS.reserve::<StackEvent<FRAMES>>(0) else {
        return false;
    };
    let event: *mut StackEvent<FRAMES> = entry.as_mut_ptr();
    // SAFETY: `event` is a reservation of the record's size.
    let walk = transcribe(stack, unsafe { &raw mut (*event).pcs });
    // SAFETY: as above.
    unsafe {
        (*event).kind = EventKind::Stack as u32;
        (*event).tgid = stack.tgid;
        (*event).stack = id;
        (*event).depth = walk.depth;
        (*event).end = walk.end;
    }
    entry.submit(0);
    true
}

/// Sends what user space needs to walk a stack and to teach the kernel how; false when the ring buffer is full. `id` is that
/// under which the allocation is counted, or 0.
///
/// The record is small where the stack is. Where records are waiting already, more are likely to come before they are
/// read: then all of them are small.
#[inline(always)]
pub fn send_miss(id: u64, stack: &Stack) -> bool {
    send_memory(id, stack) != 0
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn send_memory(id: u64, stack: *const Stack) -> u64 {
    // SAFETY: `send_miss` passes on a stack of its caller's.
    let Some(stack) = (unsafe { stack.as_ref() }) else { return 0 };
    let (depth, from) = (stack.walked, stack.walked_sp);
    let end = stack_end(from);
    let kind = EventKind::Miss;
    u64::from(if depth as usize <= FEW_FRAMES && (holds::<SMALL_COPY_BYTES>(from, end) || is_busy()) {
        send_copy_of::<FEW_FRAMES, SMALL_COPY_BYTES>(kind, id, stack, end).is_ok()
    } else {
        send_copied(kind, id, stack, end)
    })
}

/// Whether half of the ring buffer is waiting to be read.
#[inline(always)]
fn is_busy() -> bool {
    EVENTS.query(u64::from(BPF_RB_AVAIL_DATA)) > EVENTS.query(u64::from(BPF_RB_RING_SIZE)) / 2
}

/// Sends a stack with all of its memory; false when the ring buffer is full.
#[inline(always)]
fn send_copied(kind: EventKind, id: u64, stack: &Stack, end: u64) -> bool {
    let Ok(rest) = send_copy_of::<MAX_FRAMES, COPY_BYTES>(kind, id, stack, end) else {
        return false;
    };
    if rest != 0 {
        send_chunks(id, rest, end, stack.tgid);
    }
    true
}

/// A copy of a deep stack that goes on.
#[repr(C)]
struct Chunks {
    id: u64,
    from: u64,
    end: u64,
    tgid: u64,
}

/// Sends the stack from `from`, where a page begins, to `end`, piece by piece. Where the ring buffer fills up the rest is missing.
#[inline(always)]
fn send_chunks(id: u64, from: u64, end: u64, tgid: u32) {
    let mut chunks = Chunks { id, from, end, tgid: u64::from(tgid) };
    // SAFETY: the callback has the signature that the helper asks for, and `chunks` outlives the call.
    unsafe { bpf_loop(MAX_CHUNKS, send_chunk as *mut c_void, (&raw mut chunks).cast(), 0) };
}

unsafe extern "C" fn send_chunk(index: u64, chunks: *mut c_void) -> i64 {
    // SAFETY: `send_chunks` passes a `Chunks` of its own.
    let chunks = unsafe { &mut *chunks.cast::<Chunks>() };
    let Some(mut entry) = EVENTS.reserve::<ChunkEvent>(0) else {
        return 1;
    };
    let event: *mut ChunkEvent = entry.as_mut_ptr();
    // SAFETY: `event` is a reservation of the record's size.
    let bytes = unsafe { &raw mut (*event).bytes };
    let copied = copy_stack(bytes, chunks.from, chunks.end);
    let is_last = copied.rest == 0 || index + 1 >= u64::from(MAX_CHUNKS);
    // SAFETY: as above.
    unsafe {
        (*event).kind = EventKind::Chunk as u32;
        (*event).tgid = chunks.tgid as u32;
        (*event).stack = chunks.id;
        (*event).length = copied.length;
        (*event).is_last = u32::from(is_last);
        (*event).missing = copied.missing;
        (*event).is_cut = u32::from(copied.rest != 0);
    }
    entry.submit(0);
    chunks.from = copied.rest;
    i64::from(is_last)
}

/// Sends the record itself. Gives where the stack goes on behind what it holds, or 0; an error when the ring buffer is full.
#[inline(always)]
fn send_copy_of<const FRAMES: usize, const BYTES: usize>(
    kind: EventKind,
    id: u64,
    stack: &Stack,
    stack_end: u64,
) -> Result<u64, ()> {
    let Some(mut entry) = EVENTS.reserve::<MissEvent<FRAMES, BYTES>>(0) else {
        return Err(());
    };
    let event: *mut MissEvent<FRAMES, BYTES> = entry.as_mut_ptr();
    // SAFETY: `event` is a reservation of the record's size.
    let (pcs, bytes) = unsafe { (&raw mut (*event).pcs, &raw mut (*event).bytes) };
    let walk = transcribe(stack, pcs);
    let from = if kind as u32 == EventKind::Witness as u32 { stack.regs } else { walk.regs };
    let copied = copy_stack(bytes, from.sp, stack_end);
    let rest = if BYTES == COPY_BYTES && id != 0 { copied.rest } else { 0 };
    // SAFETY: as above.
    unsafe {
        (*event).kind = kind as u32;
        (*event).tgid = stack.tgid;
        (*event).stack = id;
        (*event).depth = walk.depth;
        (*event).epoch = stack.epoch;
        (*event).regs = from;
        (*event).length = copied.length;
        (*event).frames = FRAMES as u32;
        (*event).continues = u32::from(rest != 0);
        (*event).end = walk.end;
        (*event).missing = copied.missing;
        (*event).is_cut = u32::from(copied.rest != 0);
    }
    entry.submit(0);
    Ok(rest)
}
