//! Closing the descriptors that keep probes in, so that the probes come out whatever happens to us meanwhile.
//!
//! The kernel takes a probe out when the last descriptor of it is closed, and needs the process's pages for that, which it does not get for a
//! thread that is being killed: then it leaves the breakpoints where they are, for ever (`failed to unregister, leaking uprobe`;
//! `__get_user_pages` in mm/gup.c and `uprobe_unregister_nosync` in kernel/events/uprobes.c, v6.18). A process that ends is past
//! that, and no signal reaches it any more. So it is the end of a process that closes them last: one that is made for it.

use std::{
    io::{self, PipeReader, PipeWriter},
    os::fd::AsRawFd,
    sync::{Mutex, PoisonError},
};

use super::own_child;

/// One after the other: the process that is made for some has the descriptors of all others as well, and keeps them open for as long as it
/// is there.
static ONE: Mutex<()> = Mutex::new(());

/// Drops what has such descriptors, and waits until the probes are out.
pub(super) fn let_go<T>(holding: T) {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    match Holder::start() {
        Ok(holder) => {
            // It has them as well, so that this takes nothing out.
            drop(holding);
            holder.end();
        }
        Err(error) => {
            tracing::warn!(%error, "probes may stay in if heaptap is killed now");
            drop(holding);
        }
    }
}

/// A process that has all our descriptors, and ends when it is told to, or when we do.
struct Holder {
    pid: libc::pid_t,
    /// Closed to tell it.
    tell: PipeWriter,
}

impl Holder {
    fn start() -> io::Result<Self> {
        let (told, tell) = io::pipe()?;
        let pid = own_child::start(|| {
            // SAFETY: the child makes only calls that a signal handler may make, and ends.
            let pid = unsafe { libc::fork() };
            if pid == 0 {
                hold(&told, &tell);
            }
            pid
        })?;
        Ok(Self { pid, tell })
    }

    /// Has it end, and waits for that.
    fn end(self) {
        drop(self.tell);
        own_child::wait_for(self.pid);
    }
}

/// What the process does: it waits until nobody has the other end of the pipe.
fn hold(told: &PipeReader, tell: &PipeWriter) -> ! {
    let mut byte = 0_u8;
    // SAFETY: it is this process's own descriptor, which nobody uses any more.
    unsafe { libc::close(tell.as_raw_fd()) };
    // SAFETY: the kernel writes no more than the one byte.
    unsafe { libc::read(told.as_raw_fd(), (&raw mut byte).cast(), 1) };
    // SAFETY: it ends the process, which has nothing that is to be seen to.
    unsafe { libc::_exit(0) }
}
