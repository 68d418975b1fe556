//! Memory that a program maps itself, counted with `--mmap`.

use heaptap_tests::compile::{self, Variant};
use heaptap_tests::guest::Guest;
use heaptap_tests::heaptap::{Recording, Serving};
use heaptap_tests::ledger::{Ledger, Values};
use heaptap_tests::profile::{Profile, Stack};
use rustix::process::Signal;

/// The stacks of what the program mapped itself.
fn mapped(profile: &Profile) -> impl Iterator<Item = &Stack> {
    let is_mapped = |stack: &&Stack| stack.labels.get("allocator").is_some_and(|label| label == "mmap");
    profile.stacks.iter().filter(is_mapped)
}

/// Panics unless the program's own functions mapped all that was mapped, and the allocator's nothing.
#[track_caller]
fn assert_only_the_program_maps(ledger: &Ledger, profile: &Profile) {
    let all: Values = mapped(profile).map(|stack| stack.values).sum();
    assert_eq!(all, ledger.total() - ledger.site("large_malloc"), "{:#?}", profile.comments);
}

/// Records what a guest does when told so, and compares.
#[track_caller]
fn assert_counted(mut guest: Guest, command: &str) -> (Ledger, Profile) {
    let recording = Recording::attach_with(guest.pid(), &["--mmap"]);
    guest.command(command);
    let ledger = guest.ledger();
    let profile = recording.finish().profile();
    guest.exit();
    ledger.assert_equals(&profile);
    (ledger, profile)
}

#[test]
fn what_is_mapped_unmapped_covered_and_moved_in_parts_is_counted_page_by_page() {
    for variant in Variant::ALL {
        let (ledger, profile) = assert_counted(Guest::start_as("mappings", variant), "run");
        assert_only_the_program_maps(&ledger, &profile);
        assert_eq!(profile.counter("overwritten_blocks"), 0, "{:#?}", profile.comments);
        assert_eq!(profile.counter("unknown_remaps"), 0, "{:#?}", profile.comments);
    }
}

#[test]
fn threads_that_map_and_unmap_the_same_addresses_are_told_apart() {
    let (_, profile) = assert_counted(Guest::start("mappings"), "storm");
    let is_of_thread =
        |stack: &Stack| stack.functions.iter().any(|function| function.contains("pthread_create"));
    assert!(mapped(&profile).any(is_of_thread), "the threads' stacks");
    assert_eq!(profile.counter("overwritten_blocks"), 0, "{:#?}", profile.comments);
    assert_eq!(profile.counter("lost_mappings"), 0, "{:#?}", profile.comments);
}

#[test]
fn what_an_allocator_maps_is_not_counted_beside_what_it_gives() {
    for library in ["libjemalloc.so.2", "libtcmalloc.so.4", "libmimalloc.so.2"] {
        let guest = Guest::start_preloaded("mappings", library);
        let (ledger, profile) = assert_counted(guest, "run");
        assert_only_the_program_maps(&ledger, &profile);
    }
}

#[test]
fn a_static_program_is_counted_but_for_its_data_segment() {
    let program = compile::linked_statically("mappings");
    let mut guest = Guest::start_program("mappings", &program);
    let recording = Recording::attach_with(guest.pid(), &["--mmap"]);
    guest.command("run");
    let ledger = guest.ledger();
    ledger.assert_equals_but(&recording.finish().profile(), "with_sbrk");
    guest.exit();
}

#[test]
fn nothing_of_it_is_counted_where_nobody_has_asked_for_it() {
    let mut guest = Guest::start("mappings");
    let recording = Recording::attach(guest.pid());
    guest.command("run");
    let ledger = guest.ledger();
    let profile = recording.finish().profile();
    guest.exit();
    assert_eq!(mapped(&profile).count(), 0);
    let seen = ledger.of_profile(&profile);
    assert_eq!(seen.total(), ledger.site("large_malloc"), "{:#?}", profile.comments);
}

#[test]
fn what_was_mapped_before_is_not_counted_when_it_is_moved() {
    let mut guest = Guest::start("mappings");
    guest.command("map-early");
    let recording = Recording::attach_with(guest.pid(), &["--mmap"]);
    guest.command("move-early");
    guest.command("run");
    let ledger = guest.ledger();
    let profile = recording.finish().profile();
    guest.exit();
    ledger.assert_equals(&profile);
    assert_eq!(profile.counter("unknown_remaps"), 1, "{:#?}", profile.comments);
}

#[test]
fn what_a_replaced_program_had_mapped_is_gone() {
    let mut guest = Guest::start("mappings");
    let mut serving = Serving::start_with(guest.pid(), &["--mmap"]);
    guest.command("run");
    let before = guest.ledger();
    before.assert_equals(&serving.fetch());
    guest.send("exec");
    guest.line("ready");
    serving.stderr_line("heaptap: the process has replaced its program");
    guest.command("run");
    let after = guest.ledger();
    let profile = serving.fetch();
    let seen = after.of_profile(&profile);
    for (function, values) in after.sites() {
        let (former, all) = (before.site(function), seen.site(function));
        assert_eq!(all.alloc_bytes, former.alloc_bytes + values.alloc_bytes, "{function}");
        assert_eq!(
            (all.inuse_objects, all.inuse_bytes),
            (values.inuse_objects, values.inuse_bytes),
            "{function}"
        );
    }
    guest.exit();
}

#[test]
fn changes_that_do_not_fit_the_ring_buffer_are_counted() {
    let mut guest = Guest::start("mappings");
    let serving = Serving::start_with(guest.pid(), &["--mmap", "--ring-bytes", "4096"]);
    serving.signal(Signal::STOP);
    guest.command("storm");
    serving.signal(Signal::CONT);
    let profile = serving.fetch();
    assert!(profile.counter("lost_mappings") > 0, "{:#?}", profile.comments);
    serving.finish(Signal::INT);
    guest.exit();
}
