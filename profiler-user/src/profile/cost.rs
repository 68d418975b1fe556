//! What a recording costs the process, in numbers and in words.

use std::fmt::Write as _;

use crate::source::cost::{Cost, Estimate, Excess, TrapCost};

/// The comments that a profile carries, such as `cost: average_cpu_percent=… peak_cpu_percent=…`; none where nothing is known.
///
/// What is left out is not known. `own_percent` is of the CPU time that the process took, all others are of one CPU.
pub fn comments(cost: Option<&Cost>) -> Vec<String> {
    let Some(cost) = cost else { return Vec::new() };
    let mut first = format!(
        "cost: average_cpu_percent={:.1} peak_cpu_percent={:.1}",
        cost.cpu * 100.0,
        cost.peak_cpu * 100.0
    );
    if let Some(own) = cost.own {
        // Writing to a string does not fail.
        let _ = write!(first, " own_percent={:.1}", own * 100.0);
    }
    let TrapCost { entry_ns, stepped_ns, return_ns } = cost.trap;
    let _ = write!(
        first,
        " hits_per_second={:.0} trap_entry_ns={entry_ns:.0} trap_stepped_ns={stepped_ns:.0} trap_return_ns={return_ns:.0}",
        cost.hits_per_second
    );
    let excess = cost.excess.map(|Excess { limit_percent, percent }| {
        format!(
            "cost: stopped, for it cost {percent:.1} percent of one CPU, above --max-overhead {limit_percent}"
        )
    });
    std::iter::once(first).chain(excess).collect()
}

/// The same for people, in a line or two; none where nothing is known.
pub fn lines(cost: Option<&Cost>) -> Vec<String> {
    let Some(cost) = cost else { return Vec::new() };
    let TrapCost { entry_ns, return_ns, stepped_ns: _ } = cost.trap;
    vec![
        format!(
            "cost to the process: {} of a CPU on average, {} at most{}",
            percent(cost.cpu),
            percent(cost.peak_cpu),
            cost.own.map(|own| format!("; {} of its own CPU time", percent(own))).unwrap_or_default()
        ),
        format!(
            "  {:.0} hits of probes a second; a hit is {entry_ns:.0} ns at an entry, {return_ns:.0} ns more for the return, and what is done",
            cost.hits_per_second
        ),
    ]
}

/// What it costs now, in a few words.
pub fn now(estimate: &Estimate) -> String {
    let own = estimate.own().map(|own| format!(", {} of the process's own time", percent(own)));
    format!("costs {} of a CPU{}", percent(estimate.cpu), own.unwrap_or_default())
}

/// A share in percent, with as many digits as mean something.
pub fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent < 9.95 { format!("{percent:.1} %") } else { format!("{percent:.0} %") }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn cost(own: Option<f64>, excess: Option<Excess>) -> Cost {
        Cost {
            trap: TrapCost { entry_ns: 800.4, stepped_ns: 1600.0, return_ns: 1200.0 },
            last: Estimate {
                taken: Instant::now(),
                hits_per_second: 1000.0,
                cpu: 0.123,
                taken_cpu: own.map(|_| 0.5),
            },
            hits_per_second: 900.4,
            cpu: 0.0961,
            peak_cpu: 0.2,
            own,
            excess,
        }
    }

    #[test]
    fn the_cost_is_told_in_one_comment_and_why_it_was_stopped_in_another() {
        let excess = Excess { limit_percent: 10.0, percent: 34.56 };
        assert_eq!(
            comments(Some(&cost(Some(0.5), Some(excess)))),
            [
                "cost: average_cpu_percent=9.6 peak_cpu_percent=20.0 own_percent=50.0 hits_per_second=900 \
                 trap_entry_ns=800 trap_stepped_ns=1600 trap_return_ns=1200",
                "cost: stopped, for it cost 34.6 percent of one CPU, above --max-overhead 10",
            ]
        );
        assert!(comments(None).is_empty() && lines(None).is_empty());
    }

    #[test]
    fn people_are_told_the_average_and_the_peak() {
        assert_eq!(
            lines(Some(&cost(None, None)))[0],
            "cost to the process: 9.6 % of a CPU on average, 20 % at most"
        );
        assert!(lines(Some(&cost(Some(0.5), None)))[0].ends_with("; 50 % of its own CPU time"));
    }

    #[test]
    fn the_live_line_has_what_it_costs_now() {
        assert_eq!(now(&cost(None, None).last), "costs 12 % of a CPU");
        assert_eq!(now(&cost(Some(0.5), None).last), "costs 12 % of a CPU, 25 % of the process's own time");
    }
}
