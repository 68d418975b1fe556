//! Beginnings and ends: of the target, of the recording, of several recordings, of heaptap itself.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use heaptap_tests::guest::Guest;
use heaptap_tests::heaptap::{self, Recording, path_str};
use heaptap_tests::kernel;
use heaptap_tests::process::Process;
use heaptap_tests::profile::Profile;
use heaptap_tests::text::{Probed, changed_text, text_left_changed};
use rustix::process::Signal;

/// Records a guest that ends by itself; everything up to then is in the profile.
#[track_caller]
fn record_to_the_end(how: &str) {
    let mut guest = Guest::start("ends");
    let recording = Recording::attach(guest.pid());
    guest.command("run");
    let ledger = guest.ledger();
    guest.send(&format!("end {how}"));
    let status = guest.wait();
    match how {
        "abort" => assert_eq!(status.signal(), Some(Signal::ABORT.as_raw()), "{status}"),
        "kill" => assert_eq!(status.signal(), Some(Signal::KILL.as_raw()), "{status}"),
        _ => assert!(status.success(), "{status}"),
    }
    ledger.assert_equals(&recording.wait().profile());
}

#[test]
fn a_target_that_returns_from_main_ends_the_recording() {
    record_to_the_end("return");
}

#[test]
fn a_target_that_skips_its_exit_handlers_ends_the_recording() {
    record_to_the_end("_exit");
}

#[test]
fn a_target_that_aborts_ends_the_recording() {
    record_to_the_end("abort");
}

#[test]
fn a_target_that_is_killed_ends_the_recording() {
    record_to_the_end("kill");
}

#[test]
fn an_allocator_that_is_loaded_later_is_counted_beside_the_first_and_by_its_own_name() {
    let mut guest = Guest::start("loads-allocator");
    let mut recording = Recording::attach(guest.pid());
    guest.command("run");
    guest.command("load libmimalloc.so.2");
    let line = recording.stderr_line("heaptap: mimalloc");
    assert!(line.contains("counted from now on"), "{line}");
    guest.command("run");
    let ledger = guest.ledger();
    let recorded = recording.finish();
    let profile = recorded.profile();
    ledger.assert_equals(&profile);
    for stack in &profile.stacks {
        let is_loaded = stack.functions.iter().any(|name| name.starts_with("call_loaded"));
        let is_own = stack.functions.iter().any(|name| name == "call_own");
        let allocator = stack.labels.get("allocator").map(String::as_str);
        assert!(!is_loaded || allocator == Some("mimalloc"), "{stack:#?}");
        assert!(!is_own || allocator == Some("glibc"), "{stack:#?}");
    }
    guest.exit();
}

#[test]
fn a_target_killed_at_work_leaves_a_profile() {
    let mut guest = Guest::start("churn");
    let recording = Recording::attach(guest.pid());
    guest.command("start");
    guest.command("advance 5000");
    guest.signal(Signal::KILL);
    assert_eq!(guest.wait().signal(), Some(Signal::KILL.as_raw()));
    let profile = recording.wait().profile();
    let named = profile.stacks.iter().any(|stack| stack.functions.iter().any(|name| name == "churn_malloc"));
    assert!(named, "no stack names the site: {:#?}", profile.stacks);
}

#[test]
fn sigterm_finishes_and_writes_like_ctrl_c() {
    let mut guest = Guest::start("every-function");
    let recording = Recording::attach(guest.pid());
    guest.command("run");
    let ledger = guest.ledger();
    recording.signal(Signal::TERM);
    ledger.assert_equals(&recording.wait().profile());
    guest.exit();
}

#[test]
fn a_recording_ends_after_its_duration() {
    let mut guest = Guest::start("every-function");
    let recording = Recording::attach_with(guest.pid(), &["--duration", "3s"]);
    guest.command("run");
    let ledger = guest.ledger();
    let profile = recording.wait().profile();
    let seen = ledger.of_profile(&profile).total();
    // On a machine that is very busy the time may be over before the guest is.
    assert!(seen.alloc_objects > 0 && seen.alloc_objects <= ledger.total().alloc_objects, "{seen}");
    guest.exit();
}

