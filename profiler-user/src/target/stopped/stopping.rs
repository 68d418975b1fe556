//! Stopping the threads of a process: all of them, or a few that can do something for us.

use std::{fs, time::Instant};

use super::{
    super::process::status,
    StopError, repeat,
    request::{self, Event},
    threads::{FEW, LOOKS_WITHOUT_PAUSE, State, Threads, USER32_CS, has_ended, pause},
    urgent,
};

/// How often it is looked at the next one only, before it is looked at all.
const LOOKS_AT_ONE: u32 = 4;

/// How many threads are looked at for some that wait: there is nearly always one among the first.
const LOOKED_AT: usize = 16;

impl Threads {
    /// Stops all.
    pub(super) fn stop_all(&mut self) -> Result<(), StopError> {
        let leader = self.begin()?;
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

    /// Stops a few, best such as wait, of which there are some in most processes.
    pub(super) fn stop_few(&mut self) -> Result<(), StopError> {
        self.begin()?;
        let mut listed = self.listed()?;
        listed.truncate(LOOKED_AT);
        let is_at_work = |thread: &i32| !status(*thread).is_ok_and(|status| status.state.starts_with('S'));
        listed.sort_by_cached_key(is_at_work);
        self.began = Instant::now();
        let deadline = self.began + self.limit;
        for thread in listed.into_iter().take(FEW) {
            self.seize(thread)?;
        }
        self.wait_for_all(deadline)?;
        self.verify()?;
        if self.states.is_empty() { Err(self.gone()) } else { Ok(()) }
    }

    /// Makes ready what would take longer than the stop may; gives the first thread.
    fn begin(&mut self) -> Result<i32, StopError> {
        // From here on: among threads that compute, the search would take as long as the process lets it.
        urgent::be_first();
        let leader = self.admit()?;
        // What is not there may not be needed.
        let _ = self.find_places(leader);
        self.began = Instant::now();
        Ok(leader)
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

    pub(super) fn is_ended(&mut self, thread: i32) -> bool {
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

    fn late(&self) -> StopError {
        let late = self.states.iter().find(|(_, state)| **state == State::Stopping);
        match late {
            Some((thread, _)) => self.not_in_time(*thread, self.limit),
            None => StopError::TooMany { pid: self.pid, limit: self.limit },
        }
    }
}
