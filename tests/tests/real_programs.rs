//! Large programs as Debian ships them, attached to and let go while they are at work: all that they answer is right, and what
//! the profile has in use is what they say themselves.

use heaptap_tests::heaptap::Recording;
use heaptap_tests::load::Load;
use heaptap_tests::profile::Profile;
use heaptap_tests::service::{self, Memory, Service};
use heaptap_tests::{chromium, mariadb, nginx};

/// Connections that are at work at once.
const CONNECTIONS: usize = 2;

/// Rounds of each of them before, during and after a recording.
const ROUNDS: u64 = 20;

/// Panics unless so many allocations were seen, and none was lost. Where their stacks end is not looked at here: on a machine
/// with much else to do, some do not fit the ring buffer, and are counted without.
#[track_caller]
fn assert_counted(profile: &Profile, at_least: i64) {
    let total = profile.total();
    assert!(total.alloc_objects >= at_least, "{total}: {:#?}", profile.comments);
    for loss in ["inflight_full", "live_full_objects", "totals_full", "unreadable_results", "lost_events"] {
        assert_eq!(profile.counter(loss), 0, "{loss}: {:#?}", profile.comments);
    }
}

#[test]
fn mariadb_answers_throughout_and_has_in_use_what_glibc_and_itself_say() {
    let server = mariadb::Server::start();
    let load = Load::start((0..CONNECTIONS).map(|number| {
        let mut client = server.connect();
        client.fill(&format!("of{number}"));
        move |round| client.check(round)
    }));
    let mut client = server.connect();
    load.advance(ROUNDS);

    let before = client.taken();
    let recording = Recording::attach(server.pid());
    client.keep();
    load.advance(ROUNDS);
    let after = client.taken();
    let profile = recording.finish().profile();
    load.advance(ROUNDS);
    load.stop();
    client.check_kept();
    server.shut_down();

    assert_counted(&profile, 50_000);
    let inuse = profile.total().inuse_bytes;
    assert!(inuse >= mariadb::KEPT_BYTES, "{inuse} in the profile: {:#?}", profile.comments);
    assert!(profile.total().inuse_objects >= mariadb::KEPT_OBJECTS, "{:#?}", profile.comments);
    // glibc counts 8 to 31 bytes more for each block, MariaDB some 24, and not what others than its own functions allocate.
    // Both count the frees of what was allocated before. A connection has some 100 kB more or less in the middle of a round.
    for (who, taken) in
        [("glibc", after.by_glibc - before.by_glibc), ("itself", after.by_itself - before.by_itself)]
    {
        assert!(
            (taken - inuse).abs() <= inuse / 20,
            "{inuse} in the profile, {taken} by {who}: {:#?}",
            profile.comments
        );
    }
}

#[test]
fn nginx_answers_throughout_two_recordings_and_keeps_no_more_than_a_connection() {
    let server = nginx::Server::start();
    let load = Load::start((0..CONNECTIONS).map(|_| {
        let socket = server.socket();
        move |round| socket.check(round)
    }));
    load.advance(ROUNDS);
    let recording = Recording::attach(server.pid());
    load.advance(ROUNDS);
    let first = recording.finish().profile();
    load.advance(ROUNDS);
    let recording = Recording::attach(server.pid());
    load.advance(ROUNDS);
    load.stop();
    let mut last = server.socket().connect();
    for _ in 0..2 {
        // When it has answered the second, it has seen that all others are gone.
        assert_eq!(last.get_packed("/page/last").status, 200);
    }
    let second = recording.finish().profile();
    drop(last);
    server.socket().check(0);
    server.shut_down();

    for profile in [&first, &second] {
        assert_counted(profile, 5000);
    }
    let total = second.total();
    assert!(total.alloc_bytes > 20_000_000, "{total} {:#?}", second.comments);
    // nginx frees with a connection all that it needed for it. Of the last one it may not have cleared away the request that it
    // has just answered, for which it has up to 300 kB.
    assert!(total.inuse_bytes <= 500_000, "{total} {:#?}", second.comments);
}

