//! `--max-overhead`: when a recording costs the process too much.

use std::{
    fmt,
    str::FromStr,
    time::{Duration, Instant},
};

use crate::source::cost::{Estimate, Excess};

/// What a recording may cost, as it was typed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MaxOverhead {
    /// Anything.
    Off,
    /// So many percent of one CPU.
    Percent(f64),
}

/// What `heaptap serve` may cost unless it is told otherwise.
pub(super) const SERVED: MaxOverhead = MaxOverhead::Percent(10.0);

impl FromStr for MaxOverhead {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::Off);
        }
        let number = text.strip_suffix('%').unwrap_or(text);
        match number.parse::<f64>() {
            Ok(percent) if percent.is_finite() && percent > 0.0 => Ok(Self::Percent(percent)),
            _ => Err("it has to be a number of percent above 0, such as 10, or `off`".to_owned()),
        }
    }
}

impl fmt::Display for MaxOverhead {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => out.write_str("off"),
            Self::Percent(percent) => write!(out, "{percent}"),
        }
    }
}

/// How long the cost has to be above the limit: a start or a burst is not what a process pays.
const PATIENCE: Duration = Duration::from_secs(3);

/// Looks at estimates, one after the other.
pub(super) struct Limit {
    max: MaxOverhead,
    above_since: Option<Instant>,
}

impl Limit {
    pub(super) const fn new(max: MaxOverhead) -> Self {
        Self { max, above_since: None }
    }

    /// Whether something has to be done, and why: every estimate since one that is three seconds older was above the limit. It
    /// begins anew then, for what is done to have an effect. An estimate may be given several times.
    pub(super) fn judge(&mut self, estimate: &Estimate) -> Option<Excess> {
        let MaxOverhead::Percent(limit_percent) = self.max else { return None };
        let percent = estimate.cpu * 100.0;
        if percent <= limit_percent {
            self.above_since = None;
            return None;
        }
        let since = *self.above_since.get_or_insert(estimate.taken);
        if estimate.taken.saturating_duration_since(since) < PATIENCE {
            return None;
        }
        self.above_since = None;
        Some(Excess { limit_percent, percent })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn estimate(start: Instant, second: u64, cpu: f64) -> Estimate {
        Estimate {
            taken: start + Duration::from_secs(second),
            hits_per_second: 1.0,
            cpu,
            taken_cpu: Some(1.0),
        }
    }

    /// The seconds after which something was done, of estimates in percent of each second.
    fn acted(max: MaxOverhead, percents: &[f64]) -> Vec<usize> {
        let start = Instant::now();
        let mut limit = Limit::new(max);
        let is_too_much = |(second, percent): (usize, &f64)| {
            let estimate = estimate(start, second as u64, percent / 100.0);
            limit.judge(&estimate).map(|_| second)
        };
        percents.iter().enumerate().filter_map(is_too_much).collect()
    }

    #[test]
    fn three_seconds_above_the_limit_are_too_much() {
        assert_eq!(acted(MaxOverhead::Percent(10.0), &[11.0, 12.0, 13.0, 14.0]), [3]);
    }

    #[test]
    fn a_second_below_it_begins_anew() {
        let percents = [11.0, 11.0, 11.0, 10.0, 11.0, 11.0, 11.0, 9.0];
        assert_eq!(acted(MaxOverhead::Percent(10.0), &percents), [0usize; 0]);
    }

    #[test]
    fn what_was_done_is_given_time_to_have_an_effect() {
        assert_eq!(acted(MaxOverhead::Percent(1.0), &[50.0; 9]), [3, 7]);
    }

    #[test]
    fn the_same_estimate_again_is_no_second_one() {
        let start = Instant::now();
        let mut limit = Limit::new(MaxOverhead::Percent(1.0));
        for _ in 0..10 {
            assert_eq!(limit.judge(&estimate(start, 0, 0.5)), None);
        }
        let excess = limit.judge(&estimate(start, 3, 0.5));
        assert_eq!(excess, Some(Excess { limit_percent: 1.0, percent: 50.0 }));
    }

    #[test]
    fn without_a_limit_everything_is_borne() {
        assert_eq!(acted(MaxOverhead::Off, &[900.0; 9]), [0usize; 0]);
    }

    #[test]
    fn limits_are_positive_numbers_or_off() {
        assert_eq!("10".parse(), Ok(MaxOverhead::Percent(10.0)));
        assert_eq!("2.5%".parse(), Ok(MaxOverhead::Percent(2.5)));
        assert_eq!("off".parse(), Ok(MaxOverhead::Off));
        for wrong in ["0", "-1", "nan", "inf", "1e999", "", "ten"] {
            assert!(wrong.parse::<MaxOverhead>().unwrap_err().contains("above 0"), "{wrong}");
        }
        assert_eq!(SERVED.to_string().parse(), Ok(SERVED));
    }
}
