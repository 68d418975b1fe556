//! Processes that are gated while they work and check themselves: nothing is ever otherwise than it would be without.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use heaptap_tests::belongings::Belongings;
use heaptap_tests::gating::plans;
use heaptap_tests::guest::Guest;
use heaptap_tests::heaptap::{Recording, path_str, run};
use profiler_user::gated::{GateError, Prepared};
use profiler_user::target::stopped::StopError;

const JEMALLOC: &str = "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2";
const MIMALLOC: &str = "/usr/lib/x86_64-linux-gnu/libmimalloc.so.2";
const TCMALLOC: &str = "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4";

/// How long one test goes in and out.
const LIMIT: Duration = Duration::from_secs(30);

/// The same with glibc: as long as it takes to do so as often as it may, where the machine has not much else to do.
const LIMIT_OF_GLIBC: Duration = Duration::from_secs(120);

/// How often it does at most.
const TIMES: usize = 1_000;

/// How often a busy machine of two processors does in that time.
const LEAST: usize = 15;

/// What is sampled: much, so that the gate has something to do.
const INTERVAL_BYTES: u64 = 4 << 10;

fn verifying(preloaded: Option<&str>) -> Guest {
    let Some(path) = preloaded else { return Guest::start("verifying") };
    assert!(Path::new(path).exists(), "{path} is not installed");
    Guest::start_preloaded("verifying", path)
}

/// Whether threads did not come to a stop in time, where others have the processors: nothing is changed then.
fn is_late(error: &GateError) -> bool {
    matches!(error, GateError::Stop(StopError::NotInTime { .. }))
}

/// Goes in and out of a process under full load, by a gate that nobody counts by.
///
/// Returns a summary to be printed.
fn in_and_out(preloaded: Option<&str>) -> String {
    let mut guest = verifying(preloaded);
    let pid = guest.pid();
    if preloaded == Some(MIMALLOC) {
        guest.command("unaligned");
    }
    // The loader and the C library have then done what they do at first.
    guest.command("work");
    guest.command("worked");
    let before = Belongings::of(pid);
    let plans = plans(pid, INTERVAL_BYTES);
    let limit = if preloaded.is_none() { LIMIT_OF_GLIBC } else { LIMIT };
    let began = Instant::now();
    let (mut times, mut stood, mut stays, mut late) = (0, Duration::ZERO, 0, 0);
    while times < TIMES && began.elapsed() < limit {
        for plan in &plans {
            let prepared = match Prepared::make(pid, plan) {
                Ok(prepared) => prepared,
                Err(error) if is_late(&error) => {
                    late += 1;
                    continue;
                }
                Err(error) => panic!("{error}"),
            };
            stood = stood.max(prepared.stood);
            let (gate, entering) = match prepared.enter() {
                Ok(entered) => entered,
                Err((error, prepared)) if is_late(&error) => {
                    late += 1;
                    prepared.withdraw().unwrap_or_else(|error| panic!("{error}"));
                    continue;
                }
                Err((error, _)) => panic!("{error}"),
            };
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
        "in and out {times} times in {:?}, stood still for {stood:?} at most; memory was in use {stays} times, and {late} times its threads got no processor to stop",
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

#[test]
fn mimalloc_is_gated_and_ungated_many_times() {
    println!("{}", in_and_out(Some(MIMALLOC)));
}

/// How long it takes is what the process notices of it.
#[test]
fn two_hundred_threads_are_gated_and_ungated() {
    let mut guest = verifying(None);
    let pid = guest.pid();
    guest.command("work 200");
    guest.command("worked");
    let before = Belongings::of(pid);
    for _ in 0..5 {
        let recording = Recording::attach_with(pid, &["--gate=require", "--sample", "512KiB"]);
        guest.command("worked");
        let outcome = recording.finish().outcome;
        outcome.assert_success();
        let said = outcome.stderr.lines().rfind(|line| line.contains("stood still"));
        println!("200 threads: {}", said.expect("it is said how long"));
    }
    Belongings::of(pid).assert_same(&before, "behind the last time");
    guest.command("rest");
    guest.exit();
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

/// Probes at the beginnings of functions, as other tools put them there; taken out when dropped.
struct OthersProbes {
    group: String,
}

const TRACEFS: &str = "/sys/kernel/tracing";

impl OthersProbes {
    /// In a file that nobody else has mapped.
    fn put(path: &Path, offsets: &[u64]) -> Self {
        let probes = Self { group: format!("others_{}", std::process::id()) };
        for (number, offset) in offsets.iter().enumerate() {
            probes.define(&format!("p:{}/p{number} {}:{offset:#x}", probes.group, path.display()));
        }
        probes.enable("1");
        probes
    }

    fn define(&self, text: &str) {
        let mut events =
            fs::File::options().append(true).open(format!("{TRACEFS}/uprobe_events")).expect("tracefs");
        writeln!(events, "{text}").unwrap_or_else(|err| panic!("{text}: {err}"));
    }

    fn enable(&self, how: &str) {
        fs::write(format!("{TRACEFS}/events/{}/enable", self.group), how).expect("they are defined");
    }
}

impl Drop for OthersProbes {
    fn drop(&mut self) {
        self.enable("0");
        self.define(&format!("-:{}/", self.group));
    }
}

/// The kernel carries out what the file has at a probe and goes on behind it: there is the jump, or what comes after all of it.
#[test]
fn other_tools_may_probe_the_beginnings_of_gated_functions() {
    let folder = tempfile::tempdir().expect("a folder");
    let library = folder.path().join("libjemalloc.so.2");
    fs::copy(JEMALLOC, &library).expect("libjemalloc is installed");
    let mut guest = verifying(Some(path_str(&library)));
    let pid = guest.pid();
    guest.command("work 2");
    guest.command("worked");
    let before = Belongings::of(pid);
    let plan =
        plans(pid, INTERVAL_BYTES).into_iter().max_by_key(|plan| plan.functions.len()).expect("jemalloc");
    let covers = plan.functions.iter().map(|function| &function.cover);
    let entries: Vec<u64> = covers.map(|cover| cover.offset - cover.kept.len() as u64).collect();
    let enter = || {
        let prepared = Prepared::make(pid, &plan).unwrap_or_else(|error| panic!("{error}"));
        prepared.enter().unwrap_or_else(|(error, _)| panic!("{error}")).0
    };
    for _ in 0..5 {
        // They come and go while it is gated.
        let gate = enter();
        guest.command("worked");
        let others = OthersProbes::put(&library, &entries);
        guest.command("worked");
        drop(others);
        guest.command("worked");
        gate.leave().unwrap_or_else(|error| panic!("{error}"));
        // They are there when the gate goes.
        let gate = enter();
        let others = OthersProbes::put(&library, &entries);
        guest.command("worked");
        let left = gate.leave().unwrap_or_else(|error| panic!("{error}"));
        guest.command("worked");
        drop(others);
        guest.command("worked");
        // Those of functions that begin with the jump have put back what the file has.
        assert_eq!(left.taken_out + left.left_alone, entries.len());
        Belongings::of(pid).assert_same(&before, "without probes and gate");
    }
    guest.command("rest");
    guest.exit();
}
