//! The stacks that the kernel has learned to walk are those that another unwinder finds, for a corpus of programs.
//!
//! With HEAPTAP_BLESS=1 those that are needed for the tests without root are written to `tests/replay/stacks`.

use std::env;
use std::path::Path;

use heaptap_tests::compile::Variant;
use heaptap_tests::debian;
use heaptap_tests::guest::Guest;
use heaptap_tests::heaptap::{Recorded, Recording, path_str};
use heaptap_tests::oracle::{self, Captured, Compared, Files};

/// Records by `record`, which takes options, and compares every stack.
#[track_caller]
fn assert_agree(name: &str, record: impl FnOnce(&[&str]) -> Recorded) -> Compared {
    let folder = tempfile::tempdir().expect("a folder for the stacks");
    let path = folder.path().join("stacks");
    record(&["--capture-stacks", path_str(&path)]).outcome.assert_success();
    let captured = Captured::read(&path);
    let compared = oracle::assert_agree(&captured, &Files::Here);
    assert!(compared.by_user > 0, "{compared:?}");
    if env::var_os("HEAPTAP_BLESS").is_some() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("replay/stacks").join(name);
        oracle::keep(&captured, &Files::Here, &folder);
    }
    compared
}

/// The same for a program that allocates long enough for the kernel to learn.
#[track_caller]
fn assert_learned(name: &str, record: impl FnOnce(&[&str]) -> Recorded) {
    let compared = assert_agree(name, record);
    assert!(compared.by_kernel > 0, "{compared:?}");
}

/// Records a guest.
#[track_caller]
fn guest(name: &str, variant: Variant, commands: &[&str]) -> Compared {
    let suffix = if variant == Variant::FramePointers { "frame-pointers" } else { "no-frame-pointers" };
    assert_agree(&format!("{name}-{suffix}"), |options| {
        let mut guest = Guest::start_as(name, variant);
        let recording = Recording::attach_with(guest.pid(), options);
        for command in commands {
            guest.command(command);
        }
        let recorded = recording.finish();
        guest.exit();
        recorded
    })
}

/// How often a guest does the same: after the first few times the kernel knows the way.
const RUNS: usize = 30;

/// A test for each guest, in both variants: `test: "guest";`
macro_rules! guests {
    ($($test:ident: $guest:literal;)*) => {$(
        #[test]
        fn $test() {
            for variant in Variant::ALL {
                let compared = guest($guest, variant, &["run"; RUNS]);
                assert!(compared.by_kernel > 0, "{compared:?}");
            }
        }
    )*};
}

guests! {
    a_handler_of_signals: "signals";
    threads_of_any_make: "clones";
    frames_of_any_shape: "frames";
    calls_that_are_bound_late: "lazy";
    coroutines: "coroutine";
    inlined_cpp_with_exceptions: "containers";
    release_rust: "release";
    a_stack_of_300_frames: "staircase";
}

#[test]
fn a_library_in_the_place_of_another() {
    // What is learned of one is forgotten when it goes: the kernel never knows the way for long.
    for variant in Variant::ALL {
        guest("plugins", variant, &["first", "second"]);
    }
}

#[test]
fn python3() {
    assert_learned("python3", debian::python3);
}

#[test]
fn node() {
    assert_learned("node", debian::node);
}

#[test]
fn sqlite3() {
    assert_learned("sqlite3", debian::sqlite3);
}

#[test]
fn nginx() {
    assert_learned("nginx", debian::nginx);
}

#[test]
fn redis_server() {
    assert_learned("redis-server", debian::redis_server);
}

#[test]
fn java() {
    // The others know the sizes of the JVM's frames from nowhere: they go by frame pointers, heaptap does not.
    assert_learned("java", |options| debian::java(options, &["-XX:+PreserveFramePointer"]));
}
