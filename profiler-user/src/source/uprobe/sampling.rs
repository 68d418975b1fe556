//! Which allocations the kernel side keeps, and what those that it kept stand for.

use std::hash::{BuildHasher, RandomState};

use aya::maps::{Array, MapData};
use profiler_common::{
    heap::{Totals, TotalsKey, class_limit_bytes},
    sampling::{CLASSES, GATE_RATE_SLOT, RATE_SLOT, RATES, kept_bytes_behind_gate, slot},
};

use super::kernel::{KernelError, map_refused};

/// The interval that is sampled at where no other is asked for, in bytes: that of Go, jemalloc and tcmalloc.
pub const DEFAULT_INTERVAL_BYTES: u64 = 512 << 10;

/// How many times longer the next interval is when it has to be longer, and the last that makes a difference: what the traps cost
/// stays.
const STEP: u64 = 16;
const LAST_STEP_BYTES: u64 = DEFAULT_INTERVAL_BYTES * STEP;

/// The longest interval, in bytes.
pub const LONGEST_INTERVAL_BYTES: u64 = 1 << 40;

/// The sampling of all processes that are recorded together.
pub(super) struct Sampling {
    rate: Array<MapData, u32>,
    thresholds: Array<MapData, u32>,
    scale: Scale,
    /// The rate that the recording began with.
    first: usize,
    /// The rates of what gates have sampled, one after the other.
    behind_gate: Vec<usize>,
}

/// What kept allocations stand for.
#[derive(Debug)]
struct Scale {
    /// The mean interval of each rate that was used so far, in bytes.
    intervals: Vec<u64>,
    /// The thresholds of each rate, by size class.
    thresholds: Vec<Vec<u32>>,
    /// For rounding, so that what is rounded up is not always the same.
    random: RandomState,
}

impl Sampling {
    /// Keeps every allocation.
    pub(super) fn new(rate: Array<MapData, u32>, thresholds: Array<MapData, u32>) -> Self {
        Self { rate, thresholds, scale: Scale::exact(), first: 0, behind_gate: Vec::new() }
    }

    /// The same as [`Sampling::set`], before anything is counted.
    pub(super) fn begin(&mut self, interval_bytes: u64) -> Result<(), KernelError> {
        self.set(interval_bytes)?;
        self.first = self.scale.intervals.len() - 1;
        Ok(())
    }

    /// Has allocations that gates have sampled from now on stand for those that they have not; the gates have one for every
    /// `interval_bytes`. False where there is no rate left for that.
    pub(super) fn set_behind_gate(&mut self, interval_bytes: u64) -> Result<bool, KernelError> {
        let number = self.scale.intervals.len();
        let Some(rate) = u32::try_from(number).ok().filter(|rate| *rate < RATES) else { return Ok(false) };
        self.rate.set(GATE_RATE_SLOT, rate, 0).map_err(map_refused("RATE"))?;
        self.scale.add(interval_bytes, thresholds_behind_gate(interval_bytes));
        self.behind_gate.push(number);
        Ok(true)
    }

    /// The next interval of gates, in bytes; `None` where it cannot be longer.
    pub(super) fn next_behind_gate(&self) -> Option<u64> {
        let last = self.behind_gate.last().and_then(|rate| self.scale.intervals.get(*rate))?;
        let next = last.saturating_mul(STEP);
        (next <= LAST_STEP_BYTES && self.scale.intervals.len() < RATES as usize).then_some(next)
    }

    /// Has one allocation kept for every `interval_bytes`, on average, from now on; 1 keeps all.
    fn set(&mut self, interval_bytes: u64) -> Result<(), KernelError> {
        if interval_bytes == self.interval_bytes() {
            return Ok(());
        }
        let Ok(rate) = u32::try_from(self.scale.intervals.len()) else { return Ok(()) };
        let thresholds = thresholds(interval_bytes);
        for (class, &threshold) in (0..).zip(&thresholds) {
            self.thresholds.set(slot(rate, class), threshold, 0).map_err(map_refused("THRESHOLDS"))?;
        }
        self.rate.set(RATE_SLOT, rate, 0).map_err(map_refused("RATE"))?;
        self.scale.add(interval_bytes, thresholds);
        Ok(())
    }

