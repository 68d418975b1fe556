//! How often to look at the mappings of a process.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// Looking may take one part in so many of a CPU: a process may have tens of thousands of mappings.
const SHARE: u32 = 100;

/// How many times more often to look where something speaks for it.
const SOONER: u32 = 10;

/// When to look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// How long after a look to look again, where that takes no time.
    interval: Duration,
    last: Instant,
    /// How much computing the last look took.
    took: Duration,
}

impl Pace {
    /// They were looked at just now, and will be looked at after each `interval`.
    pub(super) fn new(interval: Duration) -> Self {
        Self { interval, last: Instant::now(), took: Duration::ZERO }
    }

    /// Looks.
    pub(super) fn look(&mut self, look: impl FnOnce()) {
        let began = computed();
        look();
        self.took = computed().saturating_sub(began);
        self.last = Instant::now();
    }

    /// Doubles the interval, up to `most`.
    pub(super) fn slow_down(&mut self, most: Duration) {
        self.interval = (self.interval * 2).min(most);
    }

    /// How long not to look any more.
    pub(super) fn rest(&self) -> Duration {
        self.wait(self.interval).saturating_sub(self.last.elapsed())
    }

    /// Whether to look although it is not time yet, since something speaks for it.
    pub(super) fn allows(&self) -> bool {
        self.last.elapsed() >= self.wait(self.interval / SOONER)
    }

    fn wait(&self, interval: Duration) -> Duration {
        interval.max(self.took * SHARE)
    }
}

/// How much computing this thread has done.
pub(super) fn computed() -> Duration {
    // The clock's numbers are not negative.
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_that_take_long_are_made_less_often() {
        let second = Duration::from_secs(1);
        let took = |milliseconds| Pace { took: Duration::from_millis(milliseconds), ..Pace::new(second) };
        assert_eq!(took(1).wait(second), second);
        assert_eq!(took(1).wait(second / SOONER), Duration::from_millis(100));
        assert_eq!(took(50).wait(second), Duration::from_secs(5));
        assert!(!took(50).allows());
        assert!(took(50).rest() > Duration::from_secs(4));
    }

    #[test]
    fn looks_that_find_nothing_are_made_less_often_but_not_seldom() {
        let mut pace = Pace::new(Duration::from_millis(10));
        let most = Duration::from_secs(1);
        for times in 1..=20 {
            pace.slow_down(most);
            assert_eq!(pace.wait(pace.interval), Duration::from_millis(10 << times.min(7)).min(most));
        }
    }

    #[test]
    fn what_a_look_computes_is_noted() {
        let mut pace = Pace::new(Duration::ZERO);
        pace.look(|| {
            let began = computed();
            while computed() - began < Duration::from_millis(20) {}
        });
        assert!(pace.took >= Duration::from_millis(20), "{pace:?}");
    }
}
