//! Calls that wait go on waiting while a gate goes in and out around them.

use std::time::Instant;

use heaptap_tests::belongings::Belongings;
use heaptap_tests::gating::plans;
use heaptap_tests::guest::Guest;
use heaptap_tests::heaptap::{Recording, run};
use heaptap_tests::process::PATIENCE;
use profiler_user::gated::Prepared;

/// Waits for all five to wait in their calls.
fn until_blocked(guest: &mut Guest) {
    let deadline = Instant::now() + PATIENCE;
    while guest.command("waiting") != ["waiting 5", "ended 0"] {
        assert!(Instant::now() < deadline, "the threads do not wait");
        std::thread::yield_now();
    }
}

#[test]
fn calls_that_wait_are_not_interrupted_by_a_gate() {
    let mut guest = Guest::start("blocked");
    let pid = guest.pid();
    // Before the threads, whose nap has an end.
    let plans = plans(pid, 4 << 10);
    guest.command("block");
    until_blocked(&mut guest);
    let before = Belongings::of(pid);
    for _ in 0..10 {
        for plan in &plans {
            let prepared = Prepared::make(pid, plan).unwrap_or_else(|error| panic!("{error}"));
            let (gate, _) = prepared.enter().unwrap_or_else(|(error, _)| panic!("{error}"));
            until_blocked(&mut guest);
            let departure = gate.leave().unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(departure.stays, None);
        }
    }
    let recording = Recording::attach_with(pid, &["--gate=require", "--sample", "64KiB"]);
    recording.finish().outcome.assert_no_panic();
    assert!(run(["detach", "--pid", &pid.to_string()]).stdout.contains("has no gate"));
    Belongings::of(pid).assert_same(&before, "behind the last time");
    let answer = guest.command("end");
    assert_eq!(answer, ["nanosleep 0 0", "futex 0 0", "epoll_wait 1 0", "read 1 0", "accept 0 0", "slept 1"]);
    guest.exit();
}
