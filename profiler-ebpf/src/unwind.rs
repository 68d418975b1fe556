//! Walking the target's stack by the rows that are known, and asking for those that are not.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_RING_SIZE},
    helpers::{bpf_ktime_get_ns, generated::bpf_loop},
};
use profiler_common::{
    event::{ChunkEvent, EventKind, MissEvent, StackEvent},
    heap::RowKey,
    limits::{COPY_BYTES, FEW_FRAMES, MAX_CHUNKS, MAX_FRAMES, SMALL_COPY_BYTES},
    target::Target,
    unwind::{Nesting, ReadMemory, Regs, Row, StackHash, WalkEnd, step},
};

use crate::{
    maps::{EVENTS, ROWS},
    memory::{UserMemory, copy_stack, holds, stack_end},
};

/// A walk that is under way.
#[repr(C)]
pub struct Walk {
    /// The registers at the frame at hand.
    regs: Regs,
    hash: StackHash,
    tgid: u32,
    epoch: u32,
    depth: u32,
    end: u32,
}

/// The row that is known for a pc, or one that stops.
#[inline(always)]
fn row(tgid: u32, epoch: u32, pc: u64) -> Row {
    match ROWS.get_ptr(RowKey { pc, tgid, epoch }) {
        // SAFETY: an aligned word of a map value; entries are replaced by ones that say the same.
        Some(row) => Row::from_raw(unsafe { *row }),
        None => Row::stop(WalkEnd::MissingRow),
    }
}

impl Walk {
    #[inline(always)]
    fn new(regs: Regs, tgid: u32, target: &Target) -> Self {
        let hash = StackHash::new(target.epoch);
        // Cut is what is left when the loop runs out of frames.
        Self { regs, hash, tgid, epoch: target.epoch, depth: 0, end: WalkEnd::Cut as u32 }
    }

    /// Takes the frame at hand into the hash and goes on to its caller; false at the end.
    #[inline(always)]
    fn advance(&mut self) -> bool {
        self.hash = self.hash.push(self.regs.pc);
        self.depth += 1;
        match step(row(self.tgid, self.epoch, self.regs.pc), &self.regs, &UserMemory) {
            Ok(caller) => {
                self.regs = caller;
                true
            }
            Err(end) => {
                self.end = end as u32;
                false
            }
        }
    }


    /// Whether the walk stopped for want of a row.
    #[inline(always)]
    pub fn misses_row(&self) -> bool {
        self.end == WalkEnd::MissingRow as u32
    }

    /// The hash of the stack.
    #[inline(always)]
    pub fn finish(&self) -> u64 {
        self.hash.finish(WalkEnd::from_raw(self.end).unwrap_or(WalkEnd::UnknownRow))
    }

    /// An id for this one walk, which no other has: not its hash, because what lies above is not known.
    #[inline(always)]
    pub fn provisional_id(&self, pid_tgid: u64) -> u64 {
        // SAFETY: the helper takes nothing.
        let now_ns = unsafe { bpf_ktime_get_ns() };
        self.hash.push(pid_tgid).push(now_ns).finish(WalkEnd::MissingRow)
    }
}

/// Registers as the caller of an allocator function has them once it gets its result, given those at the
/// function's entry; `None` where the return address cannot be read.
#[inline(always)]
pub fn caller(sp: u64, fp: u64) -> Option<Regs> {
    let pc = UserMemory.read_word(sp)?;
    Some(Regs { pc, sp: sp.wrapping_add(8), fp })
}

/// Walks the stack whose leaf is `regs`.
#[inline(always)]
pub fn walk(regs: Regs, tgid: u32, target: &Target) -> Walk {
    let mut walk = Walk::new(regs, tgid, target);
    // SAFETY: the callback has the signature that the helper asks for, and `walk` outlives the call.
    unsafe { bpf_loop(target.depth, walk_frame as *mut c_void, (&raw mut walk).cast(), 0) };
    walk
}

unsafe extern "C" fn walk_frame(_index: u64, walk: *mut c_void) -> i64 {
    // SAFETY: `walk` passes a `Walk` of its own.
    let walk = unsafe { &mut *walk.cast::<Walk>() };
    i64::from(!walk.advance())
}

