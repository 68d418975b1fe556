//! Counting what was freed, at the entry of the freeing function.

use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_attach_cookie, bpf_get_current_pid_tgid},
    macros::uprobe,
    programs::ProbeContext,
};
use profiler_common::counters::Counter;

use crate::{counters::count, entry, inflight, live, maps, record};

/// Entry of free and cfree.
#[uprobe]
pub fn free_enter(ctx: ProbeContext) -> u32 {
    free(&ctx);
    0
}

/// Takes the block that is freed here off the bytes in use; false where it is not known.
#[inline(always)]
pub fn free(ctx: &ProbeContext) -> bool {
    let pid_tgid = bpf_get_current_pid_tgid();
    let tgid = (pid_tgid >> 32) as u32;
    let Some(target) = entry::target(ctx, tgid) else {
        return false;
    };
    // SAFETY: the context of a uprobe program is the registers at the probe.
    let regs = unsafe { &*ctx.regs };
    if regs.rdi == 0 {
        return false;
    }
    let owner = target.owner(tgid);
    match live::take(owner, regs.rdi) {
        Some(block) => {
            record::freed(owner, &block);
            return true;
        }
        // Where not all blocks are kept, nothing can be said of one that is not known.
        None if maps::rate() != 0 => {}
        // What a call that is under way frees for itself was never counted.
        None if inflight::is_free_nested(pid_tgid, regs, &target) => {}
        None => count(tgid, Counter::UnknownFrees, 1),
    }
    false
}

/// Entry of a function that makes the numbers fall short in a way that is counted; the cookie is the counter's number.
#[uprobe]
pub fn loss_enter(ctx: ProbeContext) -> u32 {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    if entry::target(&ctx, tgid).is_none() {
        return 0;
    }
    // SAFETY: the helper takes the context as it is.
    let number = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) };
    if number == Counter::DestroyedHeaps as u64 {
        count(tgid, Counter::DestroyedHeaps, 1);
    } else {
        count(tgid, Counter::UnsizedAllocations, 1);
    }
    0
}
