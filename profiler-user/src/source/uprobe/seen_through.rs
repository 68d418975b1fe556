//! System calls that are seen through although heaptap is killed in the middle of one.
//!
//! A thread that is being killed gets no pages of another process, so that what the kernel has done of a call in there it cannot undo: it
//! leaves the breakpoints where they are (see [`super::letting_go`]). So the call is made by a process that has our memory and our
//! files, and is nobody's to kill. What was opened it closes by its end, where we are gone by then.

use std::{ffi::c_void, io, os::raw::c_int};

use super::own_child;

/// What the calls need of a stack, and more: it is memory that nobody touches.
const STACK_BYTES: usize = 256 << 10;

/// Of a stack, by the ABI.
const ALIGNMENT: usize = 16;

/// Makes a call, in a way that a signal to heaptap does not interrupt; the thread waits for it. Where no process can be made for
/// it, the thread itself makes the call.
pub(super) fn see_through<T>(call: impl FnOnce() -> T) -> io::Result<T> {
    let mut errand = Errand { call: Some(call), result: None };
    match errand.send() {
        Ok(()) => {}
        Err(error) => tracing::warn!(%error, "probes may stay in if heaptap is killed now"),
    }
    let Errand { call, result } = errand;
    match (result, call) {
        (Some(result), _) => Ok(result),
        (None, Some(call)) => Ok(call()),
        (None, None) => Err(io::Error::other("somebody has killed the process that heaptap made for it")),
    }
}

/// A call that is to be made, and later what it gave.
struct Errand<F, T> {
    call: Option<F>,
    result: Option<T>,
}

impl<F: FnOnce() -> T, T> Errand<F, T> {
    /// Has a process make the call, and waits for its end.
    fn send(&mut self) -> io::Result<()> {
        let mut stack = vec![0_u8; STACK_BYTES];
        let top = stack.as_mut_ptr_range().end;
        let top = top.wrapping_sub(top as usize % ALIGNMENT);
        // No signal tells of its end: the kernel breaks off the proof of a program in a thread that gets one.
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_FILES;
        let errand = std::ptr::from_mut(self).cast::<c_void>();
        // SAFETY: the process has the stack for itself, and the memory as if it were this thread, which waits until it has ended.
        let pid = own_child::start(|| unsafe { libc::clone(Self::carry_out, top.cast(), flags, errand) })?;
        own_child::wait_for(pid);
        Ok(())
    }

    extern "C" fn carry_out(errand: *mut c_void) -> c_int {
        // SAFETY: it is what `send` has handed over, which nobody else touches meanwhile.
        let errand = unsafe { &mut *errand.cast::<Self>() };
        if let Some(call) = errand.call.take() {
            errand.result = Some(call());
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use nix::{
        errno::Errno,
        sys::{
            signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask},
            wait::{WaitPidFlag, waitpid},
        },
        unistd::Pid,
    };

    use super::*;

    #[test]
    fn another_process_makes_the_call_with_our_memory_and_our_files() {
        let mut seen = 0;
        let (pid, file) = see_through(|| {
            seen += 1;
            (rustix::process::getpid(), File::open("/proc/self/status"))
        })
        .unwrap();
        assert_ne!(pid, rustix::process::getpid());
        assert_eq!(seen, 1);
        let status = io::read_to_string(file.unwrap()).unwrap_err();
        assert_eq!(status.raw_os_error(), Some(libc::ESRCH), "what it opened is open here, and it has ended");
        // Nobody is left to be waited for.
        let left = waitpid(Pid::from_raw(pid.as_raw_nonzero().get()), Some(WaitPidFlag::__WALL));
        assert_eq!(left, Err(Errno::ECHILD));
    }

    #[test]
    fn signals_are_let_through_again() {
        let mask = || {
            let mut mask = SigSet::empty();
            sigprocmask(SigmaskHow::SIG_SETMASK, None, Some(&mut mask)).unwrap();
            mask
        };
        let before = mask();
        let during = see_through(mask).unwrap();
        assert_eq!(mask(), before);
        assert!(during.contains(Signal::SIGINT) && !before.contains(Signal::SIGINT));
    }

    #[test]
    fn a_process_that_was_killed_is_an_error() {
        let killed = see_through(|| kill(Pid::this(), Signal::SIGKILL));
        assert!(killed.unwrap_err().to_string().contains("has killed"));
    }
}
