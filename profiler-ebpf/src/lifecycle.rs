//! Threads that end and programs that are replaced.

use aya_ebpf::{helpers::bpf_get_current_pid_tgid, macros::raw_tracepoint, programs::RawTracePointContext};
use profiler_common::event::EventKind;

use crate::{
    events, inflight,
    maps::{self, INFLIGHT, TARGETS},
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
        let call = unsafe { *call };
        inflight::abandon(&ctx, pid_tgid, &call);
    }
    if pid_tgid as u32 == tgid {
        events::notify(EventKind::LeaderExit, tgid);
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
