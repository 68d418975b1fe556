//! `cargo xtask bench load`: how long it takes until an allocator is probed that a running program loads.

use std::time::Instant;

use anyhow::Result;

use super::running::{Recording, Running};
use super::spread::Spread;
use super::{compile, folder, heaptap};
use crate::packages::{self, ALLOCATORS};

const ROUNDS: usize = 5;

/// Libraries that can be loaded at run time, and what heaptap calls the allocators in them.
const LIBRARIES: [(&str, &str); 2] =
    [("libmimalloc.so.2", "mimalloc"), ("libtcmalloc_minimal.so.4", "tcmalloc")];

/// Runs the command.
pub(super) fn run() -> Result<()> {
    packages::ensure_installed(&ALLOCATORS)?;
    let folder = folder()?;
    let heaptap = heaptap()?;
    let guest = compile(&folder, "load", "xtask/src/bench/guests/load.c", &["-ldl"])?;
    println!("median (least to most) of {ROUNDS} rounds\n");
    println!("| library | milliseconds from the end of its dlopen until it is probed |");
    println!("| --- | ---: |");
    for (library, allocator) in LIBRARIES {
        let round = |_| -> Result<f64> {
            let mut running = Running::start(&[guest.clone().into()])?;
            let mut recording = Recording::start(&heaptap, running.pid(), &folder.join("heap.pb.gz"))?;
            recording.wait_for(": recording ")?;
            running.work(library)?;
            let loaded = Instant::now();
            recording.wait_for(&format!(": {allocator} was loaded"))?;
            let probed_ms = loaded.elapsed().as_secs_f64() * 1e3;
            recording.interrupt()?;
            recording.wait_for(": wrote ")?;
            recording.wait()?;
            Ok(probed_ms)
        };
        let rounds: Vec<f64> = (0..ROUNDS).map(round).collect::<Result<_>>()?;
        println!("| {library} | {} |", Spread::of(rounds));
    }
    Ok(())
}
