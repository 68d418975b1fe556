//! `cargo xtask bench beside`: what a gate costs, by two like programs that share a CPU.
//!
//! Both do the same work at the same time, and take turns in being gated. What else the machine does meets both, and what one of them has
//! of its own, such as where its memory lies, is once with the gate and once without. So a tenth of a percent can be told, where
//! programs that run one after the other differ by some percent though nothing is done to either.

use std::thread;

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use super::profiler::{Profiler, Tools};
use super::target::{Launcher, Target, Work};
use super::usage::Memory;
use super::workload::{self, Workload};
use crate::bench::{folder, heaptap, processes};
use crate::packages::{self, BENCH_WORKLOADS};

/// Arguments of the command.
#[derive(Debug, clap::Args)]
pub(crate) struct BesideArgs {
    /// How often either program is gated while the other is not
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u32).range(2..))]
    rounds: u32,
    /// How many seconds they work each time
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// How many seconds they work before, in which heaptap learns the stacks
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0)]
    warm_up: f64,
    /// The sampling interval, where it is not to be heaptap's own
    #[arg(long, value_name = "BYTES")]
    sample: Option<String>,
    /// Only workloads with this in their name
    #[arg(long, value_name = "WORKLOAD")]
    only: Option<String>,
    /// Gate neither program, to see how far what is alike comes out as alike
    #[arg(long)]
    neither: bool,
}

/// Runs the command.
pub(in crate::bench) fn run(args: &BesideArgs) -> Result<()> {
    for seconds in [args.seconds, args.warm_up] {
        ensure!((0.1..=600.0).contains(&seconds), "programs work for 0.1 to 600 seconds");
    }
    packages::ensure_installed(BENCH_WORKLOADS.iter())?;
    let folder = folder()?;
    let mut workloads = workload::all(&folder)?;
    // Threads of one program are meant to run on several CPUs.
    workloads
        .retain(|workload| super::is_chosen(&workload.name, args.only.as_deref()) && !workload.has_threads);
    if workloads.is_empty() {
        bail!("there is no such workload");
    }
    let profiler = if args.neither { Profiler::Native } else { Profiler::Gated };
    let tools = Tools { heaptap: heaptap()?, folder, gate_interval: args.sample.clone() };
    let bench = Beside { tools, cpus: two_cpus()?, profiler, args };
    let (rounds, seconds) = (args.rounds, args.seconds);
    println!(
        "mean ± standard error of {rounds} rounds of twice {seconds} s, behind {} s; {}\n",
        args.warm_up,
        profiler.name()
    );
    println!("| workload | CPU for an operation, % more | p99, % more |");
    println!("| --- | ---: | ---: |");
    for workload in &workloads {
        println!("{}", bench.row(workload)?);
    }
    Ok(())
}

struct Beside<'a> {
    tools: Tools,
    /// The one that the programs share, and that of those who have them work.
    cpus: (usize, usize),
    profiler: Profiler,
    args: &'a BesideArgs,
}

/// What an operation took.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Cost {
    cpu_ns: f64,
    p99_ms: Option<f64>,
}

