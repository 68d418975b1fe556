//! Processes that have their memory in common (`CLONE_VM` without `CLONE_THREAD`, vfork): code must not change while one of them runs
//! that is not stopped.

use std::fs;

use crate::target::{process::live_threads, stopped::Stopped};

/// `KCMP_VM` of include/uapi/linux/kcmp.h.
const KCMP_VM: libc::c_int = 1;

/// How often it is looked while processes and threads are made, ours among them: nothing but time is lost where that is not enough.
const LOOKS: u32 = 4;

/// What was seen before a process is stopped, so that there is little to look at while it stands still.
#[derive(Clone, Copy, Debug)]
pub(super) struct Alone {
    pid: u32,
    /// The last process or thread that had been made anywhere, where it had no such child; `None` where it is not known.
    last: Option<u32>,
}

impl Alone {
    /// Looks at a process that runs.
    pub(super) fn before_stop(pid: u32) -> Self {
        let mut last = last_made();
        for _ in 0..LOOKS {
            let threads = live_threads(pid).filter_map(|thread| i32::try_from(thread).ok());
            if first_of(pid, threads).is_some() {
                return Self { pid, last: None };
            }
            let now = last_made();
            if now == last {
                return Self { pid, last };
            }
            // What was made meanwhile may be one.
            last = now;
        }
        Self { pid, last: None }
    }

    /// The first of the children that the process has made so, now that it is stopped; `None` also where the kernel does not say
    /// (`CONFIG_PROC_CHILDREN`, `CONFIG_KCMP`).
    pub(super) fn first_other(self, stopped: &Stopped) -> Option<u32> {
        let last = last_made();
        // Numbers are given in their order: nothing was made since but the thread of ours that has stopped the process.
        let is_ours = last == Some(stopped.tracer()) && self.last == stopped.tracer().checked_sub(1);
        if is_ours { None } else { first_of(self.pid, stopped.threads().iter().copied()) }
    }
}

fn first_of(pid: u32, threads: impl Iterator<Item = i32>) -> Option<u32> {
    let mut children = threads.flat_map(|thread| children_of(pid, thread));
    children.find(|child| have_same_memory(pid, *child))
}

fn children_of(pid: u32, thread: i32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{thread}/children")).unwrap_or_default();
    children.split_ascii_whitespace().filter_map(|child| child.parse().ok()).collect()
}

fn have_same_memory(pid: u32, child: u32) -> bool {
    // SAFETY: the call takes numbers only.
    unsafe { libc::syscall(libc::SYS_kcmp, pid, child, KCMP_VM, 0, 0) == 0 }
}

/// The last number that a process or a thread was given here, or in what is within here (proc(5), `/proc/loadavg`): each has one here as
/// well that we can see.
fn last_made() -> Option<u32> {
    last_in(&fs::read_to_string("/proc/loadavg").ok()?)
}

fn last_in(text: &str) -> Option<u32> {
    text.split_ascii_whitespace().nth(4)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::{process::Command, thread};

    use super::*;

    #[test]
    fn what_is_made_is_the_last_that_was_made() {
        assert_eq!(last_in("0.79 1.01 2.63 2/345 14937\n"), Some(14_937));
        assert_eq!(last_in("0.79 1.01"), None);
        // Others make processes as well.
        let is_seen = (0..1000).any(|_| {
            let mut child = Command::new("/bin/true").spawn().unwrap();
            let last = last_made();
            child.wait().unwrap();
            last == Some(child.id())
        });
        assert!(is_seen);
        let before = last_made();
        thread::spawn(|| ()).join().unwrap();
        assert_ne!(last_made(), before, "a thread is made as well");
    }
}
