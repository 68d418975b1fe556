//! The `heaptap` command, as a user runs it.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;
use std::{env, fs};

use rustix::process::{Signal, geteuid};
use tempfile::TempDir;

use crate::cache::target_dir;
use crate::http::get;
use crate::process::{Lines, PATIENCE, Process};
use crate::profile::Profile;

/// The binary: `HEAPTAP_BIN`, or the one that cargo built last beside the tests.
pub fn binary() -> PathBuf {
    if let Some(path) = env::var_os("HEAPTAP_BIN") {
        return path.into();
    }
    let built = ["debug", "release"].map(|profile| target_dir().join(profile).join("heaptap"));
    let newest = built
        .iter()
        .filter_map(|path| Some((fs::metadata(path).ok()?.modified().ok()?, path)))
        .max()
        .map(|(_, path)| path.clone());
    newest.unwrap_or_else(|| panic!("no heaptap at {built:?}: run `cargo xtask test`, or set HEAPTAP_BIN"))
}

/// The command, ready for arguments. Panics without root, which every caller needs.
pub fn command() -> Command {
    assert!(
        geteuid().is_root(),
        "the kernel tests load BPF programs and need root: run `sudo cargo xtask test`, \
         or `cargo test` for the tests that do not"
    );
    let mut command = Command::new(binary());
    command.stdin(Stdio::null());
    command
}

/// More room for new stacks where a test asks for none: `HEAPTAP_RING_BYTES`, for a machine on which nobody may come to take them out for a
/// tenth of a second. Guests wait for a command while heaptap attaches, and a process that does nothing is given little.
fn room_for_stacks(options: &[&str]) -> Vec<OsString> {
    let asks = options.iter().any(|option| ["--ring-bytes", "--memory-limit"].contains(option));
    let bytes = env::var_os("HEAPTAP_RING_BYTES").filter(|_| !asks);
    bytes.map_or_else(Vec::new, |bytes| vec!["--ring-bytes".into(), bytes])
}

/// What a command that has ended left behind.
#[derive(Debug)]
pub struct Outcome {
    /// The exit code; `None` where a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Outcome {
    /// Panics unless this is how expected failures look: exit code 2, a message about `what`, a next step.
    #[track_caller]
    pub fn assert_refused(&self, what: &str) {
        let message = self.stderr.lines().any(|line| line.starts_with("heaptap: ") && line.contains(what));
        let hint = self.stderr.lines().any(|line| line.starts_with("hint: "));
        assert!(
            self.code == Some(2) && message && hint,
            "wanted exit code 2, `heaptap: …{what}…` and `hint: …`, got {self:#?}"
        );
        self.assert_no_panic();
    }

    /// Panics unless the command ended well.
    #[track_caller]
    pub fn assert_success(&self) {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self.assert_no_panic();
    }

    /// Panics where the command panicked.
    #[track_caller]
    pub fn assert_no_panic(&self) {
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
    }
}

/// Runs `heaptap ARGUMENTS` to its end.
pub fn run<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Outcome {
    let mut command = command();
    command.args(arguments);
    run_command(command)
}

/// Runs a command, perhaps a changed one, to its end.
pub fn run_command(command: Command) -> Outcome {
    Running::start(command).wait()
}

/// A command that runs.
#[derive(Debug)]
pub struct Running {
    process: Process,
    stdout: Lines,
    stderr: Lines,
}

impl Running {
    /// Starts a command.
    pub fn start(mut command: Command) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = Process::spawn(command);
        let child = process.child();
        let stdout = Lines::of(child.stdout.take().expect("stdout is piped"));
        let stderr = Lines::of(child.stderr.take().expect("stderr is piped"));
        Self { process, stdout, stderr }
    }

    /// heaptap's own PID.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Waits for a line on standard error that begins so.
    pub fn stderr_line(&mut self, beginning: &str) -> String {
        self.stderr
            .find(format_args!("`{beginning}` on heaptap's stderr"), |line| line.starts_with(beginning))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Waits for the end.
    pub fn wait(mut self) -> Outcome {
        let status = self.process.wait();
        Outcome {
            code: status.code(),
            stdout: self.stdout.all("end of stdout"),
            stderr: self.stderr.all("end of stderr"),
        }
    }
}

/// A `heaptap record` under way, its probes in place.
#[derive(Debug)]
pub struct Recording {
    running: Running,
    folder: TempDir,
}

impl Recording {
    /// Attaches to a process.
    pub fn attach(pid: u32) -> Self {
        Self::attach_with(pid, &[])
    }

    /// Attaches to a process, with more options.
    pub fn attach_with(pid: u32, options: &[&str]) -> Self {
        let pid = pid.to_string();
        let target = ["--pid", &pid];
        Self::start(&[&target, options].concat())
    }

    /// Starts `heaptap record OPTIONS` with an output file, and waits until the probes are in.
    pub fn start(options: &[&str]) -> Self {
        let mut recording = Self::start_early(options);
        recording.stderr_line("heaptap: recording");
        recording
    }

