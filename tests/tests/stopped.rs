//! Processes whose threads are all stopped for a moment, and who notice nothing.

use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use heaptap_tests::compile;
use heaptap_tests::guest::Guest;
use heaptap_tests::itself;
use heaptap_tests::process::{Lines, PATIENCE, Process, states, until_one_is, until_states};
use profiler_user::target::stopped::{Argument, StackWords, StopError, Stopped, Unfit};
use rustix::process::Signal;

/// Generous, for machines are shared; how long it takes is printed.
const LIMIT: Duration = Duration::from_secs(10);

const SYS_MMAP: u64 = 9;
const SYS_GETPID: u64 = 39;
const SYS_MUNMAP: u64 = 11;
const SYS_CLOSE: u64 = 3;
const SYS_MEMFD_CREATE: u64 = 319;
const PAGE: u64 = 4096;
const NOTHING: [u64; 0] = [];

/// In which this test program stops another process instead, and waits to be killed.
const STOPS: &str = "HEAPTAP_TEST_STOPS";

fn stop(guest: &Guest) -> Stopped {
    Stopped::all(guest.pid(), LIMIT).unwrap_or_else(|err| panic!("{err}: {err:?}"))
}

/// Waits for all five to wait in their calls.
fn until_blocked(guest: &mut Guest) {
    let deadline = Instant::now() + PATIENCE;
    while guest.command("waiting") != ["waiting 5", "ended 0"] {
        assert!(Instant::now() < deadline, "the threads do not wait");
        std::thread::yield_now();
    }
}

/// Asks the kernel for a page, writes and reads it, and gives it back.
fn use_memory(stopped: &Stopped) {
    let page = stopped.syscall(SYS_MMAP, [0, PAGE, 3, 0x22, u64::MAX, 0]).expect("mmap");
    stopped.write(page + 8, b"heaptap").expect("the page can be written");
    assert_eq!(stopped.read(page + 7, 9).expect("the page can be read"), b"\0heaptap\0");
    stopped.write_code(page, b"code").expect("the page can be written");
    assert_eq!(stopped.read(page, 4).expect("the page can be read"), b"code");
    assert_eq!(stopped.syscall(SYS_MUNMAP, [page, PAGE]).expect("munmap"), 0);
    stopped.read(page, 1).expect_err("the page is gone");
}

#[test]
fn an_argument_can_be_bytes() {
    let mut guest = Guest::start("blocked");
    guest.command("count 3");
    let stopped = stop(&guest);
    let arguments = [Argument::from(c"heaptap"), Argument::from(0)];
    let file = stopped.syscall(SYS_MEMFD_CREATE, arguments).expect("memfd_create");
    let link = format!("/proc/{}/fd/{file}", guest.pid());
    let name = fs::read_link(link).expect("the file is open");
    assert_eq!(name.to_str(), Some("/memfd:heaptap (deleted)"));
    assert_eq!(stopped.syscall(SYS_CLOSE, [file]).expect("close"), 0);
    let count = stopped.syscall(SYS_GETPID, [0; 7]).expect_err("there are no such calls");
    assert!(matches!(count, StopError::Arguments { count: 7, .. }), "{count:?}");
    stopped.release();
    guest.command("counted");
    guest.exit();
}

#[test]
fn calls_that_wait_go_on_waiting() {
    let mut guest = Guest::start("blocked");
    guest.command("block");
    for _ in 0..50 {
        until_blocked(&mut guest);
        let stopped = stop(&guest);
        assert_eq!(stopped.registers().expect("registers").len(), 6);
        assert_eq!(stopped.syscall(SYS_GETPID, NOTHING).expect("getpid"), u64::from(guest.pid()));
        use_memory(&stopped);
        stopped.release();
    }
    until_blocked(&mut guest);
    let answer = guest.command("end");
    assert_eq!(answer, ["nanosleep 0 0", "futex 0 0", "epoll_wait 1 0", "read 1 0", "accept 0 0", "slept 1"]);
    guest.exit();
}

