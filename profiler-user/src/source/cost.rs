//! What being recorded costs the process: estimates, and what they come to over a recording.

use std::time::{Duration, Instant};

/// What the trap of one probe costs the process, in nanoseconds, with a program that does nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrapCost {
    /// At an instruction that the kernel carries out itself, where most probes are.
    pub entry_ns: f64,
    /// At an instruction that has to be single-stepped.
    pub stepped_ns: f64,
    /// At a return, beyond that of the entry.
    pub return_ns: f64,
}

/// How often probes were hit in some time, and for how long their programs ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hits {
    /// Probes at entries.
    pub entries: u64,
    /// Probes that are single-stepped.
    pub stepped: u64,
    /// Probes at returns.
    pub returns: u64,
    /// The programs of all of them, in nanoseconds.
    pub run_ns: u64,
}

impl Hits {
    /// All hits.
    pub const fn count(self) -> u64 {
        self.entries.saturating_add(self.stepped).saturating_add(self.returns)
    }

    /// What was added since `before`.
    pub const fn since(self, before: Self) -> Self {
        Self {
            entries: self.entries.saturating_sub(before.entries),
            stepped: self.stepped.saturating_sub(before.stepped),
            returns: self.returns.saturating_sub(before.returns),
            run_ns: self.run_ns.saturating_sub(before.run_ns),
        }
    }

    /// The same, where so many of what was taken for entries were returns.
    pub const fn with_returns(self, returns: u64) -> Self {
        let returns = if returns < self.entries { returns } else { self.entries };
        Self { entries: self.entries - returns, returns: self.returns.saturating_add(returns), ..self }
    }

    /// What they cost, in nanoseconds.
    pub fn cost_ns(self, trap: TrapCost) -> f64 {
        self.entries as f64 * trap.entry_ns
            + self.stepped as f64 * trap.stepped_ns
            + self.returns as f64 * trap.return_ns
            + self.run_ns as f64
    }
}

/// What the process pays at one time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// When it was made.
    pub taken: Instant,
    /// Hits of probes per second.
    pub hits_per_second: f64,
    /// The cost as a share of one CPU, which several threads can exceed: 1 is a whole one.
    pub cpu: f64,
    /// The CPU time that the process took meanwhile, as a share of one CPU, the cost included; `None` where it is not known.
    pub taken_cpu: Option<f64>,
}

impl Estimate {
    /// The estimate by what was hit in `seconds`. It costs a process no more than the CPU time that it takes, where that is known:
    /// before Linux 6.12, programs at returns also run for what others who are recorded do in the same files.
    pub fn new(taken: Instant, hits: Hits, seconds: f64, trap: TrapCost, taken_cpu: Option<f64>) -> Self {
        let cpu = hits.cost_ns(trap) / 1e9 / seconds;
        let cpu = taken_cpu.map_or(cpu, |most| cpu.min(most));
        Self { taken, hits_per_second: hits.count() as f64 / seconds, cpu, taken_cpu }
    }

    /// The cost as a share of the CPU time that the process took; `None` where that is not known or hardly any.
    pub fn own(&self) -> Option<f64> {
        self.taken_cpu.and_then(|taken| share(self.cpu, taken))
    }
}

/// Below this share of a CPU the tenth of a second that was measured says too little of the whole.
const LEAST_CPU: f64 = 0.02;

/// `cost` of `taken`; never more than all of it, for both are measured apart.
fn share(cost: f64, taken: f64) -> Option<f64> {
    (taken >= LEAST_CPU).then(|| (cost / taken).min(1.0))
}

/// The cost was above the limit for too long, so that the recording was ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Excess {
    /// The limit, in percent of one CPU.
    pub limit_percent: f64,
    /// The last estimate, in percent of one CPU.
    pub percent: f64,
}

/// What a recording has cost the process so far.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// What a trap costs on this machine.
    pub trap: TrapCost,
    /// The last estimate.
    pub last: Estimate,
    /// Hits of probes per second, on average.
    pub hits_per_second: f64,
    /// The cost as a share of one CPU, on average.
    pub cpu: f64,
    /// The same, the highest of all estimates.
    pub peak_cpu: f64,
    /// The cost as a share of the CPU time that the process took; `None` where that is not known or hardly any.
    pub own: Option<f64>,
    /// Why the recording was ended, where it was for its cost.
    pub excess: Option<Excess>,
}

