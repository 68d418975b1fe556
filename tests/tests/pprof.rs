//! The real `go tool pprof` reads what heaptap writes and serves.

use std::path::Path;

use heaptap_tests::compile::{self, line_of};
use heaptap_tests::guest::Guest;
use heaptap_tests::heaptap::{self, Recorded, Recording, Running, path_str};
use heaptap_tests::ledger::Ledger;
use heaptap_tests::pprof::{pprof, rows};
use rustix::process::Signal;

/// What keeps pprof from leaving out or rounding anything.
const EXACT: [&str; 4] = ["-unit=B", "-nodecount=1000", "-nodefraction=0", "-edgefraction=0"];

fn record_every_function() -> (Ledger, Recorded) {
    let mut guest = Guest::start("every-function");
    let recording = Recording::attach(guest.pid());
    guest.command("run");
    let ledger = guest.ledger();
    let recorded = recording.finish();
    recorded.outcome.assert_success();
    guest.exit();
    (ledger, recorded)
}

/// The flat value of a function in a `-top` report; 0 where it is not in it.
#[track_caller]
fn flat(report: &str, function: &str) -> i64 {
    let row = rows(report).into_iter().find(|row| row.function == function);
    let Some(row) = row else { return 0 };
    let digits = row.flat.trim_end_matches('B');
    digits.parse().unwrap_or_else(|_| panic!("`{}` is not a number of bytes in:\n{report}", row.flat))
}

#[test]
fn top_agrees_with_the_ledger_in_all_four_values() {
    let (ledger, recorded) = record_every_function();
    for index in ["alloc_objects", "alloc_space", "inuse_objects", "inuse_space"] {
        let selection = format!("-sample_index={index}");
        let report = pprof(&[&["-top", &selection], &EXACT[..], &[recorded.file()]].concat());
        for (function, values) in ledger.sites() {
            let wanted = match index {
                "alloc_objects" => values.alloc_objects,
                "alloc_space" => values.alloc_bytes,
                "inuse_objects" => values.inuse_objects,
                _ => values.inuse_bytes,
            };
            assert_eq!(flat(&report, function), wanted, "{index} of {function} in:\n{report}\n{ledger}");
        }
    }
}

#[test]
fn without_a_sample_index_pprof_shows_what_is_in_use() {
    let (_, recorded) = record_every_function();
    let report = pprof(&["-top", recorded.file()]);
    assert!(report.contains("Type: inuse_space"), "{report}");
}

#[test]
fn lines_are_those_of_the_calls() {
    let (_, recorded) = record_every_function();
    let report =
        pprof(&[&["-top", "-lines", "-sample_index=alloc_space"], &EXACT[..], &[recorded.file()]].concat());
    for (function, call) in [
        ("call_malloc", "took(&call_malloc_site, malloc(size), size)"),
        ("call_calloc", "took(&call_calloc_site, calloc(count, size), count * size)"),
        ("call_posix_memalign", "if (posix_memalign(&address, alignment, size))"),
    ] {
        let line = line_of("every-function.c", call);
        let end = format!("every-function.c:{line}");
        let found = rows(&report).iter().any(|row| {
            let mut words = row.function.split(' ');
            words.next() == Some(function) && words.next().is_some_and(|place| place.ends_with(&end))
        });
        assert!(found, "no `{function} …{end}` in:\n{report}");
    }
}

#[test]
fn peek_shows_the_callers_and_traces_the_stacks() {
    let (_, recorded) = record_every_function();
    let peek = pprof(&["-peek=^call_malloc$", recorded.file()]);
    assert!(peek.contains("allocate") && peek.contains("call_malloc"), "{peek}");
    let traces = pprof(&["-traces", "-sample_index=alloc_space", recorded.file()]);
    assert!(traces.contains("call_malloc") && traces.contains("main"), "{traces}");
}

