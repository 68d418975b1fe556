//! Walking the target's stack.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;
use profiler_common::{
    event::{EventKind, StackEvent},
    limits::MAX_FRAMES,
    target::Target,
    unwind::{Nesting, Regs, StackHash, WalkEnd, row_at, step},
};

use crate::memory::UserMemory;

/// A walk that is under way.
#[repr(C)]
struct Walk {
    regs: Regs,
    hash: StackHash,
    target: Target,
    depth: u32,
    end: u32,
}

impl Walk {
    #[inline(always)]
    fn from(regs: Regs, target: Target) -> Self {
        // Cut is what is left when the loop runs out of frames.
        Self { regs, hash: StackHash::NEW, target, depth: 0, end: WalkEnd::Cut as u32 }
    }

    /// Takes the frame at hand into the hash and goes on to its caller; false at the end.
    #[inline(always)]
    fn advance(&mut self) -> bool {
        if self.target.is_trampoline(self.regs.pc) {
            self.end = WalkEnd::Trampoline as u32;
            return false;
        }
        self.hash = self.hash.push(self.regs.pc);
        self.depth += 1;
        match step(row_at(self.regs.pc), &self.regs, &UserMemory) {
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

    #[inline(always)]
    fn finish(&self) -> u64 {
        self.hash.finish(WalkEnd::from_raw(self.end).unwrap_or(WalkEnd::UnknownRow))
    }
}

/// Registers as the caller of an allocator function has them once it gets its result, given those at the
/// function's entry; `None` where the return address cannot be read.
#[inline(always)]
pub fn caller(sp: u64, fp: u64) -> Option<Regs> {
    let pc = UserMemory.read_u64(sp)?;
    Some(Regs { pc, sp: sp.wrapping_add(8), fp })
}

/// Whether a call with these registers is part of one whose return address lies at `outer_sp`.
#[inline(always)]
pub fn is_inside(sp: u64, fp: u64, outer_sp: u64) -> bool {
    let Some(caller) = caller(sp, fp) else {
        return true;
    };
    let mut nesting = Nesting::new(caller, outer_sp);
    // SAFETY: the callback has the signature that the helper asks for, and `nesting` outlives the call.
    unsafe { bpf_loop(MAX_FRAMES as u32, nesting_frame as *mut c_void, (&raw mut nesting).cast(), 0) };
    nesting.is_inside()
}

unsafe extern "C" fn nesting_frame(_index: u64, nesting: *mut c_void) -> i64 {
    // SAFETY: `is_inside` passes a `Nesting` of its own.
    let nesting = unsafe { &mut *nesting.cast::<Nesting>() };
    i64::from(!nesting.advance(&UserMemory))
}

/// The hash of the stack whose leaf is `regs`.
#[inline(always)]
pub fn hash(regs: Regs, target: Target) -> u64 {
    let mut walk = Walk::from(regs, target);
    // SAFETY: the callback has the signature that the helper asks for, and `walk` outlives the call.
    unsafe { bpf_loop(MAX_FRAMES as u32, hash_frame as *mut c_void, (&raw mut walk).cast(), 0) };
    walk.finish()
}

unsafe extern "C" fn hash_frame(_index: u64, walk: *mut c_void) -> i64 {
    // SAFETY: `hash` passes a `Walk` of its own.
    let walk = unsafe { &mut *walk.cast::<Walk>() };
    i64::from(!walk.advance())
}

/// A walk that writes its frames down.
#[repr(C)]
struct Transcript {
    walk: Walk,
    pcs: *mut u64,
}

/// Fills `event` with the frames of the stack whose leaf is `regs`.
///
/// The memory may have changed since it was hashed by another thread only, and stacks are their thread's
/// own: the frames are those of `stack`.
#[inline(always)]
pub fn transcribe(event: *mut StackEvent, tgid: u32, stack: u64, regs: Regs, target: Target) {
    // SAFETY: `event` is a ring-buffer reservation of the record's size.
    let pcs = unsafe { (&raw mut (*event).pcs).cast::<u64>() };
    let mut transcript = Transcript { walk: Walk::from(regs, target), pcs };
    // SAFETY: the callback has the signature that the helper asks for, and `transcript` outlives the call.
    unsafe { bpf_loop(MAX_FRAMES as u32, transcribe_frame as *mut c_void, (&raw mut transcript).cast(), 0) };
    // SAFETY: as above.
    unsafe {
        (*event).kind = EventKind::Stack as u32;
        (*event).tgid = tgid;
        (*event).stack = stack;
        (*event).depth = transcript.walk.depth;
        (*event).end = transcript.walk.end;
    }
}

unsafe extern "C" fn transcribe_frame(index: u64, transcript: *mut c_void) -> i64 {
    // SAFETY: `transcribe` passes a `Transcript` of its own.
    let transcript = unsafe { &mut *transcript.cast::<Transcript>() };
    if index >= MAX_FRAMES as u64 {
        return 1;
    }
    // SAFETY: `pcs` has MAX_FRAMES words.
    unsafe { transcript.pcs.add(index as usize).write(transcript.walk.regs.pc) };
    i64::from(!transcript.walk.advance())
}
