//! The life of a process under a gate: it throws, takes signals, makes threads and processes, replaces its program, loads and unloads.

use std::fs;
use std::path::Path;
use std::process::Command;

use heaptap_tests::compile;
use heaptap_tests::gate::{self, ALLOCATORS};
use heaptap_tests::guest::Guest;
use heaptap_tests::heaptap::{Recorded, Recording, path_str, run};
use heaptap_tests::ledger::Ledger;
use heaptap_tests::process::Process;
use heaptap_tests::profile::Profile;
use rustix::process::Signal;

/// A guest with an allocator preloaded; `None` where that is not installed.
fn guest_with(name: &str, preloaded: &str) -> Option<Guest> {
    if preloaded.is_empty() {
        return Some(Guest::start(name));
    }
    Path::new(preloaded).exists().then(|| Guest::start_preloaded(name, preloaded))
}

/// The number in the line `pid N`.
#[track_caller]
fn pid_in(answer: &[String]) -> u32 {
    let mut pids = answer.iter().filter_map(|line| line.strip_prefix("pid ")?.parse().ok());
    pids.next().unwrap_or_else(|| panic!("no PID in {answer:?}"))
}

/// Takes the gate out of a process that nobody records, and panics unless all of it is out.
#[track_caller]
fn detach(pid: u32) -> String {
    let outcome = run(["detach", "--pid", &pid.to_string()]);
    outcome.assert_success();
    outcome.stdout
}

#[test]
fn what_is_thrown_where_there_is_no_memory_is_caught_by_every_allocator() {
    // Debian's mimalloc, which is compiled as C, ends the program instead.
    for preloaded in ALLOCATORS.into_iter().filter(|preloaded| !preloaded.contains("mimalloc")) {
        let Some(mut guest) = guest_with("throw", preloaded) else { continue };
        assert_eq!(guest.command("run"), ["caught 10000 10000"]);
        let recording = gate::attach(guest.pid());
        assert_eq!(guest.command("run"), ["caught 20000 20000"], "{preloaded}");
        let (_, profile) = gate::finish(recording);
        // Eleven blocks of each round's own exception, and its text, at least.
        let seen = profile.total().alloc_objects;
        assert!(seen >= 120_000, "{preloaded}: {seen}, {:#?}", profile.comments);
        assert_eq!(guest.command("run"), ["caught 30000 30000"], "{preloaded}");
        assert_eq!(gate::mapped(guest.pid()), 0);
        guest.exit();
    }
}

/// How often it is tried to lose no budget: two threads, or one and a handler of its signals, may use one up together.
const TRIES: u32 = 10;

/// Runs a guest through its gates, by which its numbers are its ledger's, and reconciles.
#[track_caller]
fn assert_exact(name: &str, preloaded: &str, commands: &[&str]) {
    let is_exact = (0..TRIES).any(|_| is_exact(name, preloaded, commands));
    assert!(is_exact, "{name}, {preloaded}: budgets were lost each time");
}

/// The same; false where it may be that a budget was lost: no more is missing than is told of.
#[track_caller]
fn is_exact(name: &str, preloaded: &str, commands: &[&str]) -> bool {
    let Some(mut guest) = guest_with(name, preloaded) else { return true };
    let before = guest.ledger();
    let recording = gate::attach(guest.pid());
    for command in commands {
        guest.command(command);
    }
    let ledger = guest.ledger().since(&before);
    let (_, profile) = gate::finish(recording);
    if name == "operators" {
        // It was there before.
        let ledger = ledger.without("early_malloc");
        // What throws is told of as well, and that is no block: whether a block is missing for it is not known.
        if ledger != ledger.of_profile(&profile) {
            gate::assert_lacks_only_what_is_told(&ledger, &profile);
            return false;
        }
        assert_eq!(profile.counter("gate_calls"), profile.counter("gate_returns"), "{:#?}", profile.comments);
    } else if name == "release" {
        // Its threads may use up a budget together, which is one sample, and is told.
        gate::assert_told(&ledger, &profile);
    } else {
        ledger.assert_equals(&profile);
        gate::assert_reconciled(&profile);
    }
    assert_eq!(gate::mapped(guest.pid()), 0);
    guest.exit();
    true
}

