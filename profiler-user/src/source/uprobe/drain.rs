//! Draining the ring buffers, promptly and by a thread of its own.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, Sender, TryRecvError, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::{
    capture::CaptureError,
    kernel::Rings,
    learn::Learner,
    records::{Record, decode},
    stacks::StackTable,
    urgency::Urgency,
    watched::{Notice, Watched},
};

type Work = Box<dyn FnOnce(&mut Learner, &mut StackTable) + Send>;

/// What is wanted of the thread.
enum Question {
    /// An answer about the stacks of a process that were seen so far, or something to be done.
    Of(u32, Work),
    /// That it forgets a process.
    Forget(u32),
}

/// What a thread that has ended leaves.
type Left = (HashMap<u32, StackTable>, Result<(), CaptureError>);

/// The thread that drains. Stopped, and its buffers read to their end, by [`Drain::finish`] or by dropping it.
pub(super) struct Drain {
    /// Written to when there is a question, or when nobody will ask one any more.
    wake: Arc<OwnedFd>,
    state: Mutex<State>,
}

enum State {
    Running(Sender<Question>, JoinHandle<Left>),
    Ended(HashMap<u32, StackTable>),
    Failed,
}

impl Drain {
    /// Starts to drain for the process `pid`, and for those that the kernel side adds; notices are handed to `on_notice`, each
    /// with the process that it is about. One allocation for every `interval_bytes` is walked, or all for 1.
    pub(super) fn start(
        rings: Rings,
        pid: u32,
        learner: Learner,
        stacks: StackTable,
        interval_bytes: u64,
        on_notice: impl FnMut(u32, Notice) + Send + 'static,
    ) -> io::Result<Self> {
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (ask, questions) = channel();
        let mut worker = Worker {
            rings,
            watched: HashMap::from([(pid, Watched::new(pid, learner, stacks))]),
            first: pid,
            last_miss: Instant::now(),
            alert: if interval_bytes < FEW_FROM_BYTES { ALERT } else { Duration::ZERO },
            on_notice,
            wake: Arc::clone(&wake),
            questions,
            asked: Vec::new(),
            waited_for_since: None,
            is_held_up: false,
        };
        let thread = std::thread::Builder::new().name("heaptap-drain".to_owned()).spawn(move || {
            worker.run();
            let first = worker.watched.get_mut(&pid);
            let captured = first.map_or(Ok(()), |first| first.learner.finish_capture());
            (worker.watched.into_iter().map(|(pid, watched)| (pid, watched.stacks)).collect(), captured)
        })?;
        Ok(Self { wake, state: Mutex::new(State::Running(ask, thread)) })
    }

