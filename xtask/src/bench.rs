//! `cargo xtask bench`: what recording costs.

mod attach;
mod compare;
mod idle;
mod load;
mod many;
mod memory;
mod processes;
mod running;
mod said;
mod spread;
mod unwind;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::packages::{self, CC, LIBC_HEADERS};
use crate::workspace::{cargo, is_root, root, run as run_command, target_dir};

/// Arguments of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    compare: compare::CompareArgs,
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Compare stacks by learned rows with the kernel's own walk along frame pointers
    Unwind,
    /// Measure the time and the memory that it takes to attach to programs with large libraries
    Attach,
    /// Measure how soon an allocator is probed that a running program loads
    Load,
    /// Measure attaching to a program with 200 threads and 500 mapped libraries, and how long it is stopped
    Many,
    /// Measure to a tenth of a percent what a gate costs, by two like programs that share a CPU
    Beside(compare::beside::BesideArgs),
    /// Measure the CPU and the memory that heaptap takes while its target does nothing
    Idle(idle::IdleArgs),
}

/// Runs the command.
pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    if !is_root() {
        bail!("recording needs root: `sudo cargo xtask bench`");
    }
    packages::ensure_installed(&[CC, LIBC_HEADERS])?;
    match &args.what {
        None => compare::run(&args.compare),
        Some(What::Unwind) => unwind::run(),
        Some(What::Attach) => attach::run(),
        Some(What::Load) => load::run(),
        Some(What::Many) => many::run(),
        Some(What::Beside(args)) => compare::beside::run(args),
        Some(What::Idle(args)) => idle::run(args),
    }
}

/// Where benchmarks put what they make.
fn folder() -> Result<PathBuf> {
    let folder = target_dir()?.join("bench");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    Ok(folder)
}

/// heaptap, built as it is released.
fn heaptap() -> Result<PathBuf> {
    run_command(cargo()?.args(["build", "--release", "--package", "profiler-user", "--bin", "heaptap"]))?;
    Ok(target_dir()?.join("release/heaptap"))
}

/// Whether the functions of a guest keep frame pointers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FramePointers {
    Kept,
    Omitted,
}

/// The guest that does nothing but pairs of malloc and free.
fn compile_pair(folder: &Path, frame_pointers: FramePointers) -> Result<PathBuf> {
    let (name, flag) = match frame_pointers {
        FramePointers::Kept => ("pair-with-frame-pointers", "-fno-omit-frame-pointer"),
        FramePointers::Omitted => ("pair", "-fomit-frame-pointer"),
    };
    compile(folder, name, "tests/guests/pair.c", &[flag, "-pthread"])
}

fn compile(folder: &Path, name: &str, source: &str, flags: &[&str]) -> Result<PathBuf> {
    let program = folder.join(name);
    let mut cc = Command::new("cc");
    cc.args(["-std=c11", "-O2", "-g", "-o"]).arg(&program).arg(root()?.join(source));
    // Behind the source, for a library is searched for what was missing before it.
    run_command(cc.args(flags))?;
    Ok(program)
}
