//! Tables and buffers that are too small: what was allocated stays exact, and the loss is counted and shown.

use heaptap_tests::guest::Guest;
use heaptap_tests::heaptap::{Recorded, Recording};
use heaptap_tests::ledger::{Ledger, Values};
use heaptap_tests::profile::Profile;

/// Panics unless all stacks together, named or not, allocated what the guest did.
#[track_caller]
fn assert_all_allocations_are_there(ledger: &Ledger, profile: &Profile) {
    let (wanted, seen) = (ledger.total(), profile.total());
    assert_eq!(
        (seen.alloc_objects, seen.alloc_bytes),
        (wanted.alloc_objects, wanted.alloc_bytes),
        "allocated objects and bytes; {:#?}",
        profile.comments
    );
}

/// Panics unless heaptap told people of a loss, and not only the profile.
#[track_caller]
fn assert_shown(recorded: &Recorded, loss: &str) {
    let outcome = &recorded.outcome;
    let shown = outcome.stderr.contains(loss) || outcome.stdout.contains(loss);
    assert!(shown, "the loss is not shown: {outcome:#?}");
}

#[test]
fn a_full_table_of_live_blocks_costs_only_in_use() {
    let mut guest = Guest::start("live");
    let recording = Recording::attach_with(guest.pid(), &["--max-live", "1000"]);
    guest.command("run");
    let ledger = guest.ledger();
    let recorded = recording.finish();
    let profile = recorded.profile();

    let wanted = ledger.site("live_malloc");
    let seen = ledger.of_profile(&profile).site("live_malloc");
    let lost_objects = profile.counter("live_full_objects");
    let lost_bytes = profile.counter("live_full_bytes");
    assert!(lost_objects > 0, "{:#?}", profile.comments);
    // Together with what it says is missing, the profile has everything.
    let whole = Values {
        inuse_objects: seen.inuse_objects + lost_objects,
        inuse_bytes: seen.inuse_bytes + lost_bytes,
        ..seen
    };
    assert_eq!(whole, wanted, "the profile has {seen}; {:#?}", profile.comments);
    assert_shown(&recorded, "table of live blocks was full");
    guest.exit();
}

#[test]
fn frees_of_blocks_that_were_not_followed_take_nothing_off() {
    let mut guest = Guest::start("live");
    let recording = Recording::attach_with(guest.pid(), &["--max-live", "1000"]);
    guest.command("run");
    guest.command("drop");
    let ledger = guest.ledger();
    let profile = recording.finish().profile();
    let seen = ledger.of_profile(&profile).site("live_malloc");
    assert_eq!(seen, ledger.site("live_malloc"), "{:#?}", profile.comments);
    guest.exit();
}

#[test]
fn a_full_table_of_stacks_counts_on_without_the_stack() {
    let mut guest = Guest::start("stacks");
    let recording = Recording::attach_with(guest.pid(), &["--max-stacks", "100"]);
    guest.command("run");
    let ledger = guest.ledger();
    let recorded = recording.finish();
    let profile = recorded.profile();
    assert_all_allocations_are_there(&ledger, &profile);
    assert_eq!(profile.total(), ledger.total(), "in use, too: {:#?}", profile.comments);
    assert!(profile.counter("totals_full") > 0, "{:#?}", profile.comments);
    assert_shown(&recorded, "table of stacks was full");
    guest.exit();
}

#[test]
fn stacks_that_do_not_fit_the_ring_buffer_are_sent_again() {
    let mut guest = Guest::start("stacks");
    // The least that the kernel takes is a page, which is three stacks.
    let recording = Recording::attach_with(guest.pid(), &["--ring-bytes", "4096"]);
    guest.command("run");
    guest.command("run");
    guest.command("run");
    let ledger = guest.ledger();
    let profile = recording.finish().profile();
    assert_all_allocations_are_there(&ledger, &profile);
    assert_eq!(profile.total(), ledger.total(), "in use, too: {:#?}", profile.comments);
    assert!(profile.counter("ring_full") > 0, "{:#?}", profile.comments);
    guest.exit();
}
