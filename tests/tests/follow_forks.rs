//! `heaptap record --follow-forks`: every process of a family has a profile, which is what it keeps itself a ledger of.

use std::process::Command;

use heaptap_tests::guest::Guest;
use heaptap_tests::heaptap::{Recorded, Recording, path_str};
use heaptap_tests::ledger::Ledger;
use heaptap_tests::profile::Profile;
use heaptap_tests::text::changed_text;
use heaptap_tests::{compile, debian, kernel};
use rustix::process::Signal;

/// Starts the guest and a recording of it and what it makes.
fn start() -> (Guest, Recording) {
    let guest = Guest::start("family");
    let recording = Recording::attach_with(guest.pid(), &["--follow-forks"]);
    (guest, recording)
}

/// The number behind a word in an answer.
#[track_caller]
fn number_in(answer: &[String], word: &str) -> u32 {
    let mut numbers = answer.iter().filter_map(|line| line.strip_prefix(word)?.trim().parse().ok());
    numbers.next_back().unwrap_or_else(|| panic!("no `{word}` in {answer:?}"))
}

/// Has the guest make a child, by a command; gives its PID.
#[track_caller]
fn make(guest: &mut Guest, command: &str) -> u32 {
    number_in(&guest.command(command), "pid ")
}

/// The ledger of the process to which `prefix` leads.
#[track_caller]
fn ledger_of(guest: &mut Guest, prefix: &str) -> Ledger {
    Ledger::parse(&guest.command(&format!("{prefix} ledger")))
}

/// Whether a child that makes children in its first milliseconds may lose its probes until it is followed: before Linux 6.13 (README,
/// limits).
fn has_window() -> bool {
    !kernel::is_at_least(6, 13)
}

/// The profile of a child.
#[track_caller]
fn profile_of(recorded: &Recorded, pid: u32) -> Profile {
    let path = recorded.path.with_file_name(format!("heap.{pid}.pb.gz"));
    assert!(path.exists(), "process {pid} has no profile: {}", recorded.outcome.stderr);
    Profile::read(&path)
}

/// Panics unless the profile of a child is what its ledger says, and nothing was lost or guessed.
#[track_caller]
fn assert_child(recorded: &Recorded, pid: u32, ledger: &Ledger) {
    let profile = profile_of(recorded, pid);
    ledger.assert_equals(&profile);
    assert_nothing_lost(&profile);
}

#[track_caller]
fn assert_nothing_lost(profile: &Profile) {
    assert_eq!(profile.counter("unmatched_returns"), 0, "{:#?}", profile.comments);
    assert_no_loss(profile);
}

#[track_caller]
fn assert_no_loss(profile: &Profile) {
    for loss in ["unknown_frees", "overwritten_blocks", "abandoned_calls"] {
        assert_eq!(profile.counter(loss), 0, "{loss}: {:#?}", profile.comments);
    }
    assert!(!profile.comments.iter().any(|comment| comment.starts_with("loss:")), "{:#?}", profile.comments);
}

#[test]
fn a_child_frees_what_it_inherited_and_allocates_its_own() {
    let (mut guest, mut recording) = start();
    guest.command("allocate");
    let pid = make(&mut guest, "fork");
    let said = recording.stderr_line(&format!("heaptap: following process {pid}"));
    assert!(said.ends_with(&format!("a child of process {}", guest.pid())), "{said}");
    guest.command("child release-half 0");
    guest.command("child allocate");
    guest.command("child resize 0");
    guest.command("release 0");
    let child = ledger_of(&mut guest, "child");
    let parent = guest.ledger();
    let recorded = recording.finish();
    let profile = recorded.profile();
    parent.assert_equals(&profile);
    assert_nothing_lost(&profile);
    assert!(
        child.site("first_malloc").inuse_objects == 0 && child.site("again_realloc").inuse_objects > 10,
        "{child}"
    );
    assert_child(&recorded, pid, &child);
    let said = profile_of(&recorded, pid).comments;
    let told = format!("fork: a child of process {}, from which it had ", guest.pid());
    assert!(said.iter().any(|comment| comment.starts_with(&told)), "{said:#?}");
    guest.exit();
}

#[test]
fn a_child_that_ends_leaves_its_profile_while_the_recording_goes_on() {
    let (mut guest, mut recording) = start();
    guest.command("allocate");
    let pid = make(&mut guest, "fork");
    guest.command("child release 0");
    guest.command("child allocate");
    // At the end of its input it does more, and tells.
    let child = Ledger::parse(&guest.command("wait"));
    let said = recording.stderr_line("heaptap: wrote ");
    assert!(said.contains(&format!(".{pid}.pb.gz")), "{said}");
    guest.command("allocate");
    let parent = guest.ledger();
    let recorded = recording.finish();
    parent.assert_equals(&recorded.profile());
    assert_child(&recorded, pid, &child);
    guest.exit();
}