    /// The same without waiting.
    pub fn start_early(options: &[&str]) -> Self {
        Self::start_early_with(options, &[])
    }

    /// The same, with more in the environment of heaptap and of the command that it starts.
    pub fn start_early_with(options: &[&str], environment: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("a folder for the profile");
        let mut command = command();
        command.envs(environment.iter().copied());
        let may_sample = options.iter().any(|option| ["--sample", "--max-overhead"].contains(option));
        let exactly: &[&str] = if may_sample { &[] } else { &["--exact"] };
        command.arg("record").args(exactly).arg("--output").arg(profile_in(&folder));
        command.args(room_for_stacks(options)).args(options);
        Self { running: Running::start(command), folder }
    }

    /// Waits until the probes are in; false where it has ended before.
    pub fn has_begun(&mut self) -> bool {
        let what = "the beginning of the recording";
        while let Some(line) = self.running.stderr.next(what) {
            if line.starts_with("heaptap: recording") {
                return true;
            }
        }
        false
    }

    /// heaptap's own PID.
    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// Where the profile will be.
    pub fn path(&self) -> PathBuf {
        profile_in(&self.folder)
    }

    /// Waits for a line on standard error that begins so.
    pub fn stderr_line(&mut self, beginning: &str) -> String {
        self.running.stderr_line(beginning)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        self.running.signal(signal);
    }

    /// Stops it as Ctrl-C does, and reads what it wrote.
    pub fn finish(self) -> Recorded {
        self.signal(Signal::INT);
        self.wait()
    }

    /// Waits until it stops by itself, and reads what it wrote.
    pub fn wait(self) -> Recorded {
        let outcome = self.running.wait();
        Recorded { outcome, path: profile_in(&self.folder), _folder: self.folder }
    }
}

/// A `heaptap serve` under way.
#[derive(Debug)]
pub struct Serving {
    running: Running,
    /// Where the profile is.
    pub url: String,
}

impl Serving {
    /// Attaches to a process, and waits until it is served.
    pub fn start(pid: u32) -> Self {
        Self::start_with(pid, &[])
    }

    /// The same, with more options. Whatever it costs, for a busy guest is recorded to its end.
    pub fn start_with(pid: u32, options: &[&str]) -> Self {
        Self::start_limited(pid, &[&["--max-overhead", "off"], options].concat())
    }

    /// The same with nothing but these options.
    pub fn start_limited(pid: u32, options: &[&str]) -> Self {
        let mut command = command();
        command.args(["serve", "--pid", &pid.to_string(), "--listen", "127.0.0.1:0"]);
        command.args(room_for_stacks(options)).args(options);
        let mut running = Running::start(command);
        let line = running.stderr_line("heaptap: serving http://127.0.0.1:");
        let url = line.trim_start_matches("heaptap: serving ").to_owned();
        assert!(url.ends_with("/debug/pprof/heap"), "{line}");
        Self { running, url }
    }

    /// The next line on stderr that begins so.
    #[track_caller]
    pub fn stderr_line(&mut self, beginning: &str) -> String {
        self.running.stderr_line(beginning)
    }

    /// The profile as it is now.
    #[track_caller]
    pub fn fetch(&self) -> Profile {
        let (status, body) = get(&self.url);
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
        Profile::decode(&body, &self.url)
    }

    /// The first profile that is `enough`: what was recorded a moment ago may not be in it yet.
    #[track_caller]
    pub fn fetch_until(&self, what: &str, enough: impl Fn(&Profile) -> bool) -> Profile {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let profile = self.fetch();
            if enough(&profile) {
                return profile;
            }
        }
        panic!("{what} is in no profile within {PATIENCE:?}: {:#?}", self.fetch().comments);
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.running.signal(signal);
    }

    /// Stops it with a signal.
    #[track_caller]
    pub fn finish(self, signal: Signal) {
        self.signal(signal);
        self.running.wait().assert_success();
    }
}

fn profile_in(folder: &TempDir) -> PathBuf {
    folder.path().join("heap.pb.gz")
}

/// A recording that has ended.
#[derive(Debug)]
pub struct Recorded {
    /// How heaptap ended, and what it said.
    pub outcome: Outcome,
    /// Where the profile is, as long as this lives.
    pub path: PathBuf,
    _folder: TempDir,
}

impl Recorded {
    /// The profile; panics unless the recording ended well and wrote one.
    #[track_caller]
    pub fn profile(&self) -> Profile {
        self.outcome.assert_success();
        Profile::read(&self.path)
    }

    /// The profile's file as an argument.
    pub fn file(&self) -> &str {
        path_str(&self.path)
    }
}

/// A path as text; the tests make no others.
pub fn path_str(path: &Path) -> &str {
    path.to_str().expect("a path of ours is UTF-8")
}
