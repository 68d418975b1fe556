//! Every allocator in every way of coming by it: the profile equals the guest's ledger, in all four values of every site.

use std::fs;
use std::path::Path;

use heaptap_tests::allocators::{COMBINATIONS, Combination, Language, table};
use heaptap_tests::compile;
use heaptap_tests::gate;
use heaptap_tests::guest::Guest;
use heaptap_tests::heaptap::{self, Recording, path_str};
use heaptap_tests::ledger::Ledger;
use heaptap_tests::profile::Profile;

/// Attaches to a guest that has allocated already, and records all that it does from then on.
fn attach(name: &str) {
    let combination = Combination::named(name);
    let mut guest = combination.start();
    guest.command("forget");
    let mut recording = Recording::start_early(&["--pid", &guest.pid().to_string()]);
    assert_named(combination, &recording.stderr_line("heaptap: recording"));
    guest.command("run");
    // Also what other threads allocated.
    guest.command("drop");
    guest.command("run");
    let ledger = guest.ledger();
    let unknown = guest.number("unknown");
    let profile = recording.finish().profile();
    ledger.assert_equals(&profile);
    combination.assert_called(&ledger);
    assert!(unknown > 0, "nothing from before was freed");
    assert_lossless(combination, &profile, unknown, 2 * combination.taken_within());
    assert_catches_as_before(combination, &mut guest);
    guest.exit();
}

/// Runs a guest once more, of which two runs were recorded: it has caught as much in each of them as in one that is not.
#[track_caller]
fn assert_catches_as_before(combination: Combination, guest: &mut Guest) {
    if combination.language == Language::Cpp {
        guest.command("run");
        assert_eq!(guest.number("caught"), 3 * combination.caught(), "{}", combination.name);
    }
}

#[test]
fn a_stripped_static_program_is_recorded_by_the_symbols_that_it_had() {
    let (program, whole) = compile::static_and_stripped("every-function");
    let mut guest = Guest::start_program("every-function", &program);
    let pid = guest.pid().to_string();
    heaptap::run(["record", "--pid", &pid]).assert_refused("--symbols");
    let other = compile::program("every-function");
    let refused = heaptap::run(["record", "--pid", &pid, "--symbols", path_str(&other)]);
    refused.assert_refused("is static and stripped");
    let mut recording = Recording::start_early(&["--pid", &pid, "--symbols", path_str(&whole)]);
    recording.stderr_line("heaptap: recording");
    guest.command("run");
    let ledger = guest.ledger();
    let recorded = recording.finish();
    ledger.assert_equals(&recorded.profile());
    assert!(!recorded.outcome.stderr.contains("is of no file"), "{}", recorded.outcome.stderr);
    guest.exit();
}

#[test]
fn symbols_that_belong_to_nothing_are_said_to() {
    let guest = Guest::start("ends");
    let pid = guest.pid().to_string();
    let mut recording = Recording::start_early(&["--pid", &pid, "--symbols", "/usr/bin/python3"]);
    recording.stderr_line("heaptap: /usr/bin/python3 is of no file that the process has mapped");
    recording.finish();
    let refused = heaptap::run(["record", "--pid", &pid, "--symbols", "/etc/passwd"]);
    assert_eq!(refused.code, Some(2), "{refused:#?}");
    assert!(refused.stderr.contains("'/etc/passwd' for '--symbols <FILE>': not an ELF file"), "{refused:#?}");
    guest.exit();
}

#[test]
fn an_allocator_that_musls_loader_loads_is_counted_from_then_on() {
    let (program, library) = compile::loads_allocator_by_musl();
    let mut guest = Guest::start_program("loads-allocator", &program);
    let mut recording = Recording::start_early(&["--pid", &guest.pid().to_string()]);
    recording.stderr_line("heaptap: recording");
    guest.command("run");
    guest.command(&format!("load {}", path_str(&library)));
    let line = recording.stderr_line("heaptap: mimalloc");
    assert!(line.contains("counted from now on"), "{line}");
    guest.command("run");
    let ledger = guest.ledger();
    assert!(ledger.site("call_loaded").alloc_objects > 0, "{ledger}");
    ledger.assert_equals(&recording.finish().profile());
    guest.exit();
}

/// Attaches by a gate that has every block in its sample, so that what it is said to have is exact but for what it tells of.
fn gate(name: &str) {
    let combination = Combination::named(name);
    let mut guest = combination.start();
    guest.command("forget");
    if combination.lacks_a_call() {
        let refused = heaptap::run(["record", "--gate=require", "--pid", &guest.pid().to_string()]);
        refused.assert_refused("without which it can execute no system call for us");
        guest.exit();
        return;
    }
    let recording = gate::attach(guest.pid());
    guest.command("run");
    guest.command("drop");
    guest.command("run");
    let ledger = guest.ledger();
    let (_, profile) = gate::finish(recording);
    // Its threads may use up a budget together, which is one sample.
    if profile.counter("gate_lost_budgets") == 0 {
        ledger.assert_equals(&profile);
    } else {
        gate::assert_lacks_only_what_is_told(&ledger, &profile);
    }
    combination.assert_called(&ledger);
    let thrown = u64::try_from(profile.counter("gate_calls") - profile.counter("gate_returns"));
    assert!(thrown.is_ok_and(|thrown| thrown <= 2 * combination.caught()), "{:#?}", profile.comments);
    profile.assert_lossless();
    assert_eq!(gate::mapped(guest.pid()), 0);
    assert_catches_as_before(combination, &mut guest);
    guest.exit();
}

