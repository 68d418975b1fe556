//! One boot of a machine, and what its console says of the tests.

use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::test::Tally;

/// A machine to boot.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) name: &'static str,
    pub(super) package: &'static str,
    pub(super) cpu: &'static str,
}

/// Seconds after which a machine that hangs is ended. One run of all tests takes a fifth of that on two slow cores.
const PATIENCE: &str = "3600";

/// What the kernel writes when something is wrong with it, rather than with a test.
const COMPLAINTS: [&str; 9] = [
    "WARNING:",
    "BUG:",
    "Oops",
    "Call Trace",
    "general protection",
    "soft lockup",
    "rcu_sched self-detected",
    "Kernel panic",
    "invoked oom-killer",
];

impl Machine {
    /// Boots a kernel, shows the console, and gives what it said.
    pub(super) fn boot(
        &self,
        kernel: &Path,
        file_system: &Path,
        tests: &[&str],
        folder: &Path,
    ) -> Result<Outcome> {
        let name = kernel.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let log = folder.join(format!("{name}-{}.log", self.cpu.replace([',', '='], "-")));
        let mut log_file =
            fs::File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        println!("\n== {}: {name}, {}; the console goes to {} too", self.name, self.cpu, log.display());
        let started = Instant::now();
        let mut child = Command::new("timeout")
            .args([PATIENCE, "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", self.cpu])
            .args(["-smp", "2", "-m", "2G", "-nographic", "-no-reboot", "-net", "none", "-kernel"])
            .arg(kernel)
            .arg("-initrd")
            .arg(file_system)
            .args(["-append", "console=ttyS0 panic=-1 quiet"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run `timeout qemu-system-x86_64`")?;
        let stdout = child.stdout.take().context("stdout is piped")?;
        let mut outcome = Outcome::of(name, tests);
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line.context("cannot read the console")?;
            let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
            writeln!(log_file, "{line}").with_context(|| format!("cannot write {}", log.display()))?;
            if outcome.stage != Stage::Messages {
                println!("{line}");
            }
            outcome.hear(&line);
        }
        child.wait().context("cannot wait for the machine")?;
        outcome.seconds = started.elapsed().as_secs();
        Ok(outcome)
    }
}

/// How far a machine has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Starting,
    Testing,
    Messages,
    Done,
}

/// What a machine's console said.
#[derive(Debug)]
pub(super) struct Outcome {
    kernel: String,
    stage: Stage,
    /// The tests that were to run, each with what came of it.
    tests: Vec<(String, Tally)>,
    running: Option<usize>,
    failed: Vec<String>,
    complaints: Vec<String>,
    seconds: u64,
}

impl Outcome {
    fn of(kernel: String, tests: &[&str]) -> Self {
        let tests = tests.iter().map(|&name| (name.to_owned(), Tally::default())).collect();
        Self {
            kernel,
            stage: Stage::Starting,
            tests,
            running: None,
            failed: Vec::new(),
            complaints: Vec::new(),
            seconds: 0,
        }
    }

    /// Takes in a line.
    fn hear(&mut self, line: &str) {
        let find = |tests: &[(String, Tally)], name: &str| tests.iter().position(|(test, _)| test == name);
        match line.strip_prefix("@@ ").map(|rest| rest.split(' ').collect::<Vec<_>>()).as_deref() {
            Some(["begin", name]) => {
                self.stage = Stage::Testing;
                self.running = find(&self.tests, name);
            }
            Some(["end", name, status]) => {
                if let Some((_, tally)) = find(&self.tests, name).and_then(|at| self.tests.get_mut(at)) {
                    tally.success = *status == "0";
                }
                self.running = None;
            }
            Some(["dmesg"]) => self.stage = Stage::Messages,
            Some(["done"]) => self.stage = Stage::Done,
            _ => self.hear_other(line),
        }
    }

    fn hear_other(&mut self, line: &str) {
        if let Some((name, tally)) = self.running.and_then(|at| self.tests.get_mut(at)) {
            tally.add(line);
            // The list of failures that follows the tests of a binary.
            if let Some(test) = line.strip_prefix("    ").filter(|test| is_test_name(test)) {
                self.failed.push(format!("{name}: {test}"));
            }
        }
        // A test may write these words; the kernel's lines begin with the time.
        if line.starts_with('[') && COMPLAINTS.iter().any(|complaint| line.contains(complaint)) {
            self.complaints.push(line.to_owned());
        }
    }

    /// Whether every test ran and passed, and the kernel was content.
    pub(super) fn passed(&self) -> bool {
        self.stage == Stage::Done
            && self.complaints.is_empty()
            && self.tests.iter().all(|(_, tally)| tally.success && tally.passed > 0)
    }
}

/// Whether this could be a function's path, as libtest lists those that failed.
fn is_test_name(text: &str) -> bool {
    text.contains('_') && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  {} in {} s", self.kernel, self.seconds)?;
        for (name, Tally { passed, failed, success, .. }) in &self.tests {
            let verdict = if *success { "ok" } else { "FAILED" };
            writeln!(f, "  {name:<10} {verdict:<6} {passed} passed, {failed} failed")?;
        }
        for test in &self.failed {
            writeln!(f, "  failed: {test}")?;
        }
        for complaint in &self.complaints {
            writeln!(f, "  the kernel: {complaint}")?;
        }
        if self.stage != Stage::Done {
            writeln!(f, "  the machine did not get to the end of the tests")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(lines: &[&str]) -> Outcome {
        let mut outcome = Outcome::of("linux".to_owned(), &["ledger"]);
        lines.iter().for_each(|line| outcome.hear(line));
        outcome
    }

    const RESULT: &str = "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out";

    #[test]
    fn a_machine_passes_when_it_gets_to_the_end() {
        let all = ["@@ begin ledger", RESULT, "@@ end ledger 0", "@@ dmesg", "[ 1.0] x", "@@ done"];
        assert!(heard(&all).passed());
        assert!(!heard(&all[..5]).passed());
    }

    #[test]
    fn tests_that_fail_are_named() {
        let outcome = heard(&[
            "@@ begin ledger",
            "failures:",
            "    frames::are_whole",
            "    some words of a message",
            "test result: FAILED. 1 passed; 1 failed; 0 ignored",
            "@@ end ledger 101",
            "@@ dmesg",
            "@@ done",
        ]);
        assert!(!outcome.passed());
        assert_eq!(outcome.failed, ["ledger: frames::are_whole"]);
    }

    #[test]
    fn a_kernel_that_complains_fails() {
        let complaint = "[   12.5] WARNING: CPU: 0 PID: 1 at kernel/events/uprobes.c:1";
        let outcome =
            heard(&["@@ begin ledger", RESULT, "@@ end ledger 0", "@@ dmesg", complaint, "@@ done"]);
        assert!(!outcome.passed());
        assert_eq!(outcome.complaints, [complaint]);
    }
}
