//! Draining the ring buffers, promptly and by a thread of its own.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, Sender, TryRecvError, channel},
    },
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
    pace::Pace,
    records::{Record, decode},
    stacks::StackTable,
};

/// Something that happened to the target as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// It replaced its program; counting has stopped.
    Exec,
    /// Its loader has mapped something, which may have an allocator.
    CodeAdded,
    /// Its first thread has ended; others may go on.
    LeaderExit {
        /// When this was learned.
        seen: Instant,
    },
}

/// A question about the stacks seen so far, or an order.
type Question = Box<dyn FnOnce(&mut Learner, &mut StackTable) + Send>;

/// What a thread that has ended leaves.
type Left = (StackTable, Result<(), CaptureError>);

/// The thread that drains. Stopped, and its buffers read to their end, by [`Drain::finish`] or by dropping it.
pub(super) struct Drain {
    /// Written to when there is a question, or when nobody will ask one any more.
    wake: Arc<OwnedFd>,
    state: Mutex<State>,
}

enum State {
    Running(Sender<Question>, JoinHandle<Left>),
    Ended(Box<StackTable>),
    Failed,
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
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (ask, questions) = channel();
        let mut worker = Worker {
            rings,
            pid,
            learner,
            last_miss: Instant::now(),
            review: Pace::new(REVIEW),
            search: Pace::new(SEARCH),
            knows_trampoline,
            stacks,
            on_notice,
            wake: Arc::clone(&wake),
            questions,
            asked: Vec::new(),
            waited_for_since: None,
            is_held_up: false,
        };
        let thread = std::thread::Builder::new().name("heaptap-drain".to_owned()).spawn(move || {
            worker.run();
            (worker.stacks, worker.learner.finish_capture())
        })?;
        Ok(Self { wake, state: Mutex::new(State::Running(ask, thread)) })
    }

    /// The answer to a question about the stacks seen so far, of which none is missing that was sent before; `None` where
    /// the thread has failed.
    ///
    /// The thread itself answers: nobody who waits for a processor may keep it from its work by a lock.
    pub(super) fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&StackTable) -> T + Send + 'static,
    ) -> Option<T> {
        match &*lock(&self.state) {
            State::Running(ask, _) => {
                let (answer, answered) = channel();
                // Failing means that nobody waits for the answer.
                let question =
                    move |_: &mut Learner, stacks: &mut StackTable| drop(answer.send(question(stacks)));
                ask.send(Box::new(question)).ok()?;
                self.wake();
                answered.recv().ok()
            }
            State::Ended(stacks) => Some(question(stacks)),
            State::Failed => None,
        }
    }

    /// Has the thread do something with what it learns by. Does nothing where it has ended.
    pub(super) fn tell(&self, order: impl FnOnce(&mut Learner, &mut StackTable) + Send + 'static) {
        if let State::Running(ask, _) = &*lock(&self.state) {
            // Failing means that it has failed, which others will say.
            let _ = ask.send(Box::new(order));
            self.wake();
        }
    }

    /// Reads the buffers to their end and stops; an error where the file of stacks could not be written.
    pub(super) fn finish(&self) -> Result<(), CaptureError> {
        let mut state = lock(&self.state);
        let (ask, thread) = match std::mem::replace(&mut *state, State::Failed) {
            State::Running(ask, thread) => (ask, thread),
            other => {
                *state = other;
                return Ok(());
            }
        };
        drop(ask);
        self.wake();
        let Ok((stacks, captured)) = thread.join() else {
            tracing::error!("the drain thread failed: stacks are missing");
            return Ok(());
        };
        *state = State::Ended(Box::new(stacks));
        captured
    }

    fn wake(&self) {
        // Failing means that it was woken very often and has yet to look.
        let _ = rustix::io::write(&*self.wake, &1_u64.to_ne_bytes());
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        // Whoever wants to know of an error has asked.
        let _ = self.finish();
    }
}

/// The state is whole between two calls, whatever happened to the thread that made the last one.
fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long to wait before looking for the page of hijacked return addresses again.
const SEARCH: Duration = Duration::from_millis(10);

/// How long to wait before looking whether code is there still, of which only the loader says when it goes.
const REVIEW: Duration = Duration::from_secs(1);

/// How long after something new to expect more of it.
const ALERT: Duration = Duration::from_secs(2);

/// How long to wait while more is expected.
const LOOK_SOON: Duration = Duration::from_micros(300);

/// How long to wait for a record that is being written, and those behind it.
const CATCH_UP: Duration = Duration::from_secs(1);

/// How long to wait for more of a stack: its pieces are written one right after the other.
const PATIENCE: Duration = Duration::from_millis(200);

struct Worker<F> {
    rings: Rings,
    pid: u32,
    learner: Learner,
    /// When there last was something to learn, or we began.
    last_miss: Instant,
    /// When to look whether code is there still.
    review: Pace,
    /// When to look for the page of hijacked return addresses.
    search: Pace,
    /// Whether the kernel side was told where hijacked return addresses point.
    knows_trampoline: bool,
    stacks: StackTable,
    on_notice: F,
    wake: Arc<OwnedFd>,
    questions: Receiver<Question>,
    /// Those that are to be answered.
    asked: Vec<Question>,
    /// Since when somebody waits for everything to be read.
    waited_for_since: Option<Instant>,
    /// Whether the next record is still being written, which keeps all behind it from being read.
    is_held_up: bool,
}

