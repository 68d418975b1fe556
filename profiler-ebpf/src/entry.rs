//! Entry and return of the functions that allocate.

use core::{ffi::c_void, hint::black_box};

use aya_ebpf::{
    EbpfContext,
    bindings::pt_regs,
    helpers::{bpf_get_attach_cookie, bpf_get_current_pid_tgid, generated::bpf_get_func_ip},
    macros::{uprobe, uretprobe},
    programs::{ProbeContext, RetProbeContext},
};
use aya_log_ebpf::debug;
use profiler_common::{
    call::{Convention, FREES, InFlight, Outcome, array_bytes},
    counters::Counter,
    heap::{LiveBlock, NESTED_STACK, UNLEARNED_STACK},
    sampling::NOT_KEPT,
    target::Target,
    unwind::ReadMemory,
};

use crate::{
    counters::count,
    inflight, live, mapping,
    maps::{self, NO_PROGRAMS, THREADS},
    memory::UserMemory,
    record, release, remember, sampling,
};

/// What is to be done for a process, asked by a uprobe program; `None` when nothing is.
#[inline(always)]
pub fn target(ctx: &impl EbpfContext, tgid: u32) -> Option<Target> {
    let target = maps::target(tgid)?;
    keep_kernel_stack(ctx, &target);
    Some(target)
}

/// Has the kernel let the program run on the kernel's stack: [`Target::keep_kernel_stack`].
#[inline(always)]
fn keep_kernel_stack(ctx: &impl EbpfContext, target: &Target) {
    if target.keep_kernel_stack() {
        // SAFETY: the slot is empty, so that the call falls through.
        unsafe { NO_PROGRAMS.tail_call(ctx, 0) };
    }
}

/// Entry of a function that allocates; the cookie is its [`Convention`].
#[uprobe]
pub fn alloc_enter(ctx: ProbeContext) -> u32 {
    // SAFETY: the helper takes the context as it is.
    let cookie = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) };
    enter(&ctx, cookie, sampling::rate_of);
    0
}

/// Entry and return of a function that allocates and does not throw, where the kernel lets one program see both; the cookie is its
/// [`Convention`]. A call from whose entry it comes away with 1 has no return trap. Also the entry of a function that frees, with
/// [`FREES`]: much of what the kernel has to prove of either is the same.
///
/// In the section by hand: what the macro makes always comes away with 0.
#[unsafe(no_mangle)]
#[unsafe(link_section = "uprobe")]
extern "C" fn alloc_call(ctx: *mut c_void) -> u32 {
    let ctx = ProbeContext::new(ctx);
    // SAFETY: the context of a uprobe program is the registers at the probe, or after the return.
    let regs = unsafe { &*ctx.regs };
    // SAFETY: the helper takes the context as it is.
    let probe = unsafe { bpf_get_func_ip(ctx.as_ptr()) };
    let skips = if regs.rip != probe {
        see_return(&ctx)
    } else {
        // SAFETY: as above.
        let cookie = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) };
        if cookie == FREES { see_free(&ctx) } else { begin(&ctx, cookie) }
    };
    // Nothing else may be given, and what a function gives is unknown to the verifier where it may make a tail call.
    black_box(skips) & 1
}

/// A function by itself, for the little stack that there is; it gives a number, as the kernel asks of those that may make a tail call.
#[inline(never)]
fn see_return(ctx: &ProbeContext) -> u32 {
    maps::note_return();
    // SAFETY: the context of a uprobe program is the registers after the return.
    return_hijacked(ctx, unsafe { &*ctx.regs });
    0
}

/// The same for functions that free.
#[inline(never)]
fn see_free(ctx: &ProbeContext) -> u32 {
    release::free(ctx);
    1
}

/// A place of which it is only to be known what it costs to be stopped there.
#[uprobe]
pub fn nothing(_ctx: ProbeContext) -> u32 {
    0
}

/// The same for entries.
#[inline(never)]
fn begin(ctx: &ProbeContext, cookie: u64) -> u32 {
    u32::from(!enter(ctx, cookie, sampling::rate_of))
}

