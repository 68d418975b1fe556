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

/// What a call costs that a gate lets through, in nanoseconds: of a pair that allocates and frees, 2.2 (`cargo xtask bench`). What calls in
/// the sample cost is beside that, and is little where most are not.
const GATE_NS: f64 = 1.1;

/// From so much of a CPU on, it is worth a word that it can be had for less.
const MUCH: f64 = 0.05;

/// What a gate would cost instead of so many hits of ordinary probes a second, as a share of a CPU; `None` where it is not much that
/// they cost.
fn by_gate(cpu: f64, hits_per_second: f64) -> Option<f64> {
    (cpu >= MUCH).then_some(hits_per_second * GATE_NS / 1e9)
}

/// The same for people, in a few lines; none where nothing is known.
pub fn lines(cost: Option<&Cost>, is_gated: bool) -> Vec<String> {
    let Some(cost) = cost else { return Vec::new() };
    let TrapCost { entry_ns, return_ns, stepped_ns: _ } = cost.trap;
    let by_gate = by_gate(cost.cpu, cost.hits_per_second).filter(|_| !is_gated).map(|share| {
        format!(
            "  --gate, which samples by code in the process, would cost about {} of a CPU instead",
            percent(share)
        )
    });
    let mut lines = vec![
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
    ];
    lines.extend(by_gate);
    lines
}

/// What it costs now, in a few words.
pub fn now(estimate: &Estimate, is_gated: bool) -> String {
    let own = estimate.own().map(|own| format!(", {} of the process's own time", percent(own)));
    let by_gate = by_gate(estimate.cpu, estimate.hits_per_second).filter(|_| !is_gated);
    let by_gate = by_gate.map(|share| format!(" (--gate: about {})", percent(share)));
    format!(
        "costs {} of a CPU{}{}",
        percent(estimate.cpu),
        own.unwrap_or_default(),
        by_gate.unwrap_or_default()
    )
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
        assert!(comments(None).is_empty() && lines(None, false).is_empty());
    }

    #[test]
    fn people_are_told_the_average_and_the_peak() {
        assert_eq!(
            lines(Some(&cost(None, None)), true)[0],
            "cost to the process: 9.6 % of a CPU on average, 20 % at most"
        );
        assert!(lines(Some(&cost(Some(0.5), None)), true)[0].ends_with("; 50 % of its own CPU time"));
        assert_eq!(lines(Some(&cost(None, None)), true).len(), 2);
        assert!(lines(Some(&cost(None, None)), false)[2].contains("about 0.0 % of a CPU"));
        let little = Cost { cpu: 0.04, ..cost(None, None) };
        assert_eq!(lines(Some(&little), false).len(), 2);
    }

    #[test]
    fn the_live_line_has_what_it_costs_now() {
        assert_eq!(now(&cost(None, None).last, true), "costs 12 % of a CPU");
        let with_own = now(&cost(Some(0.5), None).last, false);
        assert_eq!(with_own, "costs 12 % of a CPU, 25 % of the process's own time (--gate: about 0.0 %)");
    }
}