/// Has heaptap start the guest, whose constructor's allocations then count.
fn launch(name: &str) {
    let combination = Combination::named(name);
    let folder = tempfile::tempdir().expect("a folder for the report");
    let report = folder.path().join("report");
    // heaptap is given the library too: it can tell a command's environment only by its own.
    let environment: Vec<_> =
        combination.preload().map(|library| ("LD_PRELOAD", library)).into_iter().collect();
    let mut recording = Recording::start_early_with(
        &["--", path_str(&combination.program()), path_str(&report)],
        &environment,
    );
    assert_named(combination, &recording.stderr_line("heaptap: recording"));
    let profile = recording.wait().profile();
    let lines: Vec<String> =
        fs::read_to_string(&report).expect("the guest reports").lines().map(str::to_owned).collect();
    assert_eq!(lines.last().map(String::as_str), Some("end"), "{lines:?}");
    let ledger = Ledger::parse(&lines);
    ledger.assert_equals(&profile);
    combination.assert_called(&ledger);
    let early = if combination.language == Language::Rust { "early_alloc" } else { "early_malloc" };
    assert_eq!(ledger.site(early).alloc_objects, 60, "{ledger}");
    assert_lossless(combination, &profile, 0, combination.taken_within());
}

/// heaptap says whose functions it probes.
#[track_caller]
fn assert_named(combination: Combination, line: &str) {
    let (_, functions) =
        line.split_once(" functions of ").unwrap_or_else(|| panic!("no functions in `{line}`"));
    assert!(functions.contains(combination.allocator.label()), "{}: `{line}`", combination.name);
}

/// Panics unless nothing was lost, and nothing freed that was not known but so many blocks, and at most so many more that the
/// allocator took within a call.
#[track_caller]
fn assert_lossless(combination: Combination, profile: &Profile, unknown: u64, taken_within: u64) {
    let name = combination.name;
    profile.assert_lossless();
    let counted = u64::try_from(profile.counter("unknown_frees")).expect("no negative counter");
    assert!(
        (unknown..=unknown + taken_within).contains(&counted),
        "{name}: {counted} unknown frees, not {unknown} and at most {taken_within} more: {:#?}",
        profile.comments
    );
}

macro_rules! combinations {
    ($($name:ident)*) => {
        mod attached {
            $(#[test] fn $name() { super::attach(stringify!($name)); })*
        }

        mod gated {
            $(#[test] fn $name() { super::gate(stringify!($name)); })*
        }

        mod launched {
            $(#[test] fn $name() { super::launch(stringify!($name)); })*
        }

        const TESTED: &[&str] = &[$(stringify!($name)),*];
    };
}

combinations! {
    c_glibc_shared c_glibc_static c_glibc_static_pie
    c_musl_shared c_musl_static
    c_jemalloc_shared c_jemalloc_preload c_jemalloc_archive c_jemalloc_static c_jemalloc_static_pie
    c_tcmalloc_shared c_tcmalloc_preload c_tcmalloc_archive
    c_tcmalloc_minimal_shared c_tcmalloc_minimal_preload c_tcmalloc_minimal_archive
    c_tcmalloc_minimal_static c_tcmalloc_minimal_static_pie
    c_google_tcmalloc_archive c_google_tcmalloc_static c_google_tcmalloc_static_pie
    c_mimalloc_shared c_mimalloc_preload
    cpp_glibc_shared cpp_glibc_static cpp_glibc_static_pie
    cpp_jemalloc_shared cpp_jemalloc_preload cpp_jemalloc_archive cpp_jemalloc_static
    cpp_tcmalloc_shared cpp_tcmalloc_preload cpp_tcmalloc_archive
    cpp_tcmalloc_minimal_shared cpp_tcmalloc_minimal_preload cpp_tcmalloc_minimal_archive
    cpp_google_tcmalloc_archive cpp_google_tcmalloc_static
    cpp_mimalloc_shared cpp_mimalloc_preload
    rust_glibc_shared rust_jemalloc_archive rust_google_tcmalloc_archive rust_mimalloc_archive
}

/// Without a recording: what the other tests take for granted.
#[test]
fn every_guest_by_itself_frees_what_it_has_and_catches_what_it_throws() {
    for combination in COMBINATIONS {
        let name = combination.name;
        let mut guest = combination.start();
        guest.command("forget");
        guest.command("run");
        let ledger = guest.ledger();
        combination.assert_called(&ledger);
        assert_eq!(guest.number("unknown"), 7, "{name}");
        guest.command("drop");
        assert_eq!(guest.ledger().total().inuse_objects, 0, "{name}:\n{ledger}");
        if combination.language == Language::Cpp {
            assert_eq!(guest.number("caught"), combination.caught(), "{name}");
        }
        guest.exit();
    }
}

#[test]
fn every_combination_has_its_tests() {
    let names: Vec<&str> = COMBINATIONS.iter().map(|combination| combination.name).collect();
    assert_eq!(TESTED, names);
}

const BEGIN: &str = "<!-- of tests/src/allocators.rs: HEAPTAP_BLESS=1 cargo test -p heaptap-tests --test allocators readme -->\n\n";
const END: &str = "\n<!-- to here -->\n";

/// Together with the tests above: what the README says is tested, and what is tested the README says.
#[test]
fn the_readme_has_the_table_of_what_is_tested() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = fs::read_to_string(&path).expect("there is a README");
    let (before, rest) = readme.split_once(BEGIN).expect("the table's beginning is marked");
    let (found, after) = rest.split_once(END).expect("the table's end is marked");
    if std::env::var_os("HEAPTAP_BLESS").is_some() {
        fs::write(&path, format!("{before}{BEGIN}{}{END}{after}", table()))
            .expect("the README can be written");
    } else {
        assert_eq!(found, table(), "run this test with HEAPTAP_BLESS=1");
    }
}