#[test]
fn every_function_is_counted_exactly() {
    assert_exact("every-function", "", &["run", "drop"]);
    for preloaded in ALLOCATORS {
        assert_exact("release", preloaded, &["run"]);
        assert_exact("operators", preloaded, &["run"]);
    }
}

/// Without resizes, what goes into the sample is what is there and what has come out, to the last block.
#[test]
fn what_goes_into_the_sample_comes_out_of_it_or_is_in_use() {
    for preloaded in ALLOCATORS {
        for sample in ["1", "64", "2KiB", "64KiB"] {
            let Some(mut guest) = guest_with("gated", preloaded) else { continue };
            let recording = gate::attach_with(guest.pid(), &["--gate=require", "--sample", sample]);
            for _ in 0..10 {
                guest.command("run all");
            }
            let live = if sample == "1" { 200 } else { 0 };
            if live > 0 {
                guest.command("run");
            }
            let ledger = guest.ledger();
            let (_, profile) = gate::finish(recording);
            gate::assert_reconciled(&profile);
            let counter = |name| profile.counter(name);
            let sampled = counter("gate_calls") - counter("gate_uncounted");
            assert_eq!(
                sampled,
                counter("gate_frees") + live,
                "{preloaded} {sample}: {:#?}",
                profile.comments
            );
            // The gate knows no more of these than that it had let them through.
            assert_eq!(counter("gate_unknown_frees"), counter("gate_uncounted"), "{:#?}", profile.comments);
            if sample == "1" {
                ledger.assert_equals(&profile);
                assert_eq!(profile.total().alloc_objects, sampled);
                assert_eq!(profile.total().inuse_objects, live);
            }
            guest.exit();
        }
    }
}

#[test]
fn handlers_of_signals_are_counted_exactly() {
    for preloaded in ALLOCATORS {
        assert_exact("signals", preloaded, &["run"]);
    }
}

#[test]
fn what_threads_do_is_counted_but_for_what_is_told() {
    for preloaded in ALLOCATORS {
        for name in ["threads", "dying-thread", "clones"] {
            let Some(mut guest) = guest_with(name, preloaded) else { continue };
            for _ in 0..2 {
                let before = guest.ledger();
                let recording = gate::attach(guest.pid());
                guest.command("run");
                let ledger = guest.ledger().since(&before);
                let (_, profile) = gate::finish(recording);
                gate::assert_told(&ledger, &profile);
                assert_eq!(gate::mapped(guest.pid()), 0);
            }
            guest.exit();
        }
    }
}

#[test]
fn handlers_allocate_while_the_gate_goes_in_and_out() {
    let mut guest = Guest::start("gated");
    guest.command("signals");
    guest.command("start 2");
    for sample in ["1", "1KiB", "512KiB", "1", "64KiB"] {
        guest.command("advance 1000");
        let options = ["--gate=require", "--sample", sample];
        let recording = gate::attach_with(guest.pid(), &options);
        guest.command("advance 3000");
        let recorded = recording.finish();
        let profile = recorded.profile();
        gate::assert_gated(&profile);
        gate::assert_all_out(&recorded.outcome.stderr);
        assert_eq!(gate::mapped(guest.pid()), 0);
    }
    guest.command("advance 1000");
    guest.command("stop");
    guest.exit();
}