/// Begins to follow a call, of a function with this cookie, at the rate that its size is kept at; false where its return says nothing.
#[inline(always)]
pub fn enter(ctx: &ProbeContext, cookie: u64, rate_of: impl FnOnce(u64) -> u64) -> bool {
    let pid_tgid = bpf_get_current_pid_tgid();
    let tgid = (pid_tgid >> 32) as u32;
    let Some(target) = target(ctx, tgid) else {
        return false;
    };
    // SAFETY: the context of a uprobe program is the registers at the probe.
    let regs = unsafe { &*ctx.regs };
    let thread = THREADS.get_ptr_mut(pid_tgid);
    if inflight::is_nested(ctx, thread, pid_tgid, regs, &target) {
        return false;
    }
    let wanted = Wanted::of(cookie, regs);
    let rate = rate_of(wanted.size_bytes);
    if rate == NOT_KEPT && wanted.old_address == 0 && !wanted.convention.may_jump() {
        return false;
    }
    let Some(thread) = thread.or_else(|| inflight::enter_thread(pid_tgid)) else {
        debug!(ctx, "no room for another thread in THREADS");
        count(tgid, Counter::InflightFull, 1);
        return false;
    };
    let block = LiveBlock::new(wanted.size_bytes, rate, wanted.convention.allocator(), 0);
    // All but the stack is kept now: to walk it takes most of the little stack that there is for programs.
    // SAFETY: only this thread writes or removes its entry, which is no call's that is under way.
    let call = unsafe { &mut (*thread).call };
    // All but `old`, which means nothing without an address. One by one: otherwise the compiler calls for zeros.
    call.sp = regs.rsp;
    call.return_address = 0;
    call.site = regs.rip;
    call.cookie = wanted.convention.cookie();
    call.size_bytes = wanted.size_bytes;
    call.stack = NESTED_STACK;
    call.out_address = wanted.out_address;
    call.old_address = 0;
    call.resizes = u32::from(wanted.old_address != 0);
    call.rate = rate as u32;
    // The old block leaves now, since its address may be given to another thread before the return.
    if live::take_into(target.owner(tgid), wanted.old_address, &mut call.old) {
        call.old_address = wanted.old_address;
    }
    let is_left_out = call.old_address == 0 && !wanted.convention.may_jump();
    if rate == NOT_KEPT && is_left_out {
        return false;
    }
    if rate == NOT_KEPT {
        call.return_address = UserMemory.read_word(regs.rsp).unwrap_or_default();
    } else {
        let walks = remember::of_thread(pid_tgid, thread);
        call.stack = match remember::caller(walks, regs) {
            Some(caller) => {
                call.return_address = caller.pc;
                record::announce(ctx, pid_tgid, caller, block, &target, walks)
            }
            None => UNLEARNED_STACK,
        };
        // What it jumps to must not be taken for a call of its own, and what becomes of the old block is to be seen.
        if call.stack == NESTED_STACK && is_left_out {
            return false;
        }
    }
    // SAFETY: as above.
    unsafe { (*thread).is_inside = 1 };
    true
}

/// What is asked of a function that allocates.
struct Wanted {
    convention: Convention,
    size_bytes: u64,
    /// The block to be resized; 0 for none.
    old_address: u64,
    /// Where the block's address is to be stored, or the block that is to stay; 0 for neither.
    out_address: u64,
}

impl Wanted {
    /// What the registers at the function's entry say.
    #[inline(always)]
    fn of(cookie: u64, regs: &pt_regs) -> Self {
        let convention = Convention::from_cookie(cookie);
        let arguments = Arguments::of(regs);
        let Arguments { first, second, third, fourth } = arguments;
        let size_bytes = bytes_asked_for(cookie, first, second, third, fourth);
        Self {
            convention,
            size_bytes,
            old_address: arguments.get(convention.old_argument()),
            out_address: arguments.get(convention.out_argument()),
        }
    }
}

/// The first arguments of a function, by the System V ABI.
struct Arguments {
    first: u64,
    second: u64,
    third: u64,
    fourth: u64,
}

impl Arguments {
    #[inline(always)]
    fn of(regs: &pt_regs) -> Self {
        // Each is read by itself, and now: picking a register by a number that is not known is what the verifier refuses.
        // SAFETY: words of the context.
        unsafe {
            Self {
                first: (&raw const regs.rdi).read_volatile(),
                second: (&raw const regs.rsi).read_volatile(),
                third: (&raw const regs.rdx).read_volatile(),
                fourth: (&raw const regs.rcx).read_volatile(),
            }
        }
    }

    /// One of them, counted from 1; 0 for none.
    #[inline(always)]
    fn get(&self, number: u64) -> u64 {
        let Self { first, second, third, fourth } = *self;
        if number == 0 { 0 } else { argument(number, first, second, third, fourth) }
    }
}

/// A function by itself, as the next one: the verifier need not go on with each of the arguments.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn argument(number: u64, first: u64, second: u64, third: u64, fourth: u64) -> u64 {
    match number {
        1 => first,
        2 => second,
        3 => third,
        4 => fourth,
        _ => 0,
    }
}

