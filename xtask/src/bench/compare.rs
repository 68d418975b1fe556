//! `cargo xtask bench`: what profilers cost their target, measured in turn with the target alone.

mod attached;
pub(super) mod beside;
mod bpftrace;
mod document;
mod machine;
mod profiler;
mod redis;
mod table;
mod target;
mod usage;
mod workload;

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use self::profiler::{Profiler, Tools};
use self::table::{Measure, Row};
use self::target::Target;
use self::usage::Memory;
use self::workload::Workload;
use super::memory::peak_mb;
use super::{folder, heaptap, processes};
use crate::packages::{self, BENCH_PEERS, BENCH_WORKLOADS};
use crate::workspace::root;

/// What comes of all workloads and profilers.
const DOCUMENT: &str = "docs/benchmarks.md";

/// The first operations meet what is not there yet: stacks that are not known, keys that are not set.
const WARM_UP_S: f64 = 0.3;

/// How long the target is at work again before a profiler is told to detach.
const BUSY: Duration = Duration::from_millis(200);

/// Arguments of the comparison.
#[derive(Debug, clap::Args)]
pub(crate) struct CompareArgs {
    /// How often everything is measured; the machine's ups and downs show in the spread
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How many seconds a target works each time
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Only workloads with this in their name; the table is then printed, and written nowhere
    #[arg(long, value_name = "WORKLOAD")]
    only: Option<String>,
    /// Only profilers with this in their name; the table is then printed, and written nowhere
    #[arg(long, value_name = "NAME")]
    profiler: Option<String>,
}

/// Runs the command.
pub(super) fn run(args: &CompareArgs) -> Result<()> {
    let load = machine::load()?;
    ensure!((0.1..=600.0).contains(&args.seconds), "targets work for 0.1 to 600 seconds");
    packages::ensure_installed(BENCH_PEERS.iter().chain(&BENCH_WORKLOADS))?;
    let folder = folder()?;
    let mut workloads = workload::all(&folder)?;
    workloads.retain(|workload| is_chosen(&workload.name, args.only.as_deref()));
    let mut profilers = Profiler::ALL.to_vec();
    profilers.retain(|profiler| {
        *profiler == Profiler::Native || is_chosen(profiler.name(), args.profiler.as_deref())
    });
    if workloads.is_empty() || (profilers.len() == 1 && args.profiler.is_some()) {
        bail!("there is no such workload or profiler");
    }
    let bench = Bench { tools: Tools { heaptap: heaptap()?, folder, gate_interval: None }, profilers, args };
    let mut rows = Vec::new();
    for workload in &workloads {
        rows.extend(bench.rows(workload));
    }
    eprintln!();
    let table = table::markdown(&rows);
    println!("{table}");
    if args.only.is_none() && args.profiler.is_none() {
        let text =
            document::text(&table, &machine::text(&bench.tools.heaptap, &load)?, args.rounds, args.seconds);
        let path = root()?.join(DOCUMENT);
        fs::create_dir_all(path.parent().context("it is in a folder")?)?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        eprintln!("xtask: wrote {}", path.display());
    }
    Ok(())
}

fn is_chosen(name: &str, wanted: Option<&str>) -> bool {
    wanted.is_none_or(|wanted| name.contains(wanted))
}

struct Bench<'a> {
    tools: Tools,
    profilers: Vec<Profiler>,
    args: &'a CompareArgs,
}

impl Bench<'_> {
    /// In turn, so that a slow moment of the machine meets all.
    fn rows(&self, workload: &Workload) -> Vec<Row> {
        let new = |profiler: &Profiler| Row::new(&workload.name, profiler.name());
        let mut rows: Vec<Row> = self.profilers.iter().map(new).collect();
        for round in 1..=self.args.rounds {
            let mut native = None;
            for (profiler, row) in self.profilers.iter().zip(&mut rows) {
                if native.is_some() && row.has_never_worked() {
                    continue;
                }
                let (name, rounds) = (profiler.name(), self.args.rounds);
                eprint!("\r\x1b[K{}, round {round} of {rounds}: {name} ", workload.name);
                match self.measure(workload, *profiler) {
                    Ok(measure) => row.add(measure.clone(), native.get_or_insert(measure)),
                    Err(reason) => {
                        eprintln!("fails: {reason:#}");
                        row.fail(&format!("{reason:#}"));
                    }
                }
                // Without the first one, which is native, there is nothing to compare the others with.
                if native.is_none() {
                    break;
                }
            }
        }
        rows
    }

    fn measure(&self, workload: &Workload, profiler: Profiler) -> Result<Measure> {
        let mut target = Target::start(&workload.program, &profiler.launcher(&self.tools))?;
        let attached = profiler.attach(&self.tools, &target)?;
        target.work(WARM_UP_S)?;
        let mut own = target.processes();
        own.retain(|pid| *pid != target.pid());
        own.extend(attached.iter().flat_map(attached::Attached::processes));
        let (began, used_s) = (Instant::now(), processes::cpu_s(&own));
        let work = target.work(self.args.seconds)?;
        let cpu_percent = (processes::cpu_s(&own) - used_s) / began.elapsed().as_secs_f64() * 100.0;
        let mut memory = Memory::of(&own);
        let target_mb = peak_mb(target.pid())?;
        let mut note = None;
        let detach_s = match attached {
            None => None,
            Some(attached) => {
                target.keep_busy()?;
                thread::sleep(BUSY);
                let took_s = attached.detach(&mut memory);
                if !target.is_alive() {
                    note = Some("the target died when it detached".to_owned());
                } else if let Err(reason) = &took_s {
                    note = Some(format!("{reason:#}"));
                }
                took_s.ok()
            }
        };
        let own = (!own.is_empty()).then_some((cpu_percent, memory));
        Ok(Measure { work, own, target_mb, detach_s, note })
    }
}
