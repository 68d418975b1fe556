//! The numbers of a recording for a monitoring system, as OpenMetrics text (<https://prometheus.io/docs/specs/om/open_metrics_spec/>),
//! which Prometheus and what understands it scrape.

use std::{fmt, sync::atomic::AtomicU64};

use profiler_common::counters::{REGISTRY, Severity};
use prometheus_client::{
    encoding::text::encode as encode_text,
    metrics::{family::Family, gauge::Gauge, info::Info},
    registry::{Registry, Unit},
};

use crate::source::{cost::Cost, uprobe::Vitals};

/// The media type of what [`encode`] gives.
pub const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Ratio = Gauge<f64, AtomicU64>;
type Labels = Vec<(&'static str, &'static str)>;

/// What a recording of a process has come to, and what it costs the process where that is known.
///
/// All values are gauges, because estimates of samples may go down.
///
/// # Errors
///
/// Fails only where text cannot be written to memory.
pub fn encode(pid: u32, comm: &str, vitals: &Vitals, cost: Option<&Cost>) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("heaptap");
    let process = Info::new(vec![("pid", pid.to_string()), ("comm", comm.to_owned())]);
    registry.register("process", "The process that is recorded", process);
    let mut count = |name, help, count: u64| {
        let gauge = Gauge::<i64>::default();
        gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        registry.register(name, help, gauge);
    };
    count("alloc_objects", "Blocks allocated since the recording began", vitals.alloc_objects);
    count(
        "freed_objects",
        "Blocks freed, of those allocated since the recording began",
        vitals.freed_objects,
    );
    count("inuse_bytes", "Bytes in use, of those allocated since the recording began", vitals.inuse_bytes);
    count("stacks", "Distinct stacks that allocated", vitals.stacks as u64);
    let counters = Family::<Labels, Gauge>::default();
    for description in &REGISTRY {
        let severity = match description.severity {
            Severity::Normal => "normal",
            Severity::Loss => "loss",
        };
        let count = i64::try_from(vitals.counters.get(description.counter)).unwrap_or(i64::MAX);
        counters.get_or_create(&vec![("counter", description.name), ("severity", severity)]).set(count);
    }
    registry.register(
        "counter",
        "What was lost or guessed, by what the profile's comments call it",
        counters,
    );
    if let Some(cost) = cost {
        register_cost(&mut registry, cost);
    }
    let mut text = String::new();
    encode_text(&mut text, &registry)?;
    Ok(text)
}

fn register_cost(registry: &mut Registry, cost: &Cost) {
    let mut ratio = |name, help, value: Option<f64>| {
        let Some(value) = value else { return };
        let gauge = Ratio::default();
        gauge.set(value);
        registry.register_with_unit(name, help, Unit::Other("ratio".to_owned()), gauge);
    };
    ratio("cost_cpu", "What being recorded costs the process now, of one CPU", Some(cost.last.cpu));
    ratio("cost_cpu_average", "The same since the recording began", Some(cost.cpu));
    ratio("cost_cpu_peak", "The highest of all estimates", Some(cost.peak_cpu));
    ratio("cost_own", "The cost now, of the CPU time that the process takes", cost.last.own());
    let hits = Ratio::default();
    hits.set(cost.last.hits_per_second);
    registry.register("probe_hits_per_second", "Hits of probes now", hits);
    let traps = Family::<Labels, Ratio>::default();
    let per_trap =
        [("entry", cost.trap.entry_ns), ("stepped", cost.trap.stepped_ns), ("return", cost.trap.return_ns)];
    for (kind, ns) in per_trap {
        traps.get_or_create(&vec![("kind", kind)]).set(ns / 1e9);
    }
    registry.register_with_unit("trap", "What a hit takes on this machine", Unit::Seconds, traps);
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use profiler_common::counters::{Counter, Counters};

    use super::*;
    use crate::source::cost::{Estimate, TrapCost};

    fn vitals() -> Vitals {
        let mut counters = Counters::default();
        counters.add(Counter::RingFull, 3);
        Vitals { alloc_objects: 30, freed_objects: 10, inuse_bytes: 2048, stacks: 7, losses: 0, counters }
    }

    #[test]
    fn what_was_counted_and_lost_is_told() {
        let text = encode(12, "a \"b\"", &vitals(), None).unwrap();
        for line in [
            "heaptap_process_info{pid=\"12\",comm=\"a \\\"b\\\"\"} 1",
            "# TYPE heaptap_inuse_bytes gauge",
            "heaptap_alloc_objects 30",
            "heaptap_freed_objects 10",
            "heaptap_inuse_bytes 2048",
            "heaptap_stacks 7",
            "heaptap_counter{counter=\"ring_full\",severity=\"normal\"} 3",
            "heaptap_counter{counter=\"live_full_bytes\",severity=\"loss\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
        assert!(text.ends_with("# EOF\n") && !text.contains("cost"), "{text}");
    }

    #[test]
    fn what_it_costs_is_told_where_it_is_known() {
        let last =
            Estimate { taken: Instant::now(), hits_per_second: 1000.0, cpu: 0.25, taken_cpu: Some(0.5) };
        let trap = TrapCost { entry_ns: 700.0, stepped_ns: 1500.0, return_ns: 600.0 };
        let cost =
            Cost { trap, last, hits_per_second: 900.0, cpu: 0.125, peak_cpu: 0.75, own: None, excess: None };
        let text = encode(12, "b", &vitals(), Some(&cost)).unwrap();
        for line in [
            "heaptap_cost_cpu_ratio 0.25",
            "heaptap_cost_cpu_average_ratio 0.125",
            "heaptap_cost_cpu_peak_ratio 0.75",
            "heaptap_cost_own_ratio 0.5",
            "heaptap_probe_hits_per_second 1000.0",
            "heaptap_trap_seconds{kind=\"stepped\"} 0.0000015",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
    }
}