/// Blocks of a MiB that a service keeps, and how many more it had before.
const KEPT: i64 = 200;
const MORE: i64 = 50;

/// Rounds until the compiler of a service has little to do.
const WARM_UP: u64 = 500;

/// What a service said of itself when a recording began and when it ended, and the profile.
struct Served {
    before: Memory,
    after: Memory,
    profile: Profile,
}

impl Served {
    fn record(service: &Service) -> Self {
        let load = || {
            Load::start((0..CONNECTIONS).map(|_| {
                let url = service.url().to_owned();
                move |round| service::check(&url, round)
            }))
        };
        let first = load();
        // Until what they run often is compiled, for that takes and gives back megabytes.
        first.advance(WARM_UP);

        let recording = Recording::attach(service.pid());
        let before = service.memory();
        service.keep(KEPT + MORE);
        first.advance(ROUNDS);
        service.keep(KEPT);
        first.stop();
        // Else what the load leaves behind would be in one count and not in the other.
        let after = service.memory();
        let second = load();
        second.advance(0);
        let profile = recording.finish().profile();
        second.advance(ROUNDS);
        second.stop();
        service.check_kept(KEPT);
        Self { before, after, profile }
    }

    /// Panics unless what is in use is what the service has more of.
    #[track_caller]
    fn assert_agrees(&self) {
        let Self { before, after, profile } = self;
        let kept = KEPT << 20;
        assert!(after.own >= kept, "{kept} is kept, and the service says {after:?}");
        let inuse = profile.total().inuse_bytes;
        assert!(inuse >= kept, "{inuse} in the profile, of which {kept} is kept: {:#?}", profile.comments);
        // A twentieth is more than there is beside what is kept.
        for grown in [after.own - before.own, after.all - before.all] {
            assert!(
                (grown - inuse).abs() <= inuse / 20,
                "{inuse} in the profile, {grown} by {before:?} and {after:?}: {:#?}",
                profile.comments
            );
        }
    }
}

#[test]
fn node_answers_throughout_and_has_in_use_what_it_says() {
    let served = Served::record(&Service::node());
    // Node counts the contents of Buffers, and what else V8 was told of. Beside these there are what V8 allocates for itself,
    // and what a request or two have at the moment: some hundreds of kB.
    served.assert_agrees();
    assert_counted(&served.profile, 5000);
}

#[test]
fn a_jvm_answers_throughout_and_has_in_use_what_it_says() {
    // The second compiler takes tens of megabytes and gives them back, at any time: more than what counts may differ by.
    let served = Served::record(&Service::java(&["-XX:TieredStopAtLevel=1"]));
    assert_counted(&served.profile, 1000);
    // The JVM counts what it allocates by its own functions, also what its compiler has at the moment: up to 4 MB, which may be
    // from before. It does not count what its libraries allocate: zlib some 300 kB for a request.
    served.assert_agrees();
}

#[test]
fn a_browser_computes_right_throughout_and_its_own_operators_are_counted() {
    let browser = chromium::Browser::start();
    let address = browser.address().to_owned();
    let load = Load::start([move |round| chromium::check(&address, round)]);
    load.advance(1);
    let recording = Recording::attach(browser.pid());
    load.advance(3);
    let recorded = recording.finish();
    load.advance(1);
    load.stop();
    browser.shut_down();

    assert!(recorded.outcome.stderr.contains("malloc of chromium"), "{}", recorded.outcome.stderr);
    let profile = recorded.profile();
    // A page is some 40,000 allocations to the browser, a ninth of them by malloc and its like: all others are by new, and
    // do not go through these.
    assert_counted(&profile, 60_000);
    // Each page that was closed has given back what it took.
    let total = profile.total();
    assert!(total.inuse_bytes < total.alloc_bytes / 4, "{total}: {:#?}", profile.comments);
}
