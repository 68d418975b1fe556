//! Stacks are whole whatever the code that they lead through: a guest for each kind of code, with frame pointers and
//! without, whose ledger the profile equals and whose chains its stacks hold.

use heaptap_tests::compile::{self, Variant};
use heaptap_tests::guest::Guest;
use heaptap_tests::heaptap::{Recording, Serving, path_str};
use heaptap_tests::profile::Profile;
use rustix::process::Signal;

/// Records one `run` and compares; every stack leads to one of `entries`. Returns what else there is to look at.
#[track_caller]
fn record(name: &str, variant: Variant, entries: &[&str], options: &[&str]) -> (Vec<String>, Profile) {
    let mut guest = Guest::start_as(name, variant);
    let chains = guest.chains();
    let recording = Recording::attach_with(guest.pid(), options);
    let answer = guest.command("run");
    let ledger = guest.ledger();
    let profile = recording.finish().profile();
    guest.exit();
    ledger.assert_equals(&profile);
    chains.assert_hold(&profile, entries);
    (answer, profile)
}

/// Runs after which the kernel knows every way that a guest goes.
const LEARNING_RUNS: usize = 20;

/// Has a guest do the same at least three times: once the kernel has learned to walk its stacks, all of them are whole.
///
/// The first ones are walked from copies, and from short ones where many come at once before anything is learned; what
/// lies beyond is missing from these, and counted. How many that are is a matter of how soon heaptap gets to run.
#[track_caller]
fn assert_whole(name: &str, variant: Variant, entries: &[&str]) {
    assert_guest_is_whole(Guest::start_as(name, variant), entries, &[]);
}

/// The same, of a guest that has been started, with more options.
#[track_caller]
fn assert_guest_is_whole(mut guest: Guest, entries: &[&str], options: &[&str]) {
    let chains = guest.chains();
    let serving = Serving::start_with(guest.pid(), options);
    // A handler's stack is learned in two steps, and on a busy machine its first run is over by then.
    let mut run = || {
        guest.command("run");
        serving.fetch()
    };
    let learned = (0..LEARNING_RUNS).map(|_| run()).find(|profile| chains.hold_somewhere(profile));
    let learned = learned.unwrap_or_else(|| panic!("no whole stack of every chain: {:#?}", run().comments));
    guest.command("run");
    let before = serving.fetch();
    guest.command("run");
    let after = serving.fetch();
    guest.ledger().assert_equals(&after);
    serving.finish(Signal::INT);
    guest.exit();
    assert_eq!(
        not_whole(&after),
        not_whole(&before),
        "all that came later is whole; at first {:#?}",
        learned.comments
    );
    if not_whole(&after).is_empty() {
        chains.assert_hold(&after, entries);
    }
}

/// Allocations whose stack is not whole, by the reason.
fn not_whole(profile: &Profile) -> Vec<(String, u64)> {
    let ends = profile.allocations_by_end().into_iter();
    ends.filter(|(end, _)| *end != "whole").map(|(end, count)| (end.to_owned(), count)).collect()
}

/// A test for each guest and variant: `module: "guest", ["entry", …];`
macro_rules! whole_stacks {
    ($($module:ident: $guest:literal, $entries:expr;)*) => {$(
        mod $module {
            use super::*;

            #[test]
            fn is_walked_by_its_frame_pointers() {
                assert_whole($guest, Variant::FramePointers, &$entries);
            }

            #[test]
            fn is_walked_without_frame_pointers() {
                assert_whole($guest, Variant::NoFramePointers, &$entries);
            }
        }
    )*};
}

whole_stacks! {
    // The stack that a handler on a stack of its own has interrupted is in no copy: that is learned in two steps.
    a_handler_of_signals: "signals", ["main"];
    a_thread_of_any_make: "clones", ["main", "pthread_entry", "clone_entry"];
    a_frame_of_any_shape: "frames", ["main"];
    a_call_that_is_bound_late: "lazy", ["main"];
    a_coroutine: "coroutine", ["main", "coroutine"];
    inlined_cpp_with_exceptions: "containers", ["main"];
    // The standard library allocates for a thread before it calls what the thread is for.
    release_rust: "release", ["main", "work", "thread_start"];
    every_allocating_function: "every-function", ["main"];
    threads_that_share_blocks: "threads", ["main", "churn"];
}

