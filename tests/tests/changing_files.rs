//! Files that are replaced, overwritten or made to confuse while a process has them mapped: names are those of what is
//! mapped, or none.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use heaptap_tests::compile::{self, Variant};
use heaptap_tests::guest::Guest;
use heaptap_tests::heaptap::{Recorded, Recording};
use heaptap_tests::profile::Profile;
use tempfile::TempDir;

/// The plugins, in a folder of their own whose files may be changed.
struct Plugins {
    folder: TempDir,
    guest: Guest,
}

impl Plugins {
    fn start(program: &Path) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        for entry in fs::read_dir(program.parent().expect("it is in a folder")).expect("it was built") {
            let path = entry.expect("the folder stays").path();
            fs::copy(&path, folder.path().join(path.file_name().expect("it has a name")))
                .expect("it has room");
        }
        let guest = Guest::start_program("plugins", &folder.path().join("plugins"));
        Self { folder, guest }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Puts the second file in the place of the first, as the installation of a package does.
    fn replace(&self, first: &str, second: &str) {
        fs::rename(self.file(second), self.file(first)).expect("both are there");
    }

    fn exit(self) {
        self.guest.exit();
    }
}

fn names(profile: &Profile) -> impl Iterator<Item = &str> {
    profile.stacks.iter().flat_map(|stack| &stack.functions).map(String::as_str)
}

/// Panics where something is named by the second library, which was never mapped.
#[track_caller]
fn assert_no_wrong_names(profile: &Profile) {
    let wrong: Vec<_> = names(profile).filter(|name| name.starts_with("second_")).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[track_caller]
fn assert_remark(recorded: &Recorded, remark: &str) {
    let profile = recorded.profile();
    let comments = &profile.comments;
    let is_said = |text: &str| text.contains("names may be missing of") && text.contains(remark);
    assert!(comments.iter().any(|comment| is_said(comment)), "{comments:#?}");
    assert!(recorded.outcome.stderr.lines().any(is_said), "{}", recorded.outcome.stderr);
}

#[test]
fn a_library_that_was_replaced_before_heaptap_came_is_known_by_what_is_mapped() {
    let mut plugins = Plugins::start(&compile::program_as("plugins", Variant::NoFramePointers));
    plugins.guest.command("first");
    let unwatched = plugins.guest.ledger();
    plugins.replace("libplugin-first.so", "libplugin-second.so");
    let recording = Recording::attach(plugins.guest.pid());
    plugins.guest.command("again");
    let ledger = plugins.guest.ledger();
    let profile = recording.finish().profile();
    plugins.exit();
    ledger.since(&unwatched).assert_equals(&profile);
    profile.assert_whole(50, 0);
    assert_no_wrong_names(&profile);
    assert!(names(&profile).any(|name| name == "first_work"), "{:#?}", profile.stacks);
}

#[test]
fn a_library_that_is_replaced_during_a_recording_is_known_by_what_is_mapped() {
    let mut plugins = Plugins::start(&compile::program_as("plugins", Variant::NoFramePointers));
    let recording = Recording::attach(plugins.guest.pid());
    plugins.guest.command("first");
    plugins.replace("libplugin-first.so", "libplugin-second.so");
    plugins.guest.command("again");
    let ledger = plugins.guest.ledger();
    let profile = recording.finish().profile();
    plugins.exit();
    ledger.assert_equals(&profile);
    profile.assert_whole(100, 0);
    assert_no_wrong_names(&profile);
}

/// The frames of the first library by its debug file.
fn record_linked(replace: impl FnOnce(&Plugins)) -> Profile {
    let mut plugins = Plugins::start(&compile::linked_plugins());
    plugins.guest.command("first");
    replace(&plugins);
    let recording = Recording::attach(plugins.guest.pid());
    plugins.guest.command("again");
    let profile = recording.finish().profile();
    plugins.exit();
    profile.assert_whole(50, 0);
    profile
}

#[test]
fn a_library_that_was_replaced_with_its_debug_file_keeps_the_names_that_it_has_itself() {
    let named = record_linked(|_| ());
    assert!(names(&named).any(|name| name == "first_malloc"), "the debug file is used: {:#?}", named.stacks);
    let profile = record_linked(|plugins| {
        plugins.replace("libplugin-first.so", "libplugin-second.so");
        plugins.replace("libplugin-first.debug", "libplugin-second.debug");
    });
    assert_no_wrong_names(&profile);
    assert!(names(&profile).any(|name| name == "first_work"), "it is exported: {:#?}", profile.stacks);
    assert!(names(&profile).all(|name| name != "first_malloc"), "it is not: {:#?}", profile.stacks);
}

#[test]
fn a_library_that_is_overwritten_has_no_names_from_what_it_holds_now() {
    let mut plugins = Plugins::start(&compile::program_as("plugins", Variant::NoFramePointers));
    plugins.guest.command("first");
    // From here on heaptap holds the file.
    let recording = Recording::attach(plugins.guest.pid());
    plugins.guest.command("again");
    // The same inode: the mapping changes with it.
    let content = fs::read(plugins.file("libplugin-second.so")).expect("it is there");
    fs::write(plugins.file("libplugin-first.so"), content).expect("it can be written");
    let recorded = recording.finish();
    let profile = recorded.profile();
    // It would not survive to run what is there now, which it does at its end.
    drop(plugins);
    profile.assert_whole(50, 0);
    assert_no_wrong_names(&profile);
    assert!(names(&profile).all(|name| name != "first_malloc"), "{:#?}", profile.stacks);
    assert_remark(&recorded, "libplugin-first.so: none, for it was written to after it was mapped");
}

/// The size that a compressed section claims to have had: behind its method, which is 1, and before its alignment, also 1,
/// and zlib's own first byte (`Elf64_Chdr` of the ELF gABI).
fn claim_sizes(library: &mut [u8], size: u64) -> usize {
    let mut claims = 0;
    for at in 0..library.len().saturating_sub(25) {
        let word = |at: usize| u64::from_le_bytes(library[at..at + 8].try_into().expect("eight bytes"));
        if word(at) == 1 && word(at + 16) == 1 && library[at + 24] == 0x78 {
            library[at + 8..at + 16].copy_from_slice(&size.to_le_bytes());
            claims += 1;
        }
    }
    claims
}

#[test]
fn debug_information_that_claims_to_be_endless_costs_some_names_and_no_more() {
    let mut plugins = Plugins::start(&compile::packed_plugins());
    let path = plugins.file("libplugin-first.so");
    let mut library = fs::read(&path).expect("it is there");
    // More than there is memory, so that asking for it fails.
    assert!(claim_sizes(&mut library, 1 << 46) > 2, "a library with compressed debug information");
    fs::write(&path, library).expect("nobody has mapped it yet");
    let recording = Recording::attach(plugins.guest.pid());
    plugins.guest.command("first");
    let ledger = plugins.guest.ledger();
    let recorded = recording.finish();
    plugins.exit();
    // By its symbol table.
    ledger.assert_equals(&recorded.profile());
    recorded.profile().assert_whole(50, 0);
    assert_remark(&recorded, "libplugin-first.so: its debug information is not used");
}

const JEMALLOC: &str = "/lib/x86_64-linux-gnu/libjemalloc.so.2";

/// A library with an allocator, in a folder where it can be replaced, and a guest that runs on it.
struct Replaceable {
    folder: TempDir,
    guest: Guest,
}

impl Replaceable {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder for the library");
        let library = folder.path().join("libjemalloc.so");
        fs::copy(JEMALLOC, &library).expect("jemalloc is installed");
        let guest = Guest::start_preloaded("live", &library);
        Self { folder, guest }
    }

    /// Panics unless what the guest does from here on is recorded, and the guest then ends well.
    #[track_caller]
    fn assert_recorded(mut self, recording: Recording) {
        self.guest.command("run");
        let ledger = self.guest.ledger();
        let recorded = recording.finish();
        assert!(recorded.outcome.stderr.contains("jemalloc"), "{:#?}", recorded.outcome);
        ledger.assert_equals(&recorded.profile());
        self.guest.command("drop");
        self.guest.exit();
    }
}

