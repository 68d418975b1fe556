//! What else takes hold of a process under a gate: debuggers, other tools' probes, another heaptap, filters, stops.

use std::fs;
use std::process::{Command, Stdio};

use heaptap_tests::compile;
use heaptap_tests::gate;
use heaptap_tests::guest::Guest;
use heaptap_tests::heaptap::{Recording, run};
use heaptap_tests::ledger::Ledger;
use heaptap_tests::process::{Lines, Process, until_one_is};
use heaptap_tests::profile::Profile;
use heaptap_tests::text::{changed_text, text_left_changed};
use rustix::process::Signal;
use tempfile::TempDir;

/// Panics unless a recording by a gate is refused with exit code 2 and a reason.
#[track_caller]
fn assert_refused(pid: u32, reason: &str) {
    let pid = pid.to_string();
    let target = ["--pid", &pid];
    Recording::start_early(&[&target, &gate::EXACTLY[..]].concat()).wait().outcome.assert_refused(reason);
}

/// Records by ordinary probes in a gate's place, for a reason, while the guest runs; its numbers are right.
#[track_caller]
fn assert_falls_back(guest: &mut Guest, reason: &str) {
    let before = guest.ledger();
    let mut recording = Recording::attach_with(guest.pid(), &["--gate", "--sample", "1"]);
    let said = recording.stderr_line("heaptap: glibc is not gated: ");
    assert!(said.contains(reason), "{said}");
    guest.command("run");
    let ledger = guest.ledger().since(&before);
    ledger.assert_equals(&recording.finish().profile());
    assert_eq!(gate::mapped(guest.pid()), 0);
}

#[test]
fn a_process_with_a_debugger_is_counted_by_ordinary_probes() {
    let mut guest = Guest::start("gated");
    let mut tracer = Guest::start("tracer");
    tracer.command(&format!("attach {}", guest.pid()));
    let reason = format!("is already traced by {}", tracer.pid());
    assert_refused(guest.pid(), &reason);
    assert_falls_back(&mut guest, &reason);
    tracer.command("detach");
    tracer.exit();
    guest.exit();
}

/// Nothing but a kill ends the wait for what vfork has started.
#[test]
fn a_process_with_a_thread_that_cannot_be_stopped_is_counted_by_ordinary_probes() {
    let mut guest = Guest::start("blocked");
    guest.command("count 3");
    guest.command("vfork");
    until_one_is(guest.pid(), 'D');
    assert_refused(guest.pid(), "in state D");
    let mut recording = Recording::attach_with(guest.pid(), &["--gate", "--sample", "1"]);
    let said = recording.stderr_line("heaptap: glibc is not gated: ");
    assert!(said.contains("in state D"), "{said}");
    guest.command("counted");
    drop(recording);
    guest.command("join");
    // Now it can.
    gate::attach(guest.pid()).finish();
    guest.exit();
}

#[test]
fn a_32_bit_process_has_neither_probes_nor_a_gate() {
    let narrow = Process::spawn(Command::new(compile::no_allocator(compile::Width::Bits32)));
    assert_refused(narrow.pid(), "32-bit");
}

#[test]
fn a_debugger_that_comes_later_sees_threads_as_anywhere() {
    let mut guest = Guest::start("gated");
    guest.command("start 2");
    let recording = gate::attach(guest.pid());
    let mut tracer = Guest::start("tracer");
    for _ in 0..20 {
        tracer.command(&format!("attach {}", guest.pid()));
        for _ in 0..20 {
            tracer.command("look");
        }
        guest.command("advance 100");
        tracer.command("detach");
    }
    gate::finish(recording);
    // And where it is there at the end, the gate stays, which is told.
    let recording = gate::attach(guest.pid());
    tracer.command(&format!("attach {}", guest.pid()));
    let stderr = recording.finish().outcome.stderr;
    assert!(stderr.contains("it is still in, which `heaptap detach` changes"), "{stderr}");
    assert!(stderr.contains(&format!("already traced by {}", tracer.pid())), "{stderr}");
    guest.command("advance 100");
    tracer.command("detach");
    run(["detach", "--pid", &guest.pid().to_string()]).assert_success();
    assert_eq!(gate::mapped(guest.pid()), 0);
    guest.command("stop");
    guest.exit();
    tracer.exit();
}

/// A guest with a copy of the C library, which is no other process's: bpftrace puts its breakpoints into all that have a file.
fn with_own_libc() -> (Guest, TempDir) {
    let folder = tempfile::tempdir().expect("a folder for the library");
    fs::copy("/lib/x86_64-linux-gnu/libc.so.6", folder.path().join("libc.so.6"))
        .expect("a copy of the library");
    let mut command = Command::new(compile::program("gated"));
    command.env("LD_LIBRARY_PATH", folder.path());
    let mut guest = Guest::spawn_command("gated", command);
    guest.line("ready");
    (guest, folder)
}

