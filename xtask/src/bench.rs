//! `cargo xtask bench`: what recording costs the target, measured in turn with the target alone.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::packages::{self, CC, LIBC_HEADERS};
use crate::workspace::{cargo, is_root, output, root, run as run_command, target_dir};

/// Rounds of each case; the machine's own ups and downs show in the spread between them.
const ROUNDS: usize = 5;

/// Threads and frames of each case.
const CASES: [(u32, u32); 5] = [(1, 1), (1, 10), (1, 30), (2, 1), (8, 1)];

/// Some two tenths of a second alone, and about a second recorded.
const PAIRS_ALONE: u64 = 20_000_000;
const PAIRS_RECORDED: u64 = 200_000;

/// Runs the command.
pub(crate) fn run() -> Result<()> {
    if !is_root() {
        bail!("recording needs root: `sudo cargo xtask bench`");
    }
    packages::ensure_installed(&[CC, LIBC_HEADERS])?;
    run_command(cargo()?.args(["build", "--release", "--package", "profiler-user", "--bin", "heaptap"]))?;
    let folder = target_dir()?.join("bench");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let bench = Bench {
        heaptap: target_dir()?.join("release/heaptap"),
        guest: compile(&folder)?,
        profile: folder.join("heap.pb.gz"),
    };
    println!("nanoseconds per pair of malloc(64) and free, median (least to most) of {ROUNDS} rounds\n");
    println!("| threads | frames | alone | recorded, every allocation | ratio |");
    println!("| ---: | ---: | ---: | ---: | ---: |");
    for (threads, frames) in CASES {
        let mut alone = Vec::new();
        let mut recorded = Vec::new();
        // In turn, so that a slow moment of the machine meets both.
        for _ in 0..ROUNDS {
            alone.push(bench.alone(threads, frames)?);
            recorded.push(bench.recorded(threads, frames)?);
        }
        let (alone, recorded) = (Spread::of(alone), Spread::of(recorded));
        println!("| {threads} | {frames} | {alone} | {recorded} | {:.0} |", recorded.median / alone.median);
    }
    Ok(())
}

struct Bench {
    heaptap: PathBuf,
    guest: PathBuf,
    profile: PathBuf,
}

impl Bench {
    fn alone(&self, threads: u32, frames: u32) -> Result<f64> {
        measure(Command::new(&self.guest).args(arguments(threads, frames, PAIRS_ALONE)))
    }

    fn recorded(&self, threads: u32, frames: u32) -> Result<f64> {
        let options = ["record", "--exact", "--quiet", "--force", "--output"].map(OsStr::new);
        let mut heaptap = Command::new(&self.heaptap);
        heaptap.args(options).arg(&self.profile).arg("--").arg(&self.guest);
        measure(heaptap.args(arguments(threads, frames, PAIRS_RECORDED)))
    }
}

fn arguments(threads: u32, frames: u32, pairs: u64) -> [String; 3] {
    [threads.to_string(), frames.to_string(), pairs.to_string()]
}

/// The guest's own measure, its first line; heaptap's report may follow.
fn measure(command: &mut Command) -> Result<f64> {
    let said = output(command.stderr(std::process::Stdio::null()))?;
    let line = said.lines().next().context("the guest printed nothing")?;
    line.parse().with_context(|| format!("the guest printed `{line}`, which is no number"))
}

fn compile(folder: &Path) -> Result<PathBuf> {
    let program = folder.join("pair");
    let mut cc = Command::new("cc");
    cc.args(["-std=c11", "-O2", "-g", "-fno-omit-frame-pointer", "-pthread", "-o"]).arg(&program);
    run_command(cc.arg(root()?.join("tests/guests/pair.c")))?;
    Ok(program)
}

/// Several measures of one thing.
struct Spread {
    least: f64,
    median: f64,
    most: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        Self { least: at(0), median: at(values.len() / 2), most: at(values.len().saturating_sub(1)) }
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { least, median, most } = self;
        let digits = if *median < 100.0 { 1 } else { 0 };
        write!(f, "{median:.digits$} ({least:.digits$} to {most:.digits$})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_the_measures_is_shown_with_the_ends() {
        assert_eq!(Spread::of(vec![9.0, 12.5, 8.0]).to_string(), "9.0 (8.0 to 12.5)");
        assert_eq!(Spread::of(vec![3100.0, 2900.4, 3000.0]).to_string(), "3000 (2900 to 3100)");
    }
}