/// What is asked of a function with this cookie.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn bytes_asked_for(cookie: u64, first: u64, second: u64, third: u64, fourth: u64) -> u64 {
    let convention = Convention::from_cookie(cookie);
    let of = |number| match number {
        1 => first,
        2 => second,
        3 => third,
        4 => fourth,
        _ => 0,
    };
    let size_bytes = of(convention.size_argument());
    match convention.count_argument() {
        0 => size_bytes,
        count => array_bytes(of(count), size_bytes),
    }
}

/// Return of a function that allocates and does not throw.
#[uretprobe]
pub fn alloc_return(ctx: RetProbeContext) -> u32 {
    // SAFETY: the context of a uretprobe program is the registers after the return.
    return_hijacked(&ctx, unsafe { &*ctx.regs });
    0
}

/// Sees a call that has come back through the kernel's trampoline.
#[inline(always)]
fn return_hijacked(ctx: &impl EbpfContext, regs: &pt_regs) {
    // The return address has been taken off the stack.
    let is_known = came_back(ctx, regs, regs.rsp.wrapping_sub(8));
    // Where not all calls are kept, many are not known.
    if !is_known && maps::rate() == 0 {
        count((bpf_get_current_pid_tgid() >> 32) as u32, Counter::UnmatchedReturns, 1);
    }
}

/// A `ret` instruction through which a function that allocates may come back, or one that it jumps to.
#[uprobe]
pub fn alloc_ret(ctx: ProbeContext) -> u32 {
    // SAFETY: the context of a uprobe program is the registers at the probe.
    let regs = unsafe { &*ctx.regs };
    // Others may come by here as well.
    came_back(&ctx, regs, regs.rsp);
    0
}

/// Looks whether the call that the thread is in has come back, with its return address at `sp`. False where there is no call.
#[inline(always)]
pub fn came_back(ctx: &impl EbpfContext, regs: &pt_regs, sp: u64) -> bool {
    let pid_tgid = bpf_get_current_pid_tgid();
    let tgid = (pid_tgid >> 32) as u32;
    let Some(target) = target(ctx, tgid) else {
        return true;
    };
    let Some(thread) = inflight::in_call(THREADS.get_ptr_mut(pid_tgid)) else {
        return false;
    };
    // SAFETY: only this thread writes or removes its entry, so that it is whole and stays.
    let call = unsafe { &(*thread).call };
    if sp != call.sp {
        // Below is the return of a nested call. Above is that of a call which this one was part of.
        if sp > call.sp {
            inflight::abandon(ctx, pid_tgid, call, &target);
        }
        return true;
    }
    // SAFETY: as above.
    unsafe { (&raw mut (*thread).is_inside).write(0) };
    returned(ctx, target.owner(tgid), call, regs.rax);
    true
}

/// Accounts for a call of an owner's that has come back with `result`.
#[inline(always)]
fn returned(ctx: &impl EbpfContext, owner: u64, call: &InFlight, result: u64) {
    const STORED: u64 = Outcome::Stored as u64;
    const SIZE: u64 = Outcome::Size as u64;
    const IN_PLACE: u64 = Outcome::InPlace as u64;
    const RETURNED_OR_FREED: u64 = Outcome::ReturnedOrFreed as u64;
    let (tgid, convention) = (owner as u32, Convention::from_cookie(call.cookie));
    let outcome = convention.outcome();
    if Outcome::is_mapping(outcome) {
        return mapping::returned(call, result);
    }
    let address = match outcome {
        STORED if result as u32 != 0 => 0,
        STORED => match UserMemory.read_word(call.out_address) {
            Some(address) => address,
            None => return count(tgid, Counter::UnreadableResults, 1),
        },
        SIZE if result >= call.size_bytes => call.out_address,
        IN_PLACE if result != 0 => call.out_address,
        SIZE | IN_PLACE => return inflight::put_back(owner, call.old_address, &call.old),
        _ => result,
    };
    // A resize that fails leaves the old block as it was; to size 0 it frees it, whatever it returns.
    if address == 0 && call.size_bytes != 0 && outcome != RETURNED_OR_FREED {
        return inflight::put_back(owner, call.old_address, &call.old);
    }
    if call.old_address != 0 {
        record::freed(owner, &call.old);
    } else if call.resizes != 0 && call.rate == 0 {
        count(tgid, Counter::UnknownFrees, 1);
    }
    if address != 0 && call.stack != NESTED_STACK {
        let block = LiveBlock::new(call.size_bytes, u64::from(call.rate), convention.allocator(), call.stack);
        record::allocated(ctx, owner, address, &block);
    }
}
