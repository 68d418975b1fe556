//! Mappings that a program makes itself: each change is told to user space, which knows what lies where.
//!
//! What an allocator maps within a call of its own is part of that call, and not told.

use aya_ebpf::{
    EbpfContext,
    bindings::pt_regs,
    helpers::{bpf_get_attach_cookie, bpf_get_current_pid_tgid},
    macros::uprobe,
    programs::ProbeContext,
};
use profiler_common::{
    call::{Convention, InFlight, Outcome},
    counters::Counter,
    event::{EventKind, MappingAction, MappingEvent},
    heap::{LiveBlock, UNLEARNED_STACK},
    unwind::ReadMemory,
};

use crate::{
    counters::count,
    entry, inflight,
    maps::{self, EVENTS, THREADS},
    memory::UserMemory,
    record, unwind,
};

/// `MAP_FIXED` and `MAP_ANONYMOUS` of include/uapi/linux/mman.h and what it includes.
const MAP_FIXED: u64 = 0x10;
const MAP_ANONYMOUS: u64 = 0x20;

/// `MREMAP_DONTUNMAP` of include/uapi/linux/mman.h.
const MREMAP_DONTUNMAP: u64 = 4;

/// What a failed mmap or mremap returns.
const FAILED: u64 = u64::MAX;

/// What a call will have done when it comes back, as it is kept meanwhile.
struct Plan {
    /// One of the constants below.
    kind: u64,
    /// By which address; 0 where only the result tells.
    address: u64,
    /// How much it will be.
    length_bytes: u64,
    convention: Convention,
}

/// Nothing that is to be told.
const NOTHING: u64 = 0;
/// Anonymous memory will be mapped.
const MAP: u64 = 1;
/// Something else will be mapped, where something may be.
const COVER: u64 = 2;
/// Memory will be moved.
const MOVE: u64 = 3;
/// Memory will be given back.
const SHRINK: u64 = 4;
/// Anonymous memory will be mapped where something may be.
const REPLACE: u64 = 5;

impl Plan {
    /// What the registers at the function's entry say.
    #[inline(always)]
    fn of(ctx: &ProbeContext, regs: &pt_regs) -> Self {
        const MAPPED: u64 = Outcome::Mapped as u64;
        const REMAPPED: u64 = Outcome::Remapped as u64;
        // SAFETY: the helper takes the context as it is.
        let convention = Convention::from_cookie(unsafe { bpf_get_attach_cookie(ctx.as_ptr()) });
        // SAFETY: words of the context; each is read by itself, as the verifier wants it.
        let (first, second, third, fourth) = unsafe {
            (
                (&raw const regs.rdi).read_volatile(),
                (&raw const regs.rsi).read_volatile(),
                (&raw const regs.rdx).read_volatile(),
                (&raw const regs.rcx).read_volatile(),
            )
        };
        let (kind, address, length_bytes) = match convention.outcome() {
            MAPPED if fourth & (MAP_FIXED | MAP_ANONYMOUS) == MAP_FIXED | MAP_ANONYMOUS => {
                (REPLACE, 0, second)
            }
            MAPPED if fourth & MAP_ANONYMOUS != 0 => (MAP, 0, second),
            MAPPED if fourth & MAP_FIXED != 0 => (COVER, 0, second),
            // The old mapping stays as it is.
            REMAPPED if fourth & MREMAP_DONTUNMAP != 0 => (MAP, 0, third),
            REMAPPED if second != 0 => (MOVE, first, third),
            MAPPED | REMAPPED => (NOTHING, 0, 0),
            _ => {
                let end = UserMemory.read_word(regs.rip.wrapping_add(convention.state_distance()));
                match end {
                    Some(end) if first > end && end != 0 => (MAP, end, first - end),
                    Some(end) if first < end && first != 0 => (SHRINK, first, end - first),
                    _ => (NOTHING, 0, 0),
                }
            }
        };
        Self { kind, address, length_bytes, convention }
    }
}

