//! The guests by themselves: without a profiler they do what the other tests take for granted.

use heaptap_tests::compile::{self, Variant, Width};
use heaptap_tests::guest::Guest;
use heaptap_tests::process::{Lines, Process};
use heaptap_tests::text::changed_text;
use std::process::{Command, Stdio};

#[test]
fn every_guest_runs_twice_and_keeps_its_ledger() {
    Variant::ALL.into_iter().for_each(run_twice);
}

fn run_twice(variant: Variant) {
    for name in [
        "every-function",
        "threads",
        "dying-thread",
        "deep",
        "abandoned",
        "entered-midway",
        "interposed",
        "own-operators",
        "fork",
        "leader",
        "ends",
        "signals",
        "plugins",
        "unannounced",
        "cycles",
        "clones",
        "frames",
        "lazy",
        "loads-allocator",
        "coroutine",
        "staircase",
        "containers",
        "release",
    ] {
        let mut guest = Guest::start_as(name, variant);
        guest.command("run");
        let once = guest.ledger();
        guest.command("run");
        let twice = guest.ledger();
        assert!(once.total().alloc_objects > 0, "{name}:\n{once}");
        assert!(twice.since(&once).total().alloc_objects > 0, "{name}:\n{twice}");
        guest.exit();
    }
}

/// What `cargo xtask test vm` takes along to a machine without a compiler.
#[test]
fn every_guest_compiles_with_and_without_frame_pointers() {
    for program in compile::every_program() {
        assert!(program.is_file(), "{}", program.display());
    }
}

#[test]
fn a_guest_that_churns_makes_progress_and_stops() {
    let mut guest = Guest::start("churn");
    guest.command("start");
    guest.command("advance 1000");
    assert!(guest.number("iterations") >= 1000);
    assert_ne!(guest.number("tid"), u64::from(guest.pid()));
    assert_eq!(changed_text(guest.pid()), Vec::<String>::new());
    guest.command("stop");
    guest.exit();
}

#[test]
fn exceptions_are_caught() {
    let mut guest = Guest::start("throw");
    assert_eq!(guest.command("run"), ["caught 10000 10000"]);
    guest.exit();
}

#[test]
fn programs_without_an_allocator_run_in_both_widths() {
    for width in [Width::Bits32, Width::Bits64] {
        // Starting succeeds only once the kernel has taken the program.
        drop(Process::spawn(Command::new(compile::no_allocator(width))));
    }
}

#[test]
fn a_guest_with_a_library_tells_both_ledgers() {
    let mut command = Command::new(compile::program("constructor"));
    command.args(["/dev/stdout", "one"]).env("HEAPTAP_GUEST", "two").stdout(Stdio::piped());
    let mut process = Process::spawn(command);
    let report = Lines::of(process.child().stdout.take().expect("stdout is piped")).all("the guest's report");
    assert!(process.wait().success());
    for wanted in
        ["arg one", "env HEAPTAP_GUEST two", "ledger main_malloc 50", "ledger library_constructor_malloc 30"]
    {
        assert!(report.contains(wanted), "no `{wanted}` in:\n{report}");
    }
}

#[test]
fn the_demonstrations_service_fetches() {
    let mut service = Guest::spawn("leaky-metrics", &compile::program("leaky-metrics"));
    service.line("leaky-metrics: pid");
    service.line("fetching 4 targets");
}
