//! Counting in front of the probes, by code in the process.

use std::path::Path;
use std::process::Command;

use heaptap_tests::compile;
use heaptap_tests::estimate::Estimates;
use heaptap_tests::guest::Guest;
use heaptap_tests::heaptap::{Recording, Serving};
use heaptap_tests::profile::Profile;
use rustix::process::Signal;

/// Panics unless the profile says that everything was gated.
#[track_caller]
fn assert_gated(profile: &Profile) {
    let said = profile.comments.iter().filter(|comment| comment.starts_with("gate: "));
    let said: Vec<&String> = said.collect();
    assert!(said.len() == 1 && said[0].contains(" functions of "), "{said:#?}");
}

/// Estimates `rounds` rounds of a command, each by itself, with one recording.
fn estimate(mut guest: Guest, sample: &str, work: &str, rounds: usize) -> Estimates {
    let serving = Serving::start_with(guest.pid(), &["--gate=require", "--sample", sample]);
    let mut estimates = Estimates::default();
    let mut ledger = guest.ledger();
    let mut seen = ledger.of_profile(&serving.fetch());
    for _ in 0..rounds {
        guest.command(work);
        let ledger_now = guest.ledger();
        let seen_now = ledger_now.of_profile(&serving.fetch());
        estimates.add(&seen_now.since(&seen), &ledger_now.since(&ledger));
        (ledger, seen) = (ledger_now, seen_now);
    }
    let profile = serving.fetch();
    assert_gated(&profile);
    assert!(!profile.comments.iter().any(|comment| comment.starts_with("loss: ")), "{:#?}", profile.comments);
    serving.finish(Signal::INT);
    guest.exit();
    estimates
}

#[track_caller]
fn assert_right_with(preloaded: &str) {
    assert!(Path::new(preloaded).exists(), "{preloaded} is not installed");
    let mut command = Command::new(compile::program("sampled"));
    command.env("LD_PRELOAD", preloaded);
    let mut guest = Guest::spawn_command("sampled", command);
    guest.line("ready");
    estimate(guest, "2KiB", "run", 60).assert_unbiased(6.0);
}

#[test]
fn estimates_of_small_blocks_are_right_on_average() {
    estimate(Guest::start("sampled"), "4KiB", "run", 150).assert_unbiased(6.0);
}

#[test]
fn estimates_of_large_blocks_are_right_on_average() {
    estimate(Guest::start("sampled"), "16MiB", "large", 150).assert_unbiased(6.0);
}

#[test]
fn estimates_are_right_with_jemalloc() {
    assert_right_with("/usr/lib/x86_64-linux-gnu/libjemalloc.so.2");
}

#[test]
fn estimates_are_right_with_tcmalloc() {
    assert_right_with("/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4");
}

#[test]
fn what_goes_in_comes_out_again() {
    let mut guest = Guest::start("sampled");
    let recording = Recording::attach_with(guest.pid(), &["--gate=require", "--sample", "2KiB"]);
    for _ in 0..20 {
        guest.command("run");
    }
    let recorded = recording.finish();
    let profile = recorded.profile();
    assert_gated(&profile);
    let (calls, returns) = (profile.counter("gate_calls"), profile.counter("gate_returns"));
    assert!(calls > 1_000, "{:#?}", profile.comments);
    assert_eq!(calls, returns, "{:#?}", profile.comments);
    guest.command("run");
    guest.exit();
}

/// Where there was room for it, something is mapped when it comes.
#[test]
fn a_process_that_maps_memory_all_the_time_is_gated() {
    let mut guest = Guest::start("shifting");
    for _ in 0..5 {
        let recording = Recording::attach_with(guest.pid(), &["--gate=require", "--sample", "2KiB"]);
        guest.command("run");
        let profile = recording.finish().profile();
        assert_gated(&profile);
        assert!(profile.counter("gate_calls") > 0, "{:#?}", profile.comments);
    }
    guest.exit();
}

/// A block that is in the sample is known when it is freed, whichever gate had it first.
#[test]
fn a_table_that_gets_crowded_grows_and_forgets_no_block() {
    let mut guest = Guest::start("live");
    let mut serving = Serving::start_with(guest.pid(), &["--gate=require", "--sample", "64"]);
    guest.command("run");
    serving.stderr_line("heaptap: more blocks are in the sample than were expected");
    let profile = serving.fetch();
    assert!(profile.counter("gate_overflows") >= 64, "{:#?}", profile.comments);
    assert!(profile.total().inuse_objects > 90_000, "{:#?}", profile.comments);
    guest.command("drop");
    let profile = serving.fetch();
    assert_eq!(profile.total().inuse_objects, 0, "{:#?}", profile.comments);
    assert_gated(&profile);
    serving.finish(Signal::INT);
    guest.exit();
}
