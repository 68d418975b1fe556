//! Threads that end, code that is unmapped, and programs that are replaced.

use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_attach_cookie, bpf_get_current_pid_tgid},
    macros::{raw_tracepoint, uprobe},
    programs::{ProbeContext, RawTracePointContext},
};
use profiler_common::{counters::Counter, event::EventKind, unwind::ReadMemory};

use crate::{
    counters::{count, raise},
    events, inflight,
    maps::{self, INFLIGHT, TARGETS},
    memory::UserMemory,
};

/// A thread ends: a call of it that is under way will not return.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn thread_exit(ctx: RawTracePointContext) -> i32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    let tgid = (pid_tgid >> 32) as u32;
    if maps::target(tgid).is_none() {
        return 0;
    }
    if let Some(call) = INFLIGHT.get_ptr(pid_tgid) {
        // SAFETY: only this thread writes or removes its entry, so that it is whole and stays.
        let call = unsafe { &*call };
        inflight::abandon(&ctx, pid_tgid, call);
    }
    if pid_tgid as u32 == tgid {
        events::notify(EventKind::LeaderExit, tgid);
    }
    0
}

/// The loader is about to change what is mapped, or has: the function that it calls for debuggers at either (the
/// `r_debug` protocol of <link.h>). The cookie is where its state lies.
#[uprobe]
pub fn loader_change(ctx: ProbeContext) -> u32 {
    const RT_CONSISTENT: u32 = 0;
    const RT_DELETE: u32 = 2;
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let Some(target) = TARGETS.get_ptr_mut(tgid) else {
        return 0;
    };
    // SAFETY: the helper takes the context as it is.
    let address = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) };
    let Some(state) = UserMemory.read_word(address) else {
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
            (&raw mut (*target).is_removing).write_volatile(u32::from(removes));
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
    if let Some(target) = TARGETS.get_ptr_mut(tgid) {
        // SAFETY: an aligned word of a map value.
        raise(unsafe { &raw mut (*target).epoch });
        count(tgid, Counter::UnannouncedUnmaps, 1);
    }
    0
}

/// A process replaces its program: its heap is gone, and what the new program does is not counted.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn process_exec(_ctx: RawTracePointContext) -> i32 {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    if maps::target(tgid).is_none() {
        return 0;
    }
    let _ = TARGETS.remove(tgid);
    events::notify(EventKind::Exec, tgid);
    0
}
