//! `--memory-limit`: heaptap stays inside it, and what it gave up is counted and shown.

use heaptap_tests::footprint::peak_bytes;
use heaptap_tests::guest::Guest;
use heaptap_tests::heaptap::{Recorded, Recording};
use heaptap_tests::ledger::Ledger;

const MIB: u64 = 1 << 20;

/// Records what a guest does on a command; gives its ledger, and the most memory that heaptap took.
fn record(command: &str, limit: &str) -> (Ledger, Recorded, u64) {
    let mut guest = Guest::start("crowd");
    let recording = Recording::attach_with(guest.pid(), &["--memory-limit", limit]);
    let ((ledger, recorded), peak) = peak_bytes(recording.pid(), || {
        guest.command(command);
        let ledger = guest.ledger();
        (ledger, recording.finish())
    });
    guest.exit();
    (ledger, recorded, peak)
}

/// Panics unless what the profile has of all stacks together, and what it says that it lacks, is what the guest did.
#[track_caller]
fn assert_all_is_told(ledger: &Ledger, recorded: &Recorded) {
    let (wanted, profile) = (ledger.total(), recorded.profile());
    let mut seen = profile.total();
    seen.inuse_objects += profile.counter("live_full_objects");
    seen.inuse_bytes += profile.counter("live_full_bytes");
    assert_eq!(seen, wanted, "{:#?}", profile.comments);
}

#[test]
fn more_live_blocks_than_there_is_memory_for_are_told() {
    let (ledger, recorded, peak) = record("blocks 1500000", "200MiB");
    assert!(peak <= 200 * MIB, "{} MiB", peak / MIB);
    let lost = recorded.profile().counter("live_full_objects");
    // It gave up what it had to, and not more: there is room for some 300,000.
    assert!((1_000_000..1_300_000).contains(&lost), "{lost}");
    assert_all_is_told(&ledger, &recorded);
    assert!(recorded.outcome.stderr.contains("table of live blocks was full"), "{:#?}", recorded.outcome);
}

#[test]
fn more_stacks_than_there_is_memory_for_are_told() {
    let (ledger, recorded, peak) = record("stacks 300000", "200MiB");
    assert!(peak <= 200 * MIB, "{} MiB", peak / MIB);
    let profile = recorded.profile();
    let without = profile.counter("totals_full");
    // There is room for some 11,000.
    assert!((280_000..295_000).contains(&without), "{without}: {:#?}", profile.comments);
    assert_all_is_told(&ledger, &recorded);
    assert!(recorded.outcome.stderr.contains("table of stacks was full"), "{:#?}", recorded.outcome);
}
