//! What a machine's console says of the tests.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use crate::test::Tally;

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

/// Lines kept for when a machine stops in the middle.
const LAST_LINES: usize = 30;

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
    /// The exit code of `heaptap doctor` that is right there, and the one that it had.
    doctor: (i32, Option<i32>),
    /// The test binaries that were to run, each with what came of it.
    suites: Vec<Suite>,
    running: Option<usize>,
    complaints: Vec<String>,
    last_lines: VecDeque<String>,
    /// Why nothing more came.
    pub(super) ended: Option<String>,
    pub(super) took: Duration,
}

/// What came of a test binary.
#[derive(Debug, Default)]
struct Suite {
    name: String,
    tally: Tally,
    /// What libtest says at its end of tests that failed: what they wrote, and their names.
    failures: Vec<String>,
    failed: Vec<String>,
    /// Those that failed at a first attempt, in which heaptap said that it had lost stacks.
    failed_before: Vec<String>,
}

impl Suite {
    /// Takes in a line.
    fn hear(&mut self, line: &str) {
        self.tally.add(line);
        let is_title = line == "failures:";
        if is_title {
            // The last of its two lists is that of the names.
            self.failed.clear();
        }
        if is_title || !self.failures.is_empty() {
            self.failures.push(line.to_owned());
            self.failed.extend(line.strip_prefix("    ").map(str::to_owned));
        }
    }

    /// Forgets a first attempt but for what failed in it.
    fn begin_again(&mut self) {
        let (name, failed_before) = (std::mem::take(&mut self.name), std::mem::take(&mut self.failed));
        *self = Self { name, failed_before, ..Self::default() };
    }

    fn passed(&self) -> bool {
        self.tally.success && self.tally.passed > 0
    }
}

impl Outcome {
    /// Of a machine that has said nothing yet.
    pub(super) fn of(kernel: String, doctor: i32, suites: &[&str]) -> Self {
        let suite = |&name: &&str| Suite { name: name.to_owned(), ..Suite::default() };
        Self {
            kernel,
            stage: Stage::Starting,
            doctor: (doctor, None),
            suites: suites.iter().map(suite).collect(),
            running: None,
            complaints: Vec::new(),
            last_lines: VecDeque::new(),
            ended: None,
            took: Duration::ZERO,
        }
    }

    /// Takes in a line.
    pub(super) fn hear(&mut self, line: &str) {
        let find = |suites: &[Suite], name: &str| suites.iter().position(|suite| suite.name == name);
        match line.strip_prefix("@@ ").map(|rest| rest.split(' ').collect::<Vec<_>>()).as_deref() {
            Some(["doctor", code]) => self.doctor.1 = code.parse().ok(),
            Some(["begin", name]) => {
                self.stage = Stage::Testing;
                self.running = find(&self.suites, name);
            }
            Some(["again", name]) => {
                self.running = find(&self.suites, name);
                if let Some(suite) = self.running.and_then(|at| self.suites.get_mut(at)) {
                    suite.begin_again();
                }
            }
            Some(["end", name, status]) => {
                if let Some(suite) = find(&self.suites, name).and_then(|at| self.suites.get_mut(at)) {
                    suite.tally.success = *status == "0";
                }
                self.running = None;
            }
            Some(["dmesg"]) => self.stage = Stage::Messages,
            Some(["done"]) => self.stage = Stage::Done,
            _ => self.hear_other(line),
        }
        if self.last_lines.len() == LAST_LINES {
            self.last_lines.pop_front();
        }
        self.last_lines.push_back(line.to_owned());
    }

    fn hear_other(&mut self, line: &str) {
        if let Some(suite) = self.running.and_then(|at| self.suites.get_mut(at)) {
            suite.hear(line);
        }
        // A test may write these words; the kernel's lines begin with the time.
        if line.starts_with('[') && COMPLAINTS.iter().any(|complaint| line.contains(complaint)) {
            self.complaints.push(line.to_owned());
        }
    }

    /// Whether what comes is of interest to who watches: the kernel's messages are not.
    pub(super) fn is_shown(&self) -> bool {
        self.stage != Stage::Messages
    }

    /// Whether every test ran and passed, and the kernel was content.
    pub(super) fn passed(&self) -> bool {
        self.stage == Stage::Done
            && self.doctor.1 == Some(self.doctor.0)
            && self.complaints.is_empty()
            && self.suites.iter().all(Suite::passed)
    }

