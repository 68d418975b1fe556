//! `cargo xtask bench many`: how long it takes to attach to a program of many threads and many mapped files, and to
//! detach, and for how long the program was stopped, by ordinary probes and by a gate.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

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

/// What is compared: what it is called, and by which option of heaptap's.
const WAYS: [(&str, &[&str]); 2] = [("probes", &[]), ("a gate", &["--gate=require"])];

struct Round {
    attach_s: f64,
    detach_s: f64,
    alone_ms: f64,
    attaching_ms: f64,
    detaching_ms: f64,
    /// For how long heaptap says that the program stood still to put the gate in, and to take it out.
    stood_ms: Option<(f64, f64)>,
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
    println!("{THREADS} threads, {LIBRARIES} libraries; median (least to most) of {ROUNDS} rounds\n");
    println!(
        "| | seconds | longest time that a thread which looks at the clock did not run, ms | stopped, as heaptap says, ms |"
    );
    println!("| --- | ---: | ---: | ---: |");
    // They take turns, so that a slow moment of the machine meets both.
    let mut rounds: [Vec<Round>; 2] = [const { Vec::new() }; 2];
    for _ in 0..ROUNDS {
        for ((_, options), rounds) in WAYS.iter().zip(&mut rounds) {
            rounds.push(measure(&command, &heaptap, &profile, options)?);
        }
    }
    let alone = Spread::of(rounds.iter().flatten().map(|round| round.alone_ms));
    println!("| alone, for {} s | – | {alone} | – |", ALONE.as_secs());
    for ((way, _), rounds) in WAYS.iter().zip(&rounds) {
        let spread = |measure: fn(&Round) -> f64| Spread::of(rounds.iter().map(measure));
        let stood = |of: fn((f64, f64)) -> f64| {
            let stood: Vec<f64> = rounds.iter().filter_map(|round| round.stood_ms).map(of).collect();
            if stood.is_empty() { "–".to_owned() } else { Spread::of(stood).to_string() }
        };
        println!(
            "| {way}: from the command until it counts | {} | {} | {} |",
            spread(|round| round.attach_s),
            spread(|round| round.attaching_ms),
            stood(|(entering, _)| entering)
        );
        println!(
            "| {way}: from Ctrl-C until heaptap has ended | {} | {} | {} |",
            spread(|round| round.detach_s),
            spread(|round| round.detaching_ms),
            stood(|(_, leaving)| leaving)
        );
    }
    Ok(())
}

fn measure(command: &[OsString], heaptap: &Path, profile: &Path, options: &[&str]) -> Result<Round> {
    let mut running = Running::start(command)?;
    // Until now it has started.
    longest_ms(&mut running)?;
    thread::sleep(ALONE);
    let alone_ms = longest_ms(&mut running)?;
    let began = Instant::now();
    let mut recording = Recording::start_with(heaptap, running.pid(), profile, options)?;
    recording.wait_for(": recording ")?;
    let attach_s = began.elapsed().as_secs_f64();
    let attaching_ms = longest_ms(&mut running)?;
    thread::sleep(RECORDED);
    longest_ms(&mut running)?;
    let began = Instant::now();
    recording.interrupt()?;
    let stood_ms =
        if options.is_empty() { None } else { Some(stood_ms(&recording.wait_for("to take it out")?)?) };
    recording.wait_empty()?;
    let detach_s = began.elapsed().as_secs_f64();
    Ok(Round {
        attach_s,
        detach_s,
        alone_ms,
        attaching_ms,
        detaching_ms: longest_ms(&mut running)?,
        stood_ms,
    })
}

/// The two times in heaptap's own words, which are of milliseconds.
fn stood_ms(line: &str) -> Result<(f64, f64)> {
    let words: Vec<&str> = line.split(' ').collect();
    let times: Vec<f64> = words
        .windows(2)
        .filter(|pair| pair.get(1) == Some(&"ms"))
        .filter_map(|pair| pair.first()?.parse().ok())
        .collect();
    match times[..] {
        [entering, leaving] => Ok((entering, leaving)),
        _ => bail!("no two times in: {line}"),
    }
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
