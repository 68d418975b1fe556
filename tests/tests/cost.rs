//! What the target pays: it is measured and shown, and limited where that is wanted.

use heaptap_tests::guest::Guest;
use heaptap_tests::heaptap::{self, Recording, Serving};
use heaptap_tests::http::get;
use heaptap_tests::profile::Profile;
use heaptap_tests::text::changed_text;
use rustix::process::Signal;

/// Panics unless the costs of this busy process are sensible.
#[track_caller]
fn assert_sensible(profile: &Profile) {
    let of = |name| profile.cost(name).unwrap_or_else(|| panic!("no {name} in {:#?}", profile.comments));
    for trap in ["trap_entry_ns", "trap_return_ns"] {
        assert!((50.0..100_000.0).contains(&of(trap)), "{trap}: {:#?}", profile.comments);
    }
    // In a virtual machine that has to leave it for every step, it is 100 µs and more.
    assert!(of("trap_stepped_ns") > 50.0, "{:#?}", profile.comments);
    assert!(of("average_cpu_percent") > 0.0, "{:#?}", profile.comments);
    assert!(of("peak_cpu_percent") >= of("average_cpu_percent"), "{:#?}", profile.comments);
    assert!(of("hits_per_second") > 0.0, "{:#?}", profile.comments);
    assert!((0.0..=100.0).contains(&of("own_percent")), "{:#?}", profile.comments);
}

#[test]
fn what_a_busy_process_pays_is_shown() {
    let mut guest = Guest::start("churn");
    guest.command("start");
    let serving = Serving::start(guest.pid());
    let profile = serving.fetch_until("the cost", |profile| profile.cost("average_cpu_percent").is_some());
    assert_sensible(&profile);
    let (status, index) = get(serving.url.trim_end_matches("heap"));
    let index = String::from_utf8_lossy(&index);
    assert!(status == 200 && index.contains("cost: average_cpu_percent="), "{index}");
    // It is not stopped by no limit at all.
    guest.command("advance 1000");
    serving.finish(Signal::INT);
    guest.command("stop");
    guest.exit();
}

#[test]
fn a_recording_that_costs_too_much_ends_with_what_it_has() {
    let mut guest = Guest::start("churn");
    guest.command("start");
    let recorded = Recording::attach_with(guest.pid(), &["--max-overhead", "1"]).wait();
    let profile = recorded.profile();
    let stderr = &recorded.outcome.stderr;
    // First it is made to cost less, which is not enough.
    let less = "from now on one allocation is counted for every 524288 bytes";
    assert!(stderr.contains(less), "{stderr}");
    for said in
        ["heaptap: stopped: it costs the process ", "heaptap: hint: ", "heaptap: cost to the process: "]
    {
        assert!(stderr.lines().any(|line| line.starts_with(said)), "{said}: {stderr}");
    }
    assert!(profile.total().alloc_objects > 0, "{:#?}", profile.comments);
    assert!(
        profile.comments.iter().any(|comment| comment.starts_with("cost: stopped, ")),
        "{:#?}",
        profile.comments
    );
    assert!(
        profile
            .comments
            .iter()
            .any(|comment| comment.starts_with("sampling: one for every 1, then 524288, then ")),
        "{:#?}",
        profile.comments
    );
    assert_sensible(&profile);
    let report = heaptap::run(["report", recorded.file()]);
    assert!(report.stdout.contains("comment: cost: average_cpu_percent="), "{}", report.stdout);
    assert_eq!(changed_text(guest.pid()), Vec::<String>::new(), "probes are left in the target");
    guest.command("advance 1000");
    guest.command("stop");
    guest.exit();
}

#[test]
fn an_idle_process_is_recorded_on() {
    let guest = Guest::start("churn");
    let mut busy = Guest::start("churn");
    busy.command("start");
    let idle = Recording::attach_with(guest.pid(), &["--max-overhead", "1"]);
    // Another one is stopped meanwhile, begun later by the same limit.
    Recording::attach_with(busy.pid(), &["--max-overhead", "1"]).wait().outcome.assert_success();
    idle.signal(Signal::INT);
    let outcome = idle.wait().outcome;
    assert!(outcome.stderr.contains("heaptap: finishing"), "{}", outcome.stderr);
    assert!(!outcome.stderr.contains("stopped: "), "{}", outcome.stderr);
    busy.command("stop");
    busy.exit();
    guest.exit();
}

#[test]
fn what_is_served_ends_to_be_counted_by_itself_and_is_served_on() {
    let mut guest = Guest::start("churn");
    guest.command("start");
    let mut serving = Serving::start_limited(guest.pid(), &[]);
    serving.stderr_line("heaptap: stopped: it costs the process ");
    let before = serving.fetch();
    assert!(before.total().alloc_objects > 0, "{:#?}", before.comments);
    assert!(
        before.comments.iter().any(|comment| comment.starts_with("cost: stopped, ")),
        "{:#?}",
        before.comments
    );
    guest.command("advance 1000");
    assert_eq!(serving.fetch().total(), before.total());
    serving.finish(Signal::INT);
    guest.command("stop");
    guest.exit();
}
