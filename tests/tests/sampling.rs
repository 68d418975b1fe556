//! Samples of the allocations: what is estimated from them is right on average, at every site and in all four values.

use heaptap_tests::estimate::{self, Estimates};
use heaptap_tests::guest::Guest;
use heaptap_tests::heaptap::{Recording, command, run_command};
use heaptap_tests::ledger::Ledger;
use heaptap_tests::profile::Profile;

/// Estimates 150 rounds of a command.
fn estimate(sample: &str, work: &str) -> Estimates {
    let options = ["--sample", sample];
    Estimates::of_rounds(Guest::start("sampled"), &options, work, 150, assert_sampled)
}

/// Panics unless it was sampled, and nothing else than what is known.
#[track_caller]
fn assert_sampled(ledger: &Ledger, profile: &Profile) {
    assert_nothing_else(ledger, profile);
    let comments = &profile.comments;
    assert!(comments.iter().any(|comment| comment.starts_with("sampling: ")), "{comments:#?}");
}

/// Panics where something was counted that the guest's functions have not allocated, nor what makes its threads.
#[track_caller]
fn assert_nothing_else(ledger: &Ledger, profile: &Profile) {
    let is_known = |function: &str| {
        ledger.sites().any(|(site, _)| site == function) || function.contains("pthread_create")
    };
    let others = profile.stacks.iter().filter(|stack| !stack.functions.iter().any(|name| is_known(name)));
    let others: Vec<_> = others.collect();
    assert!(others.is_empty(), "{others:#?}");
}

/// Panics unless estimates are right with another allocator preloaded.
#[track_caller]
fn assert_right_with(preloaded: &str) {
    estimate::assert_right_with(preloaded, &["--sample", "2KiB"], assert_sampled);
}

#[test]
fn estimates_of_small_blocks_are_right_on_average() {
    estimate("4KiB", "run").assert_unbiased(6.0);
}

#[test]
fn estimates_of_large_blocks_are_right_on_average() {
    estimate("16MiB", "large").assert_unbiased(6.0);
}

/// Functions that call one another, and jump to one another, are not counted twice.
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

/// An interval of one byte is every allocation.
#[test]
fn a_sample_of_every_byte_is_exact() {
    let mut guest = Guest::start("sampled");
    let recording = Recording::attach_with(guest.pid(), &["--sample", "1"]);
    guest.command("run");
    let ledger = guest.ledger();
    let profile = recording.finish().profile();
    ledger.assert_equals(&profile);
    assert!(!profile.comments.iter().any(|comment| comment.starts_with("sampling: ")));
    guest.exit();
}

/// What is much larger than the interval is always kept, whatever the chance.
#[test]
fn blocks_of_a_gibibyte_are_exact_at_the_usual_interval() {
    let mut guest = Guest::start("sampled");
    let recording = Recording::attach_with(guest.pid(), &["--sample", "512KiB"]);
    guest.command("large");
    let ledger = guest.ledger();
    let seen = ledger.of_profile(&recording.finish().profile());
    for site in ["of_17m", "of_1g"] {
        assert_eq!(seen.site(site), ledger.site(site), "{site}:\n{seen}");
    }
    guest.exit();
}

#[test]
fn what_does_not_fit_the_table_of_stacks_is_estimated_as_well() {
    let options = ["--sample", "4KiB", "--max-stacks", "1"];
    let mut guest = Guest::start("sampled");
    let recording = Recording::attach_with(guest.pid(), &options);
    for _ in 0..40 {
        guest.command("run");
    }
    let truth = guest.ledger().total();
    let profile = recording.finish().profile();
    let seen = profile.total();
    assert!(profile.counter("totals_full") > 0, "{:#?}", profile.comments);
    // Some ten thousand samples: five standard errors are 5 %.
    for (seen, truth) in [(seen.alloc_bytes, truth.alloc_bytes), (seen.inuse_bytes, truth.inuse_bytes)] {
        let error = (seen - truth) as f64 / truth as f64;
        assert!(error.abs() < 0.1, "{seen} of {truth} bytes: {:#?}", profile.comments);
    }
    guest.exit();
}

#[test]
fn an_interval_that_is_none_is_refused() {
    for interval in ["0", "2TiB", "much", "-1"] {
        let mut command = command();
        command.args(["record", "--pid", "1", &format!("--sample={interval}")]);
        let refused = run_command(command);
        assert_eq!(refused.code, Some(2), "{refused:#?}");
        assert!(refused.stderr.contains("--sample <SIZE>"), "{refused:#?}");
    }
}