#[test]
fn a_second_recording_counts_from_its_own_beginning() {
    let mut guest = Guest::start("every-function");
    let first = Recording::attach(guest.pid());
    guest.command("run");
    let before = guest.ledger();
    before.assert_equals(&first.finish().profile());

    guest.command("run");
    let unwatched = guest.ledger();
    let second = Recording::attach(guest.pid());
    guest.command("run");
    let ledger = guest.ledger();
    ledger.since(&unwatched).assert_equals(&second.finish().profile());
    guest.exit();
}

#[test]
fn two_recordings_of_one_target_both_see_everything() {
    let mut guest = Guest::start("every-function");
    let first = Recording::attach(guest.pid());
    let second = Recording::attach(guest.pid());
    guest.command("run");
    let once = guest.ledger();
    once.assert_equals(&first.finish().profile());
    // The first has taken its probes out, and the second goes on.
    guest.command("run");
    let twice = guest.ledger();
    twice.assert_equals(&second.finish().profile());
    guest.exit();
}

/// Records a guest that starts processes; gives the profile, which has the parent's ledger.
#[track_caller]
fn record_parent(command: &str) -> Profile {
    let mut guest = Guest::start("fork");
    let recording = Recording::attach(guest.pid());
    guest.command(command);
    let ledger = guest.ledger();
    assert!(ledger.total().alloc_objects >= 100, "{ledger}");
    let profile = recording.finish().profile();
    ledger.assert_equals(&profile);
    for loss in ["unknown_frees", "overwritten_blocks", "abandoned_calls", "unmatched_returns"] {
        assert_eq!(profile.counter(loss), 0, "{loss}: {:#?}", profile.comments);
    }
    guest.exit();
    profile
}

#[test]
fn a_child_that_shares_the_memory_until_it_replaces_its_program_is_not_the_target() {
    let profile = record_parent("vfork");
    assert_eq!(profile.total().inuse_bytes, 0, "{:#?}", profile.stacks);
}

#[test]
fn processes_that_a_library_starts_are_not_the_target() {
    record_parent("spawn");
}

/// Starts a guest that has a PID which has become free; other processes may be faster.
fn start_as_pid(pid: u32) -> Guest {
    for _ in 0..1000 {
        fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).expect("root may choose");
        let guest = Guest::start("every-function");
        if guest.pid() == pid {
            return guest;
        }
        guest.exit();
    }
    panic!("PID {pid} is taken");
}

#[test]
fn a_process_that_is_given_the_targets_pid_is_not_the_target() {
    let mut guest = Guest::start("every-function");
    let pid = guest.pid();
    let recording = Recording::attach(pid);
    guest.command("run");
    let ledger = guest.ledger();
    // heaptap learns of the end only when somebody else is there.
    recording.signal(Signal::STOP);
    guest.signal(Signal::KILL);
    guest.wait();
    let mut other = start_as_pid(pid);
    assert_eq!(changed_text(pid), Vec::<String>::new());
    recording.signal(Signal::CONT);
    other.command("run");
    let profile = recording.wait().profile();
    ledger.assert_equals(&profile);
    other.command("run");
    assert_eq!(changed_text(pid), Vec::<String>::new());
    other.exit();
}

#[test]
fn a_child_process_is_not_the_target() {
    let profile = record_parent("run");
    let child = profile.stacks.iter().find(|stack| stack.functions.iter().any(|name| name == "child_malloc"));
    assert!(child.is_none(), "the child's allocations are in the profile: {child:?}");
}

/// A child has a copy of its parent's code, in which nothing is to stop it.
#[test]
fn a_child_that_is_not_followed_is_freed_of_its_parents_probes() {
    let mut guest = Guest::start("family");
    let recording = Recording::attach(guest.pid());
    let answer = guest.command("fork");
    let child = answer.iter().find_map(|line| line.strip_prefix("pid ")?.trim().parse().ok());
    let child: u32 = child.unwrap_or_else(|| panic!("no child: {answer:?}"));
    if kernel::is_at_least(6, 12) {
        // Each step takes as long as the child needs to answer.
        let left = text_left_changed(child, || drop(guest.command("child getpid")));
        assert_eq!(left, Vec::<String>::new(), "probes are left in the child");
    } else {
        // The kernel takes each out when the child comes by there.
        let before = changed_text(child);
        guest.command("child allocate");
        let left = changed_text(child);
        assert!(left.len() < before.len(), "{left:#?} of {before:#?}");
    }
    assert!(!changed_text(guest.pid()).is_empty(), "the parent is recorded on");
    guest.command("allocate");
    let ledger = guest.ledger();
    ledger.assert_equals(&recording.finish().profile());
    guest.exit();
}