/// Where one waits in a system call, it is that one which makes ours: here none does.
#[test]
fn a_thread_that_runs_can_make_a_system_call() {
    let mut guest = Guest::start("blocked");
    guest.send("spin");
    let line = guest.line("word");
    let word = line.strip_prefix("word ").and_then(|word| word.parse().ok()).expect("an address");
    let mut running = 0;
    for _ in 0..50 {
        let stopped = stop(&guest);
        let before = stopped.registers().expect("registers");
        running += before.iter().filter(|(_, registers)| registers.orig_rax == u64::MAX).count();
        use_memory(&stopped);
        let after = stopped.registers().expect("registers");
        assert_eq!(format!("{before:?}"), format!("{after:?}"), "the registers are what they were");
        let failed = stopped.syscall(SYS_MUNMAP, [1, 0]).expect_err("an address that is odd");
        assert!(matches!(failed, StopError::Call { number: SYS_MUNMAP, .. }), "{failed:?}");
        stopped.release();
    }
    assert!(running > 0, "it never ran");
    let stopped = stop(&guest);
    stopped.write(word, &1_u64.to_ne_bytes()).expect("the word can be written");
    stopped.release();
    guest.line("done");
    guest.exit();
}

#[test]
fn two_hundred_threads_are_stopped_and_go_on() {
    let mut guest = Guest::start("blocked");
    guest.command("count 200");
    let mut times = Vec::new();
    for _ in 0..20 {
        let began = Instant::now();
        let stopped = stop(&guest);
        let took = began.elapsed();
        assert!(states(guest.pid()).chars().all(|state| state == 't'), "{}", states(guest.pid()));
        assert_eq!(stopped.registers().expect("registers").len(), 201);
        times.push((took, stopped.release()));
        guest.command("counted");
    }
    println!("200 running threads, until all are stopped and until all are released: {times:?}");
    guest.exit();
}

#[test]
fn a_stopped_process_stays_stopped_and_continues_when_told() {
    let mut guest = Guest::start("blocked");
    guest.command("count 3");
    guest.signal(Signal::STOP);
    until_states(guest.pid(), "stopped", |state| state == 'T');
    for _ in 0..10 {
        let stopped = stop(&guest);
        assert_eq!(stopped.syscall(SYS_GETPID, NOTHING).expect("getpid"), u64::from(guest.pid()));
        stopped.release();
        until_states(guest.pid(), "stopped", |state| state == 'T');
    }
    guest.signal(Signal::CONT);
    guest.command("counted");
    // Told to stop, and to go on, while it is stopped by us.
    let stopped = stop(&guest);
    guest.signal(Signal::STOP);
    assert_eq!(stopped.syscall(SYS_GETPID, NOTHING).expect("getpid"), u64::from(guest.pid()));
    stopped.release();
    until_states(guest.pid(), "stopped", |state| state == 'T');
    let stopped = stop(&guest);
    guest.signal(Signal::CONT);
    assert_eq!(stopped.syscall(SYS_GETPID, NOTHING).expect("getpid"), u64::from(guest.pid()));
    stopped.release();
    guest.command("counted");
    assert_eq!(guest.command("signals"), ["came 18 2"]);
    guest.exit();
}

#[test]
fn signals_that_come_meanwhile_arrive() {
    let mut guest = Guest::start("blocked");
    guest.command("count 3");
    let time_signal = 34 + 3;
    for round in 1..=20 {
        let stopped = stop(&guest);
        guest.signal(Signal::USR1);
        let kill = Command::new("kill").args([format!("-{time_signal}"), guest.pid().to_string()]).status();
        assert!(kill.expect("kill").success());
        assert_eq!(stopped.syscall(SYS_GETPID, NOTHING).expect("getpid"), u64::from(guest.pid()));
        stopped.release();
        let expected = [format!("came 10 {round}"), format!("came {time_signal} {round}")];
        let deadline = Instant::now() + PATIENCE;
        while guest.command("signals") != expected {
            assert!(Instant::now() < deadline, "{:?}", guest.command("signals"));
        }
    }
    guest.exit();
}

#[test]
fn threads_that_come_and_go_do_not_break_it() {
    let mut guest = Guest::start("blocked");
    guest.command("churn");
    for _ in 0..100 {
        let stopped = stop(&guest);
        assert!(
            states(guest.pid()).chars().all(|state| matches!(state, 't' | 'Z' | 'X')),
            "{}",
            states(guest.pid())
        );
        assert_eq!(stopped.syscall(SYS_GETPID, NOTHING).expect("getpid"), u64::from(guest.pid()));
        stopped.release();
        guest.command("churned");
    }
    guest.exit();
}

