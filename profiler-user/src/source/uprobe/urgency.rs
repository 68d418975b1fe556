//! How soon the thread that drains gets a processor.

use std::time::{Duration, Instant};

use rustix::process::setpriority_process;

use super::pace::computed;
use crate::target::scheduling;

/// What it may compute ahead of its share.
const AHEAD: Duration = Duration::from_millis(200);

/// The part of a processor that it may take before everybody else.
const SHARE: u32 = 4;

/// The scheduling of the thread that made it.
///
/// Until the kernel side has learned to walk a stack, each allocation costs the target more than later ones, and a copy of its
/// stack, of which a millisecond of allocating fills the ring buffer by megabytes. A thread of the ordinary kind may wait for
/// several clock ticks where the machine is busy.
pub(super) struct Urgency {
    is_urgent: bool,
    is_first: bool,
    /// Whether the kernel lets it be first.
    is_allowed: bool,
    /// When it last began to be in a hurry.
    since: Instant,
    /// What it had computed then.
    computed: Duration,
}

impl Urgency {
    /// That of a thread which is not in a hurry yet.
    pub(super) fn new() -> Self {
        // For the times in which it is not first.
        if let Err(error) = setpriority_process(None, -20) {
            tracing::debug!(%error, "draining at ordinary priority");
        }
        Self {
            is_urgent: false,
            is_first: false,
            is_allowed: true,
            since: Instant::now(),
            computed: computed(),
        }
    }

    /// Lets the thread run before all ordinary ones, or no longer; also no longer where it takes more than its share of a processor.
    pub(super) fn set(&mut self, is_urgent: bool) {
        if is_urgent && !self.is_urgent {
            (self.since, self.computed) = (Instant::now(), computed());
        }
        self.is_urgent = is_urgent;
        let be_first = is_urgent && self.is_allowed && self.is_modest();
        if be_first == self.is_first {
            return;
        }
        match scheduling::be_first(be_first) {
            Ok(()) => self.is_first = be_first,
            Err(error) => {
                tracing::debug!(%error, "draining as an ordinary thread");
                self.is_allowed = false;
            }
        }
    }

    fn is_modest(&self) -> bool {
        let taken = computed().saturating_sub(self.computed);
        taken <= AHEAD + self.since.elapsed() / SHARE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_computes_too_much_is_not_first() {
        let took = |milliseconds: u64, of: u64| Urgency {
            is_urgent: true,
            is_first: true,
            is_allowed: true,
            since: Instant::now().checked_sub(Duration::from_millis(of)).unwrap(),
            computed: computed().saturating_sub(Duration::from_millis(milliseconds)),
        };
        // What the thread of a test has computed itself is less than a millisecond.
        let began = Urgency { computed: Duration::ZERO, ..took(0, 10) };
        assert!(began.is_modest());
        while computed() < Duration::from_millis(260) {}
        assert!(!took(250, 10).is_modest());
        assert!(took(250, 1000).is_modest());
    }
}
