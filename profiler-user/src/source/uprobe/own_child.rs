//! Processes that heaptap makes of itself, for what has to go on although it is killed.

use std::io;

use nix::{
    errno::Errno,
    sys::signal::{SigSet, SigmaskHow, sigprocmask},
};

/// Makes one by `make`, which is fork(2) or clone(2) and gives a PID, or a negative number where it has failed. Nothing that is meant for us
/// is meant for it, as what is typed at the terminal: it blocks all signals.
pub(super) fn start(make: impl FnOnce() -> libc::pid_t) -> io::Result<libc::pid_t> {
    let mut before = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
    let pid = make();
    let made = if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(pid) };
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
    made
}

/// Waits for the end of one that was made so, whichever signal or none tells of it.
pub(super) fn wait_for(pid: libc::pid_t) {
    // SAFETY: it is a child of ours that nobody else waits for; nothing is written.
    while unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::__WALL) } < 0
        && Errno::last() == Errno::EINTR
    {}
}
