//! `cargo xtask bench unwind`: what a stack costs by rows that were learned, as heaptap does it, and by the kernel's own walk
//! along frame pointers, which needs a program that keeps them.
//!
//! Both are recorded in the same way and counted in the same way; only the walk differs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::spread::Spread;
use super::{FramePointers, compile_pair, folder};
use crate::ebpf;
use crate::workspace::{cargo, output, root, run as run_command, target_dir};

const ROUNDS: usize = 5;

const FRAMES: [u32; 4] = [1, 10, 30, 60];

/// Half a second to a second.
const PAIRS: u64 = 100_000;

/// Some two tenths of a second.
const PAIRS_ALONE: u64 = 20_000_000;

/// Runs the command.
pub(super) fn run() -> Result<()> {
    let folder = folder()?;
    run_command(cargo()?.args([
        "build",
        "--release",
        "--package",
        "profiler-user",
        "--example",
        "record_with",
    ]))?;
    let recorder = target_dir()?.join("release/examples/record_with");
    let kernel_walk = folder.join("kernel-walk.bpf.o");
    fs::write(&kernel_walk, ebpf::object(&["kernel-walk"])?)
        .with_context(|| format!("cannot write {}", kernel_walk.display()))?;
    let ours = Way {
        recorder: recorder.clone(),
        object: root()?.join(ebpf::OBJECT),
        guest: compile_pair(&folder, FramePointers::Omitted)?,
    };
    let theirs = Way { recorder, object: kernel_walk, guest: compile_pair(&folder, FramePointers::Kept)? };
    let cases = FRAMES.map(|frames| Case::measure(frames, &ours, &theirs));
    let cases: Vec<Case> = cases.into_iter().collect::<Result<_>>()?;
    println!("\nnanoseconds per pair of malloc(64) and free, median (least to most) of {ROUNDS} rounds\n");
    println!("| frames | alone | learned rows | the kernel's frame-pointer walk | ratio |");
    println!("| ---: | ---: | ---: | ---: | ---: |");
    for Case { frames, alone, ours, theirs } in &cases {
        let (ours, theirs) = (ours.spread(|run| run.pair_ns), theirs.spread(|run| run.pair_ns));
        println!("| {frames} | {alone} | {ours} | {theirs} | {:.2} |", ours.median / theirs.median);
    }
    println!("\nnanoseconds of these in the kernel programs, in runs of their own\n");
    println!("| frames | learned rows | the kernel's frame-pointer walk | ratio | frames walked |");
    println!("| ---: | ---: | ---: | ---: | ---: |");
    for Case { frames, ours, theirs, .. } in &cases {
        let walked = format!("{} and {}", ours.walked, theirs.walked);
        let (ours, theirs) = (ours.spread(|run| run.programs_ns), theirs.spread(|run| run.programs_ns));
        println!("| {frames} | {ours} | {theirs} | {:.2} | {walked} |", ours.median / theirs.median);
    }
    Ok(())
}

/// One way to get stacks.
struct Way {
    recorder: PathBuf,
    object: PathBuf,
    guest: PathBuf,
}

/// What was measured of one depth.
struct Case {
    frames: u32,
    alone: Spread,
    ours: Runs,
    theirs: Runs,
}

/// What was measured of one way.
#[derive(Default)]
struct Runs {
    runs: Vec<Run>,
    /// Frames of the stack, the thread's own included as far as the walk gets to them.
    walked: u32,
}

struct Run {
    pair_ns: f64,
    programs_ns: f64,
}

impl Case {
    fn measure(frames: u32, ours: &Way, theirs: &Way) -> Result<Self> {
        let mut alone = Vec::new();
        let mut case = Self { frames, alone: Spread::of([]), ours: Runs::default(), theirs: Runs::default() };
        // In turn, so that a slow moment of the machine meets all.
        for round in 1..=ROUNDS {
            eprint!("\r{frames} frames, round {round} of {ROUNDS} ");
            alone.push(alone_ns(&ours.guest, frames)?);
            case.ours.run(ours, frames)?;
            case.theirs.run(theirs, frames)?;
        }
        case.alone = Spread::of(alone);
        Ok(case)
    }
}

impl Runs {
    fn run(&mut self, way: &Way, frames: u32) -> Result<()> {
        let pair_ns = pair_ns(&way.record(frames, &[])?)?;
        // Measuring the program takes time of its own.
        let said = way.record(frames, &["--program-time"])?;
        self.walked = number(&said, "frames").context("no frames")?;
        let programs_ns = programs_ns(&said).with_context(|| format!("no programs' time in: {said}"))?;
        self.runs.push(Run { pair_ns, programs_ns });
        Ok(())
    }

    fn spread(&self, measure: impl Fn(&Run) -> f64) -> Spread {
        Spread::of(self.runs.iter().map(measure))
    }
}

impl Way {
    fn record(&self, frames: u32, options: &[&str]) -> Result<String> {
        let mut recorder = Command::new(&self.recorder);
        recorder.args(options).arg(&self.object).arg(&self.guest);
        output(recorder.args(arguments(frames, PAIRS)))
    }
}

/// What a pair takes while nobody records.
fn alone_ns(guest: &Path, frames: u32) -> Result<f64> {
    pair_ns(&output(Command::new(guest).args(arguments(frames, PAIRS_ALONE)))?)
}

/// The arguments of the guest, for one thread.
fn arguments(frames: u32, pairs: u64) -> [String; 3] {
    ["1".to_owned(), frames.to_string(), pairs.to_string()]
}

/// The guest's own measure, its first line; the recorder's report may follow.
fn pair_ns(said: &str) -> Result<f64> {
    let line = said.lines().next().context("the guest printed nothing")?;
    line.parse().with_context(|| format!("the guest printed `{line}`, which is no number"))
}

/// The number on the line that begins with a word.
fn number(said: &str, word: &str) -> Option<u32> {
    said.lines().find_map(|line| line.strip_prefix(word)?.trim().parse().ok())
}

/// What the programs took for a pair that run for each.
fn programs_ns(said: &str) -> Option<f64> {
    let programs = said.lines().filter_map(|line| {
        let mut fields = line.strip_prefix("program ")?.split(' ').skip(1);
        let mut number = || fields.next()?.parse::<u64>().ok();
        Some((number()?, number()?))
    });
    let of_pairs = programs.filter(|(runs, _)| *runs >= PAIRS).map(|(_, time_ns)| time_ns);
    Some(of_pairs.sum::<u64>() as f64 / PAIRS as f64).filter(|time_ns| *time_ns > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_recorder_says_is_understood() {
        let said = "3806.5\nframes 14\nprogram process_exec 7 70\nprogram alloc_call 300000 60000000\n";
        assert_eq!(number(said, "frames"), Some(14));
        assert_eq!(programs_ns(said), Some(600.0));
        assert_eq!(pair_ns(said).unwrap(), 3806.5);
        assert_eq!(programs_ns("program alloc_call 300000"), None);
    }
}