/// Puts another file in the library's place.
fn replace_library(folder: &Path, content: &[u8]) {
    let [new, library] = ["new", "libjemalloc.so"].map(|name| folder.join(name));
    fs::write(&new, content).expect("the folder has room");
    fs::rename(new, library).expect("both are in one folder");
}

#[test]
fn an_allocator_whose_file_was_replaced_is_recorded_by_what_is_mapped() {
    let target = Replaceable::start();
    replace_library(target.folder.path(), b"the library of another day");
    let recording = Recording::attach(target.guest.pid());
    target.assert_recorded(recording);
}

#[test]
fn an_allocator_whose_file_is_replaced_meanwhile_is_recorded_by_what_is_mapped() {
    let whole = fs::read(JEMALLOC).expect("jemalloc is installed");
    // Nothing that can be read, a part of the library, and the same library in another file.
    let contents = [b"the library of another day", &whole[..whole.len() / 2], &whole];
    for _ in 0..3 {
        let target = Replaceable::start();
        let folder = target.folder.path();
        let is_attached = AtomicBool::new(false);
        let recording = thread::scope(|scope| {
            scope.spawn(|| {
                for content in contents.iter().cycle() {
                    replace_library(folder, content);
                    if is_attached.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
            // Ends the thread also where heaptap does not attach, which is a panic.
            let _stop = OnDrop(&is_attached);
            Recording::attach(target.guest.pid())
        });
        target.assert_recorded(recording);
    }
}

/// Sets a flag when it goes.
struct OnDrop<'flag>(&'flag AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