/// A walk that writes its frames down.
#[repr(C)]
struct Transcript {
    walk: Walk,
    pcs: *mut u64,
}

/// Walks once more and writes the frames to `pcs`, which has room for `FRAMES`.
///
/// The rows may have become more since the first walk, and the frames with them.
#[inline(always)]
fn transcribe<const FRAMES: usize>(pcs: *mut u64, regs: Regs, tgid: u32, target: &Target) -> Walk {
    let mut transcript = Transcript { walk: Walk::new(regs, tgid, target), pcs };
    let callback = transcribe_frame::<FRAMES> as *mut c_void;
    // SAFETY: the callback has the signature that the helper asks for, and `transcript` outlives the call.
    unsafe { bpf_loop(target.depth, callback, (&raw mut transcript).cast(), 0) };
    transcript.walk
}

unsafe extern "C" fn transcribe_frame<const FRAMES: usize>(index: u64, transcript: *mut c_void) -> i64 {
    // SAFETY: `transcribe` passes a `Transcript` of its own.
    let transcript = unsafe { &mut *transcript.cast::<Transcript>() };
    if index >= FRAMES as u64 {
        return 1;
    }
    // SAFETY: `pcs` has FRAMES words.
    unsafe { transcript.pcs.add(index as usize).write(transcript.walk.regs.pc) };
    i64::from(!transcript.walk.advance())
}

/// Sends the frames of the stack whose leaf is `regs`, under the hash `stack`; false when the ring buffer is full.
#[inline(always)]
pub fn send_stack(stack: u64, walk: &Walk, regs: Regs, tgid: u32, target: &Target) -> bool {
    if target.is_witnessed != 0 {
        return send_copied(EventKind::Witness, stack, regs, stack_end(regs.sp), tgid, target);
    }
    if walk.depth as usize <= FEW_FRAMES {
        send_stack_of::<FEW_FRAMES>(stack, regs, tgid, target)
    } else {
        send_stack_of::<MAX_FRAMES>(stack, regs, tgid, target)
    }
}

#[inline(always)]
fn send_stack_of<const FRAMES: usize>(stack: u64, regs: Regs, tgid: u32, target: &Target) -> bool {
    let Some(mut entry) = EVENTS.reserve::<StackEvent<FRAMES>>(0) else {
        return false;
    };
    let event: *mut StackEvent<FRAMES> = entry.as_mut_ptr();
    // SAFETY: `event` is a reservation of the record's size.
    let pcs = unsafe { (&raw mut (*event).pcs).cast::<u64>() };
    let walk = transcribe::<FRAMES>(pcs, regs, tgid, target);
    // SAFETY: as above.
    unsafe {
        (*event).kind = EventKind::Stack as u32;
        (*event).tgid = tgid;
        (*event).stack = stack;
        (*event).depth = walk.depth;
        (*event).end = walk.end;
    }
    entry.submit(0);
    true
}

/// Sends what user space needs to walk the stack whose leaf is `regs` and to teach the kernel how; false when the ring
/// buffer is full. `stack` is the id under which the allocation is counted, or 0; `walk` has come as far as it could.
///
/// The record is small where the stack is. Where records are waiting already, more are likely to come before they are
/// read: then all of them are small.
#[inline(always)]
pub fn send_miss(stack: u64, walk: &Walk, regs: Regs, tgid: u32, target: &Target) -> bool {
    let from = walk.regs.sp;
    let end = stack_end(from);
    let kind = EventKind::Miss;
    if walk.depth as usize <= FEW_FRAMES && (holds::<SMALL_COPY_BYTES>(from, end) || is_busy()) {
        return send_copy_of::<FEW_FRAMES, SMALL_COPY_BYTES>(kind, stack, regs, end, tgid, target).is_ok();
    }
    send_copied(kind, stack, regs, end, tgid, target)
}

/// Whether half of the ring buffer is waiting to be read.
#[inline(always)]
fn is_busy() -> bool {
    EVENTS.query(u64::from(BPF_RB_AVAIL_DATA)) > EVENTS.query(u64::from(BPF_RB_RING_SIZE)) / 2
}

