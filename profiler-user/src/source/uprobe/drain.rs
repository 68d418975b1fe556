//! Draining the ring buffers, promptly and by a thread of its own.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Instant,
};

use profiler_common::{
    event::{EventKind, ProcessEvent, StackEvent},
    unwind::WalkEnd,
};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::{
    kernel::{Rings, Targets},
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
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Drain {
    /// Starts to drain for the process `pid`; notices are handed to `on_notice`.
    pub(super) fn start(
        rings: Rings,
        pid: u32,
        targets: Arc<Mutex<Targets>>,
        stacks: StackTable,
        on_notice: impl FnMut(Notice) + Send + 'static,
    ) -> io::Result<Self> {
        let knows_trampoline = stacks.space.trampoline().is_some();
        let stacks = Arc::new(Mutex::new(stacks));
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let mut worker =
            Worker { rings, pid, targets, knows_trampoline, stacks: Arc::clone(&stacks), on_notice };
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("heaptap-drain".to_owned())
            .spawn(move || worker.run(&stopped))?;
        Ok(Self { stacks, stop, thread: Mutex::new(Some(thread)) })
    }

    /// The stacks seen so far.
    pub(super) fn stacks(&self) -> MutexGuard<'_, StackTable> {
        // The table is whole between two records, whatever happened to the thread.
        self.stacks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the buffers to their end and stops.
    pub(super) fn finish(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(thread) = thread else { return };
        if rustix::io::write(&*self.stop, &1_u64.to_ne_bytes()).is_ok() && thread.join().is_err() {
            tracing::error!("the drain thread failed: stacks may be missing");
        }
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        self.finish();
    }
}

/// How long to wait before looking for the page of hijacked return addresses again.
const LOOK_AGAIN: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

struct Worker<F> {
    rings: Rings,
    pid: u32,
    targets: Arc<Mutex<Targets>>,
    /// Whether the kernel side was told where hijacked return addresses point.
    knows_trampoline: bool,
    stacks: Arc<Mutex<StackTable>>,
    on_notice: F,
}

impl<F: FnMut(Notice)> Worker<F> {
    fn run(&mut self, stop: &OwnedFd) {
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
                match decode(&record) {
                    Some(Record::Stack { hash, pcs, end }) => {
                        let mut stacks = self.stacks.lock().unwrap_or_else(PoisonError::into_inner);
                        stacks.insert(self.pid, hash, pcs, end);
                    }
                    Some(Record::Notice(notice)) => (self.on_notice)(notice),
                    None => tracing::warn!(bytes = record.len(), "record of an unknown kind"),
                }
            }
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
            let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
            targets.set_trampoline(self.pid, trampoline);
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
        let timeout = if self.knows_trampoline { None } else { Some(&LOOK_AGAIN) };
        poll(&mut fds, timeout)?;
        Ok(fds.first().is_some_and(|stop| !stop.revents().is_empty()))
    }
}

enum Record<'bytes> {
    Stack { hash: u64, pcs: Words<'bytes>, end: WalkEnd },
    Notice(Notice),
}

/// The 64-bit words of a byte slice.
#[derive(Clone)]
struct Words<'bytes>(std::slice::ChunksExact<'bytes, u8>);

impl Iterator for Words<'_> {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        word(self.0.next()?, 0)
    }
}

fn decode(bytes: &[u8]) -> Option<Record<'_>> {
    use std::mem::offset_of;
    let kind = EventKind::from_raw(half(bytes, offset_of!(ProcessEvent, kind))?)?;
    match kind {
        EventKind::Exec => Some(Record::Notice(Notice::Exec)),
        EventKind::LeaderExit => Some(Record::Notice(Notice::LeaderExit { seen: Instant::now() })),
        EventKind::Stack => {
            let depth = usize::try_from(half(bytes, offset_of!(StackEvent, depth))?).ok()?;
            let pcs = bytes.get(offset_of!(StackEvent, pcs)..)?.get(..depth.checked_mul(8)?)?;
            Some(Record::Stack {
                hash: word(bytes, offset_of!(StackEvent, stack))?,
                pcs: Words(pcs.chunks_exact(8)),
                end: WalkEnd::from_raw(half(bytes, offset_of!(StackEvent, end))?)?,
            })
        }
    }
}

fn word(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}

fn half(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stack_event(depth: u32, pcs: &[u64]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend((EventKind::Stack as u32).to_ne_bytes());
        bytes.extend(1_u32.to_ne_bytes());
        bytes.extend(0xabc_u64.to_ne_bytes());
        bytes.extend(depth.to_ne_bytes());
        bytes.extend((WalkEnd::Cut as u32).to_ne_bytes());
        bytes.extend(pcs.iter().flat_map(|pc| pc.to_ne_bytes()));
        bytes
    }

    #[test]
    fn a_stack_record_gives_its_hash_its_frames_and_its_end() {
        let bytes = stack_event(2, &[5, 6, 7]);
        let Some(Record::Stack { hash, pcs, end }) = decode(&bytes) else { panic!("not a stack") };
        assert_eq!((hash, pcs.collect::<Vec<_>>(), end), (0xabc, vec![5, 6], WalkEnd::Cut));
    }

    #[test]
    fn records_that_are_short_or_unknown_are_refused() {
        let bytes = stack_event(2, &[5, 6]);
        for length in 0..bytes.len() {
            assert!(decode(&bytes[..length]).is_none(), "{length} bytes");
        }
        assert!(decode(&stack_event(u32::MAX, &[1])).is_none());
        assert!(decode(&99_u64.to_ne_bytes()).is_none());
    }
}