#[test]
fn a_child_that_nobody_follows_goes_on_with_its_gate_and_loses_it_by_detach() {
    let mut guest = Guest::start("gated");
    guest.command("start 2");
    let recording = gate::attach(guest.pid());
    guest.command("advance 1000");
    let early = pid_in(&guest.command("fork"));
    guest.command("more");
    guest.command("advance 1000");
    assert_eq!(gate::mapped(early), 4, "the code and the data of two");
    // While its parent is recorded: nobody counts by this one.
    let said = detach(early);
    assert!(said.contains("are as they were before"), "{said}");
    guest.command("more");
    guest.command("join");
    let late = pid_in(&guest.command("fork"));
    guest.command("more");
    guest.command("stop");
    let (_, profile) = gate::finish(recording);
    assert_eq!(profile.counter("overwritten_blocks"), 0, "{:#?}", profile.comments);
    guest.command("more");
    assert!(gate::mapped(late) > 0, "the child has its copy");
    detach(late);
    guest.command("more");
    // And can be recorded like any.
    let recording = gate::attach(late);
    guest.command("more");
    gate::finish(recording);
    guest.command("more");
    guest.command("join");
    guest.exit();
}

/// The profile of a child.
#[track_caller]
fn profile_of(recorded: &Recorded, pid: u32) -> Profile {
    let path = recorded.path.with_file_name(format!("heap.{pid}.pb.gz"));
    assert!(path.exists(), "process {pid} has no profile: {}", recorded.outcome.stderr);
    Profile::read(&path)
}

#[test]
fn children_that_are_followed_are_counted_by_the_gates_that_they_have() {
    let mut guest = Guest::start("family");
    let options = [&gate::EXACTLY[..], &["--follow-forks"]].concat();
    let recording = gate::attach_with(guest.pid(), &options);
    guest.command("allocate");
    let child = pid_in(&guest.command("fork"));
    guest.command("child release-half 0");
    guest.command("child allocate");
    guest.command("child resize 0");
    let grandchild = pid_in(&guest.command("child fork"));
    guest.command("child child release 1");
    guest.command("child child allocate");
    guest.command("release 0");
    let ledgers =
        [Ledger::parse(&guest.command("child ledger")), Ledger::parse(&guest.command("child child ledger"))];
    let parent = guest.ledger();
    let (recorded, profile) = gate::finish(recording);
    parent.assert_equals(&profile);
    gate::assert_reconciled(&profile);
    for (pid, ledger) in [child, grandchild].into_iter().zip(&ledgers) {
        let profile = profile_of(&recorded, pid);
        ledger.assert_equals(&profile);
        gate::assert_gated(&profile);
        gate::assert_reconciled(&profile);
        assert_eq!(gate::mapped(pid), 0, "{}", recorded.outcome.stderr);
    }
    guest.command("child child allocate");
    guest.exit();
}

#[test]
fn a_child_of_many_threads_that_is_followed_is_whole() {
    let mut guest = Guest::start("gated");
    guest.command("start 2");
    let options = [&gate::EXACTLY[..], &["--follow-forks"]].concat();
    let mut recording = gate::attach_with(guest.pid(), &options);
    guest.command("advance 1000");
    let child = pid_in(&guest.command("fork"));
    recording.stderr_line(&format!("heaptap: following process {child}"));
    guest.command("more");
    guest.command("advance 1000");
    let recorded = recording.finish();
    gate::assert_gated(&recorded.profile());
    let profile = profile_of(&recorded, child);
    assert!(profile.total().alloc_objects > 1_000, "{:#?}", profile.comments);
    gate::assert_gated(&profile);
    assert_eq!(gate::mapped(guest.pid()), 0);
    guest.command("more");
    guest.command("join");
    guest.command("stop");
    guest.exit();
}

#[test]
fn programs_that_are_started_have_nothing_of_it() {
    let mut guest = Guest::start("gated");
    guest.command("start 2");
    let recording = gate::attach(guest.pid());
    guest.command("vfork 50");
    guest.command("spawn 50");
    guest.command("run");
    let ledger = guest.ledger();
    guest.command("stop");
    let (_, profile) = gate::finish(recording);
    gate::assert_told(&ledger, &profile);
    guest.exit();
}