    /// The answer to a question about the stacks of a process seen so far, of which none is missing that was sent before; `None`
    /// where the thread has failed.
    ///
    /// The thread itself answers: nobody who waits for a processor may keep it from its work by a lock.
    pub(super) fn ask<T: Send + 'static>(
        &self,
        pid: u32,
        question: impl FnOnce(&StackTable) -> T + Send + 'static,
    ) -> Option<T> {
        match &*lock(&self.state) {
            State::Running(ask, _) => {
                let (answer, answered) = channel();
                // Failing means that nobody waits for the answer.
                let question =
                    move |_: &mut Learner, stacks: &mut StackTable| drop(answer.send(question(stacks)));
                ask.send(Question::Of(pid, Box::new(question))).ok()?;
                self.wake();
                answered.recv().ok()
            }
            State::Ended(stacks) => stacks.get(&pid).map(question),
            State::Failed => None,
        }
    }

    /// Has the thread do something with what it learns by. Does nothing where it has ended.
    pub(super) fn tell(&self, pid: u32, order: impl FnOnce(&mut Learner, &mut StackTable) + Send + 'static) {
        self.send(Question::Of(pid, Box::new(order)));
    }

    /// Has the thread forget a process, which has ended. Does nothing where the thread has.
    pub(super) fn forget(&self, pid: u32) {
        self.send(Question::Forget(pid));
    }

    fn send(&self, question: Question) {
        if let State::Running(ask, _) = &*lock(&self.state) {
            // Failing means that it has failed, which others will say.
            let _ = ask.send(question);
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
        *state = State::Ended(stacks);
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

/// How long to wait where nobody is watched.
const IDLE: Duration = Duration::from_secs(1);

/// How long after something new to expect more of it, where all allocations are walked. Where few are, what is to be learned costs the
/// program next to nothing, and who looks all the time takes the program's own processor for it, hundreds of times in the first second.
const ALERT: Duration = Duration::from_secs(2);

/// From this mean interval on few are walked.
const FEW_FROM_BYTES: u64 = 64 << 10;

/// How long to wait while more is expected.
const LOOK_SOON: Duration = Duration::from_micros(300);

/// How long to wait for a record that is being written, and those behind it.
const CATCH_UP: Duration = Duration::from_secs(1);

/// How long to wait for more of a stack: its pieces are written one right after the other.
const PATIENCE: Duration = Duration::from_millis(200);

struct Worker<F> {
    rings: Rings,
    /// The processes, by their PIDs.
    watched: HashMap<u32, Watched>,
    /// The first of them.
    first: u32,
    /// When there last was something to learn, or we began.
    last_miss: Instant,
    /// How long after that to expect more.
    alert: Duration,
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

impl<F: FnMut(u32, Notice)> Worker<F> {
    fn run(&mut self) {
        let mut urgency = Urgency::new();
        loop {
            urgency.set(self.is_alert());
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
            let mut reviewed = Vec::new();
            for (&pid, watched) in &mut self.watched {
                if watched.review() {
                    reviewed.push(pid);
                }
            }
            self.read();
            while self.tidy() && !self.has_records() {}
            self.is_held_up = self.has_records();
            if !self.is_held_up {
                for pid in reviewed {
                    if let Some(notice) = self.watched.get_mut(&pid).and_then(Watched::catch_up) {
                        (self.on_notice)(pid, notice);
                    }
                }
            }
            let is_late = self.is_late(is_over || !self.asked.is_empty());
            let is_over = is_over && (is_late || !self.is_held_up);
            let patience = if is_over { Duration::ZERO } else { PATIENCE };
            for Watched { learner, stacks, .. } in self.watched.values_mut() {
                learner.give_up(patience, stacks);
            }
            if is_late || !(self.is_held_up || self.is_waiting()) {
                for question in std::mem::take(&mut self.asked) {
                    self.answer(question);
                }
            }
            if let Some(log) = &mut self.rings.log {
                log.flush();
            }
            self.watched.values_mut().for_each(Watched::look_for_trampoline);
            if is_over {
                return;
            }
        }
    }

    /// Takes in every record that there is.
    fn read(&mut self) {
        while let Some(record) = self.rings.events.next() {
            let Some((pid, record)) = decode(&record) else {
                tracing::warn!(bytes = record.len(), "record of an unknown kind");
                continue;
            };
            if let Record::Miss(_) = record {
                self.last_miss = Instant::now();
            }
            if let Record::Fork(forked) = &record {
                // One that has ended meanwhile may have been forgotten.
                let parent = self.watched.get(&forked.parent).or_else(|| self.watched.get(&self.first));
                if let Some(child) = parent.map(|parent| parent.child(forked)) {
                    self.watched.insert(pid, child);
                }
            }
            if let Some(notice) = self.watched.get_mut(&pid).and_then(|watched| watched.take(record)) {
                (self.on_notice)(pid, notice);
            }
        }
    }

    fn answer(&mut self, question: Question) {
        match question {
            Question::Of(pid, question) => {
                if let Some(Watched { learner, stacks, .. }) = self.watched.get_mut(&pid) {
                    question(learner, stacks);
                }
            }
            Question::Forget(pid) => {
                if let Some(Watched { mut learner, mut stacks, .. }) = self.watched.remove(&pid) {
                    learner.leave(&mut stacks);
                }
            }
        }
    }

    /// Does a part of what can wait; false where there is nothing more to do.
    fn tidy(&mut self) -> bool {
        let mut is_more = false;
        for watched in self.watched.values_mut() {
            is_more |= watched.tidy();
        }
        is_more
    }

    /// Whether more to learn is expected.
    fn is_alert(&self) -> bool {
        self.last_miss.elapsed() < self.alert
    }

    fn is_waiting(&self) -> bool {
        self.watched.values().any(|watched| watched.learner.is_waiting())
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

    /// How long all of them can be left alone.
    fn rest(&self) -> Duration {
        self.watched.values().map(Watched::rest).min().unwrap_or(IDLE)
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
        let mut timeout = if self.is_held_up || self.is_alert() { LOOK_SOON } else { self.rest() };
        if self.is_waiting() {
            timeout = timeout.min(PATIENCE);
        }
        poll(&mut fds, Timespec::try_from(timeout).ok().as_ref())?;
        // Nothing there means that something else has woken us.
        let _ = rustix::io::read(&*self.wake, &mut [0; 8]);
        Ok(())
    }
}