impl<F: FnMut(Notice)> Worker<F> {
    fn run(&mut self) {
        // Until the kernel has learned to walk a stack, each allocation costs the target more than later ones.
        if let Err(error) = setpriority_process(None, -20) {
            tracing::debug!(%error, "draining at ordinary priority");
        }
        loop {
            match self.wait() {
                Ok(()) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "cannot wait for the ring buffer");
                    return;
                }
            }
            // Those who ask have seen counts whose stacks are in the buffer: the questions are taken before the records, and
            // answered behind them.
            let is_over = loop {
                match self.questions.try_recv() {
                    Ok(question) => self.asked.push(question),
                    Err(TryRecvError::Empty) => break false,
                    Err(TryRecvError::Disconnected) => break true,
                }
            };
            // Code may be unmapped by others than the loader, who say nothing.
            if self.review.rest().is_zero() {
                self.review.look(|| self.learner.review(&mut self.stacks));
            }
            while let Some(record) = self.rings.events.next() {
                let stacks = &mut self.stacks;
                match decode(&record) {
                    Some(Record::Stack { hash, pcs, end }) => stacks.insert(self.pid, hash, pcs, end),
                    Some(Record::Miss(miss)) => {
                        // It may be of code that has come in the place of other code.
                        if self.review.allows() {
                            self.review.look(|| self.learner.review(stacks));
                        }
                        self.learner.learn(&miss, stacks);
                        self.last_miss = Instant::now();
                    }
                    Some(Record::Chunk { stack, copy, is_last }) => {
                        self.learner.extend(stack, copy, is_last, stacks);
                    }
                    Some(Record::CodeAdded) => {
                        self.learner.look_around(stacks);
                        (self.on_notice)(Notice::CodeAdded);
                    }
                    Some(Record::CodeChange) => self.learner.forget(stacks),
                    Some(Record::Notice(notice)) => (self.on_notice)(notice),
                    None => tracing::warn!(bytes = record.len(), "record of an unknown kind"),
                }
            }
            self.is_held_up = self.has_records();
            let is_late = self.is_late(is_over || !self.asked.is_empty());
            let is_over = is_over && (is_late || !self.is_held_up);
            let patience = if is_over { Duration::ZERO } else { PATIENCE };
            self.learner.give_up(patience, &mut self.stacks);
            if is_late || !(self.is_held_up || self.learner.is_waiting()) {
                self.asked.drain(..).for_each(|question| question(&mut self.learner, &mut self.stacks));
            }
            if let Some(log) = &mut self.rings.log {
                log.flush();
            }
            if !self.knows_trampoline && self.search.rest().is_zero() {
                self.look_for_trampoline();
            }
            if is_over {
                return;
            }
        }
    }

    /// Finds the page of hijacked return addresses, which is mapped with the first of them, and tells the kernel side.
    fn look_for_trampoline(&mut self) {
        let space = &mut self.stacks.space;
        let mut is_there = false;
        self.search.look(|| is_there = space.refresh(self.pid).is_ok());
        // A process that has ended needs it no longer.
        if is_there && let Some(trampoline) = space.trampoline() {
            self.learner.teach_trampoline(trampoline);
            self.knows_trampoline = true;
        }
    }

    /// Whether the ring buffer has a record, be it one that is still being written.
    fn has_records(&self) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(self.rings.events.as_fd(), PollFlags::IN)];
        matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(1..))
    }

    /// Whether somebody has waited long enough; `is_waited_for` says whether somebody waits.
    fn is_late(&mut self, is_waited_for: bool) -> bool {
        let since = if is_waited_for { self.waited_for_since.or(Some(Instant::now())) } else { None };
        self.waited_for_since = since.filter(|since| since.elapsed() < CATCH_UP);
        is_waited_for && self.waited_for_since.is_none()
    }

    /// Waits for a record or a question.
    fn wait(&self) -> rustix::io::Result<()> {
        let mut fds = vec![PollFd::new(&self.wake, PollFlags::IN)];
        // Whoever is writing a record may need our processor for it.
        if !self.is_held_up {
            fds.push(PollFd::from_borrowed_fd(self.rings.events.as_fd(), PollFlags::IN));
        }
        if let Some(log) = &self.rings.log {
            fds.push(PollFd::from_borrowed_fd(log.as_fd(), PollFlags::IN));
        }
        // The kernel wakes us with its next clock tick, in which a busy program allocates a thousand times. While there is
        // something to learn, we look ourselves.
        let is_alert = self.is_held_up || self.last_miss.elapsed() < ALERT;
        let mut timeout = if is_alert { LOOK_SOON } else { self.review.rest() };
        if !self.knows_trampoline {
            timeout = timeout.min(self.search.rest());
        }
        if self.learner.is_waiting() {
            timeout = timeout.min(PATIENCE);
        }
        poll(&mut fds, Timespec::try_from(timeout).ok().as_ref())?;
        // Nothing there means that something else has woken us.
        let _ = rustix::io::read(&*self.wake, &mut [0; 8]);
        Ok(())
    }
}
