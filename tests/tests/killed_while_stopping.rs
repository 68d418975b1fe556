//! A process goes on as if nothing had been, at whichever step those are killed who have it stopped and make system calls.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use heaptap_tests::belongings::open_files;
use heaptap_tests::guest::Guest;
use heaptap_tests::itself;
use heaptap_tests::killed::{Steps, killed_at_every_step};
use heaptap_tests::process::until_states;
use profiler_user::target::stopped::{Argument, Stopped};

/// Generous, for it is traced while it stops others.
const LIMIT: Duration = Duration::from_secs(10);

const SYS_CLOSE: u64 = 3;
const SYS_MMAP: u64 = 9;
const SYS_MUNMAP: u64 = 11;
const SYS_MEMFD_CREATE: u64 = 319;
const PAGE: u64 = 4096;

/// In which this test program has the process with this PID execute calls.
const HAS_EXECUTED: &str = "HEAPTAP_TEST_HAS_EXECUTED";

/// No test of its own: see [`killed_while_it_calls`].
#[test]
fn has_another_execute_calls() {
    let Some(pid) = itself::told_of(HAS_EXECUTED) else { return };
    let stopped = Stopped::all(pid, LIMIT).expect("it can be stopped");
    // Shared, so that the kernel joins it to no other mapping.
    let pages = stopped.syscall(SYS_MMAP, [0, 3 * PAGE, 3, 0x21, u64::MAX, 0]).expect("mmap");
    let file = stopped
        .syscall(SYS_MEMFD_CREATE, [Argument::from(c"heaptap"), Argument::from(0)])
        .expect("memfd_create");
    stopped.write(pages, b"heaptap").expect("the page can be written");
    stopped.syscall(SYS_CLOSE, [file]).expect("close");
    stopped.syscall(SYS_MUNMAP, [pages, 3 * PAGE]).expect("munmap");
    stopped.release();
}

/// What a process has, but for what the calls above make, and for what grows: open files, and mappings with their access.
fn belongings(pid: u32) -> Vec<String> {
    let files = open_files(pid).into_iter();
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("the guest runs");
    let maps = maps.lines().map(ToOwned::to_owned);
    let passing = ["memfd:heaptap", "/dev/zero", "[stack]", "[heap]"];
    files.chain(maps).filter(|line| !passing.iter().any(|name| line.contains(name))).collect()
}

/// How many of what the calls above make are there: at most one mapping and one file for each time that they are cut off.
fn left_behind(pid: u32) -> usize {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("the guest runs");
    maps.lines().filter(|line| line.contains("/dev/zero")).count()
        + open_files(pid).iter().filter(|file| file.contains("memfd:heaptap")).count()
}

/// Has a guest that checks itself execute calls, and kills who has it do so at every step.
///
/// In between, the guest does what it was told by `does`, up to the next command. Returns a summary to be printed.
fn killed_while_it_calls(guest: &mut Guest, does: Option<&str>) -> String {
    let pid = guest.pid();
    let verify = |guest: &mut Guest| {
        guest.send("verify");
        guest.line("done");
    };
    let begin = |guest: &mut Guest| {
        if let Some(does) = does {
            guest.send(does);
            guest.line(does);
        }
    };
    verify(guest);
    begin(guest);
    let before = belongings(pid);
    let (mut left, mut interrupted, mut has_stopped) = (0, 0, false);
    let start = || {
        let mut command = itself::command("has_another_execute_calls", HAS_EXECUTED, pid);
        command.stdout(Stdio::null());
        command
    };
    let began = Instant::now();
    let kills = killed_at_every_step(Steps::OnOthers, start, |place| {
        until_states(pid, "let go", |state| state != 't');
        verify(guest);
        if does.is_some() {
            // One was the end of what it did before.
            guest.line("done");
        }
        let fails = guest.number("interrupted");
        assert!(!has_stopped || fails == interrupted, "epoll_wait has failed, killed at {place}");
        interrupted = fails;
        // A write is the first of what is done to a process that is stopped.
        has_stopped |= place.contains("process_vm_writev");
        begin(guest);
        assert_eq!(belongings(pid), before, "killed at {place}");
        let now = left_behind(pid);
        assert!(now <= left + 2, "{now} after {left}, killed at {place}");
        left = now;
    });
    // Some calls were cut off between what they made and what takes it away.
    assert!(kills > 50 && left > 0);
    let took = began.elapsed();
    format!(
        "killed {kills} times in {took:?}, which leaves {left} behind and has made {interrupted} calls fail"
    )
}

#[test]
fn many_threads_go_on_at_whichever_step_we_are_killed() {
    let mut guest = Guest::start("checking");
    guest.command("crowd");
    println!("{}", killed_while_it_calls(&mut guest, None));
    guest.exit();
}

#[test]
fn a_thread_that_computes_goes_on_at_whichever_step_we_are_killed() {
    let mut guest = Guest::start("checking");
    println!("{}", killed_while_it_calls(&mut guest, Some("alone")));
    guest.command("exit");
}

#[test]
fn a_thread_that_naps_goes_on_at_whichever_step_we_are_killed() {
    let mut guest = Guest::start("checking");
    println!("{}", killed_while_it_calls(&mut guest, Some("naps")));
    guest.command("exit");
}