/// A `bpftrace` that counts calls of a process.
struct Counting {
    process: Process,
    lines: Lines,
}

impl Counting {
    /// Begins with these probes of the C library, and waits until they are in; `None` where it is not installed.
    fn start(pid: u32, library: &TempDir, probes: &[&str]) -> Option<Self> {
        let library = library.path().join("libc.so.6");
        let mut program = "BEGIN { printf(\"begun\\n\"); }".to_owned();
        for probe in probes {
            let (kind, function) = probe.split_once(':').expect("a kind and a function");
            program += &format!(
                " {kind}:{}:{function} /pid == {pid}/ {{ @{kind}_{function} = count(); }}",
                library.display()
            );
        }
        let mut command = Command::new("bpftrace");
        command.args(["-p", &pid.to_string(), "-e", &program]).stdout(Stdio::piped()).stderr(Stdio::null());
        command.env("BPFTRACE_NO_USER_SYMBOLS", "1");
        if Command::new("bpftrace").arg("--version").stdout(Stdio::null()).status().is_err() {
            return None;
        }
        let mut process = Process::spawn(command);
        let mut lines = Lines::of(process.child().stdout.take().expect("stdout is piped"));
        // It attaches in order, and this one first: the text has the others'.
        lines.find("begun", |line| line.ends_with("begun"));
        Some(Self { process, lines })
    }

    /// Ends it; gives what it has counted of a probe.
    fn finish(mut self, probe: &str) -> i64 {
        self.process.signal(Signal::INT);
        let said = self.lines.all("the end of bpftrace");
        self.process.wait();
        let name = format!("@{}: ", probe.replace(':', "_"));
        let count = said.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok());
        count.unwrap_or_else(|| panic!("no {name} in {said}"))
    }
}

/// Waits until so much is changed in the guest's code, which is looked at between steps of its own.
fn until_probed(guest: &mut Guest, changes: usize) {
    let pid = guest.pid();
    while changed_text(pid).len() < changes {
        guest.ledger();
    }
}

const PROBES: [&str; 4] = ["uprobe:malloc", "uprobe:free", "uprobe:calloc", "uretprobe:malloc"];

#[test]
fn a_process_with_another_tools_probes_is_counted_by_ordinary_ones() {
    let (mut guest, library) = with_own_libc();
    let Some(counting) = Counting::start(guest.pid(), &library, &PROBES[..1]) else { return };
    until_probed(&mut guest, 1);
    assert_refused(guest.pid(), "another tool has changed it");
    let before = guest.ledger().site("call_malloc").alloc_objects;
    assert_falls_back(&mut guest, "malloc at ");
    let calls = guest.ledger().site("call_malloc").alloc_objects - before;
    assert_eq!(counting.finish(PROBES[0]), calls);
    guest.exit();
}

/// Puts another tool's probes on a gate, which leaves before the gate does, or after. Gives what was recorded, and what there was.
fn record_with_probes(probes: &[&str], stays_longer: bool) -> Option<(Ledger, Profile)> {
    let (mut guest, library) = with_own_libc();
    let recording = gate::attach(guest.pid());
    guest.command("run");
    let gated = changed_text(guest.pid()).len();
    let counting = Counting::start(guest.pid(), &library, probes)?;
    // On the first bytes of three functions.
    until_probed(&mut guest, gated + 3);
    guest.command("run");
    let mut counting = Some(counting);
    if !stays_longer {
        assert!(counting.take().expect("it counts").finish(probes[0]) >= 300);
        guest.command("run");
    }
    let ledger = guest.ledger();
    let (_, profile) = gate::finish(recording);
    guest.command("run");
    if let Some(counting) = counting {
        assert!(counting.finish(probes[0]) >= 600);
        guest.command("run");
    }
    assert_eq!(text_left_changed(guest.pid(), || drop(guest.command("run"))), Vec::<String>::new());
    guest.exit();
    Some((ledger, profile))
}

#[test]
fn another_tools_probes_may_be_put_on_a_gate_and_taken_off() {
    for stays_longer in [false, true] {
        let Some((ledger, profile)) = record_with_probes(&PROBES[..3], stays_longer) else { return };
        ledger.assert_equals(&profile);
        // Where it sees returns, nobody sees through to the callers, which is told.
        let Some((ledger, profile)) = record_with_probes(&PROBES, stays_longer) else { return };
        assert_eq!(profile.total(), ledger.total(), "{:#?}", profile.comments);
    }
}

