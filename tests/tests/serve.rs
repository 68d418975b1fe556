//! `heaptap serve`: profiles over HTTP, without stopping or resetting the recording.

use heaptap_tests::guest::Guest;
use heaptap_tests::heaptap::{self, Running};
use heaptap_tests::http::get;
use heaptap_tests::profile::Profile;
use heaptap_tests::text::changed_text;
use rustix::process::Signal;

/// Starts `heaptap serve` on a guest, and returns it with the profile's URL.
fn serve(guest: &Guest) -> (Running, String) {
    let mut command = heaptap::command();
    command.args(["serve", "--pid", &guest.pid().to_string(), "--listen", "127.0.0.1:0"]);
    let mut serving = Running::start(command);
    let line = serving.stderr_line("heaptap: serving http://127.0.0.1:");
    let url = line.trim_start_matches("heaptap: serving ").to_owned();
    assert!(url.ends_with("/debug/pprof/heap"), "{line}");
    (serving, url)
}

#[track_caller]
fn fetch(url: &str) -> Profile {
    let (status, body) = get(url);
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
    Profile::decode(&body, url)
}

#[test]
fn every_fetch_is_the_whole_recording_so_far() {
    let mut guest = Guest::start("every-function");
    let (serving, url) = serve(&guest);
    for _ in 0..3 {
        guest.command("run");
        let ledger = guest.ledger();
        ledger.assert_equals(&fetch(&url));
        ledger.assert_equals(&fetch(&url));
    }
    serving.signal(Signal::INT);
    serving.wait().assert_success();
    assert_eq!(changed_text(guest.pid()), Vec::<String>::new(), "probes are left in the target");
    guest.exit();
}

#[test]
fn the_index_names_the_profile_and_other_paths_are_not_found() {
    let guest = Guest::start("ends");
    let (serving, url) = serve(&guest);
    let index = url.trim_end_matches("heap");
    let (status, body) = get(index);
    let body = String::from_utf8_lossy(&body);
    assert_eq!(status, 200, "{body}");
    assert!(body.contains("heap"), "{body}");
    assert_eq!(get(&format!("{index}no-such-profile")).0, 404);
    serving.signal(Signal::TERM);
    serving.wait().assert_success();
    guest.exit();
}

#[test]
fn an_address_in_use_is_refused() {
    let guest = Guest::start("ends");
    let (serving, url) = serve(&guest);
    let address = url.trim_start_matches("http://").split('/').next().expect("a URL has a host").to_owned();
    let pid = guest.pid().to_string();
    heaptap::run(["serve", "--pid", &pid, "--listen", &address]).assert_refused(&address);
    serving.signal(Signal::INT);
    serving.wait().assert_success();
    guest.exit();
}

#[test]
fn an_address_that_others_can_reach_is_refused() {
    let guest = Guest::start("every-function");
    let outcome = heaptap::run(["serve", "--pid", &guest.pid().to_string(), "--listen", "0.0.0.0:0"]);
    outcome.assert_refused("0.0.0.0:0 is not a loopback address");
    guest.exit();
}
