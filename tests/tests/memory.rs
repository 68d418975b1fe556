//! What a process has resident, taken apart: a guest has memory of every kind in sizes that are known here.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;

use heaptap_tests::guest::Guest;
use heaptap_tests::heaptap::{Recorded, Recording, Serving, path_str};
use heaptap_tests::profile::Profile;
use rustix::process::Signal;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// What a guest has beside the sizes that were asked for: pages of its heap, of tables, and at the ends of a block.
const SLACK: u64 = 256 * KIB;

/// What the kernel's sums may be off by, of which each thread or processor keeps a part to itself.
const SUM_SLACK: u64 = MIB;

/// The numbers of a profile's comments.
#[derive(Debug)]
struct Parts {
    resident: u64,
    inuse: u64,
    absent: u64,
    earlier: u64,
    grown: u64,
    file: u64,
    stack: u64,
    shared: u64,
    began_resident: u64,
    began_anonymous: u64,
}

/// Reads them; panics unless they come to what was resident.
#[track_caller]
fn parts(profile: &Profile) -> Parts {
    let maybe = |name: &str| profile.memory(&format!("{name}_bytes"));
    let bytes = |name: &str| maybe(name).unwrap_or_else(|| panic!("no {name}: {:#?}", profile.comments));
    let parts = Parts {
        resident: bytes("resident"),
        inuse: bytes("inuse"),
        absent: maybe("absent").unwrap_or(0),
        earlier: bytes("earlier"),
        grown: bytes("grown"),
        file: bytes("file"),
        stack: maybe("stack").unwrap_or(0),
        shared: bytes("shared"),
        began_resident: bytes("began_resident"),
        began_anonymous: bytes("began_anonymous"),
    };
    let Parts { inuse, absent, earlier, grown, file, stack, shared, .. } = parts;
    let sum = inuse - absent + earlier + grown + file + stack + shared + bytes("other");
    assert_eq!(parts.resident, sum, "{parts:?}");
    parts
}

/// Panics unless a number is what was wanted, or up to `slack` more or less.
#[track_caller]
fn assert_about(what: &str, number: u64, wanted: u64, slack: u64) {
    assert!(number.abs_diff(wanted) <= slack, "{what}: {number} is not {wanted}, nor within {slack} of it");
}

/// The profile of a recording of a guest that does nothing meanwhile.
#[track_caller]
fn idle(guest: &Guest) -> Profile {
    let recorded = Recording::attach(guest.pid()).finish();
    assert_eq!(recorded.outcome.code, Some(1), "nothing was allocated: {:#?}", recorded.outcome);
    Profile::read(&recorded.path)
}

#[track_caller]
fn assert_says(recorded: &Recorded, wanted: &str) {
    let stderr = &recorded.outcome.stderr;
    assert!(stderr.lines().any(|line| line.contains(wanted)), "no `{wanted}` in:\n{stderr}");
}

#[test]
fn every_kind_of_memory_has_its_size() {
    let folder = tempfile::tempdir().expect("a folder for the file");
    let file = folder.path().join("mapped");
    File::create(&file).and_then(|file| file.set_len(16 * MIB)).expect("a file to map");

    let mut guest = Guest::start("memory");
    let bare = parts(&idle(&guest));
    guest.command("thread");
    guest.command("write 64");
    guest.command(&format!("map {}", path_str(&file)));
    guest.command("share 8");
    let before = guest.ledger();
    let recording = Recording::attach(guest.pid());
    guest.command("write 32");
    let ledger = guest.ledger();
    let recorded = recording.finish();
    let profile = recorded.profile();
    ledger.since(&before).assert_equals(&profile);

    let parts = parts(&profile);
    assert_eq!(parts.inuse, 32 * MIB);
    assert_eq!(parts.absent, 0);
    assert_eq!(parts.earlier, parts.began_anonymous);
    assert_about("anonymous before", parts.earlier, bare.earlier + bare.grown + 64 * MIB, SLACK);
    assert_about("anonymous since", parts.grown, 0, SLACK);
    assert_about("stacks", parts.stack, bare.stack + 4 * MIB, SLACK);
    assert_about("shared", parts.shared, bare.shared + 8 * MIB, 0);
    // Code that had not run before was read, with the pages around it.
    assert_about("files", parts.file, bare.file + 16 * MIB, MIB);
    assert_about("grown by", parts.resident - parts.began_resident, 32 * MIB, MIB);
    assert_eq!((profile.memory("age_ms"), profile.memory("running_threads")), (None, None));

    assert_says(&recorded, "heaptap: memory when the recording ended: ");
    assert_says(&recorded, "      32MB  in use of what was allocated since it began: this profile");
    assert_says(&recorded, "MB  anonymous when it began: allocated earlier, or free; not in this profile");
    assert_says(&recorded, "MB  files; 4.");
    assert_says(&recorded, "MB stacks; 8MB shared");
    guest.exit();
}

