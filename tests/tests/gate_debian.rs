//! Programs as Debian ships them, at work while a gate goes in front of their allocator and out again: all that they answer is
//! right, the profile has what they say that they have, and nothing of the gate is left in them.

use std::fs;

use heaptap_tests::heaptap::{Recorded, Recording};
use heaptap_tests::load::{Busy, Load};
use heaptap_tests::profile::Profile;
use heaptap_tests::service::{self, Memory, Service};
use heaptap_tests::{chromium, nginx, postgres, redis, sqlite};

/// How often a gate goes in and out without anything else being looked at.
const VISITS: usize = 3;

/// The mean interval where it matters what is found, and that of a user who has not said.
const FINE_BYTES: i64 = 16 << 10;
const USUAL_BYTES: i64 = 512 << 10;

/// Allocations with a stack that is not whole, of a hundred. A sample has few stacks, of which each stands for many allocations:
/// one that is not learned in time, on a machine that has much else to do, is more than it is where all are counted.
const BROKEN_PER_CENT: u64 = 5;

/// Has a gate go in, lets the load go on, does something else, and has the gate go out again.
#[track_caller]
fn pass(pid: u32, load: &Load, rounds: u64, interval_bytes: i64, meanwhile: impl FnOnce()) -> Recorded {
    load.advance(0);
    let interval = format!("{interval_bytes}B");
    let options = ["--gate=require", "--max-overhead", "off", "--sample", &interval];
    let recording = Recording::attach_with(pid, &options);
    assert!(has_gate(pid), "there is no gate in {pid} while it is recorded");
    load.advance(rounds);
    meanwhile();
    let recorded = recording.finish();
    let said = &recorded.outcome.stderr;
    assert!(!has_gate(pid) || said.contains("its memory is still in the process"), "{said}");
    load.advance(1);
    recorded
}

/// The same with the profile that came of it.
#[track_caller]
fn visit(pid: u32, load: &Load, rounds: u64, interval_bytes: i64, meanwhile: impl FnOnce()) -> Profile {
    let profile = pass(pid, load, rounds, interval_bytes, meanwhile).profile();
    assert_gated(&profile);
    profile
}

/// Has a gate go in and out several times.
#[track_caller]
fn visits(pid: u32, load: &Load, rounds: u64) {
    for _ in 0..VISITS {
        let profile = visit(pid, load, rounds, USUAL_BYTES, || {});
        assert!(profile.counter("gate_calls") > 0, "{:#?}", profile.comments);
    }
}

/// Whether a process has memory of a gate.
fn has_gate(pid: u32) -> bool {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("the process runs");
    maps.contains("heaptap-gate")
}

/// Panics unless all allocators were gated, and nothing was lost.
#[track_caller]
fn assert_gated(profile: &Profile) {
    let said = profile.comments.iter().filter(|comment| comment.starts_with("gate: "));
    let said: Vec<&String> = said.collect();
    assert!(said.len() == 1 && said[0].contains(" functions of "), "{said:#?}");
    // A thread may be in a call when the gate goes out.
    let (calls, returns) = (profile.counter("gate_calls"), profile.counter("gate_returns"));
    assert!((0..=8).contains(&(calls - returns)), "{:#?}", profile.comments);
    for loss in ["inflight_full", "live_full_objects", "totals_full", "unreadable_results"] {
        assert_eq!(profile.counter(loss), 0, "{loss}: {:#?}", profile.comments);
    }
}

/// Panics unless there were so many calls in the sample, and nearly all stacks are whole.
#[track_caller]
fn assert_whole(profile: &Profile, samples: i64) {
    assert!(profile.counter("gate_calls") >= samples, "{:#?}", profile.comments);
    let ends = profile.allocations_by_end();
    let whole = ends.get("whole").copied().unwrap_or(0);
    let all: u64 = ends.values().sum();
    assert!(
        (all - whole) * 100 <= all * BROKEN_PER_CENT,
        "{whole} of {all} are whole: {:#?}",
        profile.comments
    );
}

/// Panics unless what is in use is what the program says, but for what a sample may be off by, six times in its mean, and a twentieth that is
/// counted otherwise.
#[track_caller]
fn assert_in_use(profile: &Profile, known: i64) {
    assert!(known > 10_000_000, "{known} is kept, by what the program says");
    let inuse = profile.total().inuse_bytes;
    // Of small blocks; that of larger ones is less.
    let deviation = ((known * FINE_BYTES) as f64).sqrt() as i64;
    assert!(
        (inuse - known).abs() <= 6 * deviation + known / 20,
        "{inuse} in the profile, {known} by the program: {:#?}",
        profile.comments
    );
}

#[test]
fn redis_keeps_all_values_and_has_in_use_what_it_says() {
    let folder = tempfile::tempdir().expect("a folder for the socket");
    let mut server = redis::Server::start(folder.path());
    let socket = server.socket();
    let mut benchmark = redis::Benchmark::start(&socket);
    benchmark.advance();
    let load = Load::start(["one", "two"].map(|name| {
        let socket = server.socket();
        move |round| socket.check(name, round)
    }));
    load.advance(5);
    let before = socket.used_memory();
    let pid = server.pid();
    let profile = visit(pid, &load, 20, FINE_BYTES, || {
        socket.keep();
        // The child has the gate in it, and nobody who counts.
        server.save();
    });
    let after = socket.used_memory();
    visits(pid, &load, 20);
    benchmark.advance();
    benchmark.stop();
    load.stop();
    socket.check_kept();
    server.shut_down();
    redis::Server::start(folder.path()).socket().check_kept();
    assert_whole(&profile, 500);
    assert_in_use(&profile, after - before);
}