    /// Has fewer allocations kept; gives the new interval in bytes, or `None` where it cannot be longer.
    pub(super) fn lengthen(&mut self) -> Result<Option<u64>, KernelError> {
        let interval_bytes = match self.interval_bytes() {
            1 => DEFAULT_INTERVAL_BYTES,
            longer => longer.saturating_mul(STEP),
        };
        if interval_bytes > LAST_STEP_BYTES || self.scale.intervals.len() >= RATES as usize {
            return Ok(None);
        }
        self.set(interval_bytes)?;
        Ok(Some(interval_bytes))
    }

    /// The mean interval at the moment, in bytes.
    fn interval_bytes(&self) -> u64 {
        self.scale.intervals.last().copied().unwrap_or(1)
    }

    /// The mean intervals that were used so far, in bytes, one after the other; 1 is every allocation.
    pub(super) fn intervals_bytes(&self) -> Vec<u64> {
        let since = self.scale.intervals.iter().enumerate().skip(self.first);
        let is_gates = |rate: &usize| self.behind_gate.contains(rate);
        let wanted = since.filter(|(rate, _)| self.behind_gate.is_empty() || is_gates(rate));
        wanted.map(|(_, interval)| *interval).collect()
    }

    /// What kept allocations stand for.
    pub(super) fn scaled(&self, key: &TotalsKey, kept: Totals) -> Totals {
        self.scale.scaled(key, kept)
    }
}

impl Scale {
    /// What they stand for where all are kept.
    fn exact() -> Self {
        Self { intervals: vec![1], thresholds: vec![thresholds(1)], random: RandomState::new() }
    }

    /// Adds the next rate.
    fn add(&mut self, interval_bytes: u64, thresholds: Vec<u32>) {
        self.intervals.push(interval_bytes);
        self.thresholds.push(thresholds);
    }

    /// What kept allocations stand for, in whole blocks and bytes, rounded up as often as it takes for the mean to be right.
    fn scaled(&self, key: &TotalsKey, kept: Totals) -> Totals {
        let of_rate = self.thresholds.get(key.rate() as usize);
        let threshold = of_rate.and_then(|of_rate| of_rate.get(key.size_class() as usize)).copied();
        let Some(threshold @ 1..) = threshold else { return kept };
        let weight = ALL / f64::from(threshold);
        // The same for an entry all the time, so that its numbers do not go down.
        let up = self.random.hash_one(key) as f64 / 2_f64.powi(64);
        let scaled = |number: u64| (number as f64 * weight + up).floor() as u64;
        Totals {
            freed_objects: scaled(kept.freed_objects),
            freed_bytes: scaled(kept.freed_bytes),
            alloc_objects: scaled(kept.alloc_objects),
            alloc_bytes: scaled(kept.alloc_bytes),
            sent: kept.sent,
        }
    }
}

/// The number of random numbers.
const ALL: f64 = 4_294_967_296.0;

/// The [`threshold`] of every size class.
fn thresholds(interval_bytes: u64) -> Vec<u32> {
    (0..CLASSES).map(|class| threshold(class, interval_bytes)).collect()
}

/// The same of what gates have sampled: by the bytes that every block of the class has, and what is charged beside them.
fn thresholds_behind_gate(interval_bytes: u64) -> Vec<u32> {
    (0..CLASSES).map(|class| threshold_of(kept_bytes_behind_gate(class), interval_bytes)).collect()
}

/// What a random number has to be below for an allocation of a size class to be kept; 0 for all. S is the largest size of the class.
fn threshold(class: u32, interval_bytes: u64) -> u32 {
    threshold_of(class_limit_bytes(class), interval_bytes)
}

