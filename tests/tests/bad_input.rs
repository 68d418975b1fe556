//! What a user can get wrong: each ends with a cause, a next step and exit code 2, and nothing is lost.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread;

use heaptap_tests::compile::{self, Width};
use heaptap_tests::guest::Guest;
use heaptap_tests::heaptap::{self, Outcome, Recording, path_str};
use heaptap_tests::process::Process;
use rustix::process::Signal;

/// Runs `heaptap record --pid PID` with an output file of its own, which must not appear.
fn record(pid: impl ToString) -> Outcome {
    let folder = tempfile::tempdir().expect("a folder for the profile");
    let output = folder.path().join("heap.pb.gz");
    let outcome = heaptap::run(["record", "--pid", &pid.to_string(), "--output", path_str(&output)]);
    assert!(!output.exists(), "a profile of nothing: {outcome:#?}");
    outcome
}

#[test]
fn a_process_that_does_not_exist() {
    // The largest number that a process can have is one less.
    let pid = fs::read_to_string("/proc/sys/kernel/pid_max").expect("procfs");
    let pid = pid.trim();
    record(pid).assert_refused(pid);
    heaptap::run(["inspect", "--pid", pid]).assert_refused(pid);
    heaptap::run(["serve", "--pid", pid, "--listen", "127.0.0.1:0"]).assert_refused(pid);
}

#[test]
fn a_file_of_stacks_that_is_there_already() {
    let mut guest = Guest::start("churn");
    let folder = tempfile::tempdir().expect("a folder for the files");
    let [stacks, output] = ["stacks", "heap.pb.gz"].map(|name| folder.path().join(name));
    fs::write(&stacks, "of another day").expect("it can be written");
    let pid = guest.pid().to_string();
    let arguments =
        ["record", "--pid", &pid, "--output", path_str(&output), "--capture-stacks", path_str(&stacks)];
    let outcome = heaptap::run(arguments);
    outcome.assert_refused(path_str(&stacks));
    assert!(outcome.stderr.contains("--force"), "{outcome:#?}");
    assert_eq!(fs::read_to_string(&stacks).expect("it stays"), "of another day");
    assert!(!output.exists(), "nothing was recorded");
    guest.command("stop");
    guest.exit();
}

#[test]
fn a_process_that_has_ended_but_was_not_waited_for() {
    let mut guest = Guest::start("ends");
    guest.send("end _exit");
    let pid = guest.pid();
    wait_for_zombie(pid);
    record(pid).assert_refused(&pid.to_string());
}

/// Returns when the kernel shows the process as ended; waiting for it would take the zombie away.
fn wait_for_zombie(pid: u32) {
    use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
    let pid = Pid::from_raw(pid.try_into().expect("a PID is positive")).expect("a PID is not 0");
    waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).expect("a child of ours");
}

#[test]
fn a_thread_of_a_process() {
    let mut guest = Guest::start("churn");
    guest.command("start");
    let tid = guest.number("tid");
    let outcome = record(tid);
    outcome.assert_refused("thread");
    // The next step is the process that the thread belongs to.
    assert!(outcome.stderr.contains(&guest.pid().to_string()), "{outcome:#?}");
    guest.command("stop");
    guest.exit();
}

#[test]
fn a_kernel_thread() {
    record(kernel_thread()).assert_refused("kernel");
}

/// A process with the kernel-thread flag.
fn kernel_thread() -> u32 {
    /// `PF_KTHREAD` in the flags of /proc/PID/stat, the same since 2.6.
    const PF_KTHREAD: u64 = 0x0020_0000;
    let processes = fs::read_dir("/proc").expect("procfs");
    let mut pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is_kernel_thread = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields = stat.rsplit_once(") ").map(|(_, rest)| rest).unwrap_or_default();
        let flags = fields.split(' ').nth(6).and_then(|flags| flags.parse::<u64>().ok()).unwrap_or_default();
        flags & PF_KTHREAD != 0
    };
    pids.find(is_kernel_thread)
        .expect("no kernel thread is to be seen: run the tests in the host's PID namespace")
}

#[test]
fn a_32_bit_process() {
    let waiting = Process::spawn(Command::new(compile::no_allocator(Width::Bits32)));
    record(waiting.pid()).assert_refused("32-bit");
}

#[test]
fn a_process_without_an_allocator_that_we_know() {
    let waiting = Process::spawn(Command::new(compile::no_allocator(Width::Bits64)));
    let outcome = record(waiting.pid());
    outcome.assert_refused("allocator");
    assert!(outcome.stderr.contains("no-allocator"), "it does not say what was looked at: {outcome:#?}");
}

#[test]
fn heaptap_itself() {
    let binary = heaptap::binary();
    let mut command = Command::new("sh");
    // exec keeps the PID.
    command.args(["-c", "exec \"$0\" record --pid $$ --output \"$1\""]).arg(&binary);
    let folder = tempfile::tempdir().expect("a folder for the profile");
    command.arg(folder.path().join("heap.pb.gz"));
    heaptap::run_command(command).assert_refused("itself");
}

