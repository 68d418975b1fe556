//! A program that works on command, and heaptap recording it.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use wait4::Wait4;

/// The target, which ends when this does.
pub(super) struct Running {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Running {
    /// Starts it, and waits until it is ready.
    pub(super) fn start(command: &[OsString]) -> Result<Self> {
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

    /// Its PID.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has it work on a line, until it is done.
    pub(super) fn work(&mut self, line: &str) -> Result<()> {
        let answer = self.ask(line)?;
        ensure!(answer == "done", "the target says `{answer}` instead of `done`");
        Ok(())
    }

    /// Its answer to a line.
    pub(super) fn ask(&mut self, line: &str) -> Result<String> {
        writeln!(self.input, "{line}").context("the target does not listen")?;
        self.output.next().context("the target has ended")?.context("the target cannot be read")
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
pub(super) struct Recording {
    child: Child,
    said: Lines<BufReader<ChildStderr>>,
    /// The share of whole stacks; it says so when not all are.
    pub(super) whole_percent: f64,
}

impl Recording {
    /// Starts it.
    pub(super) fn start(heaptap: &Path, pid: u32, profile: &Path) -> Result<Self> {
        Self::start_with(heaptap, pid, profile, &[])
    }

    /// Starts it with more options.
    pub(super) fn start_with(heaptap: &Path, pid: u32, profile: &Path, options: &[&str]) -> Result<Self> {
        let mut child = Command::new(heaptap)
            .args(["record", "--force", "--pid", &pid.to_string(), "--output"])
            .arg(profile)
            .args(options)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", heaptap.display()))?;
        let said = BufReader::new(child.stderr.take().context("stderr is piped")?).lines();
        Ok(Self { child, said, whole_percent: 100.0 })
    }

    /// Waits until heaptap says something; gives the line.
    pub(super) fn wait_for(&mut self, text: &str) -> Result<String> {
        loop {
            let line = self.said.next().with_context(|| format!("heaptap has not said `{text}`"))??;
            if let Some((share, _)) = line.split_once(" % of ") {
                let share = share.rsplit(' ').next().unwrap_or_default();
                self.whole_percent = share.parse().with_context(|| format!("no number in: {line}"))?;
            }
            if line.contains(text) {
                return Ok(line);
            }
        }
    }

    /// heaptap's PID.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to finish.
    pub(super) fn interrupt(&self) -> Result<()> {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, Signal::SIGINT).context("heaptap does not run")
    }

    /// Waits until it has ended, also without a profile, for want of anything that was allocated.
    pub(super) fn wait_empty(mut self) -> Result<()> {
        let status = self.child.wait()?;
        ensure!(matches!(status.code(), Some(0 | 1)), "heaptap ended with {status}");
        Ok(())
    }

    /// Waits until it has ended: it takes the probes out before. Gives the most memory that it has had, in MB.
    pub(super) fn wait(self) -> Result<f64> {
        let ended = self.child.wait4()?;
        ensure!(ended.status.success(), "heaptap ended with {}", ended.status);
        Ok(ended.rusage.maxrss as f64 / 1e6)
    }
}