#[test]
fn a_child_of_a_child_is_followed_too() {
    let (mut guest, recording) = start();
    guest.command("allocate");
    let child = make(&mut guest, "fork");
    guest.command("child allocate");
    let grandchild = make(&mut guest, "child fork");
    guest.command("child child release-half 0");
    guest.command("child child release 1");
    guest.command("child child allocate");
    guest.command("child release-half 1");
    let ledgers = [ledger_of(&mut guest, "child"), ledger_of(&mut guest, "child child")];
    assert!(ledgers[1].site("third_malloc").alloc_objects > 10, "{}", ledgers[1]);
    let parent = guest.ledger();
    let recorded = recording.finish();
    parent.assert_equals(&recorded.profile());
    assert_child(&recorded, child, &ledgers[0]);
    assert_child(&recorded, grandchild, &ledgers[1]);
    guest.exit();
}

#[test]
fn a_child_whose_parent_ends_at_once_is_followed() {
    let (mut guest, mut recording) = start();
    guest.command("allocate");
    let first = number_in(&guest.command("fork-twice"), "first ");
    let second = number_in(&guest.command("child getpid"), "pid ");
    if has_window() {
        recording.stderr_line(&format!("heaptap: following process {second}"));
    }
    guest.command("child allocate");
    guest.command("child release 0");
    let ledger = ledger_of(&mut guest, "child");
    let recorded = recording.finish();
    assert_child(&recorded, second, &ledger);
    assert_nothing_lost(&profile_of(&recorded, first));
    guest.exit();
}

/// Forks by a command while a thread of the parent allocates and frees.
#[track_caller]
fn fork_beside_others(command: &str) {
    let (mut guest, recording) = start();
    guest.command("allocate");
    guest.command("start-churn");
    let pid = make(&mut guest, command);
    guest.command("child release-half 0");
    guest.command("child allocate");
    guest.command("release-half 0");
    guest.command("allocate");
    guest.command("stop-churn");
    let child = ledger_of(&mut guest, "child");
    let parent = guest.ledger();
    let recorded = recording.finish();
    parent.assert_equals(&recorded.profile());
    // What the other thread had at that moment may not be what it has when its blocks are copied.
    child.assert_equals_but(&profile_of(&recorded, pid), "churn_malloc");
    guest.exit();
}

#[test]
fn what_the_parent_does_beside_and_after_the_fork_is_its_own() {
    fork_beside_others("fork");
}

#[test]
fn a_thread_that_was_there_before_makes_a_child() {
    fork_beside_others("fork-in-old-thread");
}

#[test]
fn a_thread_that_began_later_makes_a_child() {
    fork_beside_others("fork-in-new-thread");
}

#[test]
fn a_child_that_replaces_its_program_has_what_the_new_one_has() {
    let (mut guest, mut recording) = start();
    guest.command("allocate");
    let pid = make(&mut guest, "fork");
    guest.command("child release-half 0");
    guest.command("child exec");
    let said =
        recording.stderr_line(&format!("heaptap: process {pid}: the process has replaced its program"));
    assert!(said.contains("family"), "{said}");
    guest.command("child allocate");
    let child = ledger_of(&mut guest, "child");
    let recorded = recording.finish();
    assert_child(&recorded, pid, &child);
    guest.exit();
}

/// Makes a child that shares its parent's memory until it replaces its program.
#[track_caller]
fn start_another_program(command: &str) {
    let (mut guest, mut recording) = start();
    guest.command("allocate");
    let pid = make(&mut guest, command);
    let said = recording.stderr_line(&format!("heaptap: following process {pid}"));
    assert!(said.contains(&format!("a child of process {}", guest.pid())), "{said}");
    guest.command("child allocate");
    guest.command("child release-half 0");
    guest.command("release-half 0");
    let child = ledger_of(&mut guest, "child");
    let parent = guest.ledger();
    let recorded = recording.finish();
    let profile = recorded.profile();
    parent.assert_equals(&profile);
    // A realloc of the C library's own goes on as its malloc, and the two come back at once.
    assert_no_loss(&profile);
    assert_child(&recorded, pid, &child);
    guest.exit();
}

#[test]
fn a_child_that_shares_the_memory_is_followed_from_its_own_program_on() {
    start_another_program("vfork");
}

#[test]
fn a_program_that_a_library_starts_is_followed() {
    start_another_program("spawn");
}

fn pids_in(answer: &[String]) -> Vec<u32> {
    answer.iter().filter_map(|line| line.strip_prefix("pid ")?.parse().ok()).collect()
}

