//! Threads that allocate at once, free each other's blocks, and end in the middle.

use heaptap_tests::guest::Guest;
use heaptap_tests::heaptap::Recording;

#[test]
fn eight_threads_that_free_each_others_blocks_are_counted_to_the_byte() {
    let mut guest = Guest::start("threads");
    let recording = Recording::attach(guest.pid());
    guest.command("run");
    let ledger = guest.ledger();
    let profile = recording.finish().profile();
    ledger.assert_equals(&profile);
    assert!(ledger.total().inuse_objects > 0, "{ledger}");
    guest.exit();
}

#[test]
fn what_threads_left_can_be_freed_by_another() {
    let mut guest = Guest::start("threads");
    let recording = Recording::attach(guest.pid());
    guest.command("run");
    guest.command("drop");
    let ledger = guest.ledger();
    ledger.assert_equals(&recording.finish().profile());
    assert_eq!(ledger.total().inuse_objects, 0, "{ledger}");
    guest.exit();
}

#[test]
fn a_threads_blocks_outlive_it() {
    let mut guest = Guest::start("dying-thread");
    let recording = Recording::attach(guest.pid());
    guest.command("run");
    let ledger = guest.ledger();
    ledger.assert_equals(&recording.finish().profile());
    guest.exit();
}

/// Attaching meets threads in the middle of calls; stopping them all makes the numbers comparable.
#[test]
fn threads_that_run_when_the_recording_begins_and_ends_are_undisturbed() {
    let mut guest = Guest::start("churn");
    guest.command("start");
    guest.command("advance 1000");
    let recording = Recording::attach(guest.pid());
    guest.command("advance 20000");
    let profile = recording.finish().profile();
    guest.command("advance 1000");
    guest.command("stop");
    let ledger = guest.ledger();
    let seen = ledger.of_profile(&profile);
    for (function, values) in seen.sites() {
        let all = ledger.site(function);
        assert!(
            values.alloc_objects > 0 && values.alloc_objects < all.alloc_objects,
            "a part of\n{ledger}and not\n{seen}"
        );
        assert!(values.inuse_objects >= 0 && values.inuse_bytes >= 0, "{seen}");
    }
    // Four threads hold 64 blocks each, and each may have been inside a call.
    let held = seen.total().inuse_objects;
    assert!((0..=4 * 66).contains(&held), "{held} blocks in use:\n{seen}");
    guest.exit();
}

/// The process goes on without its first thread, under the same number.
#[test]
fn the_end_of_the_first_thread_is_not_the_end_of_the_process() {
    let mut guest = Guest::start("leader");
    let mut recording = Recording::attach(guest.pid());
    guest.command("run");
    guest.command("leave");
    // Calls until then may be missing, and the profile would only say for how long.
    let said = recording.stderr_line("heaptap: the first thread has ended, others go on");
    guest.command("run");
    let ledger = guest.ledger();
    let profile = recording.finish().profile();
    ledger.assert_equals(&profile);
    assert_eq!(profile.counter("blind_us") > 0, said.contains("not seen"), "{said} {:#?}", profile.comments);
    guest.exit();
}

/// The kernel finds a process's memory by its first thread, and without that puts no probes into what is mapped.
#[test]
fn an_allocator_that_is_loaded_behind_the_first_threads_end_is_counted() {
    let mut guest = Guest::start("leader");
    let mut recording = Recording::attach(guest.pid());
    guest.command("leave");
    recording.stderr_line("heaptap: the first thread has ended, others go on");
    guest.command("load libmimalloc.so.2");
    recording.stderr_line("heaptap: mimalloc");
    guest.command("run");
    guest.command("run-loaded");
    let ledger = guest.ledger();
    let profile = recording.finish().profile();
    for site in ["follower_malloc", "call_loaded"] {
        assert_eq!(ledger.of_profile(&profile).site(site), ledger.site(site), "{site}");
    }
    guest.exit();
}
