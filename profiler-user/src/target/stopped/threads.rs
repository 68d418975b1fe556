//! All threads of a process, seized and stopped.
//!
//! Everything here happens on one thread of ours (see [`super::Stopped`]), for the kernel answers no other.

use std::{
    collections::BTreeMap,
    fs, io, thread,
    time::{Duration, Instant},
};

use super::{
    super::process::status,
    StopError,
    extent::Extents,
    places::Places,
    repeat,
    request::{self, Event, Registers},
    urgent,
};

/// How often it is looked before there is a pause between the looks, which would be longer than most stops take.
const LOOKS_WITHOUT_PAUSE: u32 = 64;

/// How often it is looked at the next one only, before it is looked at all.
const LOOKS_AT_ONE: u32 = 4;

/// Threads that are looked at in next to no time.
const FEW: usize = 4;

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
    is_child: bool,
    limit: Duration,
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
    /// Stops all.
    pub(super) fn stop(pid: u32, limit: Duration) -> (Self, Result<(), StopError>) {
        let states = BTreeMap::new();
        let mut threads = Self {
            pid,
            states,
            is_child: false,
            limit,
            began: Instant::now(),
            places: None,
            registers: BTreeMap::new(),
            extents: Extents::default(),
        };
        let outcome = threads.stop_all();
        (threads, outcome)
    }

    fn stop_all(&mut self) -> Result<(), StopError> {
        // From here on: among threads that compute, the search would take as long as the process lets it.
        urgent::be_first();
        let leader = self.admit()?;
        // It takes longer than the stop may; what is not there may not be needed.
        let _ = self.find_places(leader);
        self.began = Instant::now();
        let deadline = self.began + self.limit;
        loop {
            let listed = self.listed()?;
            let mut is_new = false;
            for thread in &listed {
                if !self.states.contains_key(thread) {
                    is_new |= self.seize(*thread)?;
                }
                if Instant::now() > deadline {
                    return Err(self.late());
                }
            }
            self.wait_for_all(deadline)?;
            // A listing passes over threads when others end meanwhile.
            let there = status(leader).map_or(0, |status| status.threads);
            if !is_new && u64::try_from(listed.len()).is_ok_and(|listed| listed == there) && self.verify()? {
                return if self.states.is_empty() { Err(self.gone()) } else { Ok(()) };
            }
            if Instant::now() > deadline {
                return Err(self.late());
            }
        }
    }

    /// Looks whether it is there, and whose child it is.
    fn admit(&mut self) -> Result<i32, StopError> {
        let leader = i32::try_from(self.pid).map_err(|_| self.gone())?;
        let told = status(leader).map_err(|_| self.gone())?;
        self.is_child = u32::try_from(told.ppid).is_ok_and(|parent| parent == std::process::id());
        Ok(leader)
    }

    fn listed(&self) -> Result<Vec<i32>, StopError> {
        let entries = fs::read_dir(format!("/proc/{}/task", self.pid)).map_err(|_| self.gone())?;
        Ok(entries
            .map_while(Result::ok)
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect())
    }

    /// Seizes a thread, unless it has ended.
    fn seize(&mut self, thread: i32) -> Result<bool, StopError> {
        match request::seize(thread) {
            Ok(()) => {
                self.states.insert(thread, State::Stopping);
                // Fails for a thread that ends, of which more is heard.
                let _ = request::interrupt(thread);
                Ok(true)
            }
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(false),
            Err(source) => match status(thread) {
                Err(_) => Ok(false),
                Ok(status) if has_ended(&status.state) => Ok(false),
                Ok(status) if status.tracerpid != 0 => {
                    Err(StopError::Traced { pid: self.pid, thread, tracer: status.tracerpid })
                }
                Ok(_) => Err(StopError::NotPermitted { pid: self.pid, thread, source }),
            },
        }
    }

    fn wait_for_all(&mut self, deadline: Instant) -> Result<(), StopError> {
        let mut waiting: Vec<i32> = self
            .states
            .iter()
            .filter(|(_, state)| **state == State::Stopping)
            .map(|(thread, _)| *thread)
            .collect();
        // They stop in about this order, so that one look tells of most. Whoever is late keeps the others waiting only for so long, for
        // what they were doing may have to be mended.
        waiting.reverse();
        let mut looks: u32 = 0;
        loop {
            while waiting.last().is_some_and(|thread| self.has_stopped(*thread)) {
                waiting.pop();
            }
            if looks % LOOKS_AT_ONE == LOOKS_AT_ONE - 1 {
                waiting.retain(|thread| !self.has_stopped(*thread));
            }
            if waiting.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(self.late());
            }
            // To look at many takes as long as a pause, and from a processor that they need.
            looks = pause(if waiting.len() > FEW { looks.max(LOOKS_WITHOUT_PAUSE) } else { looks });
            if looks.is_multiple_of(LOOKS_WITHOUT_PAUSE) {
                // The end of a first thread is not told of before all others have ended.
                waiting.retain(|thread| !self.is_ended(*thread));
            }
        }
    }

    fn is_ended(&mut self, thread: i32) -> bool {
        let is_ended = status(thread).map_or(true, |status| has_ended(&status.state));
        if is_ended {
            self.states.remove(&thread);
        }
        is_ended
    }

    /// Whether a thread need not be waited for any more.
    fn has_stopped(&mut self, thread: i32) -> bool {
        match request::event(thread, self.reaps(thread)) {
            Event::Running => false,
            Event::Stop(signal) => {
                // At once: until then, our end would have the call fail. That the thread was killed shows later.
                if let Ok(registers) = request::registers(thread)
                    && registers.cs != USER32_CS
                {
                    let _ = repeat::if_interrupted(thread, registers);
                }
                self.states.insert(thread, State::Stopped { by_group: Event::is_group_stop(signal) });
                true
            }
            // It came before the interruption, which it makes the kernel forget. It is taken as if nobody looked on.
            Event::Signal(signal) => {
                let _ = request::interrupt(thread);
                let _ = request::go_on(thread, signal);
                false
            }
            Event::Call => {
                let _ = request::interrupt(thread);
                let _ = request::go_on(thread, 0);
                false
            }
            Event::Ended => {
                self.states.remove(&thread);
                true
            }
        }
    }

    /// Whether all are stopped and run 64-bit code; those that were killed are left out.
    fn verify(&mut self) -> Result<bool, StopError> {
        let threads: Vec<i32> = self.states.keys().copied().collect();
        let mut is_whole = true;
        for thread in threads {
            match request::registers(thread) {
                Ok(registers) if registers.cs == USER32_CS => {
                    return Err(StopError::Bits32 { pid: self.pid, thread });
                }
                Ok(registers) => drop(self.registers.insert(thread, registers)),
                Err(_) => {
                    self.states.remove(&thread);
                    is_whole = false;
                }
            }
        }
        Ok(is_whole)
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
    fn reaps(&self, thread: i32) -> bool {
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

    fn late(&self) -> StopError {
        let late = self.states.iter().find(|(_, state)| **state == State::Stopping);
        match late {
            Some((thread, _)) => self.not_in_time(*thread, self.limit),
            None => StopError::TooMany { pid: self.pid, limit: self.limit },
        }
    }

    pub(super) fn not_in_time(&self, thread: i32, limit: Duration) -> StopError {
        let (name, state) = status(thread)
            .map_or_else(|_| (String::new(), "unknown".to_owned()), |status| (status.name, status.state));
        StopError::NotInTime { pid: self.pid, thread, name, state, limit }
    }
}

/// `__USER32_CS`
const USER32_CS: u64 = 0x23;

fn has_ended(state: &str) -> bool {
    state.starts_with(['Z', 'X'])
}

/// Lets others run between two looks.
fn pause(looks: u32) -> u32 {
    if looks < LOOKS_WITHOUT_PAUSE {
        thread::yield_now();
    } else {
        thread::sleep(PAUSE);
    }
    looks.wrapping_add(1)
}