#[test]
fn probes_are_in_the_code_during_a_recording_and_gone_after_it() {
    let mut guest = Guest::start("every-function");
    assert_eq!(changed_text(guest.pid()), Vec::<String>::new(), "before");
    let recording = Recording::attach(guest.pid());
    guest.command("run");
    assert!(!changed_text(guest.pid()).is_empty(), "a recording without a probe");
    recording.finish().outcome.assert_success();
    assert_eq!(changed_text(guest.pid()), Vec::<String>::new(), "after");
    guest.exit();
}

/// Without probes in its code the guest runs at the speed that it had; its blocks' contents it checks itself.
#[test]
fn a_target_outlives_a_killed_recorder_without_a_trace() {
    let mut guest = Guest::start("churn");
    guest.command("start");
    let recording = Recording::attach(guest.pid());
    guest.command("advance 10000");
    recording.signal(Signal::KILL);
    let ended = recording.wait();
    assert_eq!(ended.outcome.code, None, "{ended:#?}");

    let pid = guest.pid();
    let left = text_left_changed(pid, || drop(guest.command("advance 1000")));
    assert_eq!(left, Vec::<String>::new(), "probes are left in the target");

    let before = guest.number("iterations");
    guest.command("advance 100000");
    let after = guest.number("iterations");
    assert!(after >= before + 100_000, "{before} rounds, then {after}");
    assert_eq!(guest.command("stop"), Vec::<String>::new());
    guest.ledger();
    guest.exit();
}

/// The kernel puts probes in one after the other, and cannot take them out for a process that is being killed.
#[test]
fn a_target_outlives_a_recorder_that_is_killed_while_it_puts_probes_in() {
    let mut guest = Guest::start("every-function");
    let pid = guest.pid();
    let recording = Recording::attach(pid);
    guest.command("run");
    let probed = Probed::now(pid);
    let all = probed.count();
    recording.finish().outcome.assert_success();
    let folder = tempfile::tempdir().expect("a folder");
    let mut in_the_middle = 0;
    for microseconds in (0..600).step_by(15) {
        let mut command = heaptap::command();
        let output = folder.path().join("heap.pb.gz");
        command.args(["record", "--pid", &pid.to_string(), "--output", path_str(&output)]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut recorder = Process::spawn(command);
        let mut seen = 0;
        while seen == 0 && recorder.child().try_wait().expect("it is our child").is_none() {
            seen = probed.count();
        }
        // It takes some hundred in all.
        let first = Instant::now();
        while first.elapsed() < Duration::from_micros(microseconds) {
            seen = probed.count();
        }
        recorder.signal(Signal::KILL);
        assert_eq!(recorder.wait().signal(), Some(Signal::KILL.as_raw()), "it ended before it had a probe");
        in_the_middle += u32::from(seen < all);
        // The kernel takes them out when the last descriptor goes, which may be after the process.
        let mut steps = 0;
        while probed.count() > 0 && steps < 100_000 {
            guest.ledger();
            steps += 1;
        }
        assert_eq!(probed.count(), 0, "probes are left in the target, {microseconds} us after the first");
    }
    assert!(in_the_middle > 0, "never while they were put in");
    guest.command("run");
    guest.exit();
}

#[test]
fn a_target_whose_recorder_was_killed_can_be_recorded_again() {
    let mut guest = Guest::start("every-function");
    let killed = Recording::attach(guest.pid());
    guest.command("run");
    killed.signal(Signal::KILL);
    killed.wait();

    let unwatched = guest.ledger();
    let recording = Recording::attach(guest.pid());
    guest.command("run");
    let ledger = guest.ledger();
    ledger.since(&unwatched).assert_equals(&recording.finish().profile());
    guest.exit();
}
