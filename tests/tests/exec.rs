//! A process that replaces its program: what the old one had is gone, and the new one is counted.

use heaptap_tests::compile;
use heaptap_tests::guest::Guest;
use heaptap_tests::heaptap::{Recording, Serving, path_str};
use heaptap_tests::ledger::{Ledger, Values};
use heaptap_tests::profile::Profile;
use rustix::process::Signal;

/// What a function has when its program is gone.
fn gone(values: Values) -> Values {
    Values { inuse_objects: 0, inuse_bytes: 0, ..values }
}

/// What the profile has of a ledger's function.
#[track_caller]
fn assert_site(ledger: &Ledger, function: &str, profile: &Profile, expected: Values) {
    let seen = ledger.of_profile(profile).site(function);
    assert_eq!(seen, expected, "{function}: {:#?}", profile.comments);
}

/// Has the guest allocate, and its stacks looked at: those that nobody has looked at yet go with the program, as does the code
/// that they lead through.
fn run(guest: &mut Guest, serving: &Serving) -> Ledger {
    guest.command("run");
    let ledger = guest.ledger();
    ledger.assert_equals(&serving.fetch());
    ledger
}

/// Replaces the program by a command of the guest's; gives the ledgers of before and after.
fn replace(guest: &mut Guest, serving: &mut Serving, command: &str) -> (Ledger, Ledger) {
    let before = run(guest, serving);
    guest.send(command);
    guest.line("ready");
    serving.stderr_line("heaptap: the process has replaced its program");
    guest.command("run");
    (before, guest.ledger())
}

#[test]
fn the_next_program_is_counted_from_its_first_block_though_its_addresses_are_the_same() {
    let mut guest = Guest::start_without_randomisation("replaces");
    let mut serving = Serving::start(guest.pid());
    let (before, after) = replace(&mut guest, &mut serving, "exec");
    let profile = serving.fetch();
    assert_eq!(after.site("early_malloc").inuse_bytes, 321, "{after}");
    after.assert_equals_but(&profile, "first_malloc");
    assert_site(&after, "first_malloc", &profile, gone(before.site("first_malloc")));
    assert_eq!(profile.counter("overwritten_blocks"), 0, "{:#?}", profile.comments);
    assert_eq!(profile.counter("abandoned_calls"), 0, "{:#?}", profile.comments);
    let said =
        |comment: &String| comment.starts_with("exec: /") && comment.contains("/replaces was replaced");
    assert!(profile.comments.iter().any(said), "{:#?}", profile.comments);
    guest.exit();
}

#[test]
fn a_program_that_is_replaced_again_and_again_has_what_the_last_one_has() {
    let mut guest = Guest::start("replaces");
    let mut serving = Serving::start(guest.pid());
    let (before, mut after) = replace(&mut guest, &mut serving, "exec");
    let mut former = Values::default();
    for _ in 0..4 {
        former += gone(after.site("second_malloc"));
        serving.fetch();
        guest.send("exec");
        guest.line("ready");
        guest.command("run");
        after = guest.ledger();
    }
    let profile = serving.fetch();
    former += after.site("second_malloc");
    assert_site(&after, "second_malloc", &profile, former);
    assert_site(&after, "first_malloc", &profile, gone(before.site("first_malloc")));
    guest.exit();
}

#[test]
fn the_blocks_of_a_replaced_program_leave_their_room_to_those_of_the_next() {
    let mut guest = Guest::start("replaces");
    let mut recording = Recording::attach_with(guest.pid(), &["--max-live", "1000"]);
    for _ in 0..3 {
        guest.command("run");
        guest.send("exec");
        guest.line("ready");
        recording.stderr_line("heaptap: the process has replaced its program");
    }
    guest.command("run");
    let ledger = guest.ledger();
    let profile = recording.finish().profile();
    assert_eq!(profile.counter("live_full_objects"), 0, "{:#?}", profile.comments);
    // Two thirds of a thousand, and the block from before main in the last two of these.
    assert!(profile.counter("gone_blocks") >= 3 * 666 + 2, "{:#?}", profile.comments);
    let inuse = |values: Values| (values.inuse_objects, values.inuse_bytes);
    let seen = ledger.of_profile(&profile);
    assert_eq!(inuse(seen.site("second_malloc")), inuse(ledger.site("second_malloc")), "{ledger}");
    guest.exit();
}

