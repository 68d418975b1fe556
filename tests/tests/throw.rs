//! C++ exceptions: a profiler that rewrites return addresses ends programs that throw through them.

use heaptap_tests::guest::Guest;
use heaptap_tests::heaptap::Recording;

#[test]
fn exceptions_pass_through_a_recorded_program_as_through_any() {
    let mut guest = Guest::start("throw");
    let unwatched = guest.command("run");
    assert_eq!(unwatched, ["caught 10000 10000"]);
    let recording = Recording::attach(guest.pid());
    let watched = guest.command("run");
    assert_eq!(watched, ["caught 20000 20000"]);
    recording.finish().outcome.assert_success();
    assert_eq!(guest.command("run"), ["caught 30000 30000"]);
    guest.exit();
}
