//! `heaptap serve`: profiles over HTTP, without stopping or resetting the recording.

use heaptap_tests::guest::Guest;
use heaptap_tests::heaptap::{self, Serving};
use heaptap_tests::http::get;
use heaptap_tests::text::changed_text;
use rustix::process::Signal;

#[test]
fn every_fetch_is_the_whole_recording_so_far() {
    let mut guest = Guest::start("every-function");
    let serving = Serving::start(guest.pid());
    for _ in 0..3 {
        guest.command("run");
        let ledger = guest.ledger();
        ledger.assert_equals(&serving.fetch());
        ledger.assert_equals(&serving.fetch());
    }
    serving.finish(Signal::INT);
    assert_eq!(changed_text(guest.pid()), Vec::<String>::new(), "probes are left in the target");
    guest.exit();
}

#[test]
fn the_index_names_the_profile_and_other_paths_are_not_found() {
    let guest = Guest::start("ends");
    let serving = Serving::start(guest.pid());
    let index = serving.url.trim_end_matches("heap");
    let (status, body) = get(index);
    let body = String::from_utf8_lossy(&body);
    assert_eq!(status, 200, "{body}");
    assert!(body.contains("heap"), "{body}");
    assert_eq!(get(&format!("{index}no-such-profile")).0, 404);
    serving.finish(Signal::TERM);
    guest.exit();
}

#[test]
fn the_numbers_are_there_for_a_monitoring_system() {
    let mut guest = Guest::start("every-function");
    let serving = Serving::start(guest.pid());
    guest.command("run");
    let total = guest.ledger().total();
    let (status, body) = get(&serving.url.replace("/debug/pprof/heap", "/metrics"));
    let text = String::from_utf8_lossy(&body);
    assert_eq!(status, 200, "{text}");
    let freed = total.alloc_objects - total.inuse_objects;
    for line in [
        format!("heaptap_process_info{{pid=\"{}\",comm=\"every-function\"}} 1", guest.pid()),
        format!("heaptap_alloc_objects {}", total.alloc_objects),
        format!("heaptap_freed_objects {freed}"),
        format!("heaptap_inuse_bytes {}", total.inuse_bytes),
        "heaptap_counter{counter=\"live_full_objects\",severity=\"loss\"} 0".to_owned(),
        "# EOF".to_owned(),
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in {text}");
    }
    serving.finish(Signal::INT);
    guest.exit();
}

#[test]
fn an_address_in_use_is_refused() {
    let guest = Guest::start("ends");
    let serving = Serving::start(guest.pid());
    let address =
        serving.url.trim_start_matches("http://").split('/').next().expect("a URL has a host").to_owned();
    let pid = guest.pid().to_string();
    heaptap::run(["serve", "--pid", &pid, "--listen", &address]).assert_refused(&address);
    serving.finish(Signal::INT);
    guest.exit();
}

#[test]
fn an_address_that_others_can_reach_is_refused() {
    let guest = Guest::start("every-function");
    let outcome = heaptap::run(["serve", "--pid", &guest.pid().to_string(), "--listen", "0.0.0.0:0"]);
    outcome.assert_refused("0.0.0.0:0 is not a loopback address");
    guest.exit();
}
