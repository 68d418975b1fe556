//! How soon the thread that stops others gets a processor.
//!
//! Some of them are stopped while the rest still runs: if it had to wait for its turn among 200 threads that compute, the process
//! would stand still for half a second. It computes for no more than the stop takes, sleeps between its looks, and ends.

use rustix::process::setpriority_process;

/// Lets this thread run before all ordinary ones, or before most where that is not allowed.
pub(super) fn be_first() {
    let parameters = libc::sched_param { sched_priority: 1 };
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // SAFETY: the call reads `parameters`, and 0 stands for the calling thread.
    let returned = unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) };
    if returned != 0
        && let Err(error) = setpriority_process(None, -20)
    {
        tracing::debug!(%error, "stopping threads at ordinary priority");
    }
}
