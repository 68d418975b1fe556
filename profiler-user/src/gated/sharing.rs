//! Processes that have their memory in common (`CLONE_VM` without `CLONE_THREAD`, vfork): code must not change while one of them runs
//! that is not stopped.

use std::fs;

use crate::target::process::live_threads;

/// `KCMP_VM` of include/uapi/linux/kcmp.h.
const KCMP_VM: libc::c_int = 1;

/// The first of the children that a process has made so; `None` also where the kernel does not say (`CONFIG_PROC_CHILDREN`,
/// `CONFIG_KCMP`).
pub(super) fn first_of(pid: u32) -> Option<u32> {
    live_threads(pid).flat_map(|thread| children_of(pid, thread)).find(|child| have_same_memory(pid, *child))
}

fn children_of(pid: u32, thread: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{thread}/children")).unwrap_or_default();
    children.split_ascii_whitespace().filter_map(|child| child.parse().ok()).collect()
}

fn have_same_memory(pid: u32, child: u32) -> bool {
    // SAFETY: the call takes numbers only.
    unsafe { libc::syscall(libc::SYS_kcmp, pid, child, KCMP_VM, 0, 0) == 0 }
}
