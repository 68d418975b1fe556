//! Walking a stack once more to write its frames down.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;
use profiler_common::{
    limits::{FEW_FRAMES, MAX_FRAMES},
    unwind::{Frame, Regs},
};

use crate::{
    memory::UserMemory,
    unwind::{self, Stack, Walk},
};

/// What a walk has come to that wrote its frames down.
#[repr(C)]
pub struct Transcribed {
    /// The registers at the last frame.
    pub regs: Regs,
    /// Frames written.
    pub depth: u32,
    /// How the walk ended, a `WalkEnd`.
    pub end: u32,
}

/// A walk that writes its frames down.
#[repr(C)]
struct Transcript {
    walk: Walk,
    pcs: *mut u64,
    /// Most frames to write.
    limit: u64,
}

/// Walks a stack and writes its frames to `pcs`, as many as fit.
///
/// Since it was walked last the rows may have become more, and the frames with them.
#[inline(always)]
pub fn transcribe<const FRAMES: usize>(stack: &Stack, pcs: *mut [u64; FRAMES]) -> Transcribed {
    const { assert!(FRAMES == FEW_FRAMES || FRAMES == MAX_FRAMES) };
    let mut transcribed = Transcribed { regs: stack.regs, depth: 0, end: 0 };
    if FRAMES == FEW_FRAMES {
        transcribe_few(stack, pcs.cast(), &raw mut transcribed);
    } else {
        transcribe_many(stack, pcs.cast(), &raw mut transcribed);
    }
    transcribed
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn transcribe_few(
    stack: *const Stack,
    pcs: *mut [u64; FEW_FRAMES],
    transcribed: *mut Transcribed,
) -> u64 {
    transcribe_to(stack, pcs, transcribed)
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn transcribe_many(
    stack: *const Stack,
    pcs: *mut [u64; MAX_FRAMES],
    transcribed: *mut Transcribed,
) -> u64 {
    transcribe_to(stack, pcs, transcribed)
}

#[inline(always)]
fn transcribe_to<const FRAMES: usize>(
    stack: *const Stack,
    pcs: *mut [u64; FRAMES],
    transcribed: *mut Transcribed,
) -> u64 {
    // SAFETY: `transcribe` passes what it has.
    let (Some(stack), Some(transcribed)) = (unsafe { stack.as_ref() }, unsafe { transcribed.as_mut() })
    else {
        return 0;
    };
    if pcs.is_null() {
        return 0;
    }
    let limit = u64::from(stack.depth()).min(FRAMES as u64);
    let mut transcript = Transcript { walk: Walk::new(stack), pcs: pcs.cast(), limit };
    let callback = transcribe_frame::<FRAMES> as *mut c_void;
    // SAFETY: the callback has the signature that the helper asks for, and `transcript` outlives the call.
    unsafe { bpf_loop(stack.depth(), callback, (&raw mut transcript).cast(), 0) };
    let Walk { frame, depth, end, .. } = transcript.walk;
    let Frame { pc, sp, .. } = frame;
    // Should its rbp have become unreadable, a frame that needs it finds no caller.
    let regs = frame.regs(&UserMemory).unwrap_or(Regs { pc, sp, fp: 0 });
    *transcribed = Transcribed { regs, depth, end: end.into() };
    0
}

unsafe extern "C" fn transcribe_frame<const FRAMES: usize>(index: u64, transcript: *mut c_void) -> i64 {
    // SAFETY: `transcribe_to` passes a `Transcript` of its own.
    let transcript = unsafe { &mut *transcript.cast::<Transcript>() };
    if index >= FRAMES as u64 {
        return 1;
    }
    let frame = transcript.walk.frame;
    // SAFETY: `pcs` has FRAMES words.
    unsafe { transcript.pcs.add(index as usize).write(frame.pc) };
    let goes_on = unwind::advance(&raw mut transcript.walk);
    if index + 1 >= transcript.limit {
        // What is sent is the last frame that was written, whatever lies above it.
        transcript.walk.frame = frame;
    }
    unwind::has_ended(goes_on)
}
