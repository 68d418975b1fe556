//! `cargo xtask test fuzz`: runs the fuzz targets in `tests/fuzz`, each for a while.
//!
//! A run starts from the corpus in the repository. What is found on the way stays in `target/fuzz`, from where a later
//! run goes on; `--keep` takes what reaches something new over into the repository.

mod engine;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;

use anyhow::{Context, Result, bail, ensure};

use self::engine::{Engine, Finding, Report};
use crate::packages::{self, CXX};
use crate::tools;
use crate::workspace::{cargo, output, root, run as run_command, target_dir};

/// Arguments of `cargo xtask test fuzz`.
#[derive(Debug, clap::Args)]
pub(crate) struct FuzzArgs {
    /// Targets to run; all of them if none is named
    targets: Vec<String>,
    /// How long to run each
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Run these files and no others
    #[arg(long, value_name = "FILE", conflicts_with = "keep")]
    input: Vec<PathBuf>,
    /// Afterwards, make a new corpus in the repository of what was there and what was found
    #[arg(long)]
    keep: bool,
}

const CARGO_FUZZ_VERSION: &str = "0.13.1";

/// The targets' folder.
const FOLDER: &str = "tests/fuzz";

/// The sanitizer's runtime is there for this one.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// Runs the command.
pub(crate) fn run(args: &FuzzArgs) -> Result<()> {
    packages::ensure_installed(&[CXX])?;
    tools::ensure_installed("cargo-fuzz", CARGO_FUZZ_VERSION)?;
    let all = output(&mut cargo_fuzz("list")?)?;
    let all: Vec<&str> = all.lines().collect();
    if let Some(unknown) = args.targets.iter().find(|name| !all.contains(&name.as_str())) {
        bail!("there is no target {unknown}; there are {}", all.join(", "));
    }
    let wanted = |name: &&str| args.targets.is_empty() || args.targets.iter().any(|wanted| wanted == name);
    let targets: Vec<&str> = all.into_iter().filter(wanted).collect();
    let inputs =
        args.input.iter().map(|path| path.canonicalize().with_context(|| path.display().to_string()));
    let inputs: Vec<PathBuf> = inputs.collect::<Result<_>>()?;

    build(&targets)?;
    let engines = targets.iter().map(|name| engine(name)).collect::<Result<Vec<_>>>()?;
    if !inputs.is_empty() {
        ensure!(engines.len() == 1, "name one target to give the files to");
        return engines.iter().try_for_each(|engine| engine.reproduce(&inputs));
    }
    println!("fuzzing {} targets, {} s each", engines.len(), args.seconds);
    let findings = run_all(&engines, args.seconds)?;
    if !findings.is_empty() {
        for Finding { target, artifact, .. } in &findings {
            println!("\n{target} fails for {}; to see it again:", artifact.display());
            println!("    cargo xtask test fuzz {target} --input {}", artifact.display());
        }
        let names: Vec<String> = findings.iter().map(ToString::to_string).collect();
        bail!("found: {}", names.join(", "));
    }
    if args.keep {
        engines.iter().try_for_each(Engine::keep)?;
    }
    println!("no target found anything");
    Ok(())
}

/// `cargo fuzz SUBCOMMAND`, in the targets' folder, which has build settings of its own.
fn cargo_fuzz(subcommand: &str) -> Result<std::process::Command> {
    let mut command = cargo()?;
    command.current_dir(root()?.join(FOLDER)).args(["fuzz", subcommand, "--fuzz-dir", "."]);
    Ok(command)
}

/// Builds the targets, with whatever else there is: one at a time would take longer than all.
fn build(targets: &[&str]) -> Result<()> {
    println!("building the targets, which takes some minutes when it is done for the first time");
    let mut build = cargo_fuzz("build")?;
    build
        .args(["--features", "engine", "--debug-assertions", "--sanitizer", "address", "--target", TRIPLE])
        // In parallel, at the price of a fifth of the speed.
        .args(["--codegen-units", "4"])
        // Coverage and sanitizers are unstable features of the compiler.
        .env("RUSTC_BOOTSTRAP", "1");
    if let [only] = targets {
        build.arg(only);
    }
    run_command(&mut build)
}

fn engine(name: &str) -> Result<Engine> {
    let target_dir = target_dir()?;
    let folder = root()?.join(FOLDER);
    Ok(Engine {
        name: name.to_owned(),
        program: target_dir.join(TRIPLE).join("release").join(name),
        corpus: folder.join("corpus").join(name),
        artifacts: created(folder.join("artifacts").join(name))?,
        found: created(target_dir.join("fuzz/corpus").join(name))?,
        log: created(target_dir.join("fuzz"))?.join(format!("{name}.log")),
    })
}

fn created(folder: PathBuf) -> Result<PathBuf> {
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    Ok(folder)
}

/// Runs the targets, as many at a time as there are processors.
fn run_all(engines: &[Engine], seconds: u32) -> Result<Vec<Finding>> {
    let waiting = Mutex::new(engines.iter());
    let next = || waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
    let work = || -> Result<Vec<Finding>> {
        let mut findings = Vec::new();
        while let Some(engine) = next() {
            match engine.run(seconds)? {
                Report::Passed(passed) => println!("{:<10} {passed}", engine.name),
                Report::Failed { finding, log } => {
                    println!("{log}\n{:<10} {finding}", engine.name);
                    findings.push(finding);
                }
            }
        }
        Ok(findings)
    };
    let workers = thread::available_parallelism().map_or(1, usize::from).min(engines.len());
    thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        let mut findings = Vec::new();
        for worker in workers {
            match worker.join() {
                Ok(found) => findings.extend(found?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(findings)
    })
}

/// The files in a folder, and their bytes.
fn size(folder: &Path) -> Result<(usize, u64)> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    entries
        .into_iter()
        .try_fold((0, 0), |(count, bytes), entry| Ok((count + 1, bytes + entry?.metadata()?.len())))
}
