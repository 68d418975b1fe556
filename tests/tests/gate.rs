//! Counting in front of the probes, by code in the process.

use std::time::{Duration, Instant};

use heaptap_tests::compile;
use heaptap_tests::estimate::{self, Estimates};
use heaptap_tests::gate::{self, assert_gated};
use heaptap_tests::guest::Guest;
use heaptap_tests::heaptap::{Recording, Serving};
use heaptap_tests::profile::Profile;
use rustix::process::Signal;

/// Panics unless everything was gated, and nothing that was learned of it was forgotten, as where code is taken to have gone: each
/// second this is looked at.
#[track_caller]
fn assert_gated_for_good(profile: &Profile) {
    assert_gated(profile);
    for bad in ["unannounced_unmaps", "abandoned_calls"] {
        assert_eq!(profile.counter(bad), 0, "{:#?}", profile.comments);
    }
}

/// Estimates 150 rounds of a command behind a gate.
fn estimate(sample: &str, work: &str) -> Estimates {
    let options = ["--gate=require", "--sample", sample];
    let check = |_: &_, profile: &_| assert_gated_for_good(profile);
    Estimates::of_rounds(Guest::start("sampled"), &options, work, 150, check)
}

/// Panics unless estimates behind a gate are right with another allocator preloaded.
#[track_caller]
fn assert_right_with(preloaded: &str) {
    let options = ["--gate=require", "--sample", "2KiB"];
    estimate::assert_right_with(preloaded, &options, |_, profile| assert_gated_for_good(profile));
}

#[test]
fn estimates_of_small_blocks_are_right_on_average() {
    estimate("4KiB", "run").assert_unbiased(6.0);
}

#[test]
fn estimates_of_large_blocks_are_right_on_average() {
    estimate("16MiB", "large").assert_unbiased(6.0);
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
fn estimates_are_right_with_mimalloc() {
    assert_right_with("/usr/lib/x86_64-linux-gnu/libmimalloc.so.2");
}

/// Its threads have no number of their processor at hand, so that they take of a budget by their own.
#[test]
fn estimates_are_right_with_musl() {
    let guest = Guest::start_program("sampled", &compile::by_musl("sampled"));
    let options = ["--gate=require", "--sample", "2KiB"];
    let estimates =
        Estimates::of_rounds(guest, &options, "run", 60, |_, profile| assert_gated_for_good(profile));
    estimates.assert_unbiased(6.0);
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
    let mut serving = Serving::start_with(guest.pid(), &["--gate=require", "--sample", "8KiB"]);
    guest.command("keep 100000 1000 1000");
    serving.stderr_line("heaptap: more blocks are in the sample than were expected");
    let grown = Instant::now();
    guest.command("keep 100000 1000 1000");
    let profile = serving.fetch();
    assert!(profile.total().inuse_objects > 180_000, "{:#?}", profile.comments);
    guest.command("drop");
    // The old one's code is not taken for code that has gone: each second that is looked at.
    while grown.elapsed() < Duration::from_millis(2_500) {
        guest.command("keep 1000 1000 1000");
        guest.command("drop");
    }
    let profile = serving.fetch();
    assert_eq!(profile.total().inuse_objects, 0, "{:#?}", profile.comments);
    assert_gated_for_good(&profile);
    serving.finish(Signal::INT);
    guest.exit();
}

/// What has no room in the largest table is known to the kernel side alone.
#[test]
fn blocks_for_which_there_is_no_room_are_counted_all_the_same() {
    let mut guest = Guest::start("live");
    let recording = gate::attach(guest.pid());
    guest.command("keep 1000000 16 128");
    guest.command("drop");
    let ledger = guest.ledger();
    let (_, profile) = gate::finish(recording);
    assert!(profile.counter("gate_overflows") > 1_000, "{:#?}", profile.comments);
    gate::assert_told(&ledger, &profile);
    guest.exit();
}
