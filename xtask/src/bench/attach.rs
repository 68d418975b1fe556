//! `cargo xtask bench attach`: how long it takes, and how much memory, from the command to the first profile of a running
//! program that has large libraries. They have no debug information, which heaptap reads in another process.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};

use super::memory::{kernel_maps_mb, shared_mb};
use super::running::{Recording, Running};
use super::spread::Spread;
use super::{compile, folder, heaptap};
use crate::packages::{self, JAVA, LLVM};
use crate::workspace::{output, root};

const ROUNDS: usize = 5;

/// Runs the command.
pub(super) fn run() -> Result<()> {
    packages::ensure_installed(&[LLVM, JAVA])?;
    let folder = folder()?;
    let heaptap = heaptap()?;
    let library = llvm_library()?;
    let targets = [
        Target {
            name: format!("a program with {}", file_name(&library)),
            command: vec![
                compile(&folder, "llvm", "xtask/src/bench/guests/llvm.c", &["-ldl"])?.into(),
                library.into(),
            ],
        },
        Target {
            name: "a JVM".to_owned(),
            // So that what it compiles can be walked through.
            command: vec!["/usr/bin/java".into(), root()?.join("xtask/src/bench/guests/Deflate.java").into()],
        },
    ];
    println!("median (least to most) of {ROUNDS} rounds\n");
    println!(
        "| target | seconds until it counts | until the profile is written, the target's work taken off \
         | whole stacks, % | heaptap's memory, MB | the kernel's, MB |"
    );
    println!("| --- | ---: | ---: | ---: | ---: | ---: |");
    for target in &targets {
        let rounds = (0..ROUNDS).map(|_| target.measure(&heaptap, &folder.join("heap.pb.gz")));
        let rounds: Vec<Round> = rounds.collect::<Result<_>>()?;
        let spread = |measure: fn(&Round) -> f64| Spread::of(rounds.iter().map(measure));
        println!(
            "| {} | {} | {} | {} | {} | {} |",
            target.name,
            spread(|round| round.attached_s),
            spread(|round| round.written_s),
            spread(|round| round.whole_percent),
            spread(|round| round.memory_mb),
            spread(|round| round.kernel_mb)
        );
    }
    Ok(())
}

/// Debian's newest library of that kind that is installed: more than 100 MB.
fn llvm_library() -> Result<PathBuf> {
    let folder = output(Command::new("llvm-config").arg("--libdir"))?;
    let mut found = Vec::new();
    for entry in fs::read_dir(folder.trim()).with_context(|| format!("cannot read {}", folder.trim()))? {
        let path = entry?.path();
        let name = file_name(&path);
        if name.starts_with("libLLVM") && name.contains(".so") {
            found.push(path);
        }
    }
    found.into_iter().min().with_context(|| format!("no libLLVM in {}", folder.trim()))
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// A program that says `ready`, works when it is told to, and says `done`.
struct Target {
    name: String,
    command: Vec<OsString>,
}

/// What was measured once.
struct Round {
    attached_s: f64,
    written_s: f64,
    whole_percent: f64,
    memory_mb: f64,
    kernel_mb: f64,
}

impl Target {
    fn measure(&self, heaptap: &Path, profile: &Path) -> Result<Round> {
        let mut running = Running::start(&self.command)?;
        let began = Instant::now();
        let mut recording = Recording::start(heaptap, running.pid(), profile)?;
        recording.wait_for(": recording ")?;
        let attached_s = began.elapsed().as_secs_f64();
        let works = Instant::now();
        running.work("work")?;
        let worked_s = works.elapsed().as_secs_f64();
        let (shared_mb, kernel_mb) = (shared_mb(recording.pid())?, kernel_maps_mb(recording.pid())?);
        recording.interrupt()?;
        recording.wait_for(": wrote ")?;
        let written_s = began.elapsed().as_secs_f64() - worked_s;
        let whole_percent = recording.whole_percent;
        let memory_mb = recording.wait()? - shared_mb;
        Ok(Round { attached_s, written_s, whole_percent, memory_mb, kernel_mb })
    }
}
