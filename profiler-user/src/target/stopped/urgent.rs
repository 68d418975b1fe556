//! How soon the thread that stops others gets a processor.
//!
//! Some of them are stopped while the rest still runs: if it had to wait for its turn among 200 threads that compute, the process
//! would stand still for half a second. It computes for no more than the stop takes, sleeps between its looks, and ends.

use rustix::process::setpriority_process;

use crate::target::scheduling;

/// Lets this thread run before all ordinary ones, or before most where that is not allowed.
pub(super) fn be_first() {
    if scheduling::be_first(true).is_err()
        && let Err(error) = setpriority_process(None, -20)
    {
        tracing::debug!(%error, "stopping threads at ordinary priority");
    }
}
