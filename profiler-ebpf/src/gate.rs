//! The probes in a gate: calls in its sample, their returns, and frees of blocks in the sample.
//!
//! What is done there is what is done at any other probe. Which calls come here, the gate has decided; these programs count them as well,
//! so that what goes in can be held against what comes out.

use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_attach_cookie, bpf_get_current_pid_tgid},
    macros::uprobe,
    programs::ProbeContext,
};
use profiler_common::{counters::Counter, sampling::NOT_KEPT};

use crate::{
    counters::{count, count_each},
    entry, maps, release,
};

/// A call in the sample that has come back, and resizes nothing: the arguments that say what it was asked for are as when it began. The
/// cookie is its function's convention, and r11 has what its budget had.
#[uprobe]
pub fn gate_whole(ctx: ProbeContext) -> u32 {
    let tgid = current();
    if maps::target(tgid).is_none() {
        return 0;
    }
    count_each(tgid, [Counter::GateCalls, Counter::GateReturns], 1);
    follow(&ctx, tgid);
    end(&ctx);
    0
}

/// A function by itself, for the little stack that there is.
#[inline(never)]
fn end(ctx: &ProbeContext) -> u32 {
    come_back(ctx);
    0
}

/// A call that resizes, and is in the sample or takes a block which is; the cookie is its function's convention, and r11 has what its
/// budget had, or −1 where the call is in no sample.
#[uprobe]
pub fn gate_call(ctx: ProbeContext) -> u32 {
    let tgid = current();
    if maps::target(tgid).is_some() {
        count(tgid, Counter::GateCalls, 1);
        follow(&ctx, tgid);
    }
    0
}

/// Follows a call of a target's.
#[inline(always)]
fn follow(ctx: &ProbeContext, tgid: u32) {
    // SAFETY: the helper takes the context as it is.
    let cookie = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) };
    // SAFETY: the context of a uprobe program is the registers at the probe.
    let budget_bytes = unsafe { (*ctx.regs).r11 };
    let is_in_sample = budget_bytes.cast_signed() >= 0;
    // What is not and resizes a block that is, is followed all the same.
    let rate_of = |_| if is_in_sample { maps::rate_behind_gate() } else { NOT_KEPT };
    if !entry::enter(ctx, cookie, rate_of) {
        count(tgid, Counter::GateUncounted, 1);
    }
}

/// Return of a call that has come by [`gate_call`].
#[uprobe]
pub fn gate_return(ctx: ProbeContext) -> u32 {
    let tgid = current();
    if maps::target(tgid).is_some() {
        count(tgid, Counter::GateReturns, 1);
        come_back(&ctx);
    }
    0
}

/// Sees a call that has come back.
#[inline(always)]
fn come_back(ctx: &ProbeContext) {
    // SAFETY: the context of a uprobe program is the registers at the probe.
    let regs = unsafe { &*ctx.regs };
    // One that is not counted is not known.
    entry::came_back(ctx, regs, regs.rsp);
}

/// Free of a block that is in the gate's table, or may have had no room there.
#[uprobe]
pub fn gate_free(ctx: ProbeContext) -> u32 {
    let tgid = current();
    if maps::target(tgid).is_none() {
        return 0;
    }
    if release::free(&ctx) {
        count(tgid, Counter::GateFrees, 1);
    } else {
        count(tgid, Counter::GateUnknownFrees, 1);
    }
    0
}

#[inline(always)]
fn current() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}