#[test]
fn many_children_in_a_row_have_a_profile_each() {
    const CHILDREN: usize = 200;
    let mut guest = Guest::start("family");
    // To go through a large table at each fork takes emulated machines long.
    let recording = Recording::attach_with(guest.pid(), &["--follow-forks", "--max-live", "100000"]);
    guest.command("allocate");
    let answer = guest.command(&format!("many {CHILDREN}"));
    let ledger = Ledger::parse(&answer);
    let parent = guest.ledger();
    let recorded = recording.finish();
    let profile = recorded.profile();
    parent.assert_equals(&profile);
    assert_nothing_lost(&profile);
    let pids = pids_in(&answer);
    assert_eq!(pids.len(), CHILDREN);
    for pid in pids {
        assert_child(&recorded, pid, &ledger);
    }
    guest.exit();
}

#[test]
fn a_child_that_outlives_its_parent_is_recorded_to_its_end() {
    let (mut guest, mut recording) = start();
    guest.command("allocate");
    let pid = make(&mut guest, "fork");
    let parent = guest.ledger();
    guest.signal(Signal::KILL);
    let mut lines = Vec::new();
    loop {
        let line = guest.line("");
        if line == "alone" {
            break;
        }
        lines.push(line);
    }
    guest.wait();
    recording.stderr_line("heaptap: the process has ended");
    let recorded = recording.wait();
    parent.assert_equals(&recorded.profile());
    assert_child(&recorded, pid, &Ledger::parse(&lines));
}

#[test]
fn a_command_is_followed_from_its_first_allocation_on() {
    let program = compile::program("family");
    let command = ["--follow-forks", "--", path_str(&program), "allocate", "many 3"];
    let recorded = Recording::start(&command).wait();
    let stdout: Vec<String> = recorded.outcome.stdout.lines().map(str::to_owned).collect();
    let ledger = Ledger::parse(&stdout);
    assert_nothing_lost(&recorded.profile());
    let pids = pids_in(&stdout);
    assert_eq!(pids.len(), 3, "{stdout:?}");
    for pid in pids {
        assert_child(&recorded, pid, &ledger);
    }
}

#[test]
fn the_end_of_a_process_first_thread_costs_no_calls() {
    let mut guest = Guest::start("leader");
    let recording = Recording::attach_with(guest.pid(), &["--follow-forks"]);
    guest.command("run");
    guest.command("leave");
    guest.command("run");
    let ledger = guest.ledger();
    let profile = recording.finish().profile();
    ledger.assert_equals(&profile);
    assert_nothing_lost(&profile);
    guest.exit();
}

#[test]
fn a_file_that_is_there_is_not_overwritten_by_a_childs_profile() {
    let (mut guest, recording) = start();
    guest.command("allocate");
    let pid = make(&mut guest, "fork");
    let taken = recording.path().with_file_name(format!("heap.{pid}.pb.gz"));
    std::fs::write(&taken, "mine").expect("a file of ours");
    let recorded = recording.finish();
    assert_eq!(recorded.outcome.code, Some(2), "{:#?}", recorded.outcome);
    assert_eq!(std::fs::read(&taken).expect("it is there"), b"mine");
    Profile::read(&recorded.path);
    guest.exit();
}

#[test]
fn a_server_that_saves_by_a_child_has_what_the_child_inherits() {
    let (recorded, pid) = debian::redis_server_that_saves();
    recorded.outcome.assert_success();
    let child = profile_of(&recorded, pid);
    let inuse = child.total().inuse_bytes;
    // 5,000 values of 500 bytes, all of which the parent has allocated.
    assert!((5000 * 500..10_000_000).contains(&inuse), "{inuse}: {:#?}", child.comments);
    let allocated = child.total().alloc_bytes;
    assert!((1..5000 * 500).contains(&allocated), "{allocated}: {:#?}", child.comments);
    assert_no_loss(&child);
}

#[test]
fn a_child_that_loads_an_allocator_is_counted_in_both() {
    let program = compile::program("loads-allocator");
    let mut shell = Command::new("/bin/sh");
    // The shell is there until the end, and is another process.
    shell.arg("-c").arg(format!("echo ready; read go; {}; true", path_str(&program)));
    let mut guest = Guest::spawn_command("a shell", shell);
    guest.line("ready");
    let mut recording = Recording::attach_with(guest.pid(), &["--follow-forks"]);
    guest.send("go");
    guest.line("ready");
    let said = recording.stderr_line("heaptap: following process ");
    let pid = said.split(' ').nth(3).and_then(|pid| pid.parse().ok()).expect("a PID");
    // The shell had a heap of another program, and no allocator of this one's.
    guest.command("run");
    guest.command("load libmimalloc.so.2");
    let line = recording.stderr_line(&format!("heaptap: process {pid}: mimalloc"));
    assert!(line.contains("counted from now on"), "{line}");
    guest.command("run");
    let ledger = guest.ledger();
    let recorded = recording.finish();
    let profile = profile_of(&recorded, pid);
    // What the library has allocated before it was probed, it may free later.
    ledger.assert_equals(&profile);
    guest.send("exit");
    guest.wait();
}

