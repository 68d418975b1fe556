//! One fuzz target as a program: libFuzzer with the code that it runs.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::size;
use crate::workspace::run as run_command;

/// What one input may take before it counts as found. The largest dictionary that is allocated for mini debug
/// information has 80 MiB.
const TIME_LIMIT_SECONDS: u32 = 10;
const ALLOCATION_LIMIT_MIB: u32 = 128;
const MEMORY_LIMIT_MIB: u32 = 1024;

/// A larger corpus has only one input for each edge, however often the edge is passed: it is kept in the repository.
const CORPUS_LIMIT_BYTES: u64 = 64 << 10;

/// What is shown of the log when something was found.
const LOG_LINES: usize = 60;

/// A target, and the folders that it works with.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) name: String,
    pub(super) program: PathBuf,
    /// Where inputs are kept in the repository.
    pub(super) corpus: PathBuf,
    /// Where inputs go for which it fails.
    pub(super) artifacts: PathBuf,
    /// Where inputs go that reach something new.
    pub(super) found: PathBuf,
    /// What the last run said.
    pub(super) log: PathBuf,
}

/// What came of a run.
#[derive(Debug)]
pub(super) enum Report {
    Passed(Passed),
    /// With the end of the log.
    Failed {
        finding: Finding,
        log: String,
    },
}

/// A run that found nothing, as libFuzzer counts it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Passed {
    runs: u64,
    edges: u64,
    memory_mib: u64,
}

/// An input for which a promise is not kept.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) target: String,
    pub(super) artifact: PathBuf,
    kind: &'static str,
}

impl Engine {
    /// Fuzzes for a while.
    pub(super) fn run(&self, seconds: u32) -> Result<Report> {
        let log =
            fs::File::create(&self.log).with_context(|| format!("cannot create {}", self.log.display()))?;
        let mut command = self.command();
        command.args([format!("-max_total_time={seconds}"), "-print_final_stats=1".to_owned()]);
        // New inputs go to the first folder.
        command.arg(&self.found).arg(&self.corpus);
        let status = command
            .stdout(Stdio::null())
            .stderr(log)
            .status()
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        let log = fs::read(&self.log).with_context(|| format!("cannot read {}", self.log.display()))?;
        let log = String::from_utf8_lossy(&log);
        if status.success() {
            return Ok(Report::Passed(Passed::read(&log)));
        }
        let Some(finding) = self.finding(&log) else {
            bail!("{} ended with {status} and left no input; see {}", self.name, self.log.display());
        };
        let lines: Vec<&str> = log.lines().collect();
        let from = lines.len().saturating_sub(LOG_LINES);
        let log = lines.into_iter().skip(from).collect::<Vec<_>>().join("\n");
        Ok(Report::Failed { finding, log })
    }

    /// Runs only these inputs, and shows what comes of it.
    pub(super) fn reproduce(&self, inputs: &[PathBuf]) -> Result<()> {
        run_command(self.command().args(inputs))
    }

    /// Replaces the corpus in the repository by few inputs that reach all that is reached by now.
    pub(super) fn keep(&self) -> Result<()> {
        let merged = self.found.with_extension("merged");
        self.merge(&merged, &[])?;
        if size(&merged)?.1 > CORPUS_LIMIT_BYTES {
            self.merge(&merged, &["-use_counters=0"])?;
        }
        let before = size(&self.corpus)?;
        empty(&self.corpus)?;
        for entry in fs::read_dir(&merged)? {
            let path = entry?.path();
            fs::copy(&path, self.corpus.join(path.file_name().context("an input has a name")?))?;
        }
        let after = size(&self.corpus)?;
        println!(
            "{:<10} keeps {} inputs of {} bytes, had {} of {}",
            self.name, after.0, after.1, before.0, before.1
        );
        Ok(())
    }

    fn merge(&self, merged: &Path, arguments: &[&str]) -> Result<()> {
        empty(merged)?;
        let mut command = self.command();
        command.arg("-set_cover_merge=1").args(arguments).arg(merged).arg(&self.corpus).arg(&self.found);
        run_command(command.stdout(Stdio::null()).stderr(Stdio::null()))?;
        ensure!(size(merged)?.0 > 0, "nothing is left of the corpus of {}", self.name);
        Ok(())
    }

    /// The program with its limits.
    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg(format!("-timeout={TIME_LIMIT_SECONDS}"))
            .arg(format!("-malloc_limit_mb={ALLOCATION_LIMIT_MIB}"))
            .arg(format!("-rss_limit_mb={MEMORY_LIMIT_MIB}"))
            .arg(format!("-artifact_prefix={}/", self.artifacts.display()))
            // The second is about `unsafe` code that the product has not, and costs half of the speed.
            .env("ASAN_OPTIONS", "detect_odr_violation=0:detect_stack_use_after_return=0");
        command
    }

    fn finding(&self, log: &str) -> Option<Finding> {
        let artifact = log.lines().find_map(|line| line.split_once("Test unit written to "))?.1;
        let name = Path::new(artifact).file_name()?.to_string_lossy().into_owned();
        let kind = match name.split_once('-')?.0 {
            "timeout" | "slow" => "it takes too long",
            "oom" => "it takes too much memory",
            "leak" => "it leaks memory",
            _ => "it crashes",
        };
        Some(Finding { target: self.name.clone(), artifact: PathBuf::from(artifact), kind })
    }
}

/// Makes an empty folder.
fn empty(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))
}

impl Passed {
    /// Reads the statistics at the end of a log.
    fn read(log: &str) -> Self {
        let statistic = |name: &str| {
            let rest = log.lines().find_map(|line| line.strip_prefix("stat::")?.strip_prefix(name))?;
            rest.strip_prefix(':')?.trim().parse().ok()
        };
        let done = log.lines().rev().find_map(|line| line.split_once("cov: "));
        let edges = done.and_then(|(_, rest)| rest.split_ascii_whitespace().next()?.parse().ok());
        Self {
            runs: statistic("number_of_executed_units").unwrap_or_default(),
            edges: edges.unwrap_or_default(),
            memory_mib: statistic("peak_rss_mb").unwrap_or_default(),
        }
    }
}

impl fmt::Display for Passed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { runs, edges, memory_mib } = self;
        write!(formatter, "{runs:>9} runs, {edges:>6} edges reached, {memory_mib:>4} MiB at most")
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.target, self.kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_statistics_are_those_at_the_end_of_the_log() {
        let log = "#2\tINITED cov: 7 ft: 8 corp: 1/1b\n#5541\tDONE   cov: 5372 ft: 17051 corp: 428/26Kb\n\
            stat::number_of_executed_units: 5541\nstat::average_exec_per_sec:     346\nstat::peak_rss_mb: 96\n";
        assert_eq!(Passed::read(log), Passed { runs: 5541, edges: 5372, memory_mib: 96 });
        assert_eq!(Passed::read(""), Passed::default());
    }

    #[test]
    fn a_finding_is_what_was_written_and_why() {
        let engine = Engine {
            name: "step".to_owned(),
            program: PathBuf::new(),
            corpus: PathBuf::new(),
            artifacts: PathBuf::new(),
            found: PathBuf::new(),
            log: PathBuf::new(),
        };
        let log =
            "==1== ERROR: libFuzzer\nartifact_prefix='/a/'; Test unit written to /a/oom-0123\nBase64: AA==\n";
        let finding = engine.finding(log).expect("an input was written");
        assert_eq!(finding.artifact, Path::new("/a/oom-0123"));
        assert_eq!(finding.to_string(), "step: it takes too much memory");
        assert_eq!(engine.finding("==1== ERROR: libFuzzer\n"), None);
    }
}