#[test]
fn nothing_is_changed_while_another_process_has_the_memory() {
    let mut guest = Guest::start("gated");
    let other = pid_in(&guest.command("share"));
    let options = ["--gate=require", "--sample", "1"];
    let refused =
        Recording::start_early(&[&["--pid", &guest.pid().to_string()], &options[..]].concat()).wait();
    refused.outcome.assert_refused(&format!("process {other} has the memory"));
    guest.command("unshare");
    let recording = gate::attach(guest.pid());
    guest.command("run");
    let ledger = guest.ledger();
    let (_, profile) = gate::finish(recording);
    ledger.assert_equals(&profile);
    // It comes while the gate is in, and stays.
    let recording = gate::attach(guest.pid());
    guest.command("share");
    let recorded = recording.finish();
    assert!(recorded.outcome.stderr.contains("it is still in"), "{}", recorded.outcome.stderr);
    guest.command("run");
    guest.command("unshare");
    detach(guest.pid());
    assert_eq!(gate::mapped(guest.pid()), 0);
    guest.command("run");
    guest.exit();
}

#[test]
fn threads_leave_calls_of_the_sample_in_every_way() {
    for how in ["longjmp", "exit", "cancel"] {
        assert!((0..TRIES).any(|_| is_exact_where_threads_leave(how)), "{how}: budgets were lost each time");
    }
}

/// Whether no two threads have used up a budget together, of which one call is in no sample: only then is it known how many are.
#[track_caller]
fn is_exact_where_threads_leave(how: &str) -> bool {
    let mut guest = Guest::start("gated");
    guest.command("start 2");
    let recording = gate::attach(guest.pid());
    for _ in 0..3 {
        guest.command(&format!("leave {how}"));
    }
    guest.command("advance 1000");
    guest.command("run");
    let ledger = guest.ledger();
    guest.command("stop");
    let recorded = recording.finish();
    let profile = recorded.profile();
    let is_exact = profile.counter("gate_lost_budgets") == 0;
    // How a thread ends has to be loaded first, in the midst of that call.
    if is_exact {
        ledger.assert_equals_but(&profile, "call_slots");
    }
    let away = profile.counter("gate_calls") - profile.counter("gate_returns");
    assert!(away == 3 || (!is_exact && away < 3), "{how}: {away}, {:#?}", profile.comments);
    let stderr = &recorded.outcome.stderr;
    assert!(stderr.contains(&format!("{away} did not or had not yet")), "{how}: {stderr}");
    assert!(stderr.contains("a call in its sample has not come back"), "{how}: {stderr}");
    guest.command("run");
    // Its memory is there, and in nobody's way.
    let recording = gate::attach(guest.pid());
    guest.command("run");
    recording.finish().outcome.assert_success();
    guest.exit();
    is_exact
}

#[test]
fn the_next_program_is_gated_as_well() {
    for (command, without_randomisation) in [("exec", false), ("exec", true), ("exec-thread", false)] {
        let mut guest = if without_randomisation {
            Guest::start_without_randomisation("replaces")
        } else {
            Guest::start("replaces")
        };
        let mut recording = gate::attach(guest.pid());
        guest.command("run");
        guest.send(command);
        guest.line("ready");
        recording.stderr_line("heaptap: the process has replaced its program");
        let said = recording.stderr_line("heaptap: its calls were not seen for ");
        assert!(said.ends_with(" ms"), "{said}");
        guest.command("run");
        let ledger = guest.ledger();
        let (_, profile) = gate::finish(recording);
        // What came first, was not seen.
        let seen = ledger.of_profile(&profile);
        assert_eq!(seen.site("second_malloc"), ledger.site("second_malloc"), "{:#?}", profile.comments);
        assert_eq!(gate::mapped(guest.pid()), 0);
        guest.command("run");
        guest.exit();
    }
}