#[test]
fn what_does_not_fit_the_table_is_not_inherited_and_counted() {
    const ROOM: u64 = 100;
    let mut guest = Guest::start("family");
    let recording = Recording::attach_with(guest.pid(), &["--follow-forks", "--max-live", &ROOM.to_string()]);
    guest.command("allocate");
    let pid = make(&mut guest, "fork");
    let parent = guest.ledger().site("first_malloc").inuse_objects;
    guest.command("child release 0");
    let recorded = recording.finish();
    let profile = profile_of(&recorded, pid);
    let missing = profile.counter("uninherited_blocks");
    assert!(missing > 0 && missing < parent, "{missing} of {parent}: {:#?}", profile.comments);
    assert_eq!(profile.counter("unknown_frees"), missing, "{:#?}", profile.comments);
    assert_eq!(profile.total().inuse_objects, 0, "{:#?}", profile.comments);
    let told = format!("from which it had {parent} blocks");
    assert!(
        profile.comments.iter().any(|comment| comment.contains(&told)),
        "{told}: {:#?}",
        profile.comments
    );
    guest.exit();
}

#[test]
fn children_that_nobody_can_be_told_of_are_counted() {
    const CHILDREN: usize = 200;
    let mut guest = Guest::start("family");
    let options = ["--follow-forks", "--max-live", "1000", "--ring-bytes", "4096"];
    let recording = Recording::attach_with(guest.pid(), &options);
    // The ring buffer has no room for all that the kernel side has to tell meanwhile.
    recording.signal(Signal::STOP);
    let answer = guest.command(&format!("many {CHILDREN}"));
    recording.signal(Signal::CONT);
    let recorded = recording.finish();
    let has_profile = |pid: &&u32| recorded.path.with_file_name(format!("heap.{pid}.pb.gz")).exists();
    let followed = pids_in(&answer).iter().filter(has_profile).count();
    assert!(followed > 10 && followed < CHILDREN, "{followed} of {CHILDREN} have a profile");
    let profile = recorded.profile();
    let unfollowed = usize::try_from(profile.counter("unfollowed_children")).expect("no negative count");
    assert_eq!(unfollowed, CHILDREN - followed, "{:#?}", profile.comments);
    guest.exit();
}

/// Waits until a process has no probe in its code: the kernel takes them out when the last descriptor goes, which may be after
/// the process that had it.
#[track_caller]
fn assert_without_probes(guest: &mut Guest, pid: u32) {
    for _ in 0..200 {
        if changed_text(pid).is_empty() {
            return;
        }
        guest.command("allocate");
        guest.command("release 0");
    }
    panic!("probes are left in {pid}: {:?}", changed_text(pid));
}

#[test]
fn a_family_outlives_a_killed_recorder_without_a_trace() {
    let (mut guest, recording) = start();
    guest.command("allocate");
    guest.command("start-churn");
    let pid = make(&mut guest, "fork");
    guest.command("child start-churn");
    assert!(!changed_text(pid).is_empty(), "the child has no probes");
    let killed = recording.pid();
    assert!(!definitions_of(killed).is_empty(), "heaptap has defined no probes");
    recording.signal(Signal::KILL);
    recording.wait();
    let parent = guest.pid();
    assert_without_probes(&mut guest, parent);
    assert_without_probes(&mut guest, pid);
    guest.command("child allocate");
    guest.command("child stop-churn");
    guest.command("stop-churn");
    let child = ledger_of(&mut guest, "child");
    assert_eq!(child.site("second_malloc").alloc_objects, 120, "{child}");
    // What the killed one has left defined the next one removes.
    let recording = Recording::attach_with(guest.pid(), &["--follow-forks"]);
    guest.command("release 0");
    guest.command("allocate");
    recording.finish().outcome.assert_success();
    assert_eq!(definitions_of(killed), Vec::<String>::new());
    guest.exit();
}

/// The probes that a heaptap has defined; others may have some of their own.
fn definitions_of(heaptap: u32) -> Vec<String> {
    let all = std::fs::read_to_string("/sys/kernel/tracing/uprobe_events").expect("tracefs is mounted");
    let group = format!(":heaptap_{heaptap}_");
    all.lines().filter(|line| line.contains(&group)).map(str::to_owned).collect()
}
