//! `heaptap record -- COMMAND`: programs that are watched from before their first constructor.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use heaptap_tests::compile;
use heaptap_tests::heaptap::{self, Recording, Running, path_str};
use heaptap_tests::ledger::Ledger;
use heaptap_tests::profile::Profile;
use tempfile::TempDir;

/// A folder that every user may enter and write to, with the guest and its library in it.
struct Stage {
    folder: TempDir,
    program: PathBuf,
}

impl Stage {
    fn new() -> Self {
        let built = compile::program("constructor");
        let folder = tempfile::tempdir().expect("a folder for the guest");
        fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).expect("the folder is ours");
        for file in ["constructor", "libconstructor.so"] {
            fs::copy(built.with_file_name(file), folder.path().join(file)).expect("the guest was compiled");
        }
        let program = folder.path().join("constructor");
        Self { folder, program }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    /// What the guest wrote at its end.
    #[track_caller]
    fn report(&self) -> Vec<String> {
        let path = self.path("report");
        let text = fs::read_to_string(&path).unwrap_or_else(|err| panic!("the guest left no report: {err}"));
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        assert_eq!(lines.last().map(String::as_str), Some("end"), "{text}");
        lines
    }

    /// Runs the guest as if root had come by sudo from the user `nobody`, and returns its user.
    fn uid_under_sudo(&self, options: &[&str]) -> String {
        let mut command = heaptap::command();
        command.env("SUDO_UID", "65534").env("SUDO_GID", "65534").env("SUDO_USER", "nobody");
        command.args(["record", "--exact", "--output"]).arg(self.path("heap.pb.gz")).args(options);
        command.arg("--").arg(&self.program).arg(self.path("report"));
        Running::start(command).wait().assert_success();
        self.report().into_iter().find(|line| line.starts_with("uid ")).expect("the guest says its user")
    }
}

#[test]
fn allocations_of_constructors_are_counted() {
    let stage = Stage::new();
    let report = stage.path("report");
    let recording = Recording::start(&["--", path_str(&stage.program), path_str(&report)]);
    let profile = recording.wait().profile();
    let ledger = Ledger::parse(&stage.report());
    for site in ["library_constructor_malloc", "program_constructor_malloc", "main_malloc"] {
        assert!(ledger.site(site).alloc_objects > 0, "{ledger}");
    }
    ledger.assert_equals(&profile);
}

#[test]
fn arguments_and_environment_reach_the_command() {
    let stage = Stage::new();
    let mut command = heaptap::command();
    command.env("HEAPTAP_GUEST", "a value");
    command.args(["record", "--exact", "--output"]).arg(stage.path("heap.pb.gz"));
    command.arg("--").arg(&stage.program).arg(stage.path("report"));
    command.args(["--pid", "two words", "--", ""]);
    Running::start(command).wait().assert_success();
    let report = stage.report();
    let arguments: Vec<&str> = report.iter().filter_map(|line| line.strip_prefix("arg ")).collect();
    assert_eq!(arguments, ["--pid", "two words", "--", ""]);
    assert!(report.iter().any(|line| line == "env HEAPTAP_GUEST a value"), "{report:?}");
    Ledger::parse(&report).assert_equals(&Profile::read(&stage.path("heap.pb.gz")));
}

#[test]
fn under_sudo_the_command_runs_as_the_user_who_called() {
    assert_eq!(Stage::new().uid_under_sudo(&[]), "uid 65534");
}

#[test]
fn as_root_keeps_the_command_root() {
    assert_eq!(Stage::new().uid_under_sudo(&["--as-root"]), "uid 0");
}

#[test]
fn a_command_that_does_not_exist_is_refused() {
    let output = tempfile::tempdir().expect("a folder for the profile");
    let profile = output.path().join("heap.pb.gz");
    let missing = "/nonexistent/command";
    heaptap::run(["record", "--output", path_str(&profile), "--", missing]).assert_refused(missing);
    assert!(!profile.exists(), "a profile of nothing");
}

#[test]
fn a_command_that_is_not_executable_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("data");
    fs::write(&file, "not a program").expect("the folder is ours");
    heaptap::run(["record", "--output", path_str(&folder.path().join("heap.pb.gz")), "--", path_str(&file)])
        .assert_refused("data");
}

#[test]
fn a_command_is_found_on_the_path() {
    let folder = tempfile::tempdir().expect("a folder for the profile");
    let profile = folder.path().join("heap.pb.gz");
    let outcome = heaptap::run([
        "record",
        "--output",
        path_str(&profile),
        "--",
        "cat",
        path_str(Path::new("/dev/null")),
    ]);
    outcome.assert_no_panic();
    // Whether `cat` allocates through functions that we know is its own affair.
    assert!(matches!(outcome.code, Some(0 | 1)), "{outcome:#?}");
}

#[test]
fn a_command_that_replaces_its_program_is_followed() {
    let recorded =
        Recording::start(&["--", "/bin/sh", "-c", "exec /usr/bin/sqlite3 :memory: 'select 1'"]).wait();
    let profile = recorded.profile();
    let has = |name: &str| profile.files.iter().any(|file| file.ends_with(name));
    // The shell has another name in a machine that was made for the test.
    assert!((has("/dash") || has("/sh")) && has("/sqlite3"), "{:#?}", profile.files);
    assert!(profile.total().alloc_objects > 100, "{:#?}", profile.comments);
}
