//! Recordings through a gate whose numbers are exact, for with one sample for every byte all blocks are in the sample.

use procfs::process::{MMapPath, Process};

use crate::heaptap::{Recorded, Recording};
use crate::ledger::Ledger;
use crate::profile::Profile;

/// What makes heaptap count by gates or not at all, and every block; with room for the stacks of all of them, should it get no processor for a while.
pub const EXACTLY: [&str; 5] = ["--gate=require", "--sample", "1", "--ring-bytes", "134217728"];

/// Allocators that can be preloaded and gated, beside the C library's own; those that are not installed are not tested.
pub const ALLOCATORS: [&str; 4] = [
    "",
    "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2",
    "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4",
    "/usr/lib/x86_64-linux-gnu/libmimalloc.so.2",
];

/// Records a process through its gates.
pub fn attach(pid: u32) -> Recording {
    attach_with(pid, &EXACTLY)
}

/// The same with other options. On a machine that is very busy threads may not stop in time, and then it is tried again.
#[track_caller]
pub fn attach_with(pid: u32, options: &[&str]) -> Recording {
    const TRIES: u32 = 20;
    let pid = pid.to_string();
    let options = [&["--pid", pid.as_str()], options].concat();
    for _ in 0..TRIES {
        let mut recording = Recording::start_early(&options);
        if recording.has_begun() {
            return recording;
        }
        let stderr = recording.wait().outcome.stderr;
        assert!(stderr.contains("did not stop within"), "{stderr}");
    }
    panic!("{options:?}: its threads did not stop {TRIES} times");
}

/// Ends it, and gives what is in its profile; panics unless everything was gated, and all has come out again that went in.
#[track_caller]
pub fn finish(recording: Recording) -> (Recorded, Profile) {
    let recorded = recording.finish();
    let profile = recorded.profile();
    assert_gated(&profile);
    assert_all_out(&recorded.outcome.stderr);
    (recorded, profile)
}

/// Panics unless the profile says that everything was gated.
#[track_caller]
pub fn assert_gated(profile: &Profile) {
    let said: Vec<&String> =
        profile.comments.iter().filter(|comment| comment.starts_with("gate: ")).collect();
    assert!(said.len() == 1 && said[0].contains(" functions of "), "{said:#?}");
}

/// Panics where heaptap says that something of a gate is in the process still.
#[track_caller]
pub fn assert_all_out(stderr: &str) {
    for bad in ["its memory is still", "it is still in", "were changed by somebody"] {
        assert!(!stderr.contains(bad), "{stderr}");
    }
}

/// Panics unless every call of the sample has come back, and every block of it that is not in use was freed through the gate.
#[track_caller]
pub fn assert_reconciled(profile: &Profile) {
    let counter = |name| profile.counter(name);
    assert_reconciled_but_for_frees(profile);
    assert_eq!(counter("unknown_frees"), 0, "{:#?}", profile.comments);
    if profile.comments.iter().any(|comment| comment.starts_with("sampling: ")) {
        // Its numbers are estimates.
        return;
    }
    // What went in is what is there or has come out, resizes apart, which are both.
    let counted = counter("gate_calls") - counter("gate_uncounted");
    let total = profile.total();
    assert!(total.alloc_objects <= counted, "{total}: {:#?}", profile.comments);
    let freed = total.alloc_objects - total.inuse_objects;
    // A child frees what it has from its parent as well.
    let is_child = profile.comments.iter().any(|comment| comment.starts_with("fork: a child of "));
    assert!(is_child || counter("gate_frees") <= freed, "{total}: {:#?}", profile.comments);
}

fn assert_reconciled_but_for_frees(profile: &Profile) {
    let counter = |name| profile.counter(name);
    assert_eq!(counter("gate_calls"), counter("gate_returns"), "{:#?}", profile.comments);
    for loss in ["overwritten_blocks", "abandoned_calls", "unmatched_returns", "unannounced_unmaps"] {
        assert_eq!(counter(loss), 0, "{loss}: {:#?}", profile.comments);
    }
    profile.assert_lossless();
}

/// Panics unless a profile has all that a ledger has but for what the counters tell of: two threads may use up one budget at the same
/// time, and then one of their calls is no sample.
#[track_caller]
pub fn assert_told(ledger: &Ledger, profile: &Profile) {
    assert_reconciled_but_for_frees(profile);
    assert_lacks_only_what_is_told(ledger, profile);
}

/// The same, whatever went in and came out.
#[track_caller]
pub fn assert_lacks_only_what_is_told(ledger: &Ledger, profile: &Profile) {
    let told = profile.counter("gate_lost_budgets");
    let seen = ledger.of_profile(profile);
    for (function, expected) in ledger.sites() {
        let missing = expected.alloc_objects - seen.site(function).alloc_objects;
        assert!(
            (0..=told).contains(&missing),
            "{function}: {missing} of {told}\n{ledger}\n{seen}\n{:#?}",
            profile.comments
        );
    }
    let missing = ledger.total().alloc_objects - seen.total().alloc_objects;
    assert!((0..=told).contains(&missing), "{missing} of {told}\n{ledger}\n{seen}\n{:#?}", profile.comments);
}

/// How many mappings of gates a process has.
pub fn mapped(pid: u32) -> usize {
    addresses(pid).len()
}

/// Where the mappings of gates begin that a process has; none once it has ended.
pub fn addresses(pid: u32) -> Vec<u64> {
    let process = i32::try_from(pid).ok().and_then(|pid| Process::new(pid).ok());
    let maps = process.and_then(|process| process.maps().ok()).into_iter().flatten();
    let gates = maps.filter(|map| {
        matches!(&map.pathname, MMapPath::Path(path) if path.to_string_lossy().contains("heaptap-gate"))
    });
    gates.map(|map| map.address.0).collect()
}
