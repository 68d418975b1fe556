//! `cargo xtask bench`: what recording costs the target, measured in turn with the target alone.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::spread::Spread;
use super::{FramePointers, compile_pair, folder, heaptap};
use crate::workspace::output;

/// Rounds of each case; the machine's own ups and downs show in the spread between them.
const ROUNDS: usize = 5;

/// Threads and frames of each case.
const CASES: [(u32, u32); 5] = [(1, 1), (1, 10), (1, 30), (2, 1), (8, 1)];

/// Some two tenths of a second alone, and about a second recorded.
const PAIRS_ALONE: u64 = 20_000_000;
const PAIRS_RECORDED: u64 = 200_000;

/// Runs the command.
pub(super) fn run() -> Result<()> {
    let folder = folder()?;
    let bench = Bench {
        heaptap: heaptap()?,
        guest: compile_pair(&folder, FramePointers::Omitted)?,
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
            alone.push(alone_ns(&bench.guest, threads, frames)?);
            recorded.push(bench.recorded_ns(threads, frames)?);
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
    fn recorded_ns(&self, threads: u32, frames: u32) -> Result<f64> {
        let options = ["record", "--exact", "--quiet", "--force", "--output"].map(OsStr::new);
        let mut heaptap = Command::new(&self.heaptap);
        heaptap.args(options).arg(&self.profile).arg("--").arg(&self.guest);
        measure_ns(heaptap.args(arguments(threads, frames, PAIRS_RECORDED)))
    }
}

/// What a pair takes while nobody records.
pub(super) fn alone_ns(guest: &Path, threads: u32, frames: u32) -> Result<f64> {
    measure_ns(Command::new(guest).args(arguments(threads, frames, PAIRS_ALONE)))
}

/// The arguments of the guest.
pub(super) fn arguments(threads: u32, frames: u32, pairs: u64) -> [String; 3] {
    [threads.to_string(), frames.to_string(), pairs.to_string()]
}

/// The guest's own measure, its first line; heaptap's report may follow.
fn measure_ns(command: &mut Command) -> Result<f64> {
    pair_ns(&output(command.stderr(Stdio::null()))?)
}

/// The guest's own measure in what a command has said.
pub(super) fn pair_ns(said: &str) -> Result<f64> {
    let line = said.lines().next().context("the guest printed nothing")?;
    line.parse().with_context(|| format!("the guest printed `{line}`, which is no number"))
}