#[test]
fn a_program_that_is_replaced_by_a_thread_among_others_is_followed() {
    let mut guest = Guest::start("replaces");
    let mut serving = Serving::start(guest.pid());
    let (before, after) = replace(&mut guest, &mut serving, "exec-thread");
    let profile = serving.fetch();
    assert_site(&after, "first_malloc", &profile, gone(before.site("first_malloc")));
    assert_site(&after, "second_malloc", &profile, after.site("second_malloc"));
    let toil: i64 = profile
        .stacks
        .iter()
        .filter(|stack| stack.functions.iter().any(|function| function == "toil"))
        .map(|stack| stack.values.inuse_bytes)
        .sum();
    assert_eq!(toil, 0, "the threads are gone, with what they had");
    guest.exit();
}

#[test]
fn a_program_with_an_allocator_of_its_own_is_counted_as_soon_as_it_is_seen() {
    let program = compile::program("replaces-static");
    let mut guest = Guest::start("replaces");
    let mut serving = Serving::start(guest.pid());
    let before = run(&mut guest, &serving);
    guest.send(&format!("exec {}", path_str(&program)));
    guest.line("ready");
    let said = serving.stderr_line("heaptap: glibc is counted from now on");
    assert!(said.contains("calls were not seen for"), "{said}");
    guest.command("run");
    let after = guest.ledger();
    let profile = serving.fetch();
    assert_site(&after, "first_malloc", &profile, gone(before.site("first_malloc")));
    assert_site(&after, "second_malloc", &profile, after.site("second_malloc"));
    assert!(profile.comments.iter().any(|comment| comment.contains("not seen")), "{:#?}", profile.comments);
    guest.exit();
}

#[test]
fn a_program_without_an_allocator_is_said_to_be_uncounted() {
    let program = compile::no_allocator(compile::Width::Bits64);
    let mut guest = Guest::start("replaces");
    let mut serving = Serving::start(guest.pid());
    let ledger = run(&mut guest, &serving);
    guest.send(&format!("exec {}", path_str(&program)));
    serving.stderr_line("heaptap: the new program has no allocator that heaptap knows");
    let profile = serving.fetch();
    assert_site(&ledger, "first_malloc", &profile, gone(ledger.site("first_malloc")));
}

#[test]
fn a_replacement_whose_notice_does_not_fit_the_ring_buffer_is_noticed_all_the_same() {
    let mut guest = Guest::start("replaces");
    // Room for one stack of any size: with its environment the guest may have more than fits a smaller one.
    let mut serving = Serving::start_with(guest.pid(), &["--ring-bytes", "65536"]);
    serving.signal(Signal::STOP);
    // What is said of these fills it.
    guest.command("load libm.so.6");
    guest.send("exec");
    guest.line("ready");
    serving.signal(Signal::CONT);
    serving.stderr_line("heaptap: the process has replaced its program");
    let missed = serving.fetch();
    assert!(missed.counter("lost_events") > 0, "{:#?}", missed.comments);
    // With so little room it takes a few allocations until their stack is learned.
    guest.command("run");
    let allocated = |ledger: &Ledger| ledger.site("second_malloc").alloc_objects;
    let learned = guest.ledger();
    let seen = allocated(&learned.of_profile(&serving.fetch()));
    guest.command("run");
    let after = guest.ledger();
    let profile = serving.fetch();
    let seen = allocated(&after.of_profile(&profile)) - seen;
    assert_eq!(seen, allocated(&after) - allocated(&learned), "{:#?}", profile.comments);
    guest.exit();
}
