//! The live line on a terminal.

use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::{
    profile::cost,
    source::{cost::Cost, uprobe::Vitals},
};

/// A line on stderr that tells how a recording is going; nothing where stderr is no terminal.
pub(super) struct LiveLine {
    bar: ProgressBar,
    last: (Instant, u64),
}

/// How often the line changes.
pub(super) const INTERVAL: Duration = Duration::from_secs(1);

impl LiveLine {
    pub(super) fn new(is_quiet: bool) -> Self {
        let target = if is_quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(None, target);
        bar.set_style(
            ProgressStyle::with_template("{elapsed} {msg}").unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        Self { bar, last: (Instant::now(), 0) }
    }

    /// Whether anybody sees it.
    pub(super) fn is_hidden(&self) -> bool {
        self.bar.is_hidden()
    }

    /// Shows these numbers; what it costs only where that is known.
    pub(super) fn show(&mut self, vitals: &Vitals, cost: Option<&Cost>, is_gated: bool) {
        let (then, before) = self.last;
        let now = Instant::now();
        let allocations =
            vitals.alloc_objects.saturating_sub(before) as f64 / now.duration_since(then).as_secs_f64();
        self.last = (now, vitals.alloc_objects);
        self.bar.set_message(text(vitals, allocations, cost, is_gated));
        self.bar.tick();
    }

    pub(super) fn finish(self) {
        self.bar.finish_and_clear();
    }
}

fn text(vitals: &Vitals, allocations_per_second: f64, cost: Option<&Cost>, is_gated: bool) -> String {
    let live = vitals.alloc_objects.saturating_sub(vitals.freed_objects);
    let costs =
        cost.map_or_else(|| "costs: not known yet".to_owned(), |cost| cost::now(&cost.last, is_gated));
    format!(
        "{} allocations/s, {} live in {} blocks, {} stacks, {} lost, {costs}",
        HumanCount(allocations_per_second.round() as u64),
        HumanBytes(vitals.inuse_bytes),
        HumanCount(live),
        HumanCount(vitals.stacks as u64),
        HumanCount(vitals.losses),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_tells_the_rate_what_is_live_and_what_was_lost() {
        let vitals = Vitals {
            alloc_objects: 3000,
            freed_objects: 1000,
            inuse_bytes: 2048,
            stacks: 7,
            losses: 2,
            ..Vitals::default()
        };
        assert_eq!(
            text(&vitals, 1500.4, None, false),
            "1,500 allocations/s, 2.00 KiB live in 2,000 blocks, 7 stacks, 2 lost, costs: not known yet"
        );
    }
}