/// Sends the stack whose leaf is `regs` with all of its memory; false when the ring buffer is full.
#[inline(always)]
fn send_copied(kind: EventKind, stack: u64, regs: Regs, end: u64, tgid: u32, target: &Target) -> bool {
    let Ok(rest) = send_copy_of::<MAX_FRAMES, COPY_BYTES>(kind, stack, regs, end, tgid, target) else {
        return false;
    };
    if rest != 0 {
        send_chunks(stack, rest, end, tgid);
    }
    true
}

/// A copy of a deep stack that goes on.
#[repr(C)]
struct Chunks {
    stack: u64,
    from: u64,
    end: u64,
    tgid: u64,
}

/// Sends the stack from `from`, where a page begins, to `end`, piece by piece. Where the ring buffer fills up the rest is missing.
#[inline(always)]
fn send_chunks(stack: u64, from: u64, end: u64, tgid: u32) {
    let mut chunks = Chunks { stack, from, end, tgid: u64::from(tgid) };
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
        (*event).stack = chunks.stack;
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
    stack: u64,
    regs: Regs,
    stack_end: u64,
    tgid: u32,
    target: &Target,
) -> Result<u64, ()> {
    let Some(mut entry) = EVENTS.reserve::<MissEvent<FRAMES, BYTES>>(0) else {
        return Err(());
    };
    let event: *mut MissEvent<FRAMES, BYTES> = entry.as_mut_ptr();
    // SAFETY: `event` is a reservation of the record's size.
    let (pcs, bytes) = unsafe { ((&raw mut (*event).pcs).cast::<u64>(), &raw mut (*event).bytes) };
    let walk = transcribe::<FRAMES>(pcs, regs, tgid, target);
    let from = if kind as u32 == EventKind::Witness as u32 { regs } else { walk.regs };
    let copied = copy_stack(bytes, from.sp, stack_end);
    let rest = if BYTES == COPY_BYTES && stack != 0 { copied.rest } else { 0 };
    // SAFETY: as above.
    unsafe {
        (*event).kind = kind as u32;
        (*event).tgid = tgid;
        (*event).stack = stack;
        (*event).depth = walk.depth;
        (*event).epoch = target.epoch;
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

/// A question about nesting, with what it takes to find rows.
#[repr(C)]
struct NestingWalk {
    nesting: Nesting,
    tgid: u32,
    epoch: u32,
    misses_row: u64,
}

/// Whether a call with these registers is part of one whose return address lies at `outer_sp`.
#[inline(always)]
pub fn is_inside(regs: Regs, outer_sp: u64, tgid: u32, target: &Target) -> bool {
    let nesting = Nesting::new(regs, outer_sp);
    let mut walk = NestingWalk { nesting, tgid, epoch: target.epoch, misses_row: 0 };
    // SAFETY: the callback has the signature that the helper asks for, and `walk` outlives the call.
    unsafe { bpf_loop(target.depth, nesting_frame as *mut c_void, (&raw mut walk).cast(), 0) };
    if walk.misses_row != 0 {
        // Nested calls are not walked otherwise, and would never be learned from. Until they are, a call is taken for one of
        // its own: should it be nested, that is counted.
        send_miss(0, &Walk::new(regs, tgid, target), regs, tgid, target);
        return walk.nesting.has_arrived();
    }
    walk.nesting.is_inside()
}

unsafe extern "C" fn nesting_frame(_index: u64, walk: *mut c_void) -> i64 {
    // SAFETY: `is_inside` passes a `NestingWalk` of its own.
    let walk = unsafe { &mut *walk.cast::<NestingWalk>() };
    let mut row = row(walk.tgid, walk.epoch, walk.nesting.pc());
    if row == Row::stop(WalkEnd::MissingRow) {
        walk.misses_row = 1;
        // The best guess: where it is wrong, it seldom leads anywhere, and that is no answer.
        row = Row::FRAME_POINTER;
    }
    i64::from(!walk.nesting.advance(row, &UserMemory))
}
