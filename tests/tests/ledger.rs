//! Guests that make one kind of call each: the profile equals their ledger, in all four values.

use heaptap_tests::guest::Guest;
use heaptap_tests::heaptap::Recording;
use heaptap_tests::ledger::Ledger;
use heaptap_tests::profile::Profile;

/// Records one `run` of a guest, compares, and returns what else there is to look at.
#[track_caller]
fn record_run(name: &str) -> (Ledger, Profile) {
    let mut guest = Guest::start(name);
    let recording = Recording::attach(guest.pid());
    guest.command("run");
    let ledger = guest.ledger();
    let profile = recording.finish().profile();
    ledger.assert_equals(&profile);
    guest.exit();
    (ledger, profile)
}

#[test]
fn every_allocation_function_of_glibc_is_counted_to_the_byte() {
    let (ledger, profile) = record_run("every-function");
    assert!(ledger.site("call_malloc").inuse_objects > 0, "the guest kept nothing:\n{ledger}");
    assert_eq!(profile.counter("unknown_frees"), 0, "{:#?}", profile.comments);
}

#[test]
fn what_is_freed_is_no_longer_in_use() {
    let mut guest = Guest::start("every-function");
    let recording = Recording::attach(guest.pid());
    guest.command("run");
    guest.command("drop");
    let ledger = guest.ledger();
    let profile = recording.finish().profile();
    ledger.assert_equals(&profile);
    assert_eq!(ledger.total().inuse_objects, 0, "{ledger}");
    guest.exit();
}

/// A test that skips has to prove that it may: glibc has had cfree as a compatibility symbol since 2.26.
#[test]
fn cfree_frees() {
    let mut guest = Guest::start("every-function");
    let recording = Recording::attach(guest.pid());
    let present = guest.command("cfree");
    guest.command("run");
    let ledger = guest.ledger();
    let values = ledger.of_profile(&recording.finish().profile()).site("call_malloc_then_cfree");
    match present[0].as_str() {
        "cfree present" => {
            assert!(values.alloc_objects > 0, "{values}");
            assert_eq!(values.inuse_objects, 0, "{values}");
        }
        "cfree absent" => assert_eq!(ledger.site("call_malloc_then_cfree").alloc_objects, 0, "{ledger}"),
        other => panic!("the guest says `{other}`"),
    }
    guest.exit();
}

#[test]
fn a_stack_deeper_than_the_limit_keeps_the_frames_of_its_leaf() {
    let (_, profile) = record_run("deep");
    let stack = profile
        .stacks
        .iter()
        .find(|stack| stack.functions.iter().any(|function| function == "deep_malloc"))
        .expect("the site was seen");
    assert_eq!(stack.depth, 127 + 1, "the frames and the mark of the cut: {:?}", stack.functions);
    assert_eq!(stack.functions.last().map(String::as_str), Some("[stack cut here]"));
    let descents = stack.functions.iter().filter(|function| *function == "descend").count();
    assert!(descents >= 125, "{descents} frames of `descend` in {:?}", stack.functions);
}

#[test]
fn blocks_from_before_the_recording_are_counted_as_unknown_and_not_guessed() {
    let (_, profile) = record_run("before-attach");
    // A hundred freed, and a hundred more by realloc to nothing; resized ones may count or not.
    let unknown = profile.counter("unknown_frees");
    assert!((200..=300).contains(&unknown), "{unknown} unknown frees: {:#?}", profile.comments);
}

#[test]
fn calls_that_never_return_leave_the_following_ones_right() {
    let (ledger, profile) = record_run("abandoned");
    assert_eq!(ledger.site("malloc_abandoned").alloc_objects, 0, "{ledger}");
    let abandoned = profile.counter("abandoned_calls");
    assert!(abandoned > 0, "no abandoned call was noticed: {:#?}", profile.comments);
}

#[test]
fn an_allocator_defined_by_the_program_on_top_of_glibcs_counts_once() {
    record_run("interposed");
}

#[test]
fn operators_that_get_their_blocks_where_the_programs_own_malloc_does_are_counted() {
    record_run("own-operators");
}

#[test]
fn every_one_of_many_call_paths_has_a_stack_of_its_own() {
    let mut guest = Guest::start("stacks");
    let recording = Recording::attach(guest.pid());
    // However slow the machine is, what the paths are made of is known before all of them come.
    guest.command("run 16");
    guest.command("run");
    let ledger = guest.ledger();
    let profile = recording.finish().profile();
    ledger.assert_equals(&profile);
    guest.exit();
    let paths = profile
        .stacks
        .iter()
        .filter(|stack| stack.functions.iter().any(|function| function == "path_malloc"))
        .count();
    assert_eq!(paths, 5000, "stacks with the site");
}

#[test]
fn a_hundred_thousand_live_blocks_are_followed() {
    let (ledger, _) = record_run("live");
    assert_eq!(ledger.site("live_malloc").inuse_objects, 100_000, "{ledger}");
}

#[test]
fn a_block_whose_free_went_unseen_counts_as_freed_when_its_address_comes_again() {
    let (_, profile) = record_run("overwritten");
    assert_eq!(profile.counter("overwritten_blocks"), 49, "{:#?}", profile.comments);
}

/// The page that hijacked return addresses point to then lies elsewhere, because the stack is where it would be.
#[test]
fn a_process_without_randomised_addresses_is_counted_like_any() {
    for name in ["every-function", "abandoned"] {
        let mut guest = Guest::start_without_randomisation(name);
        let recording = Recording::attach(guest.pid());
        guest.command("run");
        let ledger = guest.ledger();
        ledger.assert_equals(&recording.finish().profile());
        guest.exit();
    }
}