impl Beside<'_> {
    fn row(&self, workload: &Workload) -> Result<String> {
        let start = || Target::start(&workload.program, &Launcher::default());
        let (mut cpu, mut p99) = (Vec::new(), Vec::new());
        for round in 1..=self.args.rounds {
            eprint!("\r\x1b[K{}, round {round} of {} ", workload.name, self.args.rounds);
            // What a gate costs depends on where things lie, too, which a program has by chance for all its life.
            let mut targets = on(self.cpus.0, || Ok([start()?, start()?]))?;
            let costs = [self.costs(&mut targets, 0)?, self.costs(&mut targets, 1)?];
            cpu.extend(more_percent(costs, |cost| Some(cost.cpu_ns)));
            p99.extend(more_percent(costs, |cost| cost.p99_ms));
        }
        eprint!("\r\x1b[K");
        Ok(format!("| {} | {} | {} |", workload.name, Mean::text(&cpu), Mean::text(&p99)))
    }

    /// What an operation takes in either while this one is gated.
    fn costs(&self, targets: &mut [Target; 2], gated: usize) -> Result<[Cost; 2]> {
        let target = targets.get(gated).context("it is one of two")?;
        let attached = self.profiler.attach(&self.tools, target)?;
        self.work(targets, self.args.warm_up)?;
        let used = |targets: &[Target; 2]| targets.each_ref().map(|target| processes::cpu_s(&[target.pid()]));
        let before = used(targets);
        let [first, second] = self.work(targets, self.args.seconds)?;
        let after = used(targets);
        if let Some(attached) = attached {
            attached.detach(&mut Memory::default())?;
        }
        let cost =
            |work: Work, used_s: f64| Cost { cpu_ns: used_s * 1e9 / work.operations, p99_ms: work.p99_ms };
        Ok([cost(first, after[0] - before[0]), cost(second, after[1] - before[1])])
    }

    /// Has both work at the same time.
    fn work(&self, targets: &mut [Target; 2], seconds: f64) -> Result<[Work; 2]> {
        let [first, second] = targets;
        thread::scope(|scope| {
            let other = scope.spawn(|| on(self.cpus.1, || second.work(seconds)));
            let first = on(self.cpus.1, || first.work(seconds))?;
            let second = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            Ok([first, second])
        })
    }
}

/// By how many percent the gated one takes more, where each of two has been gated: `costs` has first those while the first one was. What
/// the programs, and what the two times have of their own, cancels out.
fn more_percent(costs: [[Cost; 2]; 2], of: impl Fn(&Cost) -> Option<f64>) -> Option<f64> {
    let [[first_gated, second], [first, second_gated]] = costs;
    let ratio = of(&first_gated)? / of(&second)? * (of(&second_gated)? / of(&first)?);
    Some((ratio.sqrt() - 1.0) * 100.0)
}

/// Does something in a thread of this CPU, as will what is started by that.
fn on<T: Send>(cpu: usize, action: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let mut cpus = CpuSet::new();
            cpus.set(cpu)?;
            sched_setaffinity(Pid::from_raw(0), &cpus)?;
            action()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Two that we may run on, the later one first: the first of a machine has more to do besides.
fn two_cpus() -> Result<(usize, usize)> {
    let ours = sched_getaffinity(Pid::from_raw(0))?;
    let mut cpus = (0..CpuSet::count()).rev().filter(|cpu| ours.is_set(*cpu) == Ok(true));
    let shared = cpus.next().context("no CPU to run on")?;
    Ok((shared, cpus.next_back().context("it takes two CPUs")?))
}

/// A mean, and how far it may be off.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Mean {
    mean: f64,
    standard_error: f64,
}

impl Mean {
    fn of(values: &[f64]) -> Option<Self> {
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        (values.len() > 1).then(|| Self { mean, standard_error: (squares / (count - 1.0) / count).sqrt() })
    }

    fn text(values: &[f64]) -> String {
        Self::of(values).map_or_else(
            || "–".to_owned(),
            |Self { mean, standard_error }| format!("{mean:+.2} ± {standard_error:.2}"),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_programs_and_the_times_have_of_their_own_cancels_out() {
        // The second program takes twice as much, and the second time half as much again; a gate adds 1 %.
        let cost = |cpu_ns| Cost { cpu_ns, p99_ms: None };
        let costs = [[cost(10.0 * 1.01), cost(20.0)], [cost(15.0), cost(30.0 * 1.01)]];
        let more = more_percent(costs, |cost| Some(cost.cpu_ns)).unwrap();
        assert!((more - 1.0).abs() < 1e-9, "{more}");
        assert_eq!(more_percent(costs, |cost| cost.p99_ms), None);
    }

    #[test]
    fn a_mean_has_its_standard_error() {
        assert_eq!(Mean::text(&[1.0, 2.0, 3.0]), "+2.00 ± 0.58");
        assert_eq!(Mean::text(&[-1.0]), "–");
    }

    #[test]
    fn what_is_done_on_a_cpu_is_done_there() {
        let (cpu, _) = two_cpus().unwrap();
        let seen = on(cpu, || Ok(sched_getaffinity(Pid::from_raw(0))?)).unwrap();
        assert!((0..CpuSet::count()).all(|other| seen.is_set(other) == Ok(other == cpu)));
    }
}