/// The offsets of the instructions of `round_and_round` in guests/blocked.c, and where it ends.
const ROUND: [u64; 10] = [0, 2, 4, 6, 8, 10, 12, 14, 16, 20];
const ROUND_BYTES: u64 = 22;

#[test]
fn threads_are_moved_to_a_copy_of_what_is_to_be_changed() {
    let mut guest = Guest::start("blocked");
    let first = guest.number("copies");
    let second = first + PAGE;
    let mut offsets = BTreeSet::new();
    for round in 0..100 {
        let (from, to) = if round % 2 == 0 { (first, second) } else { (second, first) };
        let pairs = ROUND.map(|offset| (from + offset, to + offset));
        let stopped = stop(&guest);
        assert_eq!(stopped.move_threads(&pairs).expect("it can be moved"), 1);
        assert_eq!(stopped.move_threads(&pairs).expect("nobody is there"), 0);
        let registers = stopped.registers().expect("registers");
        let at = registers.iter().find_map(|(_, registers)| registers.rip.checked_sub(to));
        offsets.insert(at.filter(|at| *at < ROUND_BYTES).expect("it has been moved"));
        stopped.release();
        guest.command("counted");
    }
    assert!(offsets.len() > 1, "it was only ever at {offsets:?}");
    guest.exit();
}

#[test]
fn where_a_signal_will_return_to_is_found() {
    let mut guest = Guest::start("blocked");
    let loops = guest.number("copies");
    // It is almost never at the first instruction, which would not count.
    let around = loops - 1..loops + ROUND_BYTES;
    let found = |guest: &Guest, range: &Range<u64>| {
        let stopped = stop(guest);
        let began = Instant::now();
        let words = stopped.find_words(std::slice::from_ref(range)).expect("stacks can be read");
        println!("looked for {:?}", began.elapsed());
        words
    };
    let running = found(&guest, &around);
    assert!(running.found.iter().any(|word| word.at.is_none()), "{running:?}");
    for handler in ["handle", "handle aside"] {
        guest.command(handler);
        let handling = found(&guest, &around);
        assert!(handling.found.iter().any(|word| word.at.is_some()), "{handling:?}");
        assert!(handling.found.iter().all(|word| word.at.is_some() && around.contains(&word.word)));
        assert!(handling.unseen.is_empty(), "{handling:?}");
        let elsewhere = found(&guest, &(loops + PAGE..loops + 2 * PAGE));
        assert_eq!(elsewhere, StackWords::default());
        guest.command("leave");
    }
    guest.exit();
}

#[test]
fn a_stack_that_is_too_long_is_told_of() {
    let mut guest = Guest::start("blocked");
    guest.send("deep");
    guest.line("deep");
    let stopped = stop(&guest);
    let words = stopped.find_words(&[]).expect("stacks can be read");
    assert_eq!(words.unseen, [i32::try_from(guest.pid()).unwrap()]);
    stopped.release();
    guest.send("");
    guest.line("done");
    guest.exit();
}

#[test]
fn a_process_that_another_traces_is_left_alone() {
    let mut guest = Guest::start("blocked");
    guest.command("count 3");
    let mut tracer = stopper(guest.pid());
    let refused = Stopped::all(guest.pid(), LIMIT).expect_err("it is traced");
    let StopError::Traced { tracer: by, .. } = refused else { panic!("{refused:?}") };
    let thread = fs::read_dir(format!("/proc/{}/task", tracer.pid())).expect("the tracer runs");
    let threads: Vec<String> =
        thread.map(|thread| thread.unwrap().file_name().to_string_lossy().into_owned()).collect();
    assert!(threads.contains(&by.to_string()), "{by} is not in {threads:?}");
    assert!(states(guest.pid()).chars().all(|state| state == 't'), "{}", states(guest.pid()));
    tracer.signal(Signal::KILL);
    tracer.wait();
    guest.command("counted");
    guest.exit();
}