    /// What fails, in a few words.
    pub(super) fn failures(&self) -> String {
        let mut failing: Vec<String> =
            self.suites.iter().filter(|suite| !suite.passed()).map(|suite| suite.name.clone()).collect();
        if self.doctor.1 != Some(self.doctor.0) {
            failing.push("doctor".to_owned());
        }
        if !self.complaints.is_empty() {
            failing.push("kernel messages".to_owned());
        }
        if self.stage != Stage::Done {
            failing.push("did not get to the end".to_owned());
        }
        failing.join(", ")
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  {} in {} s", self.kernel, self.took.as_secs())?;
        let (right, found) = self.doctor;
        let found = found.map_or("none".to_owned(), |code| code.to_string());
        let verdict = if found == right.to_string() { "ok" } else { "FAILED" };
        writeln!(f, "  {:<14} {verdict:<6} exit code {found}, should be {right}", "doctor")?;
        for suite in &self.suites {
            let verdict = if suite.passed() { "ok" } else { "FAILED" };
            let Tally { passed, failed, .. } = suite.tally;
            writeln!(f, "  {:<14} {verdict:<6} {passed} passed, {failed} failed", suite.name)?;
        }
        for suite in &self.suites {
            for test in &suite.failed_before {
                writeln!(f, "  run again, since stacks were lost: {}: {test}", suite.name)?;
            }
            for test in &suite.failed {
                writeln!(f, "  failed: {}: {test}", suite.name)?;
            }
            for line in &suite.failures {
                writeln!(f, "    {}: {line}", suite.name)?;
            }
        }
        for complaint in &self.complaints {
            writeln!(f, "  the kernel: {complaint}")?;
        }
        if self.stage != Stage::Done {
            let reason = self.ended.as_deref().unwrap_or("it switched itself off");
            writeln!(
                f,
                "  the machine did not get to the end of the tests: {reason}; the last that it said:"
            )?;
            for line in &self.last_lines {
                writeln!(f, "    {line}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(lines: &[&str]) -> Outcome {
        let mut outcome = Outcome::of("linux".to_owned(), 0, &["ledger"]);
        lines.iter().for_each(|line| outcome.hear(line));
        outcome
    }

    const RESULT: &str = "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out";

    #[test]
    fn a_machine_passes_when_it_gets_to_the_end() {
        let all =
            ["@@ doctor 0", "@@ begin ledger", RESULT, "@@ end ledger 0", "@@ dmesg", "[ 1.0] x", "@@ done"];
        assert!(heard(&all).passed());
        assert!(!heard(&all[..6]).passed());
        assert!(heard(&all[..6]).to_string().contains("[ 1.0] x"), "{}", heard(&all[..6]));
        assert!(!heard(&all[1..]).passed(), "without the doctor");
    }

    #[test]
    fn a_test_binary_that_did_not_run_has_not_passed() {
        let outcome = heard(&["@@ doctor 0", "@@ dmesg", "@@ done"]);
        assert!(!outcome.passed());
        assert_eq!(outcome.failures(), "ledger");
    }

    #[test]
    fn a_doctor_that_should_refuse_the_kernel_has_to() {
        let mut outcome = Outcome::of("linux".to_owned(), 2, &[]);
        for line in ["@@ doctor 0", "@@ dmesg", "@@ done"] {
            outcome.hear(line);
        }
        assert!(!outcome.passed());
        outcome.hear("@@ doctor 2");
        assert!(outcome.passed());
    }

    #[test]
    fn tests_that_fail_are_named_with_what_they_wrote() {
        let outcome = heard(&[
            "@@ doctor 0",
            "@@ begin ledger",
            "test frames::are_whole ... FAILED",
            "failures:",
            "---- frames::are_whole stdout ----",
            "the profile differs in",
            "    some_function",
            "failures:",
            "    frames::are_whole",
            "test result: FAILED. 1 passed; 1 failed; 0 ignored",
            "@@ end ledger 101",
            "@@ dmesg",
            "@@ done",
        ]);
        assert!(!outcome.passed());
        let text = outcome.to_string();
        assert!(text.contains("failed: ledger: frames::are_whole\n"), "{text}");
        assert!(!text.contains("failed: ledger: some_function"), "{text}");
        assert!(text.contains("ledger: the profile differs in\n"), "{text}");
    }

    #[test]
    fn what_counts_is_the_second_attempt_where_there_is_one() {
        let attempt = |result, status| {
            ["test frames::are_whole ... x", "failures:", "    frames::are_whole", result, status]
        };
        let failed = attempt("test result: FAILED. 1 passed; 1 failed; 0 ignored", "@@ end ledger 101");
        let lines = |second: &[&'static str]| {
            let first = ["@@ doctor 0", "@@ begin ledger"].iter().chain(&failed).chain(&["@@ again ledger"]);
            heard(&first.chain(second).chain(&["@@ dmesg", "@@ done"]).copied().collect::<Vec<_>>())
        };
        let passed = lines(&[RESULT, "@@ end ledger 0"]);
        assert!(passed.passed());
        let text = passed.to_string();
        assert!(text.contains("since stacks were lost: ledger: frames::are_whole\n"), "{text}");
        assert!(text.contains("2 passed, 0 failed") && !text.contains("failed: ledger"), "{text}");
        assert!(!lines(&failed).passed());
        assert!(!lines(&[]).passed(), "it did not get to the end of it");
    }

    #[test]
    fn a_kernel_that_complains_fails() {
        let complaint = "[   12.5] WARNING: CPU: 0 PID: 1 at kernel/events/uprobes.c:1";
        let outcome = heard(&[
            "@@ doctor 0",
            "@@ begin ledger",
            RESULT,
            "@@ end ledger 0",
            "@@ dmesg",
            complaint,
            "@@ done",
        ]);
        assert!(!outcome.passed());
        assert_eq!(outcome.failures(), "kernel messages");
    }
}
