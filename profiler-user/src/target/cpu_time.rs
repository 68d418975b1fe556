//! How long a process has computed.

use std::time::Duration;

use nix::{
    time::{ClockId, clock_getcpuclockid, clock_gettime},
    unistd::Pid,
};

/// The clock of a process's CPU time, of all its threads together. It counts nanoseconds, and does not go on while the process
/// sleeps.
#[derive(Clone, Copy, Debug)]
pub struct CpuClock(ClockId);

impl CpuClock {
    /// That of a process; `None` where there is none.
    pub fn of(pid: u32) -> Option<Self> {
        clock_getcpuclockid(Pid::from_raw(i32::try_from(pid).ok()?)).ok().map(Self)
    }

    /// What it shows; `None` where the process has ended.
    pub fn now(self) -> Option<Duration> {
        clock_gettime(self.0).ok().map(Duration::from)
    }
}

/// Whether a process has computed between two looks.
#[derive(Debug)]
pub struct Activity {
    clock: Option<CpuClock>,
    seen: Option<Duration>,
}

impl Activity {
    /// That of a process, at which nobody has looked yet.
    pub fn of(pid: u32) -> Self {
        Self { clock: CpuClock::of(pid), seen: None }
    }

    /// Whether it has computed since the last look, or may have: also where it has ended since, and at the first look.
    pub fn look(&mut self) -> bool {
        let now = self.clock.and_then(CpuClock::now);
        let before = std::mem::replace(&mut self.seen, now);
        now.is_none() || now != before
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    /// A process that sleeps, and nothing else; ended with the test.
    struct Sleeper(Child);

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn a_process_that_sleeps_has_not_computed() {
        let sleeper = Sleeper(Command::new("sleep").arg("1000").spawn().unwrap());
        let mut activity = Activity::of(sleeper.0.id());
        assert!(activity.look(), "the first look");
        // It has to start first.
        while activity.look() {
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(!activity.look());
        drop(sleeper);
        assert!(activity.look(), "it has ended");
    }

    #[test]
    fn a_process_that_computes_has() {
        let mut activity = Activity::of(std::process::id());
        assert!(activity.look());
        let before = CpuClock::of(std::process::id()).unwrap().now();
        assert!(activity.look());
        assert!(CpuClock::of(std::process::id()).unwrap().now() > before);
        assert!(Activity::of(u32::MAX).look(), "there is none");
    }
}
