//! Before whom a thread of ours runs.

use std::io;

/// Puts this thread before all ordinary ones, into the lowest of the real-time priorities, or among them again.
pub(crate) fn be_first(first: bool) -> io::Result<()> {
    let (policy, priority) = if first { (libc::SCHED_FIFO, 1) } else { (libc::SCHED_OTHER, 0) };
    let parameters = libc::sched_param { sched_priority: priority };
    // SAFETY: the call reads `parameters`, and 0 stands for the calling thread.
    match unsafe { libc::sched_setscheduler(0, policy | libc::SCHED_RESET_ON_FORK, &raw const parameters) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