#[test]
fn a_process_goes_on_when_who_stopped_it_is_killed() {
    let mut guest = Guest::start("blocked");
    guest.command("count 3");
    for _ in 0..5 {
        let mut tracer = stopper(guest.pid());
        assert!(states(guest.pid()).chars().all(|state| state == 't'), "{}", states(guest.pid()));
        tracer.signal(Signal::KILL);
        tracer.wait();
        guest.command("counted");
    }
    guest.exit();
}

#[test]
fn a_process_that_is_killed_while_it_is_stopped_is_gone() {
    let guest = Guest::start("blocked");
    let stopped = stop(&guest);
    guest.signal(Signal::KILL);
    let deadline = Instant::now() + PATIENCE;
    while stopped.registers().is_ok() {
        assert!(Instant::now() < deadline, "it still has registers");
    }
    let gone = stopped.syscall(SYS_GETPID, NOTHING).expect_err("nobody is there");
    assert!(matches!(gone, StopError::Gone { .. } | StopError::NoThread { .. }), "{gone:?}");
    stopped.release();
    let pid = guest.pid();
    assert!(!guest.wait().success());
    let gone = Stopped::all(pid, LIMIT).expect_err("nobody is there");
    assert!(matches!(gone, StopError::Gone { .. }), "{gone:?}");
}

#[test]
fn what_cannot_be_stopped_is_refused_with_its_reason() {
    let narrow = compile::no_allocator(compile::Width::Bits32);
    let process = Process::spawn(Command::new(narrow));
    until_states(process.pid(), "asleep", |state| state == 'S');
    let refused = Stopped::all(process.pid(), LIMIT).expect_err("it is not for us");
    assert!(matches!(refused, StopError::Bits32 { .. }), "{refused:?}");
    until_states(process.pid(), "asleep", |state| state == 'S');
}

/// A filter's answer to a call that it does not know may be to kill.
#[test]
fn a_process_with_filtered_calls_is_changed_but_makes_none_for_us() {
    let mut guest = Guest::start("blocked");
    guest.send("spin");
    let line = guest.line("word");
    let word = line.strip_prefix("word ").and_then(|word| word.parse().ok()).expect("an address");
    let stopped = stop(&guest);
    stopped.write(word, &1_u64.to_ne_bytes()).expect("the word can be written");
    stopped.release();
    guest.line("done");
    guest.command("filter");
    let stopped = stop(&guest);
    let refused = stopped.syscall(SYS_GETPID, NOTHING).expect_err("its calls are filtered");
    assert!(matches!(refused, StopError::NoThread { source: Unfit::Filtered, .. }), "{refused:?}");
    let held = stopped.read(word, 8).expect("the word can be read");
    stopped.write(word, &held).expect("the word can be written");
    stopped.release();
    guest.exit();
}

/// Nothing but a kill ends the wait for what vfork has started.
#[test]
fn a_thread_that_nothing_interrupts_is_named_and_all_others_go_on() {
    let mut guest = Guest::start("blocked");
    guest.command("count 3");
    guest.command("vfork");
    until_one_is(guest.pid(), 'D');
    for _ in 0..10 {
        // As long as any other thread needs to stop, however busy the machine is.
        let late = Stopped::all(guest.pid(), Duration::from_millis(500)).expect_err("it cannot be stopped");
        let StopError::NotInTime { state, .. } = &late else { panic!("{late:?}") };
        assert!(state.starts_with('D'), "{late}");
        guest.command("counted");
    }
    // It would stop now, if it were still asked to.
    guest.command("join");
    stop(&guest).release();
    guest.exit();
}

/// Another process of this program, that stops the one with this PID and holds it.
fn stopper(pid: u32) -> Process {
    let mut command = itself::command("stops_another_and_waits", STOPS, pid);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut process = Process::spawn(command);
    let mut lines = Lines::of(process.child().stdout.take().expect("stdout is piped"));
    lines.find("all are stopped", |line| line.ends_with("all are stopped"));
    process
}

/// No test of its own: see [`stopper`].
#[test]
fn stops_another_and_waits() {
    let Some(pid) = itself::told_of(STOPS) else { return };
    let _stopped = Stopped::all(pid, LIMIT).expect("it can be stopped");
    println!("all are stopped");
    // Up to the end of the one who asked for it.
    let _ = std::io::stdin().read_line(&mut String::new());
}