#[test]
fn a_user_who_is_not_root() {
    let guest = Guest::start("ends");
    // A copy, for the build's folder may be closed to others.
    let folder = tempfile::tempdir().expect("a folder for the binary");
    fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).expect("the folder is ours");
    let binary = folder.path().join("heaptap");
    fs::copy(heaptap::binary(), &binary).expect("heaptap was built");
    let mut command = Command::new(&binary);
    command.current_dir(folder.path()).uid(65534).gid(65534);
    command.args(["record", "--pid", &guest.pid().to_string(), "--output", "heap.pb.gz"]);
    heaptap::run_command(command).assert_refused("root");
    guest.exit();
}

#[test]
fn targets_that_end_while_being_attached_to() {
    for _ in 0..5 {
        let guest = Guest::start("churn");
        let recording = Recording::start_early(&["--pid", &guest.pid().to_string()]);
        guest.signal(Signal::KILL);
        guest.wait();
        let outcome = recording.wait().outcome;
        outcome.assert_no_panic();
        match outcome.code {
            Some(0 | 1) => {}
            _ => outcome.assert_refused("heaptap"),
        }
    }
}

#[test]
fn thousands_of_processes_that_end_meanwhile_disturb_nobody() {
    const THREADS: usize = 2;
    const EACH: usize = 1000;
    let mut guest = Guest::start("every-function");
    let recording = Recording::attach(guest.pid());
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for _ in 0..EACH {
                    let status = Command::new("/bin/true").status().expect("it can be started");
                    assert!(status.success(), "{status}");
                }
            });
        }
        for _ in 0..10 {
            // It may be looked at before it has a program of its own, meanwhile, or when it has ended.
            let mut child = Command::new("/bin/true").spawn().expect("it can be started");
            let outcome = heaptap::run(["inspect", "--pid", &child.id().to_string()]);
            outcome.assert_no_panic();
            match outcome.code {
                Some(0) => {}
                _ => outcome.assert_refused("heaptap"),
            }
            child.wait().expect("it is ours");
            guest.command("run");
        }
    });
    let ledger = guest.ledger();
    ledger.assert_equals(&recording.finish().profile());
    guest.exit();
}

#[test]
fn an_output_that_cannot_be_written_is_found_out_before_recording() {
    let guest = Guest::start("ends");
    let pid = guest.pid().to_string();
    let folder = tempfile::tempdir().expect("a folder");
    let directory = path_str(folder.path());
    for output in ["/nonexistent/heap.pb.gz", "/proc/heap.pb.gz", directory] {
        let outcome = heaptap::run(["record", "--pid", &pid, "--output", output]);
        outcome.assert_refused(output);
        assert!(!outcome.stderr.contains("heaptap: recording"), "{outcome:#?}");
    }
    guest.exit();
}

#[test]
fn an_existing_profile_is_overwritten_only_by_force() {
    let mut guest = Guest::start("ends");
    let pid = guest.pid().to_string();
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("heap.pb.gz");
    fs::write(&output, "precious").expect("the folder is ours");
    let outcome = heaptap::run(["record", "--pid", &pid, "--output", path_str(&output)]);
    outcome.assert_refused(path_str(&output));
    assert!(outcome.stderr.contains("--force"), "{outcome:#?}");
    assert_eq!(fs::read_to_string(&output).ok().as_deref(), Some("precious"));

    let mut command = heaptap::command();
    command.args(["record", "--force", "--pid", &pid, "--output", path_str(&output)]);
    let mut running = heaptap::Running::start(command);
    running.stderr_line("heaptap: recording");
    guest.command("run");
    running.signal(Signal::INT);
    running.wait().assert_success();
    heaptap_tests::profile::Profile::read(&output);
    guest.exit();
}

#[test]
fn a_target_that_allocates_nothing_is_no_failure() {
    let guest = Guest::start("ends");
    let outcome = Recording::attach(guest.pid()).finish().outcome;
    outcome.assert_no_panic();
    assert_eq!(outcome.code, Some(1), "{outcome:#?}");
    guest.exit();
}

#[test]
fn arguments_that_make_no_sense() {
    for arguments in [
        &["record"][..],
        &["record", "--pid", "0"],
        &["record", "--pid", "-1"],
        &["record", "--pid", "99999999999999999999"],
        &["record", "--pid", "1", "--duration", "soon"],
        &["record", "--pid", "1", "--", "true"],
        &["serve", "--pid", "1", "--listen", "nowhere"],
        &["report"],
        &["no-such-command"],
    ] {
        let outcome = heaptap::run(arguments);
        outcome.assert_no_panic();
        assert_eq!(outcome.code, Some(2), "heaptap {arguments:?}: {outcome:#?}");
    }
}
