//! Processes that are gated while they work and check themselves: nothing is ever otherwise than it would be without.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use heaptap_tests::belongings::Belongings;
use heaptap_tests::compile;
use heaptap_tests::gating::plans;
use heaptap_tests::guest::Guest;
use heaptap_tests::heaptap::{Recording, path_str, run};
use profiler_user::gated::Prepared;

const JEMALLOC: &str = "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2";
const TCMALLOC: &str = "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4";

/// How long one test goes in and out.
const LIMIT: Duration = Duration::from_secs(40);

/// How often it does at most.
const TIMES: usize = 1_000;

/// How often a busy machine of two processors does in that time.
const LEAST: usize = 20;

/// What is sampled: much, so that the gate has something to do.
const INTERVAL_BYTES: u64 = 4 << 10;

fn verifying(preloaded: Option<&str>) -> Guest {
    let mut command = Command::new(compile::program("verifying"));
    if let Some(path) = preloaded {
        assert!(Path::new(path).exists(), "{path} is not installed");
        command.env("LD_PRELOAD", path);
    }
    let mut guest = Guest::spawn_command("verifying", command);
    guest.line("ready");
    guest
}

/// Goes in and out of a process under full load, by a gate that nobody counts by.
///
/// Returns a summary to be printed.
fn in_and_out(preloaded: Option<&str>) -> String {
    let mut guest = verifying(preloaded);
    let pid = guest.pid();
    // The loader and the C library have then done what they do at first.
    guest.command("work");
    guest.command("worked");
    let before = Belongings::of(pid);
    let plans = plans(pid, INTERVAL_BYTES);
    let began = Instant::now();
    let (mut times, mut stood, mut stays) = (0, Duration::ZERO, 0);
    while times < TIMES && began.elapsed() < LIMIT {
        for plan in &plans {
            let prepared = Prepared::make(pid, plan).unwrap_or_else(|error| panic!("{error}"));
            stood = stood.max(prepared.stood);
            let (gate, entering) = prepared.enter().unwrap_or_else(|(error, _)| panic!("{error}"));
            if times % 10 == 0 {
                guest.command("worked");
            }
            let mut departure = gate.leave().unwrap_or_else(|error| panic!("{error}"));
            assert_eq!((departure.taken_out, departure.left_alone), (plan.functions.len(), 0));
            stood = stood.max(entering).max(departure.stood);
            while departure.stays.is_some() {
                stays += 1;
                departure = gate.leave().unwrap_or_else(|error| panic!("{error}"));
            }
        }
        times += 1;
    }
    let said = format!(
        "in and out {times} times in {:?}, stood still for {stood:?} at most; memory was in use {stays} times",
        began.elapsed()
    );
    assert!(times >= LEAST, "{times} times");
    Belongings::of(pid).assert_same(&before, "behind the last time");
    guest.command("worked");
    let steps = guest.number("rest");
    guest.exit();
    format!("{said}, over {steps} steps")
}

#[test]
fn glibc_is_gated_and_ungated_many_times() {
    println!("{}", in_and_out(None));
}

#[test]
fn jemalloc_is_gated_and_ungated_many_times() {
    println!("{}", in_and_out(Some(JEMALLOC)));
}

#[test]
fn tcmalloc_is_gated_and_ungated_many_times() {
    println!("{}", in_and_out(Some(TCMALLOC)));
}

/// By ordinary probes in functions that lead to a gate, the kernel would go on in the middle of a jump.
#[test]
fn another_heaptap_waits_until_one_that_gates_has_ended() {
    let mut guest = verifying(None);
    guest.command("work");
    let pid = guest.pid().to_string();
    let first = Recording::attach_with(guest.pid(), &["--gate=require", "--sample", "64KiB"]);
    let folder = tempfile::tempdir().expect("a folder");
    let record = |options: &[&str], name: &str| {
        let output = folder.path().join(name);
        let arguments = ["record", "--sample", "64KiB", "--duration", "300ms", "--pid", &pid, "--output"];
        run(arguments.iter().copied().chain([path_str(&output)]).chain(options.iter().copied()))
    };
    for options in [&[][..], &["--gate"], &["--gate=require"]] {
        guest.command("worked");
        record(options, "second.pb.gz").assert_refused("gated by another heaptap");
        run(["detach", "--pid", &pid]).assert_refused("gated by another heaptap");
    }
    guest.command("worked");
    first.finish().outcome.assert_success();
    record(&["--gate=require"], "third.pb.gz").assert_success();
    guest.command("worked");
    guest.command("rest");
    guest.exit();
}