#[test]
fn a_program_with_its_rules_in_debug_frame_is_walked_by_them() {
    let guest = Guest::start_program("frames", &compile::with_debug_frame("frames"));
    assert_guest_is_whole(guest, &["main"], &[]);
}

#[test]
fn a_stripped_program_is_walked_by_the_debug_frame_of_its_debug_file() {
    let (program, debug_dir) = compile::split("frames");
    let guest = Guest::start_program("frames", &program);
    assert_guest_is_whole(guest, &["main"], &["--debug-dir", path_str(&debug_dir)]);
}

#[test]
fn c_that_go_calls_and_that_calls_go_is_walked_through_both() {
    let guest = Guest::start_program("cgo", &compile::cgo(true));
    assert_guest_is_whole(guest, &["main.main", "thread_entry"], &[]);
}

#[test]
fn c_that_go_without_names_calls_is_walked() {
    let mut guest = Guest::start_program("cgo", &compile::cgo(false));
    let recording = Recording::attach(guest.pid());
    for _ in 0..LEARNING_RUNS {
        guest.command("run");
    }
    let ledger = guest.ledger();
    let profile = recording.finish().profile();
    guest.exit();
    assert_eq!(profile.total(), ledger.total(), "{:#?}", profile.comments);
    // The goroutine's stack is in no copy of the thread's: that is learned in two steps.
    profile.assert_whole(19_000, 50);
}

/// Otherwise the two tests of debug files prove nothing.
#[test]
fn a_stripped_program_whose_debug_file_is_not_found_has_broken_stacks() {
    let mut guest = Guest::start_program("frames", &compile::split("frames").0);
    let recording = Recording::attach(guest.pid());
    guest.command("run");
    let profile = recording.finish().profile();
    guest.exit();
    let whole = profile.allocations_by_end().get("whole").copied().unwrap_or_default();
    let total = u64::try_from(profile.total().alloc_objects).expect("no negative count");
    assert!(whole < total / 2, "{:#?}", profile.comments);
}

#[test]
fn calls_that_never_return_leave_the_following_ones_right_in_any_code() {
    for variant in Variant::ALL {
        let mut guest = Guest::start_as("abandoned", variant);
        let recording = Recording::attach(guest.pid());
        guest.command("run");
        let ledger = guest.ledger();
        ledger.assert_equals(&recording.finish().profile());
        guest.exit();
    }
}

#[test]
fn frames_that_lead_back_down_end_the_walk_and_are_counted() {
    const REASON: &str = "broken: frames do not ascend";
    for variant in Variant::ALL {
        let mut guest = Guest::start_as("cycles", variant);
        let recording = Recording::attach(guest.pid());
        guest.command("run");
        let ledger = guest.ledger();
        let recorded = recording.finish();
        guest.exit();
        let profile = recorded.profile();
        ledger.assert_equals(&profile);
        let allocations = u64::try_from(ledger.total().alloc_objects).expect("no negative count");
        assert_eq!(profile.allocations_by_end().get(REASON), Some(&allocations), "{:#?}", profile.comments);
        let is_said = |line: &str| line.contains(&format!("{allocations} in ")) && line.contains(REASON);
        assert!(recorded.outcome.stderr.lines().any(is_said), "{}", recorded.outcome.stderr);
    }
}

/// What was learned of a library that has gone is not used for the one that lies in its place.
#[track_caller]
fn assert_plugins(variant: Variant) {
    let mut guest = Guest::start_as("plugins", variant);
    let chains = guest.chains();
    let serving = Serving::start(guest.pid());
    guest.command("first");
    let is_named = |profile: &Profile, name: &str| {
        profile.stacks.iter().any(|stack| stack.functions.iter().any(|function| function == name))
    };
    // A library that goes before anybody looks has no name.
    serving.fetch_until("the first library", |profile| is_named(profile, "first_malloc"));
    let answer = guest.command("second");
    assert_eq!(answer, ["same-address yes"], "this loader does not do what the test is about");
    let profile = serving.fetch_until("the second library", |profile| is_named(profile, "second_malloc"));
    guest.ledger().assert_equals(&profile);
    chains.assert_hold(&profile, &["main"]);
    serving.finish(Signal::INT);
    guest.exit();
}

