//! Counting what was allocated.

use aya_ebpf::{EbpfContext, programs::ProbeContext};
use aya_log_ebpf::debug;
use profiler_common::{
    counters::Counter,
    heap::{LiveBlock, NESTED_STACK, OVERFLOW_STACK, Totals, TotalsKey, UNLEARNED_STACK},
    target::Target,
    unwind::Regs,
};

use crate::{
    counters::{add, count},
    live::{self, Unkept},
    maps::{NO_EXIST, OVERFLOWS, TOTALS},
    remember::{self, ThreadWalks},
    send::{send_miss, send_stack},
    unwind::Stack,
};

/// The totals of a stack that has yet to allocate. Not on the stack, where there is no room for it; a mangled
/// name would have the place of the sources in it.
#[unsafe(no_mangle)]
pub static NOTHING: Totals =
    Totals { freed_objects: 0, freed_bytes: 0, alloc_objects: 0, alloc_bytes: 0, sent: 0 };

/// The same of those for which there is no stack to be sent.
#[unsafe(no_mangle)]
static NOTHING_OVERFLOWED: Totals =
    Totals { freed_objects: 0, freed_bytes: 0, alloc_objects: 0, alloc_bytes: 0, sent: 1 };

/// The stack under which a block that an allocator gives at `regs` will be counted, or [`NESTED_STACK`] where that is for a call
/// to do that this one is part of.
///
/// Its frames are sent to user space unless they have been. A stack that cannot be walked to its end yet is counted
/// under an id of its own, which user space will know the stack of. Where `TOTALS` is full the stack is
/// [`OVERFLOW_STACK`].
#[inline(always)]
pub fn announce(
    ctx: &ProbeContext,
    pid_tgid: u64,
    regs: Regs,
    block: LiveBlock,
    target: &Target,
    walks: ThreadWalks,
) -> u64 {
    let tgid = (pid_tgid >> 32) as u32;
    let mut stack = Stack::new(regs, tgid, target);
    #[cfg(not(feature = "kernel-walk"))]
    let walked = remember::walk(&mut stack, walks);
    #[cfg(feature = "kernel-walk")]
    let walked = crate::kernel_walk::walk(ctx, &mut stack);
    // Of a call that is kept it is known what is part of it; of one that is not, only the stack tells.
    if block.rate() != 0 && walked.is_of_allocator() {
        return NESTED_STACK;
    }
    let mut id = walked.hash();
    if walked.misses_row() {
        id = walked.provisional_id(pid_tgid);
        if !send_miss(id, &stack) {
            count(tgid, Counter::RingFull, 1);
            id = UNLEARNED_STACK;
        }
    }
    let key = TotalsKey::of(stack.owner(), &block.on_stack(id));
    if walked.is_announced(key) {
        return id;
    }
    let totals = match TOTALS.get_ptr_mut(key) {
        Some(totals) => totals,
        None => {
            // Another thread may have been faster, which is as good.
            let nothing: &Totals = &NOTHING;
            let _ = TOTALS.insert(key, nothing, NO_EXIST);
            let Some(totals) = TOTALS.get_ptr_mut(key) else {
                debug!(ctx, "no room for another stack in TOTALS");
                return OVERFLOW_STACK;
            };
            totals
        }
    };
    // SAFETY: an aligned word of a map value; whoever else writes it writes 1.
    if unsafe { (&raw const (*totals).sent).read_volatile() } != 0 {
        remember::announced(walks, &walked, key);
        return id;
    }
    if walked.misses_row() || send_stack(id, &stack) {
        // SAFETY: as above.
        unsafe { (&raw mut (*totals).sent).write_volatile(1) };
    } else {
        count(tgid, Counter::RingFull, 1);
    }
    id
}

/// Counts an allocated block and keeps it among the live ones.
#[inline(always)]
pub fn allocated(ctx: &impl EbpfContext, owner: u64, address: u64, block: &LiveBlock) {
    let tgid = owner as u32;
    if block.stack == OVERFLOW_STACK {
        count(tgid, Counter::TotalsFull, 1);
    }
    if let Some(totals) = totals_of(owner, block) {
        // SAFETY: aligned words of a map value.
        unsafe {
            add(&raw mut (*totals).alloc_objects, 1);
            add(&raw mut (*totals).alloc_bytes, block.size_bytes());
        }
    }
    match live::keep(owner, address, block) {
        Ok(()) => {}
        Err(Unkept::Exists) => {
            debug!(ctx, "block {:x} handed out again", address);
            count(tgid, Counter::OverwrittenBlocks, 1);
            if let Some(old) = live::take(owner, address) {
                freed(owner, &old);
            }
            if live::keep(owner, address, block).is_err() {
                count_untracked(owner, block);
            }
        }
        Err(Unkept::Full) => count_untracked(owner, block),
    }
}

/// The entry that counts a block.
#[inline(always)]
pub fn totals_of(owner: u64, block: &LiveBlock) -> Option<*mut Totals> {
    let key = TotalsKey::of(owner, block);
    if block.stack != OVERFLOW_STACK {
        return TOTALS.get_ptr_mut(key);
    }
    if OVERFLOWS.get_ptr(key).is_none() {
        // Another thread may have been faster, which is as good.
        let nothing: &Totals = &NOTHING_OVERFLOWED;
        let _ = OVERFLOWS.insert(key, nothing, NO_EXIST);
    }
    OVERFLOWS.get_ptr_mut(key)
}

/// Takes a block off the bytes in use.
#[inline(always)]
pub fn freed(owner: u64, block: &LiveBlock) {
    if let Some(totals) = totals_of(owner, block) {
        // SAFETY: aligned words of a map value.
        unsafe {
            add(&raw mut (*totals).freed_objects, 1);
            add(&raw mut (*totals).freed_bytes, block.size_bytes());
        }
    }
}

/// Gives up on a block for which `LIVE` has no room: its free will not be recognised, so that it must not
/// stay in use for ever.
#[inline(always)]
pub fn count_untracked(owner: u64, block: &LiveBlock) {
    let tgid = owner as u32;
    count(tgid, Counter::LiveFullObjects, 1);
    count(tgid, Counter::LiveFullBytes, block.size_bytes());
    freed(owner, block);
}
