//! Processes that are gated while they work and check themselves: nothing is ever otherwise than it would be without.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use heaptap_tests::compile;
use heaptap_tests::guest::Guest;
use heaptap_tests::heaptap::{Recording, path_str, run};
use profiler_user::gate::plan;
use profiler_user::gated::{Plan, Prepared};
use profiler_user::target::allocator::{self, Findings};
use profiler_user::target::given::Given;
use profiler_user::target::maps::{AddressSpace, Content};
use profiler_user::target::separate::Places;

const JEMALLOC: &str = "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2";
const TCMALLOC: &str = "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4";

/// How long one test goes in and out.
const LIMIT: Duration = Duration::from_secs(40);

/// How often it does at most.
const TIMES: usize = 1_000;

/// How often a busy machine of two processors does in that time.
const LEAST: usize = 60;

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

/// What a process has, but for what grows as it goes on: open files, mappings of files, and what is executable in them.
#[derive(PartialEq, Eq)]
struct Belongings {
    files: Vec<String>,
    mappings: Vec<String>,
    code: BTreeMap<String, Vec<u8>>,
}

impl Belongings {
    fn of(pid: u32) -> Self {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).expect("the guest runs");
        let mut files: Vec<String> = files
            .filter_map(|file| {
                let file = file.ok()?.path();
                Some(format!("{} {}", file.display(), fs::read_link(&file).ok()?.display()))
            })
            .collect();
        files.sort();
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("the guest runs");
        let mappings = maps.lines().filter(|line| line.contains('/')).map(ToOwned::to_owned).collect();
        let memory = fs::File::open(format!("/proc/{pid}/mem")).expect("the guest runs");
        let executable = maps.lines().filter(|line| line.contains(" r-xp ") && !line.contains("[v"));
        let code = executable.map(|line| {
            let (start, rest) = line.split_once('-').expect("a range");
            let (end, _) = rest.split_once(' ').expect("a range");
            let address = |text| u64::from_str_radix(text, 16).expect("an address");
            let mut bytes = vec![0; usize::try_from(address(end) - address(start)).expect("it is mapped")];
            memory.read_exact_at(&mut bytes, address(start)).expect("it can be read");
            (line.to_owned(), bytes)
        });
        Self { files, mappings, code: code.collect() }
    }

    /// Panics where they are not what they were.
    #[track_caller]
    fn assert_same(&self, before: &Self, when: &str) {
        assert_eq!(self.files, before.files, "{when}");
        assert_eq!(self.mappings, before.mappings, "{when}");
        for ((name, bytes), (_, were)) in self.code.iter().zip(&before.code) {
            let changed = bytes.iter().zip(were).position(|(is, was)| is != was);
            assert_eq!(changed, None, "the first offset in {name} that is not what it was, {when}");
        }
        assert!(self == before, "{when}");
    }
}

/// The plans by which all of a process's allocators are gated.
fn plans(pid: u32) -> Vec<Plan> {
    let mut space = AddressSpace::default();
    space.refresh(pid).expect("its mappings");
    let mut findings = Findings::default();
    allocator::find(&space, &Places::of(pid, Given::default()), &mut findings);
    let allocators = findings.allocators.iter().filter(|allocator| !allocator.family.gives_mappings);
    let plans = allocators.map(|allocator| {
        let planned = plan::of(allocator, &space).unwrap_or_else(|all| panic!("{all:?}"));
        let names = planned.iter().map(|(place, _)| allocator.hooks[*place].names.join(", ")).collect();
        let ranges = || space.current().filter(|range| range.content == Content::Module(allocator.module));
        let start = ranges().map(|range| range.start).min().expect("it is mapped");
        let end = ranges().map(|range| range.end).max().expect("it is mapped");
        Plan {
            functions: planned.into_iter().map(|(_, function)| function).collect(),
            names,
            module: start..end,
            interval_bytes: INTERVAL_BYTES,
            blocks: 1 << 12,
        }
    });
    plans.collect()
}

/// Goes in and out of a process under full load, by a gate that nobody counts by.
#[expect(clippy::print_stdout, reason = "how often, and how long the target stood still, is for people")]
fn in_and_out(preloaded: Option<&str>) {
    let mut guest = verifying(preloaded);
    let pid = guest.pid();
    // The loader and the C library have then done what they do at first.
    guest.command("work");
    guest.command("worked");
    let before = Belongings::of(pid);
    let plans = plans(pid);
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
    println!(
        "in and out {times} times in {:?}, stood still for {stood:?} at most; memory was in use {stays} times",
        began.elapsed()
    );
    assert!(times >= LEAST, "{times} times");
    Belongings::of(pid).assert_same(&before, "behind the last time");
    guest.command("worked");
    println!("{} steps", guest.number("rest"));
    guest.exit();
}

#[test]
fn glibc_is_gated_and_ungated_many_times() {
    in_and_out(None);
}

#[test]
fn jemalloc_is_gated_and_ungated_many_times() {
    in_and_out(Some(JEMALLOC));
}

#[test]
fn tcmalloc_is_gated_and_ungated_many_times() {
    in_and_out(Some(TCMALLOC));
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
