//! Threads that end, code that is unmapped, and programs that are replaced.

use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_attach_cookie, bpf_get_current_pid_tgid},
    macros::{raw_tracepoint, uprobe},
    programs::{ProbeContext, RawTracePointContext},
};
use profiler_common::{counters::Counter, event::EventKind, unwind::ReadMemory};

use crate::{
    closing,
    counters::{count, raise},
    events, inflight,
    maps::{self, THREADS, TRAMPOLINES, WALKS},
    memory::UserMemory,
};

/// A thread ends: a call of it that is under way will not return.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn thread_exit(ctx: RawTracePointContext) -> i32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    let tgid = (pid_tgid >> 32) as u32;
    let target = maps::target(tgid);
    if let (Some(target), Some(thread)) = (&target, inflight::in_call(THREADS.get_ptr_mut(pid_tgid))) {
        // SAFETY: only this thread writes or removes its entry, so that it is whole and stays.
        let call = unsafe { &(*thread).call };
        inflight::abandon(&ctx, pid_tgid, call, target);
    }
    // Of processes that are no longer watched as well.
    forget_thread(pid_tgid);
    let Some(target) = target else {
        return 0;
    };
    if pid_tgid as u32 == tgid
        && target.is_headless == 0
        && let Some(target) = maps::target_ptr(tgid)
    {
        // SAFETY: a byte of a map value; the first thread ends once.
        unsafe { (&raw mut (*target).is_headless).write_volatile(1) };
        events::notify(EventKind::LeaderExit, tgid);
    }
    0
}

/// A process makes another one, which has a copy of its memory and so of the breakpoints in it. Not attached where children are
/// followed.
#[raw_tracepoint(tracepoint = "task_newtask")]
pub fn child_made(ctx: RawTracePointContext) -> i32 {
    /// `CLONE_VM` of include/uapi/linux/sched.h.
    const CLONE_VM: u64 = 0x100;
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    if maps::target(tgid).is_some() && ctx.arg::<u64>(1) & CLONE_VM == 0 {
        events::notify(EventKind::ChildMade, tgid);
    }
    0
}

/// Forgets a thread. Most have no entry, and looking takes no lock.
#[inline(always)]
fn forget_thread(pid_tgid: u64) {
    if THREADS.get_ptr(pid_tgid).is_some() {
        // Failing means that there is none.
        let _ = THREADS.remove(pid_tgid);
        let _ = WALKS.remove(pid_tgid);
    }
}

/// The loader is about to change what is mapped, or has: the function that it calls for debuggers at either (the
/// `r_debug` protocol of <link.h>). The cookie is how far behind that function its state lies, for another program that the
/// process goes on with may have it elsewhere; 0 for a loader that only says when it has added something.
#[uprobe]
pub fn loader_change(ctx: ProbeContext) -> u32 {
    const RT_CONSISTENT: u32 = 0;
    const RT_DELETE: u32 = 2;
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let Some(target) = maps::target_ptr(tgid) else {
        return 0;
    };
    // SAFETY: the helper takes the context as it is.
    let distance = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) };
    // SAFETY: the context of a uprobe program is the registers at the probe.
    let announcement = unsafe { (*ctx.regs).rip };
    let state = if distance == 0 {
        Some(RT_CONSISTENT.into())
    } else {
        UserMemory.read_word(announcement.wrapping_add(distance))
    };
    let Some(state) = state else {
        return 0;
    };
    // SAFETY: an aligned word of a map value, written here only; the loader holds a lock meanwhile.
    let is_removing = unsafe { (&raw const (*target).is_removing).read_volatile() };
    let removes = state as u32 == RT_DELETE;
    if removes || (is_removing != 0 && state as u32 == RT_CONSISTENT) {
        // What was learned of the code that goes must not be used for what comes in its place.
        // SAFETY: as above; the epoch is read as a whole word elsewhere.
        unsafe {
            raise(&raw mut (*target).epoch);
            (&raw mut (*target).is_removing).write_volatile(u8::from(removes));
        }
        events::notify(EventKind::CodeChange, tgid);
    } else if state as u32 == RT_CONSISTENT {
        // New code is looked at while it is there.
        events::notify(EventKind::CodeAdded, tgid);
    }
    0
}

/// Code of a process has gone without its loader saying so. User space, which has seen that, runs this program itself:
/// no tracepoint does, so that there is no other argument than the process.
#[raw_tracepoint]
pub fn code_gone(ctx: RawTracePointContext) -> i32 {
    let tgid = ctx.arg::<u64>(0) as u32;
    if let Some(target) = maps::target_ptr(tgid) {
        // SAFETY: an aligned word of a map value.
        raise(unsafe { &raw mut (*target).epoch });
        count(tgid, Counter::UnannouncedUnmaps, 1);
    }
    0
}

/// A process has replaced its program: the heap of the old one is gone, and what was learned of its code. The first
/// instruction of the new one is yet to run, and no other thread of it does.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn process_exec(ctx: RawTracePointContext) -> i32 {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    // The thread has the first one's number from now on; what is known of it is listed under the one it had.
    let former = ctx.arg::<u64>(1) as u32;
    forget_thread(u64::from(tgid) << 32 | u64::from(former));
    let Some(target) = maps::target_ptr(tgid) else {
        return 0;
    };
    // SAFETY: a byte of a map value.
    let is_headless = unsafe { (&raw const (*target).is_headless).read_volatile() } != 0;
    if is_headless && former == tgid {
        // The first thread has ended, so that this one is that of another process, to which the number was given.
        return 0;
    }
    // Failing means that it is not known.
    let _ = TRAMPOLINES.remove(tgid);
    // SAFETY: aligned words of a map value, of which only the epoch is written elsewhere meanwhile, by another such addition.
    unsafe {
        raise(&raw mut (*target).image);
        raise(&raw mut (*target).epoch);
        (&raw mut (*target).is_removing).write_volatile(0);
        (&raw mut (*target).is_headless).write_volatile(0);
    }
    events::notify(EventKind::Exec, tgid);
    0
}

/// Makes room for blocks by forgetting those that nobody has any more. User space runs this program itself: there can be
/// millions, which the process must not wait for.
#[raw_tracepoint]
pub fn sweep(_ctx: RawTracePointContext) -> i32 {
    closing::sweep_live();
    0
}
