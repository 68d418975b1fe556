//! Draining the ring buffers, promptly and by a thread of its own.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    process::setpriority_process,
};

use super::{
    capture::CaptureError,
    kernel::Rings,
    learn::Learner,
    records::{Record, decode},
    stacks::StackTable,
};

/// Something that happened to the target as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// It replaced its program; counting has stopped.
    Exec,
    /// Its first thread has ended; others may go on.
    LeaderExit {
        /// When this was learned.
        seen: Instant,
    },
}

/// The thread that drains. Stopped, and its buffers read to their end, by [`Drain::finish`] or by dropping it.
pub(super) struct Drain {
    stacks: Arc<Mutex<StackTable>>,
    stop: Arc<OwnedFd>,
    thread: Mutex<Option<JoinHandle<Result<(), CaptureError>>>>,
}

impl Drain {
    /// Starts to drain for the process `pid`; notices are handed to `on_notice`.
    pub(super) fn start(
        rings: Rings,
        pid: u32,
        learner: Learner,
        stacks: StackTable,
        on_notice: impl FnMut(Notice) + Send + 'static,
    ) -> io::Result<Self> {
        let knows_trampoline = stacks.space.trampoline().is_some();
        let stacks = Arc::new(Mutex::new(stacks));
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let mut worker = Worker {
            rings,
            pid,
            learner,
            last_miss: Instant::now(),
            knows_trampoline,
            stacks: Arc::clone(&stacks),
            on_notice,
        };
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("heaptap-drain".to_owned()).spawn(move || {
            worker.run(&stopped);
            worker.learner.finish_capture()
        })?;
        Ok(Self { stacks, stop, thread: Mutex::new(Some(thread)) })
    }

    /// The stacks seen so far.
    pub(super) fn stacks(&self) -> MutexGuard<'_, StackTable> {
        // The table is whole between two records, whatever happened to the thread.
        self.stacks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the buffers to their end and stops; an error where the file of stacks could not be written.
    pub(super) fn finish(&self) -> Result<(), CaptureError> {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(thread) = thread else { return Ok(()) };
        if rustix::io::write(&*self.stop, &1_u64.to_ne_bytes()).is_err() {
            return Ok(());
        }
        thread.join().unwrap_or_else(|_| {
            tracing::error!("the drain thread failed: stacks may be missing");
            Ok(())
        })
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        // Whoever wants to know of an error has asked.
        let _ = self.finish();
    }
}

/// How long to wait before looking for the page of hijacked return addresses again.
const LOOK_AGAIN: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// How long after something new to expect more of it.
const ALERT: Duration = Duration::from_secs(2);

/// How long to wait while more is expected.
const LOOK_SOON: Timespec = Timespec { tv_sec: 0, tv_nsec: 300_000 };

/// How long to wait for more of a stack: its pieces are written one right after the other.
const PATIENCE: Duration = Duration::from_millis(200);

struct Worker<F> {
    rings: Rings,
    pid: u32,
    learner: Learner,
    /// When there last was something to learn, or we began.
    last_miss: Instant,
    /// Whether the kernel side was told where hijacked return addresses point.
    knows_trampoline: bool,
    stacks: Arc<Mutex<StackTable>>,
    on_notice: F,
}

impl<F: FnMut(Notice)> Worker<F> {
    fn run(&mut self, stop: &OwnedFd) {
        // Until the kernel has learned to walk a stack, each allocation costs the target more than later ones.
        if let Err(error) = setpriority_process(None, -20) {
            tracing::debug!(%error, "draining at ordinary priority");
        }
        loop {
            let stopping = match self.wait(stop) {
                Ok(stopping) => stopping,
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => {
                    tracing::error!(%error, "cannot wait for the ring buffer");
                    true
                }
            };
            while let Some(record) = self.rings.events.next() {
                let mut stacks = self.stacks.lock().unwrap_or_else(PoisonError::into_inner);
                match decode(&record) {
                    Some(Record::Stack { hash, pcs, end }) => stacks.insert(self.pid, hash, pcs, end),
                    Some(Record::Miss(miss)) => {
                        self.learner.learn(&miss, &mut stacks);
                        self.last_miss = Instant::now();
                    }
                    Some(Record::Chunk { stack, copy, is_last }) => {
                        self.learner.extend(stack, copy, is_last, &mut stacks);
                    }
                    Some(Record::CodeAdded) => self.learner.look_around(&mut stacks.space),
                    Some(Record::CodeChange) => self.learner.forget(&mut stacks.space),
                    Some(Record::Notice(notice)) => {
                        drop(stacks);
                        (self.on_notice)(notice);
                    }
                    None => tracing::warn!(bytes = record.len(), "record of an unknown kind"),
                }
            }
            let patience = if stopping { Duration::ZERO } else { PATIENCE };
            self.learner.give_up(patience, &mut self.stacks.lock().unwrap_or_else(PoisonError::into_inner));
            if let Some(log) = &mut self.rings.log {
                log.flush();
            }
            if !self.knows_trampoline {
                self.look_for_trampoline();
            }
            if stopping {
                return;
            }
        }
    }

    /// Finds the page of hijacked return addresses, which is mapped with the first of them, and tells the kernel side.
    fn look_for_trampoline(&mut self) {
        let mut stacks = self.stacks.lock().unwrap_or_else(PoisonError::into_inner);
        // A process that has ended needs it no longer.
        if stacks.space.refresh(self.pid).is_ok()
            && let Some(trampoline) = stacks.space.trampoline()
        {
            self.learner.teach_trampoline(trampoline);
            self.knows_trampoline = true;
        }
    }

    /// Waits for a record; true when it is time to stop.
    fn wait(&self, stop: &OwnedFd) -> rustix::io::Result<bool> {
        let mut fds = vec![
            PollFd::new(stop, PollFlags::IN),
            PollFd::from_borrowed_fd(self.rings.events.as_fd(), PollFlags::IN),
        ];
        if let Some(log) = &self.rings.log {
            fds.push(PollFd::from_borrowed_fd(log.as_fd(), PollFlags::IN));
        }
        // The kernel wakes us with its next clock tick, in which a busy program allocates a thousand times. While there is
        // something to learn, we look ourselves.
        let is_content = self.knows_trampoline && !self.learner.is_waiting();
        let timeout = if self.last_miss.elapsed() < ALERT {
            Some(&LOOK_SOON)
        } else if is_content {
            None
        } else {
            Some(&LOOK_AGAIN)
        };
        poll(&mut fds, timeout)?;
        Ok(fds.first().is_some_and(|stop| !stop.revents().is_empty()))
    }
}
