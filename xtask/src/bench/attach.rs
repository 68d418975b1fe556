//! `cargo xtask bench attach`: how long it takes, and how much memory, from the command to the first profile of a running
//! program that has large libraries. They have no debug information, which heaptap reads in another process.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::memory::{kernel_maps_mb, peak_mb, shared_mb};
use super::spread::Spread;
use super::{compile, folder, heaptap};
use crate::packages::{self, JAVA, LLVM};
use crate::workspace::{output, root};

const ROUNDS: usize = 5;

/// Runs the command.
pub(super) fn run() -> Result<()> {
    packages::ensure_installed(&[LLVM, JAVA])?;
    let folder = folder()?;
    let heaptap = heaptap()?;
    let library = llvm_library()?;
    let targets = [
        Target {
            name: format!("a program with {}", file_name(&library)),
            command: vec![
                compile(&folder, "llvm", "xtask/src/bench/guests/llvm.c", &["-ldl"])?.into(),
                library.into(),
            ],
        },
        Target {
            name: "a JVM".to_owned(),
            // So that what it compiles can be walked through.
            command: vec![
                "/usr/bin/java".into(),
                "-XX:+PreserveFramePointer".into(),
                root()?.join("xtask/src/bench/guests/Deflate.java").into(),
            ],
        },
    ];
    println!("median (least to most) of {ROUNDS} rounds\n");
    println!(
        "| target | seconds until it counts | until the profile is written, the target's work taken off \
         | whole stacks, % | heaptap's memory, MB | the kernel's, MB |"
    );
    println!("| --- | ---: | ---: | ---: | ---: | ---: |");
    for target in &targets {
        let rounds = (0..ROUNDS).map(|_| target.measure(&heaptap, &folder.join("heap.pb.gz")));
        let rounds: Vec<Round> = rounds.collect::<Result<_>>()?;
        let spread = |measure: fn(&Round) -> f64| Spread::of(rounds.iter().map(measure));
        println!(
            "| {} | {} | {} | {} | {} | {} |",
            target.name,
            spread(|round| round.attached_s),
            spread(|round| round.written_s),
            spread(|round| round.whole_percent),
            spread(|round| round.memory_mb),
            spread(|round| round.kernel_mb)
        );
    }
    Ok(())
}

/// Debian's newest library of that kind that is installed: more than 100 MB.
fn llvm_library() -> Result<PathBuf> {
    let folder = output(Command::new("llvm-config").arg("--libdir"))?;
    let mut found = Vec::new();
    for entry in fs::read_dir(folder.trim()).with_context(|| format!("cannot read {}", folder.trim()))? {
        let path = entry?.path();
        let name = file_name(&path);
        if name.starts_with("libLLVM") && name.contains(".so") {
            found.push(path);
        }
    }
    found.into_iter().min().with_context(|| format!("no libLLVM in {}", folder.trim()))
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// A program that says `ready`, works when it is told to, and says `done`.
struct Target {
    name: String,
    command: Vec<OsString>,
}

/// What was measured once.
struct Round {
    attached_s: f64,
    written_s: f64,
    whole_percent: f64,
    memory_mb: f64,
    kernel_mb: f64,
}

impl Target {
    fn measure(&self, heaptap: &Path, profile: &Path) -> Result<Round> {
        let mut running = Running::start(&self.command)?;
        let began = Instant::now();
        let mut recording = Recording::start(heaptap, running.child.id(), profile)?;
        recording.wait_for(": recording ")?;
        let attached_s = began.elapsed().as_secs_f64();
        let works = Instant::now();
        running.work()?;
        let worked_s = works.elapsed().as_secs_f64();
        let (shared_mb, kernel_mb) =
            (shared_mb(recording.child.id())?, kernel_maps_mb(recording.child.id())?);
        let (written_s, peak_mb) = recording.finish(began, worked_s)?;
        let memory_mb = peak_mb - shared_mb;
        Ok(Round { attached_s, written_s, whole_percent: recording.whole_percent, memory_mb, kernel_mb })
    }
}

/// The target, which ends when this does.
struct Running {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Running {
    fn start(command: &[OsString]) -> Result<Self> {
        let [program, arguments @ ..] = command else { bail!("no program") };
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let input = child.stdin.take().context("stdin is piped")?;
        let output = BufReader::new(child.stdout.take().context("stdout is piped")?).lines();
        let mut running = Self { child, input, output };
        running.expect("ready")?;
        Ok(running)
    }

    fn work(&mut self) -> Result<()> {
        self.input.write_all(b"work\n").context("the target does not listen")?;
        self.expect("done")
    }

    fn expect(&mut self, word: &str) -> Result<()> {
        let line = self.output.next().context("the target has ended")??;
        ensure!(line == word, "the target says `{line}` instead of `{word}`");
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails for one that has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// heaptap, attached.
struct Recording {
    child: Child,
    said: Lines<BufReader<ChildStderr>>,
    /// It says so when not all are.
    whole_percent: f64,
}

impl Recording {
    fn start(heaptap: &Path, pid: u32, profile: &Path) -> Result<Self> {
        let mut child = Command::new(heaptap)
            .args(["record", "--force", "--pid", &pid.to_string(), "--output"])
            .arg(profile)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", heaptap.display()))?;
        let said = BufReader::new(child.stderr.take().context("stderr is piped")?).lines();
        Ok(Self { child, said, whole_percent: 100.0 })
    }

    /// Waits until heaptap says something.
    fn wait_for(&mut self, text: &str) -> Result<()> {
        loop {
            let line = self.said.next().with_context(|| format!("heaptap has not said `{text}`"))??;
            if let Some((share, _)) = line.split_once(" % of ") {
                let share = share.rsplit(' ').next().unwrap_or_default();
                self.whole_percent = share.parse().with_context(|| format!("no number in: {line}"))?;
            }
            if line.contains(text) {
                return Ok(());
            }
        }
    }

    /// Ends the recording; gives when its profile was written, and the most memory that heaptap has had.
    fn finish(&mut self, began: Instant, worked_s: f64) -> Result<(f64, f64)> {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, Signal::SIGINT).context("heaptap does not run")?;
        self.wait_for(": wrote ")?;
        let written_s = began.elapsed().as_secs_f64() - worked_s;
        let peak_mb = peak_mb(self.child.id())?;
        // It takes the probes out before it ends.
        let status = self.child.wait()?;
        ensure!(status.success(), "heaptap ended with {status}");
        Ok((written_s, peak_mb))
    }
}