#[test]
fn a_process_that_ends_takes_its_gate_along() {
    for is_killed in [false, true] {
        let mut guest = Guest::start("gated");
        let mut recording = gate::attach(guest.pid());
        guest.command("run");
        let ledger = guest.ledger();
        if is_killed {
            guest.signal(Signal::KILL);
            guest.wait();
        } else {
            guest.exit();
        }
        recording.stderr_line("heaptap: the process has ended");
        let recorded = recording.wait();
        let profile = recorded.profile();
        let seen = ledger.of_profile(&profile);
        for site in ["call_malloc", "call_slots"] {
            assert_eq!(
                seen.site(site).alloc_objects,
                ledger.site(site).alloc_objects,
                "{:#?}",
                profile.comments
            );
        }
        gate::assert_gated(&profile);
        gate::assert_all_out(&recorded.outcome.stderr);
    }
}

/// A program that does nothing but to begin anew, again and again, however far heaptap has come with it.
#[test]
fn whoever_replaces_its_program_while_a_gate_goes_in_is_not_harmed() {
    const LOOP: &str = "i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done; exec sh -c \"$LOOP\"";
    for _ in 0..4 {
        let mut command = Command::new("sh");
        command.args(["-c", LOOP]).env("LOOP", LOOP);
        let process = Process::spawn(command);
        let pid = process.pid().to_string();
        let options = ["--pid", &pid, "--gate", "--sample", "1KiB", "--duration", "300ms"];
        let outcome = Recording::start_early(&options).wait().outcome;
        outcome.assert_no_panic();
        assert!(matches!(outcome.code, Some(0 | 2)), "{outcome:#?}");
        // It would have ended where something was broken.
        process.signal(Signal::CONT);
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it is there");
        assert!(!status.contains("State:\tZ"), "{status}\n{outcome:#?}");
    }
}

#[test]
fn an_allocator_that_is_loaded_later_has_a_gate_and_another_when_it_is_loaded_again() {
    let slots = compile::program("gated").with_file_name("libslots.so");
    let load = format!("load {}", slots.display());
    let mut guest = Guest::start("loads-allocator");
    let mut recording = gate::attach(guest.pid());
    guest.command("run");
    for _ in 0..3 {
        guest.command(&load);
        let said = recording.stderr_line("heaptap: mimalloc");
        assert!(said.contains("counted from now on"), "{said}");
        assert_eq!(gate::mapped(guest.pid()), 4);
        guest.command("run");
        guest.command("unload");
        guest.command("run");
    }
    let ledger = guest.ledger();
    let recorded = recording.finish();
    ledger.assert_equals(&recorded.profile());
    gate::assert_all_out(&recorded.outcome.stderr);
    assert_eq!(gate::mapped(guest.pid()), 0);
    guest.command("run");
    guest.exit();
}

#[test]
fn an_allocator_that_is_loaded_later_and_cannot_be_gated_is_told_of() {
    let lies = compile::lying_allocator();
    for (choice, becomes) in [("--gate", "ordinary probes"), ("--gate=require", "not counted at all")] {
        let mut guest = Guest::start("loads-allocator");
        let mut recording = Recording::attach_with(guest.pid(), &[choice, "--sample", "1"]);
        guest.command("run");
        guest.command(&format!("load {}", path_str(&lies)));
        let said = recording.stderr_line("heaptap: mimalloc is not gated");
        assert!(said.contains(becomes), "{said}");
        if choice == "--gate" {
            recording.stderr_line("heaptap: mimalloc was loaded; what it gives is counted");
        }
        guest.command("run");
        let ledger = guest.ledger();
        let profile = recording.finish().profile();
        let loaded = ledger.of_profile(&profile).site("call_loaded").alloc_objects;
        assert_eq!(loaded > 0, choice == "--gate", "{:#?}", profile.comments);
        guest.exit();
    }
}
