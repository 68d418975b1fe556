//! `cargo xtask bench idle`: what heaptap takes while its target does nothing.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::memory::{kernel_maps_mb, resident_mb, shared_mb};
use super::processes::{cpu_s, tree};
use super::running::{Recording, Running};
use super::spread::Spread;
use super::{compile, folder, heaptap};

/// What attaching leaves to be done is over by then.
const SETTLE: Duration = Duration::from_secs(2);

/// Arguments of the command.
#[derive(Debug, clap::Args)]
pub(crate) struct IdleArgs {
    /// How often it is measured
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// For how many seconds each time
    #[arg(long, default_value_t = 30)]
    seconds: u64,
}

struct Round {
    cpu_percent: f64,
    memory_mb: f64,
    kernel_mb: f64,
}

/// Runs the command.
pub(super) fn run(args: &IdleArgs) -> Result<()> {
    let folder = folder()?;
    let heaptap = heaptap()?;
    let guest = compile(&folder, "load", "xtask/src/bench/guests/load.c", &["-ldl"])?;
    let round = |_| -> Result<Round> {
        let running = Running::start(&[guest.clone().into()])?;
        let mut recording = Recording::start(&heaptap, running.pid(), &folder.join("heap.pb.gz"))?;
        recording.wait_for(": recording ")?;
        thread::sleep(SETTLE);
        let pid = recording.pid();
        let (began, used_s) = (Instant::now(), cpu_s(&tree(pid)));
        thread::sleep(Duration::from_secs(args.seconds));
        let used_s = cpu_s(&tree(pid)) - used_s;
        let round = Round {
            cpu_percent: used_s / began.elapsed().as_secs_f64() * 100.0,
            memory_mb: resident_mb(pid)? - shared_mb(pid)?,
            kernel_mb: kernel_maps_mb(pid)?,
        };
        recording.interrupt()?;
        recording.wait_empty()?;
        Ok(round)
    };
    let rounds: Vec<Round> = (0..args.rounds).map(round).collect::<Result<_>>()?;
    let spread = |measure: fn(&Round) -> f64| Spread::of(rounds.iter().map(measure));
    println!("median (least to most) of {} rounds of {} s\n", args.rounds, args.seconds);
    println!("| heaptap's CPU, % of one | its memory, MB | the kernel's for it, MB |");
    println!("| ---: | ---: | ---: |");
    println!(
        "| {} | {} | {} |",
        spread(|round| round.cpu_percent),
        spread(|round| round.memory_mb),
        spread(|round| round.kernel_mb)
    );
    Ok(())
}
