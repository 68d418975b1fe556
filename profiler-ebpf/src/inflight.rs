//! The outermost allocator call of each thread, from its entry to its return.

use aya_ebpf::{EbpfContext, bindings::pt_regs};
use aya_log_ebpf::debug;
use profiler_common::{
    call::{Convention, InFlight},
    counters::Counter,
    heap::{LiveBlock, LiveKey},
    target::{Target, is_hijacked},
    unwind::ReadMemory,
};

use crate::{
    counters::count,
    maps::{self, INFLIGHT, LIVE},
    memory::UserMemory,
    unwind::{self, Stack},
};

/// `BPF_NOEXIST` of include/uapi/linux/bpf.h: insert only where there is no entry.
pub const NO_EXIST: u64 = 1;

/// Whether the thread is inside an allocator call that the one with these registers is part of; any other that it was in is
/// given up, as it will not return.
#[inline(always)]
pub fn is_nested(ctx: &impl EbpfContext, pid_tgid: u64, regs: &pt_regs, target: &Target) -> bool {
    let Some(outer) = INFLIGHT.get_ptr(pid_tgid) else {
        return false;
    };
    // SAFETY: only this thread writes or removes its entry, so that it is whole and stays. It is not copied: the stack is
    // needed for walking.
    let outer = unsafe { &*outer };
    if is_part_of(outer, (pid_tgid >> 32) as u32, regs, target) {
        return true;
    }
    abandon(ctx, pid_tgid, outer);
    false
}

/// Whether the thread is inside an allocator call that a free with these registers is part of.
#[inline(always)]
pub fn is_free_nested(pid_tgid: u64, regs: &pt_regs, target: &Target) -> bool {
    let Some(outer) = INFLIGHT.get_ptr(pid_tgid) else {
        return false;
    };
    // SAFETY: as above.
    is_part_of(unsafe { &*outer }, (pid_tgid >> 32) as u32, regs, target)
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
    let is_by_ret = Convention::from_cookie(outer.cookie).is_by_ret();
    let is_pending = UserMemory.read_word(outer.sp).is_some_and(|pc| {
        is_hijacked(pc, maps::trampoline(tgid)) || (is_by_ret && pc == outer.return_address)
    });
    if !is_pending || regs.rsp > outer.sp {
        return false;
    }
    if regs.rsp == outer.sp {
        return !(is_by_ret && regs.rip == outer.site);
    }
    unwind::caller(regs.rsp, regs.rbp)
        .is_none_or(|caller| unwind::is_inside(&Stack::new(caller, tgid, target), outer.sp))
}

/// Gives up a call that will not return.
///
/// A block that it was resizing goes back among the live ones, as far as its address is still free: what
/// became of it cannot be known, and its free will tell.
#[inline(always)]
pub fn abandon(ctx: &impl EbpfContext, pid_tgid: u64, call: &InFlight) {
    let tgid = (pid_tgid >> 32) as u32;
    debug!(ctx, "abandoned call of {} bytes in thread {}", call.size_bytes, pid_tgid as u32);
    count(tgid, Counter::AbandonedCalls, 1);
    // Read before the entry goes, after which another thread may be given its memory.
    let (old_address, old) = (call.old_address, call.old);
    // Failing means that the entry is gone already.
    let _ = INFLIGHT.remove(pid_tgid);
    put_back(tgid, old_address, &old);
}

/// Makes a block live again that a call was resizing; `address` is 0 for none.
#[inline(always)]
pub fn put_back(tgid: u32, address: u64, block: &LiveBlock) {
    if address == 0 {
        return;
    }
    let key = LiveKey { address, tgid: u64::from(tgid) };
    if LIVE.insert(key, *block, NO_EXIST).is_err() {
        crate::record::count_untracked(tgid, block);
    }
}