/// Adds estimates up.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    trap: Option<TrapCost>,
    last: Option<Estimate>,
    seconds: f64,
    hits: f64,
    cost: f64,
    /// CPU time of the process and the cost, in seconds, of the times in which the first is known.
    taken: f64,
    cost_of_taken: f64,
    peak: f64,
    excess: Option<Excess>,
}

impl Tally {
    /// Notes what a trap costs.
    pub const fn calibrated(&mut self, trap: TrapCost) {
        self.trap = Some(trap);
    }

    /// Adds an estimate that stands for so much time.
    pub fn add(&mut self, estimate: Estimate, time: Duration) {
        let seconds = time.as_secs_f64();
        self.seconds += seconds;
        self.hits += estimate.hits_per_second * seconds;
        self.cost += estimate.cpu * seconds;
        if let Some(taken) = estimate.taken_cpu {
            self.taken += taken * seconds;
            self.cost_of_taken += estimate.cpu * seconds;
        }
        self.peak = self.peak.max(estimate.cpu);
        self.last = Some(estimate);
    }

    /// Notes why the recording is ended.
    pub const fn exceeded(&mut self, excess: Excess) {
        self.excess = Some(excess);
    }

    /// What it comes to; `None` where nothing could be measured, or not yet.
    pub fn cost(&self) -> Option<Cost> {
        let (trap, last) = (self.trap?, self.last?);
        if self.seconds <= 0.0 {
            return None;
        }
        let taken_cpu = self.taken / self.seconds;
        Some(Cost {
            trap,
            last,
            hits_per_second: self.hits / self.seconds,
            cpu: self.cost / self.seconds,
            peak_cpu: self.peak,
            own: share(self.cost_of_taken / self.seconds, taken_cpu),
            excess: self.excess,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRAP: TrapCost = TrapCost { entry_ns: 1000.0, stepped_ns: 2000.0, return_ns: 1500.0 };

    fn estimate(cpu: f64, taken_cpu: Option<f64>) -> Estimate {
        Estimate { taken: Instant::now(), hits_per_second: 100.0, cpu, taken_cpu }
    }

    #[test]
    fn hits_cost_their_traps_and_what_the_programs_run() {
        let before = Hits { entries: 5, ..Hits::default() };
        let hits = Hits { entries: 15, stepped: 2, returns: 4, run_ns: 300 }.since(before);
        assert_eq!(hits.count(), 16);
        assert_eq!(hits.cost_ns(TRAP), 10_000.0 + 4_000.0 + 6_000.0 + 300.0);
    }

    #[test]
    fn a_process_pays_no_more_than_it_has() {
        let hits = Hits { entries: 1_000_000, ..Hits::default() };
        let estimate = |taken_cpu| Estimate::new(Instant::now(), hits, 0.5, TRAP, taken_cpu);
        assert_eq!(estimate(None).cpu, 2.0);
        assert_eq!(estimate(Some(4.0)).cpu, 2.0);
        assert_eq!(estimate(Some(0.0)).cpu, 0.0);
        assert_eq!(estimate(Some(0.0)).hits_per_second, 2e6);
    }

    #[test]
    fn the_share_of_the_own_time_is_not_told_of_an_idle_process_and_never_above_all() {
        assert_eq!(estimate(0.1, Some(0.4)).own(), Some(0.25));
        assert_eq!(estimate(0.5, Some(0.4)).own(), Some(1.0));
        assert_eq!(estimate(0.001, Some(0.002)).own(), None);
        assert_eq!(estimate(0.1, None).own(), None);
    }

    #[test]
    fn estimates_are_averaged_by_the_time_that_they_stand_for() {
        let mut tally = Tally::default();
        tally.calibrated(TRAP);
        assert_eq!(tally.cost(), None);
        tally.add(estimate(0.5, Some(1.0)), Duration::from_secs(1));
        tally.add(estimate(0.1, Some(0.2)), Duration::from_secs(3));
        let cost = tally.cost().unwrap();
        assert!((cost.cpu - 0.2).abs() < 1e-9, "{cost:?}");
        assert!((cost.peak_cpu - 0.5).abs() < 1e-9, "{cost:?}");
        assert!((cost.own.unwrap() - 0.5).abs() < 1e-9, "{cost:?}");
        assert!((cost.last.cpu - 0.1).abs() < 1e-9, "{cost:?}");
    }

    #[test]
    fn nothing_is_said_without_a_calibration() {
        let mut tally = Tally::default();
        tally.add(estimate(0.5, None), Duration::from_secs(1));
        assert_eq!(tally.cost(), None);
    }
}