#[test]
fn where_one_heaptap_counts_by_a_gate_no_other_records() {
    let mut guest = Guest::start("gated");
    let recording = gate::attach(guest.pid());
    let pid = guest.pid().to_string();
    let other = Recording::start_early(&["--pid", &pid]).wait();
    other.outcome.assert_refused("is gated by another heaptap, which runs");
    assert_refused(guest.pid(), "is gated by another heaptap, which runs");
    guest.command("run");
    let ledger = guest.ledger();
    let (_, profile) = gate::finish(recording);
    ledger.assert_equals(&profile);
    // The other way round there are two, of which one has no gate.
    let before = guest.ledger();
    let first = Recording::attach(guest.pid());
    assert_falls_back(&mut guest, "another tool has changed it");
    guest.command("run");
    guest.ledger().since(&before).assert_equals(&first.finish().profile());
    guest.exit();
}

#[test]
fn what_a_heaptap_leaves_that_is_killed_is_taken_out_by_the_next_one() {
    let mut guest = Guest::start("gated");
    for options in [&[][..], &gate::EXACTLY] {
        let recording = gate::attach(guest.pid());
        guest.command("run");
        recording.signal(Signal::KILL);
        assert_eq!(recording.wait().outcome.code, None);
        guest.command("run");
        let before = guest.ledger();
        let pid = guest.pid().to_string();
        let mut recording = Recording::start(&[&["--pid", &pid], options].concat());
        recording.stderr_line("heaptap: 2 gates that an earlier heaptap had left taken out first");
        guest.command("run");
        let ledger = guest.ledger().since(&before);
        ledger.assert_equals(&recording.finish().profile());
        assert_eq!(gate::mapped(guest.pid()), 0);
    }
    guest.exit();
}

#[test]
fn a_process_whose_calls_are_filtered_is_counted_by_ordinary_probes() {
    let mut guest = Guest::start("gated");
    guest.command("filter");
    assert_refused(guest.pid(), "its system calls are filtered");
    assert_falls_back(&mut guest, "its system calls are filtered");
    guest.exit();
}

#[test]
fn a_gate_is_taken_out_of_a_process_that_has_its_calls_filtered_since() {
    let mut guest = Guest::start("gated");
    guest.command("run");
    let recording = gate::attach(guest.pid());
    let before = guest.ledger();
    guest.command("filter");
    guest.command("run");
    let ledger = guest.ledger().since(&before);
    let recorded = recording.finish();
    ledger.assert_equals(&recorded.profile());
    let stderr = &recorded.outcome.stderr;
    assert!(stderr.contains("none of its threads can make a system call"), "{stderr}");
    assert_eq!(text_left_changed(guest.pid(), || drop(guest.command("run"))), Vec::<String>::new());
    assert_eq!(gate::mapped(guest.pid()), 4, "what nothing leads to any more");
    guest.exit();
}

#[test]
fn a_process_that_is_stopped_already_stays_so() {
    let mut guest = Guest::start("gated");
    guest.signal(Signal::STOP);
    let recording = gate::attach(guest.pid());
    let status = fs::read_to_string(format!("/proc/{}/status", guest.pid())).expect("it is there");
    assert!(status.contains("State:\tT (stopped)"), "{status}");
    guest.signal(Signal::CONT);
    guest.command("run");
    let ledger = guest.ledger();
    guest.signal(Signal::STOP);
    let (_, profile) = gate::finish(recording);
    ledger.assert_equals(&profile);
    let status = fs::read_to_string(format!("/proc/{}/status", guest.pid())).expect("it is there");
    assert!(status.contains("State:\tT (stopped)"), "{status}");
    guest.signal(Signal::CONT);
    assert_eq!(gate::mapped(guest.pid()), 0);
    guest.command("run");
    guest.exit();
}

#[test]
fn stops_and_their_ends_go_by_while_a_gate_goes_in_and_out() {
    let mut guest = Guest::start("gated");
    guest.command("start 2");
    for _ in 0..3 {
        let pid = guest.pid().to_string();
        // What does not stop in time has ordinary probes, or the gate stays in: the process is whole all the same.
        let recording = Recording::start_early(&["--pid", &pid, "--gate", "--sample", "1"]);
        let recording = while_stopping(&mut guest, recording, "heaptap: recording");
        guest.command("advance 1000");
        recording.signal(Signal::INT);
        let recorded = while_stopping(&mut guest, recording, "heaptap: wrote ").wait();
        recorded.outcome.assert_success();
        guest.command("advance 1000");
        run(["detach", "--pid", &pid]).assert_success();
        assert_eq!(
            text_left_changed(guest.pid(), || drop(guest.command("advance 10"))),
            Vec::<String>::new()
        );
    }
    guest.command("stop");
    guest.exit();
}

/// Stops the guest and has it go on for a little, again and again, until a line has come.
fn while_stopping(guest: &mut Guest, mut recording: Recording, line: &'static str) -> Recording {
    let waiting = std::thread::spawn(move || {
        recording.stderr_line(line);
        recording
    });
    while !waiting.is_finished() {
        guest.signal(Signal::STOP);
        std::thread::yield_now();
        guest.signal(Signal::CONT);
        guest.command("advance 20");
    }
    waiting.join().expect("the line has come")
}
