//! Entry and return of the functions that allocate.

use aya_ebpf::{
    EbpfContext,
    bindings::pt_regs,
    helpers::{bpf_get_attach_cookie, bpf_get_current_pid_tgid},
    macros::{uprobe, uretprobe},
    programs::{ProbeContext, RetProbeContext},
};
use aya_log_ebpf::debug;
use profiler_common::{
    call::{InFlight, Shape, array_bytes},
    counters::Counter,
    heap::{LiveBlock, UNLEARNED_STACK},
    target::Target,
    unwind::ReadMemory,
};

use crate::{
    counters::count,
    inflight,
    maps::{self, INFLIGHT, NO_PROGRAMS},
    memory::UserMemory,
    record, release, unwind,
};

/// What is to be done for a process, asked by a uprobe program; `None` when nothing is.
#[inline(always)]
pub fn target(ctx: &impl EbpfContext, tgid: u32) -> Option<Target> {
    let target = maps::target(tgid)?;
    if target.keep_kernel_stack() {
        // SAFETY: the slot is empty, so that the call falls through.
        unsafe { NO_PROGRAMS.tail_call(ctx, 0) };
    }
    Some(target)
}

/// Entry of a function that allocates; the cookie is its [`Shape`].
#[uprobe]
pub fn alloc_enter(ctx: ProbeContext) -> u32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    let tgid = (pid_tgid >> 32) as u32;
    let Some(target) = target(&ctx, tgid) else {
        return 0;
    };
    // SAFETY: the context of a uprobe program is the registers at the probe.
    let regs = unsafe { &*ctx.regs };
    if inflight::is_nested(&ctx, pid_tgid, regs, &target) {
        return 0;
    }
    // SAFETY: the helper takes the context as it is.
    let cookie = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) };
    let Some(shape) = Shape::from_cookie(cookie) else {
        return 0;
    };
    let mut call = arguments(shape, regs);
    if call.old_address != 0 {
        // The old block leaves now, since its address may be given to another thread before the return.
        let old = release::take(tgid, call.old_address);
        match old {
            Some(block) => {
                call.old_size_bytes = block.size_bytes;
                call.old_stack = block.stack;
            }
            None => call.old_address = 0,
        }
    }
    call.stack = match unwind::caller(regs.rsp, regs.rbp) {
        Some(caller) => record::announce(&ctx, pid_tgid, caller, call.size_bytes, &target),
        None => UNLEARNED_STACK,
    };
    if INFLIGHT.insert(pid_tgid, call, 0).is_err() {
        debug!(&ctx, "no room for another call in INFLIGHT");
        count(tgid, Counter::InflightFull, 1);
        inflight::put_back(tgid, &call);
    }
    0
}

/// The call that the registers at a function's entry describe.
#[inline(always)]
fn arguments(shape: Shape, regs: &pt_regs) -> InFlight {
    let mut call = InFlight { sp: regs.rsp, ..InFlight::default() };
    match shape {
        Shape::Size => call.size_bytes = regs.rdi,
        Shape::CountSize => call.size_bytes = array_bytes(regs.rdi, regs.rsi),
        Shape::AlignSize => call.size_bytes = regs.rsi,
        Shape::OutAlignSize => {
            call.out_address = regs.rdi;
            call.size_bytes = regs.rdx;
        }
        Shape::Resize => {
            call.old_address = regs.rdi;
            call.size_bytes = regs.rsi;
        }
        Shape::ResizeCount => {
            call.old_address = regs.rdi;
            call.size_bytes = array_bytes(regs.rsi, regs.rdx);
        }
        Shape::Free => {}
    }
    call.resizes = u64::from(call.old_address != 0);
    call
}

/// Return of a function that allocates.
#[uretprobe]
pub fn alloc_return(ctx: RetProbeContext) -> u32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    let tgid = (pid_tgid >> 32) as u32;
    if target(&ctx, tgid).is_none() {
        return 0;
    }
    // SAFETY: the context of a uretprobe program is the registers after the return.
    let regs = unsafe { &*ctx.regs };
    let Some(call) = INFLIGHT.get_ptr(pid_tgid) else {
        count(tgid, Counter::UnmatchedReturns, 1);
        return 0;
    };
    // SAFETY: only this thread writes or removes its entry, so that it is whole and stays.
    let call = unsafe { *call };
    let outer_sp = call.sp.wrapping_add(8);
    if regs.rsp != outer_sp {
        // Below is the return of a nested call. Above is that of a call which this one was part of.
        if regs.rsp > outer_sp {
            inflight::abandon(&ctx, pid_tgid, &call);
        }
        return 0;
    }
    // Failing means that the entry is gone already.
    let _ = INFLIGHT.remove(pid_tgid);
    returned(&ctx, tgid, &call, regs.rax);
    0
}

/// Accounts for a call that has come back with `result`.
#[inline(always)]
fn returned(ctx: &RetProbeContext, tgid: u32, call: &InFlight, result: u64) {
    let address = if call.out_address == 0 {
        result
    } else if result as u32 != 0 {
        0
    } else {
        match UserMemory.read_word(call.out_address) {
            Some(address) => address,
            None => return count(tgid, Counter::UnreadableResults, 1),
        }
    };
    // A resize that fails leaves the old block as it was; to size 0 it frees it, whatever it returns.
    if address == 0 && call.size_bytes != 0 {
        return inflight::put_back(tgid, call);
    }
    if call.old_address != 0 {
        record::freed(tgid, &LiveBlock { size_bytes: call.old_size_bytes, stack: call.old_stack });
    } else if call.resizes != 0 {
        count(tgid, Counter::UnknownFrees, 1);
    }
    if address != 0 {
        record::allocated(ctx, tgid, address, &LiveBlock { size_bytes: call.size_bytes, stack: call.stack });
    }
}
