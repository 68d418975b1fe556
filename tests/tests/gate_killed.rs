//! A process goes on as it should, at whichever step those are killed who put a gate in or take it out, and the next one cleans up.

use std::env;
use std::process::{Command, Stdio};
use std::time::Instant;

use heaptap_tests::belongings::Belongings;
use heaptap_tests::gating::plans;
use heaptap_tests::guest::Guest;
use heaptap_tests::heaptap::{self, path_str, run};
use heaptap_tests::itself;
use heaptap_tests::killed::{Steps, killed_at_steps};
use heaptap_tests::process::until_states;
use profiler_user::gated::{Prepared, find};

/// In which this test program gates the process with this PID, and ungates it.
const GATES: &str = "HEAPTAP_TEST_GATES";

/// In which it does so only to leave the gate in.
const LEAVES: &str = "HEAPTAP_TEST_LEAVES_GATE";

const INTERVAL_BYTES: u64 = 4 << 10;

/// No test of its own: see [`killed_while`].
#[test]
fn gates_another() {
    let Some(pid) = itself::told_of(GATES) else { return };
    for plan in plans(pid, INTERVAL_BYTES) {
        let prepared = Prepared::make(pid, &plan).expect("there is room");
        let (gate, _) = prepared.enter().map_err(|(error, _)| error).expect("it can be entered");
        if env::var_os(LEAVES).is_none() {
            gate.leave().expect("it can be left");
        }
    }
}

/// This program, which gates the process and ungates it.
fn gating(pid: u32) -> Command {
    let mut command = itself::command("gates_another", GATES, pid);
    command.stdout(Stdio::null());
    command
}

/// What the process had before is what it has when `heaptap detach` has gone through it; says what that did.
fn clean_up(guest: &mut Guest, before: &Belongings, place: &str) -> String {
    let pid = guest.pid().to_string();
    let outcome = run(["detach", "--pid", &pid]);
    assert_eq!(outcome.code, Some(0), "{outcome:#?}, killed at {place}");
    outcome.assert_no_panic();
    // A thread may be in there.
    let outcome = if outcome.stdout.contains("stays") { run(["detach", "--pid", &pid]) } else { outcome };
    Belongings::of(guest.pid()).assert_same(before, place);
    guest.command("worked");
    outcome.stdout
}

/// Kills whoever is started at every so many steps; in between, the process is what it was. Returns a summary to be printed.
fn killed_while(
    every: usize,
    mut start: impl FnMut(&Guest) -> Command,
    mut next: impl FnMut(&mut Guest, &str),
) -> String {
    let mut guest = Guest::start("verifying");
    guest.command("work 2");
    guest.command("worked");
    let pid = guest.pid();
    let before = Belongings::of(pid);
    let began = Instant::now();
    let (mut unfinished, mut closed, mut gates) = (0, 0, 0);
    let guest = std::cell::RefCell::new(guest);
    let kills = killed_at_steps(
        Steps::Writing,
        every,
        || start(&guest.borrow()),
        |place| {
            let guest = &mut *guest.borrow_mut();
            until_states(pid, "let go", |state| state != 't');
            guest.command("worked");
            next(guest, place);
            let said = clean_up(guest, &before, place);
            unfinished += usize::from(said.contains("none of its functions"));
            closed += usize::from(said.contains("is closed"));
            gates += usize::from(said.contains("as they were before"));
        },
    );
    let mut guest = guest.into_inner();
    let said = format!(
        "killed {kills} times in {:?}, of which {unfinished} left a gate without a description, {closed} an open file, {gates} a whole gate",
        began.elapsed()
    );
    assert!(kills > 10, "{kills} steps");
    assert!(run(["detach", "--pid", &pid.to_string()]).stdout.contains("has no gate"));
    guest.command("rest");
    guest.exit();
    said
}

#[test]
fn whoever_gates_and_ungates_may_be_killed_at_every_step() {
    println!("{}", killed_while(1, |guest| gating(guest.pid()), |_, _| {}));
}

#[test]
fn heaptap_detach_may_be_killed_at_every_step() {
    let start = |guest: &Guest| {
        let mut first = gating(guest.pid());
        let left = first.env(LEAVES, "1").status().expect("this program can be started");
        assert!(left.success());
        assert_eq!(find(guest.pid()).expect("it can be looked for").len(), 1);
        let mut command = heaptap::command();
        command.args(["detach", "--pid", &guest.pid().to_string()]).stdout(Stdio::null());
        command
    };
    println!("{}", killed_while(1, start, |_, _| {}));
}

/// The whole command, at some of its steps; what it leaves is for the next recording to take over.
#[test]
fn heaptap_record_may_be_killed_and_the_next_takes_over() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("heap.pb.gz");
    let arguments = |pid: u32| {
        let options = ["record", "--gate=require", "--sample", "64KiB", "--duration", "50ms", "--force"];
        let target =
            ["--pid".to_owned(), pid.to_string(), "--output".to_owned(), path_str(&output).to_owned()];
        options.into_iter().map(ToOwned::to_owned).chain(target).collect::<Vec<_>>()
    };
    let start = |guest: &Guest| {
        let mut command = heaptap::command();
        command.args(arguments(guest.pid())).stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let said = killed_while(17, start, |guest, place| {
        let outcome = run(arguments(guest.pid()));
        assert_eq!(outcome.code, Some(0), "{outcome:#?}, killed at {place}");
    });
    println!("{said}");
}