#[test]
fn memory_that_was_there_before_and_is_used_again_is_not_counted_twice() {
    let mut guest = Guest::start("memory");
    guest.command("write 64");
    let recording = Recording::attach(guest.pid());
    guest.command("drop");
    guest.command("write 32");
    let recorded = recording.finish();
    let parts = parts(&recorded.profile());
    assert_eq!((parts.inuse, parts.absent), (32 * MIB, 0));
    assert!(parts.began_anonymous >= 64 * MIB, "{parts:?}");
    assert_about("left", parts.earlier + parts.grown, parts.began_anonymous - 64 * MIB, SLACK);
    assert_says(&recorded, "MB that were anonymous when it began");
    guest.exit();
}

#[test]
fn blocks_that_were_never_written_to_are_said_not_to_be_resident() {
    let mut guest = Guest::start("memory");
    let recording = Recording::attach(guest.pid());
    guest.command("leave 200");
    let recorded = recording.finish();
    let parts = parts(&recorded.profile());
    assert_eq!(parts.inuse, 200 * MIB);
    assert!(parts.absent >= 198 * MIB && parts.absent < 200 * MIB, "{parts:?}");
    assert_eq!((parts.earlier, parts.grown), (0, 0));
    assert_says(&recorded, "of 200MB in use that were allocated since it began; the other 19");
    guest.exit();
}

#[test]
fn a_process_that_was_killed_leaves_what_it_had_a_moment_before() {
    let mut guest = Guest::start("memory");
    guest.command("write 64");
    let mut recording = Recording::attach(guest.pid());
    guest.command("write 32");
    guest.signal(Signal::KILL);
    assert_eq!(guest.wait().signal(), Some(Signal::KILL.as_raw()));
    recording.stderr_line("heaptap: the process has ended");
    let recorded = recording.wait();
    let profile = recorded.profile();
    let parts = parts(&profile);
    assert!(parts.began_anonymous.min(parts.resident) >= 64 * MIB - SUM_SLACK, "{parts:?}");
    // As much as there was at the last look, which may have been before the guest allocated.
    assert!([0, 32 * MIB].contains(&parts.inuse), "{parts:?}");
    assert_eq!((profile.memory("stack_bytes"), profile.total().inuse_bytes), (None, 32 * MIB as i64));
    assert!(profile.memory("age_ms").is_some(), "{:#?}", profile.comments);
    assert_says(&recorded, " s before the recording ended: ");
    assert_says(&recorded, "32MB at the end: this profile");
}

#[test]
fn a_program_that_was_replaced_is_not_taken_for_the_one_that_came() {
    let mut guest = Guest::start("memory");
    guest.command("write 64");
    let mut recording = Recording::attach(guest.pid());
    guest.command("write 32");
    guest.send("exec");
    recording.stderr_line("heaptap: the process has replaced its program");
    let parts = parts(&recording.finish().profile());
    assert!(parts.resident < 32 * MIB && parts.inuse < 32 * MIB, "{parts:?}");
    assert_eq!((parts.began_anonymous, parts.earlier), (0, 0), "{parts:?}");
}

#[test]
fn a_process_whose_first_thread_has_ended_is_looked_at_through_another() {
    let mut guest = Guest::start("leader");
    guest.command("leave");
    let recording = Recording::attach(guest.pid());
    guest.command("run");
    let parts = parts(&recording.finish().profile());
    assert!(parts.stack > 0 && parts.file > 0 && parts.began_anonymous > 0, "{parts:?}");
    guest.command("exit");
}

#[test]
fn a_profile_that_is_fetched_has_the_sums_of_now() {
    let mut guest = Guest::start("memory");
    guest.command("write 64");
    let serving = Serving::start(guest.pid());
    guest.command("write 32");
    let profile = serving.fetch_until("the block", |profile| profile.total().inuse_bytes > 0);
    let parts = parts(&profile);
    assert_eq!(parts.inuse, 32 * MIB);
    assert_about("before", parts.began_anonymous, 64 * MIB, SUM_SLACK);
    assert_about("other than in use", parts.earlier + parts.grown, 64 * MIB, SUM_SLACK);
    assert_eq!(profile.memory("age_ms"), None);
    serving.finish(Signal::INT);
    guest.exit();
}
