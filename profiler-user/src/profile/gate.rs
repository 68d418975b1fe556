//! How a recording was gated, in numbers and in words.

use std::time::Duration;

use profiler_common::counters::{Counter, Counters};

use crate::source::gate::{Gating, Refused};

/// The comments that a profile carries; none where no gate was wanted.
pub fn comments(gate: Option<&Gating>) -> Vec<String> {
    let Some(gate) = gate else { return Vec::new() };
    let gated = gate.gated.iter().map(|(label, functions)| format!("{functions} functions of {label}"));
    let gated: Vec<String> = gated.collect();
    let mut comments = vec![format!(
        "gate: {} by code in front of the allocator, one sample for every {} bytes; stood still for {} us \
         for its memory, {} us to put it in and {} us to take it out",
        if gated.is_empty() { "nothing".to_owned() } else { gated.join(" and ") },
        gate.interval_bytes,
        gate.stood.preparing.as_micros(),
        gate.stood.entering.as_micros(),
        gate.stood.leaving.as_micros()
    )];
    comments.extend(gate.refused.iter().map(|refused| format!("gate: {refused}")));
    comments
}

/// The same for people who have just asked for it, when it begins.
pub fn lines(gate: &Gating) -> Vec<String> {
    let mut lines = Vec::new();
    if !gate.gated.is_empty() {
        let gated = gate.gated.iter().map(|(label, functions)| format!("{functions} functions of {label}"));
        lines.push(format!(
            "gated: {}; the process stood still for {} for its memory, and for {} to put it in",
            gated.collect::<Vec<_>>().join(" and "),
            milliseconds(gate.stood.preparing),
            milliseconds(gate.stood.entering)
        ));
    }
    for Refused { label, functions, reason, .. } in &gate.refused {
        lines.push(format!("{label} is not gated: {reason}"));
        if *functions > 0 {
            lines
                .push(format!("  {functions} functions have ordinary probes, and every call of them a trap"));
        }
    }
    lines
}

/// What went through the gate, held against what came out, when it is over.
pub fn closing_lines(gate: &Gating, counters: &Counters) -> Vec<String> {
    if gate.gated.is_empty() {
        return Vec::new();
    }
    let count = |counter| counters.get(counter);
    let (calls, returns) = (count(Counter::GateCalls), count(Counter::GateReturns));
    let mut lines = vec![format!(
        "gate: {calls} calls let through to a probe, {returns} came back{}; {} frees of blocks in the sample, {} of others",
        match calls.saturating_sub(returns) {
            0 => String::new(),
            others => format!(", {others} did not or had not yet"),
        },
        count(Counter::GateFrees),
        count(Counter::GateUnknownFrees),
    )];
    lines.push(format!(
        "  the process stood still for {} to put it in, and for {} to take it out",
        milliseconds(gate.stood.entering),
        milliseconds(gate.stood.leaving)
    ));
    for stay in &gate.stays {
        lines.push(format!("  its memory is still in the process: {stay}"));
    }
    for reason in &gate.remain {
        lines.push(format!("  it is still in, which `heaptap detach` changes: {reason}"));
    }
    if gate.left_alone > 0 {
        lines.push(format!(
            "  {} functions were changed by somebody else meanwhile, and left as they are",
            gate.left_alone
        ));
    }
    lines
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

/// So many gates.
pub fn gates(count: usize) -> String {
    if count == 1 { "a gate".to_owned() } else { format!("{count} gates") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{gated::Stay, source::gate::Stood};

    fn gating() -> Gating {
        Gating {
            interval_bytes: 1024,
            gated: vec![("glibc 2.36".to_owned(), 9)],
            refused: vec![Refused {
                label: "mimalloc".to_owned(),
                allocator: 1,
                functions: 30,
                reason: "mi_free begins with a call".to_owned(),
            }],
            stood: Stood {
                preparing: Duration::from_micros(2345),
                entering: Duration::from_micros(1234),
                leaving: Duration::from_micros(567),
            },
            ..Gating::default()
        }
    }

    #[test]
    fn a_profile_says_what_was_gated_and_why_the_rest_was_not() {
        assert!(comments(None).is_empty());
        assert_eq!(
            comments(Some(&gating())),
            [
                "gate: 9 functions of glibc 2.36 by code in front of the allocator, one sample for every 1024 bytes; \
                 stood still for 2345 us for its memory, 1234 us to put it in and 567 us to take it out",
                "gate: mimalloc is not gated: mi_free begins with a call",
            ]
        );
    }

    #[test]
    fn people_are_told_at_the_start_and_at_the_end() {
        let lines = lines(&gating());
        assert_eq!(
            lines[0],
            "gated: 9 functions of glibc 2.36; the process stood still for 2.3 ms for its memory, and for 1.2 ms to put it in"
        );
        assert!(lines[2].contains("30 functions have ordinary probes"));
        let mut counters = Counters::default();
        counters.add(Counter::GateCalls, 7);
        counters.add(Counter::GateReturns, 5);
        let closing = closing_lines(
            &Gating { stays: vec![Stay::Inside], remain: vec!["no".to_owned()], ..gating() },
            &counters,
        );
        assert!(closing[0].starts_with("gate: 7 calls let through to a probe, 5 came back, 2 did not"));
        assert_eq!(
            closing[1],
            "  the process stood still for 1.2 ms to put it in, and for 0.6 ms to take it out"
        );
        assert!(closing[2].contains("still in the process"));
        assert!(closing[3].contains("still in, which"));
        assert!(closing_lines(&Gating::default(), &counters).is_empty());
    }
}