/// Entry of mmap, mremap or brk; the cookie is its [`Convention`].
#[uprobe]
pub fn map_enter(ctx: ProbeContext) -> u32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    let tgid = (pid_tgid >> 32) as u32;
    let Some(target) = entry::target(&ctx, tgid) else {
        return 0;
    };
    // SAFETY: the context of a uprobe program is the registers at the probe.
    let regs = unsafe { &*ctx.regs };
    let plan = Plan::of(&ctx, regs);
    if plan.kind == NOTHING || inflight::is_mapping_nested(&ctx, pid_tgid, regs, &target) {
        return 0;
    }
    if plan.kind == SHRINK {
        tell(MappingAction::Unmap, plan.convention, plan.address, plan.length_bytes, 0);
        return 0;
    }
    let stack = match unwind::caller(regs.rsp, regs.rbp) {
        Some(caller) if plan.kind != COVER => {
            let block = LiveBlock::new(plan.length_bytes, 0, plan.convention.allocator(), 0);
            record::announce(&ctx, pid_tgid, caller, block, &target, None)
        }
        _ => UNLEARNED_STACK,
    };
    // Found out again, for what is kept meanwhile takes of the little stack that there is.
    let plan = Plan::of(&ctx, regs);
    if plan.kind == MOVE {
        tell(MappingAction::Leave, plan.convention, plan.address, regs.rsi, 0);
    }
    let convention = plan.convention.with_plan(plan.kind);
    keep(regs.rsp, convention.cookie(), plan.address, plan.length_bytes, stack);
    0
}

/// Keeps a call until it comes back. A function by itself, for the little stack that there is.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn keep(sp: u64, cookie: u64, address: u64, length_bytes: u64, stack: u64) -> u64 {
    let pid_tgid = bpf_get_current_pid_tgid();
    let Some(thread) = THREADS.get_ptr_mut(pid_tgid).or_else(|| inflight::enter_thread(pid_tgid)) else {
        count((pid_tgid >> 32) as u32, Counter::InflightFull, 1);
        return 0;
    };
    // SAFETY: only this thread writes or removes its entry.
    let thread = unsafe { &mut *thread };
    let call = &mut thread.call;
    call.sp = sp;
    call.return_address = UserMemory.read_word(sp).unwrap_or_default();
    call.site = 0;
    call.cookie = cookie;
    call.size_bytes = length_bytes;
    call.stack = stack;
    call.out_address = address;
    call.old_address = 0;
    call.resizes = 0;
    call.rate = 0;
    thread.is_inside = 1;
    0
}

/// Accounts for a call of mmap, mremap or brk that has come back with `result`.
#[inline(always)]
pub fn returned(call: &InFlight, result: u64) {
    let convention = Convention::from_cookie(call.cookie);
    let is_break = convention.outcome() == Outcome::Broke as u64;
    let has_failed = if is_break { result as u32 != 0 } else { result == FAILED };
    let action = match (convention.plan(), has_failed) {
        (MOVE, true) => MappingAction::Stay,
        (_, true) => return,
        (MOVE, _) => MappingAction::Arrive,
        (COVER, _) => MappingAction::Cover,
        (REPLACE, _) => MappingAction::Replace,
        _ => MappingAction::Map,
    };
    let address = if is_break { call.out_address } else { result };
    tell(action, convention, address, call.size_bytes, call.stack);
}

/// Entry of munmap; the cookie says whose.
#[uprobe]
pub fn unmap_enter(ctx: ProbeContext) -> u32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    let tgid = (pid_tgid >> 32) as u32;
    let Some(target) = entry::target(&ctx, tgid) else {
        return 0;
    };
    // SAFETY: the context of a uprobe program is the registers at the probe.
    let regs = unsafe { &*ctx.regs };
    // What an allocator has mapped within a call is not known, so that this only saves a record.
    if !inflight::is_free_nested(pid_tgid, regs, &target) {
        // SAFETY: the helper takes the context as it is.
        let convention = Convention::from_cookie(unsafe { bpf_get_attach_cookie(ctx.as_ptr()) });
        tell(MappingAction::Unmap, convention, regs.rdi, regs.rsi, 0);
    }
    0
}

/// Tells user space of a change.
#[inline(always)]
fn tell(action: MappingAction, convention: Convention, address: u64, length_bytes: u64, stack: u64) {
    tell_of(action as u64, convention.allocator(), address, length_bytes, stack);
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn tell_of(action: u64, allocator: u64, address: u64, length_bytes: u64, stack: u64) -> u64 {
    let pid_tgid = bpf_get_current_pid_tgid();
    let tgid = (pid_tgid >> 32) as u32;
    let Some(target) = maps::target(tgid) else {
        return 0;
    };
    let Some(mut event) = EVENTS.reserve::<MappingEvent>(0) else {
        count(tgid, Counter::LostMappings, 1);
        return 0;
    };
    event.write(MappingEvent {
        kind: EventKind::Mapping as u32,
        tgid,
        action: action as u32,
        image: target.image,
        thread: pid_tgid as u32,
        allocator: allocator as u32,
        address,
        length_bytes,
        stack,
    });
    event.submit(0);
    0
}
