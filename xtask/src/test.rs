//! `cargo xtask test`: everything that can be tested here, and one summary at the end.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::fuzz;
use crate::packages::{self, ALLOCATORS, CC, CXX, GDB, GO, LARGE_PROGRAMS, LIBC_HEADERS, SMALL_PROGRAMS};
use crate::vm;
use crate::workspace::{self, cargo, is_root, root, target_dir};

/// Arguments of `cargo xtask test`.
#[derive(Debug, clap::Args)]
pub(crate) struct TestArgs {
    #[command(subcommand)]
    place: Option<Place>,
}

/// Where else tests run.
#[derive(Debug, clap::Subcommand)]
enum Place {
    /// Run the kernel tests on Debian's 6.1 and 6.12 kernels, each in an emulated machine
    Vm(vm::VmArgs),
    /// Run the fuzz targets: hostile files, rows and memory
    Fuzz(fuzz::FuzzArgs),
}

/// Runs the command.
pub(crate) fn run(args: &TestArgs) -> Result<()> {
    match &args.place {
        Some(Place::Vm(args)) => vm::run(args),
        Some(Place::Fuzz(args)) => fuzz::run(args),
        None => run_here(),
    }
}

/// What one run of `cargo test` came to.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    ignored: u64,
    took: Duration,
    /// Whether cargo itself was content; it is not when a test does not compile.
    pub(crate) success: bool,
}

/// Runs all tests on this machine and its kernel.
fn run_here() -> Result<()> {
    packages::ensure_installed(
        [CC, LIBC_HEADERS, CXX, GO, GDB]
            .iter()
            .chain(&ALLOCATORS)
            .chain(&SMALL_PROGRAMS)
            .chain(&LARGE_PROGRAMS),
    )?;

    // The one that users have; and cargo builds a binary for the tests of its own package only.
    workspace::run(cargo()?.args(["build", "--release", "--package", "profiler-user", "--bin", "heaptap"]))?;
    let heaptap = target_dir()?.join("release/heaptap");
    ensure!(heaptap.exists(), "cargo has built heaptap, but not at {}", heaptap.display());

    let mut suites = Vec::new();
    let mut units = cargo()?;
    units.args(["test", "--no-fail-fast", "--workspace", "--exclude", "heaptap-tests"]);
    suites.push(("unit", Some(tally(units)?)));

    let mut replay = cargo()?;
    replay.args(["test", "--no-fail-fast", "--package", "heaptap-tests", "--lib"]).args(targets(&REPLAY));
    replay.env("HEAPTAP_BIN", &heaptap);
    suites.push(("replay", Some(tally(replay)?)));

    let mut kernel = cargo()?;
    kernel.args(["test", "--no-fail-fast", "--package", "heaptap-tests"]).args(targets(&kernel_tests()?));
    // One at a time: each test has probes in the libc that all of them run on.
    kernel.args(["--", "--test-threads=1"]).env("HEAPTAP_BIN", &heaptap);
    // Somebody else may be at work here, and guests wait for a command while heaptap attaches: what sleeps is given little room.
    kernel.env("HEAPTAP_RING_BYTES", "33554432");
    if is_root() {
        mount_tracefs()?;
    }
    suites.push(("kernel", if is_root() { Some(tally(kernel)?) } else { None }));

    summarise(&suites)
}

/// Mounts tracefs where that has not been done: `--follow-forks` defines its probes there.
fn mount_tracefs() -> Result<()> {
    let folder = Path::new("/sys/kernel/tracing");
    if folder.exists() && !folder.join("uprobe_events").exists() {
        workspace::run(Command::new("mount").args(["-t", "tracefs", "tracefs"]).arg(folder))?;
    }
    Ok(())
}

/// The tests that work on files and need no root.
const REPLAY: [&str; 4] = ["bad_profile", "debug_information", "replay", "stacks"];

/// All others, which need root and a kernel with BPF.
fn kernel_tests() -> Result<Vec<String>> {
    let folder = root()?.join("tests/tests");
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        let Some(name) = path.file_stem().and_then(OsStr::to_str) else { continue };
        if path.extension().is_some_and(|extension| extension == "rs") && !REPLAY.contains(&name) {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn targets(names: &[impl AsRef<str>]) -> Vec<&str> {
    names.iter().flat_map(|name| ["--test", name.as_ref()]).collect()
}

/// Runs `cargo test`, passes its output on, and adds up the results of its test binaries.
fn tally(mut command: Command) -> Result<Tally> {
    let what = format!("{command:?}");
    let started = Instant::now();
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot run {what}"))?;
    let stdout = child.stdout.take().context("stdout is piped")?;
    let mut tally = Tally::default();
    for line in BufReader::new(stdout).lines() {
        let line = line.with_context(|| format!("cannot read the output of {what}"))?;
        println!("{line}");
        tally.add(&line);
    }
    tally.success = child.wait().with_context(|| format!("cannot wait for {what}"))?.success();
    tally.took = started.elapsed();
    Ok(tally)
}

impl Tally {
    /// Takes in `test result: ok. 6 passed; 0 failed; 0 ignored; …`, and no other line.
    pub(crate) fn add(&mut self, line: &str) {
        let Some(counts) = line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". ")) else {
            return;
        };
        for count in counts.1.split("; ") {
            match count.split_once(' ') {
                Some((number, "passed")) => self.passed += number.parse().unwrap_or(0),
                Some((number, "failed")) => self.failed += number.parse().unwrap_or(0),
                Some((number, "ignored")) => self.ignored += number.parse().unwrap_or(0),
                _ => {}
            }
        }
    }
}

/// Prints a line for each suite; an error unless all of them ran and passed.
fn summarise(suites: &[(&str, Option<Tally>)]) -> Result<()> {
    println!();
    let mut failing = Vec::new();
    let mut missing = Vec::new();
    for (name, tally) in suites {
        let Some(Tally { passed, failed, ignored, took, success }) = tally else {
            println!("{name:<8} not run");
            missing.push(*name);
            continue;
        };
        let seconds = took.as_secs();
        println!("{name:<8} {passed} passed, {failed} failed, {ignored} ignored in {seconds} s");
        if !success {
            failing.push(*name);
        }
    }
    if !failing.is_empty() {
        bail!("failed: {}", failing.join(", "));
    }
    if !missing.is_empty() {
        bail!(
            "not run: {}: it loads BPF programs and needs root: `sudo cargo xtask test`",
            missing.join(", ")
        );
    }
    println!("all tests passed");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_several_binaries_are_added_up() {
        let mut tally = Tally::default();
        tally.add("running 3 tests");
        tally.add(
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.08s",
        );
        tally.add("test result: FAILED. 4 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out");
        assert_eq!((tally.passed, tally.failed, tally.ignored), (7, 2, 1));
    }
}
