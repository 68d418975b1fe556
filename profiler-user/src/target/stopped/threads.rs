//! All threads of a process, seized and stopped.
//!
//! Everything here happens on one thread of ours (see [`super::Stopped`]), for the kernel answers no other.

use std::{
    collections::BTreeMap,
    io, thread,
    time::{Duration, Instant},
};

use super::{
    super::process::status,
    StopError,
    extent::Extents,
    places::Places,
    request::{self, Event, Registers},
};

/// How often it is looked before there is a pause between the looks, which would be longer than most stops take.
pub(super) const LOOKS_WITHOUT_PAUSE: u32 = 64;

/// Threads that are looked at in next to no time.
pub(super) const FEW: usize = 4;

/// The pause: short beside what a stop may take, long beside what a look costs.
const PAUSE: Duration = Duration::from_micros(50);

/// For how long threads that were killed while they were stopped are waited for.
const END_LIMIT: Duration = Duration::from_millis(50);

/// How often a thread is let go again that stops with something else to tell: as often as it may be sent SIGSTOP and SIGCONT in some
/// ten milliseconds.
const DETOURS_LIMIT: u32 = 1 << 12;

/// What is known of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Seized and interrupted.
    Stopping,
    /// Stopped.
    Stopped {
        /// Because the whole process is, by a signal.
        by_group: bool,
    },
}

/// The threads that are seized.
#[derive(Debug)]
pub(super) struct Threads {
    pub(super) pid: u32,
    pub(super) states: BTreeMap<i32, State>,
    /// Whether the process's end is for another part of this process to learn of, which started it.
    pub(super) is_child: bool,
    pub(super) limit: Duration,
    /// When the first was about to be stopped.
    pub(super) began: Instant,
    /// Where there are instructions to make a system call by; as they were found.
    pub(super) places: Option<Places>,
    /// The registers as they were when all had stopped, or as this has set them since.
    pub(super) registers: BTreeMap<i32, Registers>,
    /// The mappings that were asked for.
    pub(super) extents: Extents,
}

impl Threads {
    /// None as yet, of a process whose threads are to be stopped within `limit`.
    pub(super) fn of(pid: u32, limit: Duration) -> Self {
        Self {
            pid,
            states: BTreeMap::new(),
            is_child: false,
            limit,
            began: Instant::now(),
            places: None,
            registers: BTreeMap::new(),
            extents: Extents::default(),
        }
    }

    /// Makes a thread that is stopped in some other way stop as one that was interrupted, before it executes anything.
    ///
    /// Only then does the kernel look at the registers anew, and goes on with a system call that it had begun.
    pub(super) fn settle(&mut self, thread: i32, limit: Duration) -> Result<(), StopError> {
        let began = Instant::now();
        let mut signal = 0;
        for _ in 0..DETOURS_LIMIT {
            request::interrupt(thread).map_err(self.failed(thread, "interrupted"))?;
            // Fails for one that has not stopped, and then the interruption does it.
            let _ = request::go_on(thread, signal);
            match self.next(thread, began, limit)? {
                Event::Stop(signal) => {
                    self.states.insert(thread, State::Stopped { by_group: Event::is_group_stop(signal) });
                    return Ok(());
                }
                // Others are blocked meanwhile.
                Event::Signal(met) if Event::is_group_stop(met) => signal = met,
                _ => signal = 0,
            }
        }
        Err(self.not_in_time(thread, limit))
    }

    /// Waits for a thread that was let go.
    pub(super) fn next(&mut self, thread: i32, began: Instant, limit: Duration) -> Result<Event, StopError> {
        let mut looks = 0;
        loop {
            match request::event(thread, self.reaps(thread)) {
                Event::Running if began.elapsed() > limit => return Err(self.not_in_time(thread, limit)),
                Event::Running => looks = pause(looks),
                Event::Ended => {
                    self.states.remove(&thread);
                    return Err(self.gone());
                }
                event => return Ok(event),
            }
            if looks % LOOKS_WITHOUT_PAUSE == LOOKS_WITHOUT_PAUSE - 1 && self.is_ended(thread) {
                return Err(self.gone());
            }
        }
    }

    /// Lets all go. What cannot be let go, because it has not stopped, goes with the thread that seized it.
    pub(super) fn release(&mut self) {
        let threads = std::mem::take(&mut self.states);
        let ended: Vec<i32> =
            threads.into_keys().filter(|thread| request::detach(*thread).is_err()).collect();
        let deadline = Instant::now() + END_LIMIT;
        for thread in ended.into_iter().filter(|thread| self.reaps(*thread)) {
            let mut looks = 0;
            while status(thread).is_ok_and(|status| has_ended(&status.state) || status.state.starts_with('R'))
            {
                if request::event(thread, true) != Event::Running || Instant::now() > deadline {
                    break;
                }
                looks = pause(looks);
            }
        }
    }

    /// Whether a thread's end is ours to take note of: it stays until its tracer has.
    pub(super) fn reaps(&self, thread: i32) -> bool {
        !(self.is_child && u32::try_from(thread).is_ok_and(|thread| thread == self.pid))
    }

    /// A thread that is stopped, by which the process's memory is found: the first may have ended.
    pub(super) fn any(&self) -> Result<i32, StopError> {
        self.states.keys().next().copied().ok_or_else(|| self.gone())
    }

    /// The registers of a thread. That of one which was killed since are what they were.
    pub(super) fn registers_of(&self, thread: i32) -> Result<Registers, StopError> {
        self.registers.get(&thread).copied().ok_or_else(|| self.gone())
    }

    /// Gives a thread registers.
    pub(super) fn set_registers(
        &mut self,
        thread: i32,
        registers: Registers,
        done: &'static str,
    ) -> Result<(), StopError> {
        request::set_registers(thread, registers).map_err(self.failed(thread, done))?;
        self.registers.insert(thread, registers);
        Ok(())
    }

    pub(super) fn gone(&self) -> StopError {
        StopError::Gone { pid: self.pid }
    }

    pub(super) fn failed(
        &self,
        thread: i32,
        done: &'static str,
    ) -> impl FnOnce(io::Error) -> StopError + use<> {
        let pid = self.pid;
        move |source| match source.raw_os_error() {
            // Nothing but a signal that kills takes a thread out of its stop.
            Some(libc::ESRCH) => StopError::Gone { pid },
            _ => StopError::Request { pid, thread, done, source },
        }
    }

    pub(super) fn not_in_time(&self, thread: i32, limit: Duration) -> StopError {
        let (name, state) = status(thread)
            .map_or_else(|_| (String::new(), "unknown".to_owned()), |status| (status.name, status.state));
        StopError::NotInTime { pid: self.pid, thread, name, state, limit }
    }
}

/// `__USER32_CS`
pub(super) const USER32_CS: u64 = 0x23;

pub(super) fn has_ended(state: &str) -> bool {
    state.starts_with(['Z', 'X'])
}

/// Lets others run between two looks.
pub(super) fn pause(looks: u32) -> u32 {
    if looks < LOOKS_WITHOUT_PAUSE {
        thread::yield_now();
    } else {
        thread::sleep(PAUSE);
    }
    looks.wrapping_add(1)
}
