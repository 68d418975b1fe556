//! The outermost allocator call of each thread, from its entry to its return.

use aya_ebpf::{EbpfContext, bindings::pt_regs};
use aya_log_ebpf::debug;
use profiler_common::{
    call::{Convention, InFlight},
    counters::Counter,
    heap::LiveBlock,
    target::{Target, is_hijacked},
    thread::Thread,
    unwind::ReadMemory,
};

use crate::{
    counters::count,
    live,
    maps::{self, NO_EXIST, THREADS},
    memory::UserMemory,
    unwind::{self, Stack},
};

/// The entry of a thread that has none yet. Not on the stack, where there is no room for it.
#[unsafe(no_mangle)]
static NEW_THREAD: Thread = Thread::NEW;

/// Makes a thread's entry; `None` where there is no room for it.
#[inline(always)]
pub fn enter_thread(pid_tgid: u64) -> Option<*mut Thread> {
    let new: &Thread = &NEW_THREAD;
    // Failing means that there is none below.
    let _ = THREADS.insert(pid_tgid, new, NO_EXIST);
    THREADS.get_ptr_mut(pid_tgid)
}

/// A thread's entry, where the thread is in a call.
#[inline(always)]
pub fn in_call(thread: Option<*mut Thread>) -> Option<*mut Thread> {
    // SAFETY: a word of a map value, which only this thread writes.
    thread.filter(|thread| unsafe { (**thread).is_inside } != 0)
}

/// Whether the thread is inside an allocator call that the one with these registers is part of; any other that it was in is
/// given up, as it will not return.
#[inline(always)]
pub fn is_nested(
    ctx: &impl EbpfContext,
    thread: Option<*mut Thread>,
    pid_tgid: u64,
    regs: &pt_regs,
    target: &Target,
) -> bool {
    let Some(outer) = in_call(thread) else {
        return false;
    };
    // SAFETY: only this thread writes or removes its entry, so that it is whole and stays. It is not copied: the stack is
    // needed for walking.
    let outer = unsafe { &(*outer).call };
    if is_part_of(outer, (pid_tgid >> 32) as u32, regs, target) {
        return true;
    }
    abandon(ctx, pid_tgid, outer, target);
    false
}

/// Whether the thread is inside an allocator call that a free with these registers is part of.
#[inline(always)]
pub fn is_free_nested(pid_tgid: u64, regs: &pt_regs, target: &Target) -> bool {
    let Some(outer) = in_call(THREADS.get_ptr_mut(pid_tgid)) else {
        return false;
    };
    // SAFETY: as above.
    is_part_of(unsafe { &(*outer).call }, (pid_tgid >> 32) as u32, regs, target)
}

/// Whether the thread is inside an allocator call that a mapping with these registers is part of, as it is taken to be where
/// that cannot be known yet: allocators map on ways that they seldom go, and hardly ever is a call left otherwise than by its
/// return. Any other that the thread was in is given up.
#[inline(always)]
pub fn is_mapping_nested(ctx: &impl EbpfContext, pid_tgid: u64, regs: &pt_regs, target: &Target) -> bool {
    let Some(outer) = in_call(THREADS.get_ptr_mut(pid_tgid)) else {
        return false;
    };
    // SAFETY: as above.
    let outer = unsafe { &(*outer).call };
    let tgid = (pid_tgid >> 32) as u32;
    if is_pending(outer, tgid)
        && regs.rsp <= outer.sp
        && unwind::caller(regs.rsp, regs.rbp)
            .is_none_or(|caller| unwind::may_be_inside(&Stack::new(caller, tgid, target), outer.sp))
    {
        return true;
    }
    abandon(ctx, pid_tgid, outer, target);
    false
}

/// Whether a call is part of another one.
///
/// A call that is under way has its return address, at its stack pointer, replaced by the kernel's
/// trampoline, or, where its returns are seen at its `ret` instructions, still in place. A tail jump from one allocator
/// function to another arrives with the same stack pointer and the same word there. Anything else there means that the call
/// was abandoned (longjmp, exception), as does a stack that leads past it, or the same function called anew with the same
/// stack pointer.
#[inline(always)]
fn is_part_of(outer: &InFlight, tgid: u32, regs: &pt_regs, target: &Target) -> bool {
    if !is_pending(outer, tgid) || regs.rsp > outer.sp {
        return false;
    }
    if regs.rsp == outer.sp {
        return !(Convention::from_cookie(outer.cookie).is_by_ret() && regs.rip == outer.site);
    }
    unwind::caller(regs.rsp, regs.rbp)
        .is_none_or(|caller| unwind::is_inside(&Stack::new(caller, tgid, target), outer.sp))
}

/// Whether a call may still be under way, by what lies where its return address does.
#[inline(always)]
fn is_pending(call: &InFlight, tgid: u32) -> bool {
    let is_by_ret = Convention::from_cookie(call.cookie).is_by_ret();
    UserMemory
        .read_word(call.sp)
        .is_some_and(|pc| is_hijacked(pc, maps::trampoline(tgid)) || (is_by_ret && pc == call.return_address))
}

/// Gives up the call that a thread is in, which will not return.
///
/// A block that it was resizing goes back among the live ones, as far as its address is still free: what
/// became of it cannot be known, and its free will tell.
#[inline(always)]
pub fn abandon(ctx: &impl EbpfContext, pid_tgid: u64, call: &InFlight, target: &Target) {
    debug!(ctx, "abandoned call of {} bytes in thread {}", call.size_bytes, pid_tgid as u32);
    give_up(pid_tgid, target.owner((pid_tgid >> 32) as u32));
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn give_up(pid_tgid: u64, owner: u64) -> u64 {
    count(owner as u32, Counter::AbandonedCalls, 1);
    let Some(thread) = THREADS.get_ptr_mut(pid_tgid) else { return 0 };
    // SAFETY: only this thread writes or removes its entry, so that it is whole and stays.
    let (old_address, old) = unsafe {
        (*thread).is_inside = 0;
        ((*thread).call.old_address, (*thread).call.old)
    };
    put_back(owner, old_address, &old);
    0
}

/// Makes an owner's block live again that a call was resizing; `address` is 0 for none.
#[inline(always)]
pub fn put_back(owner: u64, address: u64, block: &LiveBlock) {
    if address == 0 {
        return;
    }
    if live::keep(owner, address, block).is_err() {
        crate::record::count_untracked(owner, block);
    }
}
