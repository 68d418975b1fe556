//! Child processes of those that follow theirs. None of these programs is attached unless some process does.

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, bpf_get_prandom_u32},
    macros::{raw_tracepoint, tracepoint},
    programs::{RawTracePointContext, TracePointContext},
};
use profiler_common::{
    counters::{COUNTERS as COUNTERS_OF_A_TARGET, Counter, Counters},
    event::{EventKind, ForkEvent},
    target::{Sharing, Target},
};

use crate::{
    counters::count,
    inherit,
    maps::{self, COUNTERS, EVENTS, SHARING},
};

/// Where the fields of the tracepoint lie that the loader has found in its format: the new thread's number, and the flags that
/// it was made with.
#[unsafe(no_mangle)]
static NEWTASK_PID_OFFSET: u32 = 8;
#[unsafe(no_mangle)]
static NEWTASK_FLAGS_OFFSET: u32 = 32;

/// `CLONE_VM` and `CLONE_THREAD` of include/uapi/linux/sched.h.
const CLONE_VM: u64 = 0x100;
const CLONE_THREAD: u64 = 0x1_0000;

/// What a process begins with. Not on the stack, of which [`process_fork`] and what it calls have 512 bytes.
#[unsafe(no_mangle)]
static NO_COUNTERS: Counters = Counters([0; COUNTERS_OF_A_TARGET]);

/// A thread has made another one, which has yet to run.
#[tracepoint(category = "task", name = "task_newtask")]
pub fn process_fork(ctx: TracePointContext) -> u32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    let parent = (pid_tgid >> 32) as u32;
    let Some(target) = maps::target(parent) else {
        return 0;
    };
    if target.follows == 0 {
        return 0;
    }
    // SAFETY: constants of the object, which the loader has set.
    let offsets = unsafe {
        ((&raw const NEWTASK_PID_OFFSET).read_volatile(), (&raw const NEWTASK_FLAGS_OFFSET).read_volatile())
    };
    // SAFETY: the fields are there and have these types.
    let fields = unsafe { (ctx.read_at::<u32>(offsets.0 as usize), ctx.read_at::<u64>(offsets.1 as usize)) };
    let (Ok(child), Ok(flags)) = fields else {
        return 0;
    };
    if flags & CLONE_THREAD != 0 {
        return 0;
    }
    if flags & CLONE_VM != 0 {
        // It has its parent's memory, in which it must not be taken for another heap, until it replaces its program.
        let sharing = Sharing { parent, depth: target.depth, is_witnessed: target.is_witnessed.into() };
        if SHARING.insert(child, sharing, 0).is_err() {
            count(parent, Counter::UnfollowedChildren, 1);
        }
        return 0;
    }
    // The hashes of its stacks begin with the epoch, and stay what they are.
    let heir = Target { image: new_image(), is_headless: 0, ..target };
    if begin(child, &heir) {
        inherit::inherit_blocks(target.owner(parent), heir.owner(child));
        inherit::inherit_call(pid_tgid, heir.owner(child));
        if announce(child, parent, &heir, false) {
            return 0;
        }
        end(child);
    }
    count(parent, Counter::UnfollowedChildren, 1);
    0
}

/// A process that had the memory of a watched one has a program and a heap of its own from now on.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn child_exec(_ctx: RawTracePointContext) -> i32 {
    let child = (bpf_get_current_pid_tgid() >> 32) as u32;
    let Some(sharing) = SHARING.get_ptr(child) else {
        return 0;
    };
    // SAFETY: the entry is there until this process goes; it is copied before it is removed.
    let Sharing { parent, depth, is_witnessed } = unsafe { *sharing };
    // Failing means that it is gone already.
    let _ = SHARING.remove(child);
    let is_witnessed = is_witnessed as u8;
    let target = Target { depth, is_witnessed, follows: 1, image: new_image(), ..Target::default() };
    if begin(child, &target) {
        if announce(child, parent, &target, true) {
            return 0;
        }
        end(child);
    }
    count(parent, Counter::UnfollowedChildren, 1);
    0
}

/// A process may end with the memory of a watched one.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn child_exit(_ctx: RawTracePointContext) -> i32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    let tgid = (pid_tgid >> 32) as u32;
    if pid_tgid as u32 == tgid {
        // Failing means that it has none.
        let _ = SHARING.remove(tgid);
    }
    0
}

/// The first of a process's images. Blocks of an earlier process with the same number may be there still, and are another's.
#[inline(always)]
fn new_image() -> u32 {
    // SAFETY: the helper takes nothing.
    let random = unsafe { bpf_get_prandom_u32() };
    random << 16
}

/// Begins to watch a process; false where there is no room for it.
#[inline(always)]
fn begin(tgid: u32, target: &Target) -> bool {
    let none: &Counters = &NO_COUNTERS;
    COUNTERS.insert(tgid, none, 0).is_ok() && maps::add_target(tgid, target)
}

/// Watches a process no longer that nobody was told of. Its blocks go with the next sweep.
#[inline(always)]
fn end(tgid: u32) {
    maps::remove_target(tgid);
    // Failing means that there are none.
    let _ = COUNTERS.remove(tgid);
}

/// Tells user space of a process that is watched; false where it cannot be told.
#[inline(always)]
fn announce(tgid: u32, parent: u32, target: &Target, is_empty: bool) -> bool {
    let Some(mut event) = EVENTS.reserve::<ForkEvent>(0) else {
        return false;
    };
    event.write(ForkEvent {
        kind: EventKind::Fork as u32,
        tgid,
        parent,
        image: target.image,
        epoch: target.epoch,
        is_empty: is_empty.into(),
    });
    event.submit(0);
    true
}