#[test]
fn nginx_answers_right_and_keeps_no_more_than_its_connections() {
    let server = nginx::Server::start();
    let load = Load::start((0..2).map(|_| {
        let socket = server.socket();
        move |round| socket.check(round)
    }));
    load.advance(5);
    let profile = visit(server.pid(), &load, 20, FINE_BYTES, || {});
    visits(server.pid(), &load, 20);
    load.stop();
    server.socket().check(0);
    server.shut_down();
    assert_whole(&profile, 500);
    let total = profile.total();
    assert!(
        total.alloc_bytes > 20_000_000 && total.inuse_bytes < 2_000_000,
        "{total} {:#?}",
        profile.comments
    );
}

/// Blocks of a MiB that a service keeps.
const KEPT: i64 = 100;

/// Panics unless a service answers right throughout, and the profile has what it says that it keeps.
#[track_caller]
fn assert_served(service: &Service, warm_up: u64, samples: i64) {
    let load = Load::start((0..2).map(|_| {
        let url = service.url().to_owned();
        move |round| service::check(&url, round)
    }));
    // Until what it runs often is compiled, for that takes and gives back megabytes.
    load.advance(warm_up);
    let profile = visit(service.pid(), &load, 30, FINE_BYTES, || service.keep(KEPT));
    let Memory { own, .. } = service.memory();
    visits(service.pid(), &load, 20);
    load.stop();
    service.check_kept(KEPT);
    assert_whole(&profile, samples);
    // The rest is of what it was just asked, and before that of what has come and gone.
    let kept = KEPT << 20;
    assert!((kept..kept + kept / 20).contains(&own), "{own} by the service, {kept} is kept");
    assert_in_use(&profile, kept);
}

#[test]
fn node_answers_right_and_has_in_use_what_it_keeps() {
    assert_served(&Service::node(), 300, 500);
}

#[test]
fn python_answers_right_and_has_in_use_what_it_keeps() {
    assert_served(&Service::python(), 5, 500);
}

#[test]
fn a_jvm_answers_right_and_has_in_use_what_it_keeps() {
    assert_served(&Service::java(&["-XX:TieredStopAtLevel=1"]), 300, 200);
}

#[test]
fn sqlite_computes_right_and_has_in_use_what_it_says() {
    let database = sqlite::Database::start();
    let pid = database.pid();
    let busy = Busy::start(database, sqlite::Database::check);
    let before = busy.ask(sqlite::Database::taken);
    let profile = visit(pid, busy.load(), 20, FINE_BYTES, || busy.ask(sqlite::Database::keep));
    let after = busy.ask(sqlite::Database::taken);
    visits(pid, busy.load(), 20);
    busy.ask(sqlite::Database::check_kept);
    busy.stop();
    assert_whole(&profile, 500);
    assert_in_use(&profile, after - before);
}

#[test]
fn a_backend_of_postgresql_computes_right_and_has_in_use_what_it_says() {
    let server = postgres::Server::start();
    let mut client = server.connect();
    let pid = client.backend();
    let busy = Busy::start(client, postgres::Client::check);
    let mut other = server.connect();
    let others = Load::start([move |round| other.check(round)]);
    busy.load().advance(3);
    let before = busy.ask(postgres::Client::taken);
    let profile = visit(pid, busy.load(), 10, FINE_BYTES, || busy.ask(postgres::Client::keep));
    let after = busy.ask(postgres::Client::taken);
    visits(pid, busy.load(), 5);
    busy.ask(postgres::Client::check_kept);
    busy.stop();
    others.stop();
    server.shut_down();
    assert_whole(&profile, 200);
    assert_in_use(&profile, after - before);
}

/// A backend that forks while the postmaster is gated has the gate's code in it, with a table of its own, and nobody who counts.
#[test]
fn backends_that_fork_from_a_gated_postmaster_go_on_and_can_be_gated_themselves() {
    let server = postgres::Server::start();
    let folder = server.folder();
    let load = Load::start([move |round| {
        let mut client = postgres::connect(&folder);
        client.check(round);
        client.check(round + 1);
    }]);
    let mut born = Vec::new();
    for _ in 0..VISITS {
        let recorded = pass(server.pid(), &load, 3, FINE_BYTES, || {
            let mut client = server.connect();
            assert!(has_gate(client.backend()), "it was forked without");
            client.check(0);
            born.push(client);
        });
        // It allocates next to nothing itself, and a profile without anything is an exit code of its own.
        assert!(recorded.outcome.code.is_some_and(|code| code < 2), "{:#?}", recorded.outcome);
        assert_gated(&Profile::read(&recorded.path));
    }
    for mut client in born {
        let pid = client.backend();
        assert!(has_gate(pid), "nobody has taken it out");
        let busy = Busy::start(client, |client: &mut postgres::Client, round| client.check(round));
        visit(pid, busy.load(), 2, USUAL_BYTES, || {});
        assert!(!has_gate(pid), "the next gate has not taken it out");
        busy.stop();
    }
    load.stop();
    server.shut_down();
}

#[test]
fn a_browser_computes_right() {
    let browser = chromium::Browser::start();
    let address = browser.address().to_owned();
    let load = Load::start([move |round| chromium::check(&address, round)]);
    load.advance(1);
    for interval_bytes in [FINE_BYTES, USUAL_BYTES] {
        let profile = visit(browser.pid(), &load, 1, interval_bytes, || {});
        let total = profile.total();
        assert!(total.inuse_bytes < total.alloc_bytes / 2, "{total} {:#?}", profile.comments);
    }
    load.stop();
    browser.shut_down();
}