#[test]
fn a_library_in_the_place_of_another_is_walked_by_its_frame_pointers() {
    assert_plugins(Variant::FramePointers);
}

#[test]
fn a_library_in_the_place_of_another_is_walked_without_frame_pointers() {
    assert_plugins(Variant::NoFramePointers);
}

/// Code that comes and goes without the loader saying so is noticed, and code of a JIT's may.
#[track_caller]
fn assert_unannounced(variant: Variant) {
    let mut guest = Guest::start_as("unannounced", variant);
    let chains = guest.chains();
    let serving = Serving::start(guest.pid());
    let noticed = |profile: &Profile| profile.counter("unannounced_unmaps");
    guest.command("map-first");
    guest.command("call-first");
    let is_named = |profile: &Profile, name: &str| {
        profile.stacks.iter().any(|stack| stack.functions.iter().any(|function| function == name))
    };
    let profile = serving.fetch_until("the first library", |profile| is_named(profile, "first_malloc"));
    assert_eq!(noticed(&profile), 0, "{:#?}", profile.comments);
    guest.command("unmap");
    serving.fetch_until("that it has gone", |profile| noticed(profile) == 1);
    // It may go as it came: the next such code is walked in the same way.
    for _ in 0..3 {
        guest.command("code");
        serving.fetch_until("its site", |profile| is_named(profile, "code_malloc"));
        guest.command("unmap");
    }
    guest.command("map-second");
    serving.fetch_until("that another has come", |profile| noticed(profile) == 2);
    guest.command("call-second");
    let profile = serving.fetch_until("the second library", |profile| is_named(profile, "second_malloc"));
    guest.ledger().assert_equals(&profile);
    chains.assert_hold(&profile, &["main"]);
    assert_eq!(noticed(&profile), 2, "{:#?}", profile.comments);
    serving.finish(Signal::INT);
    guest.exit();
}

#[test]
fn a_library_that_nobody_announces_in_the_place_of_another_is_walked_by_its_frame_pointers() {
    assert_unannounced(Variant::FramePointers);
}

#[test]
fn a_library_that_nobody_announces_in_the_place_of_another_is_walked_without_frame_pointers() {
    assert_unannounced(Variant::NoFramePointers);
}

/// The functions of the staircase as they have to follow each other, from the site on.
#[track_caller]
fn assert_steps(profile: &Profile, steps: usize) {
    let stack = profile
        .stacks
        .iter()
        .find(|stack| stack.functions.iter().any(|function| function == "staircase_malloc"))
        .expect("the site was seen");
    let site =
        stack.functions.iter().position(|function| function == "staircase_malloc").expect("it is there");
    let seen: Vec<&str> = stack.functions[site + 1..].iter().map(String::as_str).take(steps).collect();
    let wanted: Vec<&str> = ["small", "large", "middle"].into_iter().cycle().take(steps).collect();
    assert_eq!(seen, wanted, "of {:#?}", stack.functions);
}

#[test]
fn a_stack_of_300_frames_is_walked_to_the_limit() {
    for variant in Variant::ALL {
        let (_, profile) = record("staircase", variant, &["main"], &[]);
        // The probed function and the site are the first of 127.
        assert_steps(&profile, 125);
        let cut = profile.allocations_by_end().get("cut at the depth limit").copied();
        assert_eq!(cut, Some(20), "{:#?}", profile.comments);
    }
}

#[test]
fn a_stack_of_300_frames_is_walked_to_its_end_where_the_limit_allows() {
    for variant in Variant::ALL {
        let (_, profile) = record("staircase", variant, &["main"], &["--stack-depth", "400"]);
        assert_steps(&profile, 301);
        profile.assert_whole(20, 500);
    }
}