/// The probability is 1 − exp(−S/R), as if each of S bytes was sampled by itself with a mean interval of R bytes.
fn threshold_of(size_bytes: u64, interval_bytes: u64) -> u32 {
    if interval_bytes <= 1 {
        return 0;
    }
    let probability = -(-(size_bytes as f64) / interval_bytes as f64).exp_m1();
    let threshold = (probability * ALL).round().max(1.0);
    if threshold >= ALL { 0 } else { threshold as u32 }
}

#[cfg(test)]
mod tests {
    use profiler_common::{
        heap::{LiveBlock, size_class},
        sampling::is_kept,
    };

    use super::*;

    const INTERVAL: u64 = DEFAULT_INTERVAL_BYTES;

    fn scale() -> Scale {
        let mut scale = Scale::exact();
        scale.add(INTERVAL, thresholds(INTERVAL));
        scale
    }

    fn key(size_bytes: u64, rate: u64, stack: u64) -> TotalsKey {
        TotalsKey::of(7, &LiveBlock::new(size_bytes, rate, 1, stack))
    }

    #[test]
    fn what_is_much_larger_than_the_interval_is_always_kept() {
        assert_eq!(threshold(size_class(1 << 30), INTERVAL), 0);
        assert_eq!(threshold(size_class(1), 1), 0);
        assert_eq!(threshold(size_class(1), u64::MAX), 1, "or nothing would stand for it");
        let half = f64::from(threshold(size_class(INTERVAL), INTERVAL)) / ALL;
        assert!((half - (1.0 - (-1_f64).exp())).abs() < 1e-9, "{half}");
    }

    #[test]
    fn every_allocation_stands_for_itself_where_all_are_kept() {
        let kept = Totals { alloc_objects: 3, alloc_bytes: 10, freed_objects: 1, freed_bytes: 5, sent: 1 };
        assert_eq!(scale().scaled(&key(5, 0, 9), kept), kept);
        assert_eq!(scale().scaled(&key(1 << 30, 1, 9), kept), kept);
    }

    #[test]
    fn numbers_are_rounded_so_that_their_mean_is_right() {
        let kept = Totals { alloc_objects: 1, alloc_bytes: INTERVAL, ..Totals::default() };
        let weight = 1.0 / (1.0 - (-1_f64).exp());
        let scaled = (0..4000).map(|stack| scale().scaled(&key(INTERVAL, 1, stack + 3), kept));
        let (mut objects, mut bytes) = (0, 0);
        for totals in scaled {
            assert!([1, 2].contains(&totals.alloc_objects), "{totals:?}");
            assert_eq!((totals.freed_objects, totals.freed_bytes), (0, 0));
            (objects, bytes) = (objects + totals.alloc_objects, bytes + totals.alloc_bytes);
        }
        // The standard error of a fraction of 0.58 is below 0.008 here.
        assert!((objects as f64 / 4000.0 - weight).abs() < 0.04, "{objects}");
        assert!((bytes as f64 / 4000.0 / INTERVAL as f64 - weight).abs() < 1e-5, "{bytes}");
    }

    #[test]
    fn a_kept_allocation_stands_for_as_many_as_were_thrown_away_for_it() {
        for size_bytes in [0, 1, 100, 5000, 100_000, 1 << 20, 1 << 24] {
            let threshold = threshold(size_class(size_bytes), INTERVAL);
            let kept = (0..1 << 16).filter(|random| is_kept(threshold, random << 16)).count() as u64;
            let totals = Totals { alloc_objects: kept, ..Totals::default() };
            let scaled = scale().scaled(&key(size_bytes, 1, 3), totals).alloc_objects as f64;
            // The random numbers lie 2⁻¹⁶ apart.
            let error = (scaled - 65536.0).abs() / 65536.0;
            let coarse = if threshold == 0 { 0.0 } else { 65536.0 / f64::from(threshold) };
            assert!(error <= coarse, "{size_bytes} bytes: {kept} kept stand for {scaled}");
        }
    }
}
