//! Notices to user space about a target as a whole.

use profiler_common::{
    counters::Counter,
    event::{EventKind, ProcessEvent},
};

use crate::{counters::count, maps::EVENTS};

/// Sends a notice.
#[inline(always)]
pub fn notify(kind: EventKind, tgid: u32) {
    let Some(mut event) = EVENTS.reserve::<ProcessEvent>(0) else {
        return count(tgid, Counter::LostEvents, 1);
    };
    event.write(ProcessEvent { kind: kind as u32, tgid });
    event.submit(0);
}
