//! Whether estimates are right on average: many of them, each with what they are estimates of.

use std::collections::BTreeMap;
use std::path::Path;

use rustix::process::Signal;

use crate::guest::Guest;
use crate::heaptap::Serving;
use crate::ledger::{Ledger, Values};
use crate::profile::Profile;

/// Standard errors by which a mean may be off: with right estimates, one in a million is off by more.
const FAR: f64 = 5.0;

/// The names of the four values.
const NAMES: [&str; 4] = ["alloc_objects", "alloc_bytes", "inuse_objects", "inuse_bytes"];

/// Estimates of ledgers, one after the other, each independent of the others.
#[derive(Debug, Default)]
pub struct Estimates {
    /// By function, each estimate with the true values.
    sites: BTreeMap<String, Vec<(Values, Values)>>,
}

impl Estimates {
    /// Estimates `rounds` rounds of a guest's command, each by itself, with one recording; `check` is for what this leads to in the
    /// end.
    #[track_caller]
    pub fn of_rounds(
        mut guest: Guest,
        options: &[&str],
        work: &str,
        rounds: usize,
        check: impl FnOnce(&Ledger, &Profile),
    ) -> Self {
        let serving = Serving::start_with(guest.pid(), options);
        let mut estimates = Self::default();
        let mut ledger = guest.ledger();
        let mut seen = ledger.of_profile(&serving.fetch());
        for _ in 0..rounds {
            guest.command(work);
            let ledger_now = guest.ledger();
            let seen_now = ledger_now.of_profile(&serving.fetch());
            estimates.add(&seen_now.since(&seen), &ledger_now.since(&ledger));
            (ledger, seen) = (ledger_now, seen_now);
        }
        let profile = serving.fetch();
        check(&ledger, &profile);
        profile.assert_lossless();
        serving.finish(Signal::INT);
        guest.exit();
        estimates
    }

    /// Adds an estimate of a ledger.
    pub fn add(&mut self, estimate: &Ledger, ledger: &Ledger) {
        for (function, truth) in ledger.sites() {
            self.sites.entry(function.to_owned()).or_default().push((estimate.site(function), truth));
        }
    }

    /// Panics unless the mean error of each value of each function is within a few of its standard errors, which are at most
    /// `most_percent` of what was allocated: or the comparison would say nothing.
    #[track_caller]
    pub fn assert_unbiased(&self, most_percent: f64) {
        let mut wrong = Vec::new();
        for (function, pairs) in &self.sites {
            for (index, name) in NAMES.iter().enumerate() {
                let of = |values: &Values| values.to_array()[index] as f64;
                let errors: Vec<f64> =
                    pairs.iter().map(|(estimate, truth)| of(estimate) - of(truth)).collect();
                let allocated = mean(pairs.iter().map(|(_, truth)| truth.to_array()[index % 2] as f64));
                let error = mean(errors.iter().copied());
                let standard_error = standard_error(&errors);
                if error.abs() > FAR * standard_error {
                    wrong.push(format!("{function} {name}: {error:.1} ± {standard_error:.1} of {allocated}"));
                }
                if standard_error > allocated * most_percent / 100.0 {
                    wrong.push(format!(
                        "{function} {name}: ± {standard_error:.1} of {allocated} says nothing"
                    ));
                }
            }
        }
        assert!(wrong.is_empty(), "biased over {} estimates:\n{}", self.len(), wrong.join("\n"));
    }

    /// Number of estimates.
    fn len(&self) -> usize {
        self.sites.values().map(Vec::len).max().unwrap_or(0)
    }
}

/// Panics unless estimates of small blocks are right with another allocator preloaded.
#[track_caller]
pub fn assert_right_with(preloaded: &str, options: &[&str], check: impl FnOnce(&Ledger, &Profile)) {
    assert!(Path::new(preloaded).exists(), "{preloaded} is not installed");
    let guest = Guest::start_preloaded("sampled", preloaded);
    Estimates::of_rounds(guest, options, "run", 60, check).assert_unbiased(6.0);
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    values.sum::<f64>() / count
}

/// The standard error of the mean.
fn standard_error(values: &[f64]) -> f64 {
    let mean = mean(values.iter().copied());
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    let count = values.len() as f64;
    (squares / (count - 1.0) / count).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn estimates(of: impl Fn(i64) -> i64) -> Estimates {
        let mut estimates = Estimates::default();
        let truth = Ledger::parse(&["ledger f 100 1000 50 500"]);
        for round in 0..100 {
            let off = of(round);
            let line =
                format!("ledger f {} {} {} {}", 100 + off, 1000 + 10 * off, 50 + off / 2, 500 + 5 * off);
            estimates.add(&Ledger::parse(&[line]), &truth);
        }
        estimates
    }

    #[test]
    fn errors_that_even_out_are_none() {
        estimates(|round| if round % 2 == 0 { 20 } else { -20 }).assert_unbiased(5.0);
        estimates(|_| 0).assert_unbiased(5.0);
    }

    #[test]
    #[should_panic(expected = "f alloc_objects: 10.0 ± ")]
    fn errors_that_stay_are_a_bias() {
        estimates(|round| if round % 2 == 0 { 20 } else { 0 }).assert_unbiased(5.0);
    }

    #[test]
    #[should_panic(expected = "says nothing")]
    fn a_comparison_that_could_not_fail_is_none() {
        estimates(|round| if round % 2 == 0 { 100 } else { -100 }).assert_unbiased(5.0);
    }
}