#[test]
fn base_shows_the_difference_of_two_profiles() {
    let mut guest = Guest::start("every-function");
    let first = Recording::attach(guest.pid());
    guest.command("run");
    let ledger = guest.ledger();
    let first = first.finish();
    let second = Recording::attach(guest.pid());
    guest.command("run");
    guest.command("run");
    let second = second.finish();
    guest.exit();
    // Twice as much less once is once.
    let base = format!("-base={}", first.file());
    let report =
        pprof(&[&["-top", "-sample_index=alloc_space", &base], &EXACT[..], &[second.file()]].concat());
    for (function, values) in ledger.sites() {
        assert_eq!(flat(&report, function), values.alloc_bytes, "{function} in:\n{report}");
    }
}

/// A `heaptap serve` and the service that it looks at.
struct Served {
    service: Guest,
    serving: Running,
    url: String,
}

impl Served {
    fn start() -> Self {
        let program = compile::program("leaky-metrics");
        let mut service = Guest::spawn("leaky-metrics", &program);
        service.line("fetching");
        let mut command = heaptap::command();
        command.args(["serve", "--pid", &service.pid().to_string(), "--listen", "127.0.0.1:0"]);
        let mut serving = Running::start(command);
        let line = serving.stderr_line("heaptap: serving http://127.0.0.1:");
        let url =
            line.split_ascii_whitespace().find(|word| word.starts_with("http://")).expect("it begins so");
        let url = url.to_owned();
        Self { service, serving, url }
    }

    /// Waits until the service has fetched its metrics some more.
    fn let_it_leak(&mut self) {
        self.service.line("fetching");
        self.service.line("fetching");
    }

    fn save(&self, path: &Path) {
        let output = format!("-output={}", path_str(path));
        pprof(&["-proto", &output, &self.url]);
    }
}

#[test]
fn a_leak_is_on_top_over_http_and_its_growth_is_the_difference() {
    let folder = tempfile::tempdir().expect("a folder for profiles");
    let early = folder.path().join("early.pb.gz");
    let mut served = Served::start();
    served.let_it_leak();
    let report = pprof(&["-top", "-inuse_space", &served.url]);
    let top: Vec<String> = rows(&report).into_iter().take(2).map(|row| row.function).collect();
    assert_eq!(top, ["parse_line", "parse_metrics"], "on top of:\n{report}");

    served.save(&early);
    served.let_it_leak();
    let base = format!("-base={}", path_str(&early));
    let growth = pprof(&[&["-top", "-inuse_space", &base], &EXACT[..], &[&served.url]].concat());
    for function in ["parse_line", "parse_metrics"] {
        assert!(flat(&growth, function) > 0, "{function} has not grown:\n{growth}");
    }
    // The requests' buffers come and go; what is in use of them does not grow by more than one round's.
    let transient = flat(&growth, "open_request");
    assert!(transient < 20_000, "{transient} bytes more in use for requests:\n{growth}");

    served.serving.signal(Signal::INT);
    served.serving.wait().assert_success();
}

#[test]
fn callers_of_the_leak_are_seen_cumulatively() {
    let mut served = Served::start();
    served.let_it_leak();
    let report = pprof(&["-top", "-cum", "-inuse_space", &served.url]);
    for caller in ["fetch_target", "scrape_loop", "main"] {
        assert!(rows(&report).iter().any(|row| row.function == caller), "no `{caller}` in:\n{report}");
    }
    let lines = pprof(&["-top", "-lines", "-inuse_space", &served.url]);
    for (function, source) in [
        ("parse_line", "series->text = malloc(length + 1);"),
        ("parse_metrics", "struct series *series = calloc(1, sizeof *series);"),
    ] {
        let end = format!("leaky-metrics.c:{}", line_of("leaky-metrics.c", source));
        let named =
            rows(&lines).iter().any(|row| row.function.starts_with(function) && row.function.contains(&end));
        assert!(named, "no `{function} …{end}` in:\n{lines}");
    }
}
