//! `cargo xtask bench many`: how long it takes to attach to a program of many threads and many mapped files, and to
//! detach, and for how long the program was stopped.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::running::{Recording, Running};
use super::spread::Spread;
use super::{compile, folder, heaptap};

const ROUNDS: usize = 5;
const THREADS: u32 = 200;
const LIBRARIES: u32 = 500;

/// Stands in the library that all are copies of, where the copy's number comes.
const BUILD_ID: u64 = 0x6865_6170_7461_7021;

/// How long it is looked at while nobody attaches to it.
const ALONE: Duration = Duration::from_secs(2);

/// How long it is recorded.
const RECORDED: Duration = Duration::from_millis(500);

struct Round {
    attach_s: f64,
    detach_s: f64,
    alone_ms: f64,
    attaching_ms: f64,
    detaching_ms: f64,
}

/// Runs the command.
pub(super) fn run() -> Result<()> {
    let folder = folder()?;
    let heaptap = heaptap()?;
    let libraries = libraries(&folder)?;
    let guest =
        compile(&folder, "many", "xtask/src/bench/guests/many.c", &["-D_GNU_SOURCE", "-pthread", "-ldl"])?;
    let command: [OsString; 4] =
        [guest.into(), libraries.into(), LIBRARIES.to_string().into(), THREADS.to_string().into()];
    let profile = folder.join("heap.pb.gz");
    let rounds = (0..ROUNDS).map(|_| measure(&command, &heaptap, &profile));
    let rounds: Vec<Round> = rounds.collect::<Result<_>>()?;
    let spread = |measure: fn(&Round) -> f64| Spread::of(rounds.iter().map(measure));
    println!("{THREADS} threads, {LIBRARIES} libraries; median (least to most) of {ROUNDS} rounds\n");
    println!("| | seconds | longest time that a thread which looks at the clock did not run, ms |");
    println!("| --- | ---: | ---: |");
    println!("| alone, for {} s | – | {} |", ALONE.as_secs(), spread(|round| round.alone_ms));
    println!(
        "| from the command until it counts | {} | {} |",
        spread(|round| round.attach_s),
        spread(|round| round.attaching_ms)
    );
    println!(
        "| from Ctrl-C until heaptap has ended | {} | {} |",
        spread(|round| round.detach_s),
        spread(|round| round.detaching_ms)
    );
    Ok(())
}

fn measure(command: &[OsString], heaptap: &Path, profile: &Path) -> Result<Round> {
    let mut running = Running::start(command)?;
    // Until now it has started.
    longest_ms(&mut running)?;
    thread::sleep(ALONE);
    let alone_ms = longest_ms(&mut running)?;
    let began = Instant::now();
    let mut recording = Recording::start(heaptap, running.pid(), profile)?;
    recording.wait_for(": recording ")?;
    let attach_s = began.elapsed().as_secs_f64();
    let attaching_ms = longest_ms(&mut running)?;
    thread::sleep(RECORDED);
    longest_ms(&mut running)?;
    let began = Instant::now();
    recording.interrupt()?;
    recording.wait_empty()?;
    let detach_s = began.elapsed().as_secs_f64();
    Ok(Round { attach_s, detach_s, alone_ms, attaching_ms, detaching_ms: longest_ms(&mut running)? })
}

/// The longest time since it was asked last, in which it did not run.
fn longest_ms(running: &mut Running) -> Result<f64> {
    let answer = running.ask("longest")?;
    Ok(answer.parse::<f64>().with_context(|| format!("`{answer}` is no number"))? / 1e3)
}

/// The folder of that many libraries, each with a build ID of its own.
fn libraries(folder: &Path) -> Result<PathBuf> {
    let build_id = format!("-Wl,--build-id=0x{BUILD_ID:016x}");
    let library = compile(
        folder,
        "libsmall.so",
        "xtask/src/bench/guests/libsmall.c",
        &["-shared", "-fPIC", &build_id],
    )?;
    let mut contents = fs::read(&library).with_context(|| format!("cannot read {}", library.display()))?;
    let number = contents.windows(8).position(|bytes| bytes == BUILD_ID.to_be_bytes());
    let number = number.context("the linker wrote no build ID")?;
    let libraries = folder.join("many-libraries");
    fs::create_dir_all(&libraries).with_context(|| format!("cannot create {}", libraries.display()))?;
    for index in 0..LIBRARIES {
        let place = contents.get_mut(number..number + 8).context("it was found there")?;
        place.copy_from_slice(&(BUILD_ID + u64::from(index)).to_be_bytes());
        let copy = libraries.join(format!("libsmall-{index}.so"));
        fs::write(&copy, &contents).with_context(|| format!("cannot write {}", copy.display()))?;
    }
    Ok(libraries)
}
