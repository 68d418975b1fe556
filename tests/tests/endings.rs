//! How a recording ends when something is in its way: a second Ctrl-C, a file of the same name.

use std::fs;
use std::io::{self, PipeReader, PipeWriter, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

use heaptap_tests::guest::Guest;
use heaptap_tests::heaptap::{self, Recording, path_str};
use heaptap_tests::process::{Lines, Process};
use heaptap_tests::profile::Profile;
use heaptap_tests::text::text_left_changed;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::Signal;

/// A pipe that holds all that it can, so that whoever writes into it waits.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = io::pipe().expect("a pipe");
    let flags = fcntl_getfl(&writer).expect("its flags");
    fcntl_setfl(&writer, flags | OFlags::NONBLOCK).expect("not to wait");
    while writer.write(&[b'x'; 1]).is_ok() {}
    fcntl_setfl(&writer, flags).expect("to wait again");
    (reader, writer)
}

#[test]
fn a_second_interrupt_stops_at_once() {
    for options in [&[][..], &["--follow-forks"]] {
        assert_second_interrupt_stops(options);
    }
}

#[track_caller]
fn assert_second_interrupt_stops(options: &[&str]) {
    let mut guest = Guest::start("every-function");
    let folder = tempfile::tempdir().expect("a folder");
    let (_reader, stdout) = full_pipe();
    let mut command = heaptap::command();
    command.args(["record", "--pid", &guest.pid().to_string()]).args(options).arg("--output");
    command.arg(folder.path().join("heap.pb.gz")).stdout(stdout).stderr(Stdio::piped());
    let mut process = Process::spawn(command);
    let mut stderr = Lines::of(process.child().stderr.take().expect("stderr is piped"));
    stderr.find("the beginning", |line| line.starts_with("heaptap: recording"));
    guest.command("run");
    process.signal(Signal::INT);
    // Now it has a table to write that nobody reads.
    stderr.find("the end", |line| line.starts_with("heaptap: finishing"));
    process.signal(Signal::INT);
    assert_eq!(process.wait().signal(), Some(Signal::INT.as_raw()));
    let pid = guest.pid();
    // It answers, and allocates nothing, of which it has only so much room to keep.
    let left = text_left_changed(pid, || drop(guest.ledger()));
    assert_eq!(left, Vec::<String>::new(), "probes are left in the target");
    guest.command("run");
    guest.exit();
}

#[test]
fn a_name_that_is_taken_meanwhile_loses_nothing() {
    let mut guest = Guest::start("every-function");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("heap.pb.gz");
    let mut command = heaptap::command();
    command.env("TMPDIR", folder.path());
    command.args(["record", "--pid", &guest.pid().to_string(), "--output", path_str(&path)]);
    let mut running = heaptap::Running::start(command);
    running.stderr_line("heaptap: recording");
    guest.command("run");
    let ledger = guest.ledger();
    fs::write(&path, "somebody else's").expect("to be first");
    running.signal(Signal::INT);
    let outcome = running.wait();
    outcome.assert_refused("exists already");
    assert_eq!(fs::read_to_string(&path).expect("still there"), "somebody else's");
    let rescued = outcome
        .stderr
        .lines()
        .find_map(|line| line.strip_prefix("heaptap: the profile was written to ")?.strip_suffix(" instead"))
        .unwrap_or_else(|| panic!("{outcome:#?}"));
    ledger.assert_equals(&Profile::read(rescued.as_ref()));
    guest.exit();
}

#[test]
fn nothing_is_left_beside_the_profile() {
    let mut guest = Guest::start("every-function");
    let recording = Recording::attach(guest.pid());
    guest.command("run");
    let recorded = recording.finish();
    recorded.outcome.assert_success();
    let folder = recorded.path.parent().expect("it lies in a folder");
    let names: Vec<_> =
        fs::read_dir(folder).expect("its folder").map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["heap.pb.gz"]);
    guest.exit();
}
