//! `heaptap record`: a process in, a profile out.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::Child,
    sync::Arc,
};

use tokio::sync::mpsc::UnboundedReceiver;

use profiler_common::unwind::WalkEnd;

use super::{
    Outcome,
    args::RecordArgs,
    doctor,
    error::CliError,
    family::{Birth, Children},
    limit::Limit,
    live::{INTERVAL, LiveLine},
    report,
    session::{Interrupts, Session, runtime},
};
use crate::{
    output::file::{FileError, OutputFile},
    profile::{cost, gate, heap::losses, memory, printable::Printable, write::encode_gzip},
    source::{
        RawHeap,
        cost::Excess,
        health::Health,
        uprobe::{Options, Subject, Vitals, capture::Capture},
    },
    target::{Process, identity::Identity, launch::Held},
};

/// Rows of the closing table.
const ROWS: usize = 15;

/// Records until something ends it, and writes what was counted.
pub(super) fn run(args: &RecordArgs, diagnostics: bool, out: &mut dyn Write) -> Result<Outcome, CliError> {
    doctor::require_all()?;
    let held =
        args.command.split_first().map(|(program, arguments)| hold(args, program, arguments)).transpose()?;
    let pid = held.as_ref().map_or_else(|| args.pid.unwrap_or_default(), Held::pid);
    let (session, births, output, child) = match prepare(args, pid, diagnostics) {
        Ok((session, births, output)) => {
            (Arc::new(session), births, output, held.map(Held::release).transpose()?)
        }
        Err(error) => {
            if let Some(held) = held {
                held.kill();
            }
            return Err(error);
        }
    };
    let mut children = Children::new(&session, births, &output.path, args.force, args.quiet);
    let attended = runtime().and_then(|runtime| {
        let attended = runtime.block_on(attend(args, &session, &mut children));
        let stopped = session.stop();
        let followed = runtime.block_on(children.finish());
        attended.and(Ok(stopped?)).and(followed)
    });
    let stopped = session.finish();
    // What was recorded is written, whatever ended the recording.
    let outcome = finish(args, &session, output, child, out)?;
    attended?;
    stopped?;
    Ok(if children.were_there() { Outcome::Done } else { outcome })
}

fn hold(
    args: &RecordArgs,
    program: &std::ffi::OsString,
    arguments: &[std::ffi::OsString],
) -> Result<Held, CliError> {
    let identity = if args.as_root { None } else { Identity::behind_sudo()? };
    if let (Some(identity), false) = (&identity, args.quiet) {
        say(&format!("starting {} as {}", program.to_string_lossy(), identity.name()));
    }
    Ok(Held::start(program, arguments, identity.as_ref())?)
}

/// Makes sure of the output before anything is attached, then attaches.
fn prepare(
    args: &RecordArgs,
    pid: u32,
    diagnostics: bool,
) -> Result<(Session, UnboundedReceiver<Birth>, Output), CliError> {
    let process = Process::open(pid)?;
    let path = args.output.clone().unwrap_or_else(|| default_path(process.comm(), pid));
    let output = Output { file: OutputFile::create(&path, args.force)?, path };
    let capture = args.capture_stacks.as_deref().map(|path| Capture::create(path, args.force)).transpose()?;
    let symbols = args.symbols.clone().into();
    let subject = if args.command.is_empty() { Subject::running(&process) } else { Subject::beginning() };
    let (gate, sample_bytes) = args.gate.with(args.sample);
    let capacities = args.capacities.for_subject(subject.sampled(sample_bytes));
    let options = Options {
        capacities,
        with_mappings: args.mmap.mmap,
        sample_bytes,
        gate,
        stays_exact: args.sample.exact,
        follow_forks: args.follow_forks,
        with_diagnostics: diagnostics,
        capture,
        ..Options::default()
    };
    let (session, births) = Session::start(process, symbols, options)?;
    Ok((session, births, output))
}

/// Why a recording is over.
enum End {
    /// Somebody asked.
    Signal,
    /// The time is up.
    Deadline,
    /// The process has ended.
    Exited,
    /// It costs the process too much.
    TooCostly(Excess),
}

/// Shows how it goes until it is over.
async fn attend(args: &RecordArgs, session: &Session, children: &mut Children) -> Result<(), CliError> {
    let mut interrupts = Interrupts::listen()?;
    let process = session.process();
    // For people and for scripts that wait for it: the probes are in.
    let until = args
        .duration
        .map_or("until Ctrl-C".to_owned(), |time| format!("for {}", humantime::format_duration(time)));
    say(&format!("recording {} (pid {}), {}, {until}", process.comm(), process.pid(), session.probed()));
    session.warn_of_the_unprobed();
    session.say_how_gated();
    let mut live = LiveLine::new(args.quiet);
    let mut limit = Limit::new(args.max_overhead);
    let mut vitals = Vitals::default();
    let mut ticks = tokio::time::interval(INTERVAL);
    let deadline = async {
        match args.duration {
            Some(duration) => tokio::time::sleep(duration).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(deadline);
    let over = async {
        tokio::select! {
            over = session.over() => over?,
            () = children.attend() => {}
        }
        if children.are_there() {
            session.stop()?;
            if !args.quiet {
                say("the process has ended; its children are followed on");
            }
            children.attend_to_the_last().await;
        }
        Ok::<(), CliError>(())
    };
    tokio::pin!(over);
    let end = loop {
        tokio::select! {
            _ = interrupts.next() => break End::Signal,
            () = &mut deadline => break End::Deadline,
            ended = &mut over => {
                ended?;
                break End::Exited;
            }
            // Where nobody sees the line it is still looked after the target, if less often.
            _ = ticks.tick() => {
                let cost = session.cost();
                if session.may_have_changed() {
                    session.tend();
                    match session.vitals() {
                        Ok(seen) => vitals = seen,
                        Err(error) => tracing::warn!(%error, "no live numbers"),
                    }
                }
                if !live.is_hidden() {
                    live.show(&vitals, cost.as_ref(), args.gate.gate.is_some());
                }
                if let Some(excess) = cost.and_then(|cost| limit.judge(&cost.last)) && !session.relieve(excess) {
                    break End::TooCostly(excess);
                }
            }
        }
    };
    let stopped = session.stop();
    live.finish();
    interrupts.let_next_one_kill();
    if let End::TooCostly(excess) = end {
        say(&too_costly(excess));
        say("hint: record for a few seconds (--duration), or allow more (--max-overhead)");
    }
    if !args.quiet {
        match end {
            End::Signal => say("finishing; Ctrl-C again to stop at once"),
            End::Deadline | End::TooCostly(_) => {}
            End::Exited => say("the process has ended"),
        }
    }
    Ok(stopped?)
}

fn finish(
    args: &RecordArgs,
    session: &Session,
    output: Output,
    child: Option<Child>,
    out: &mut dyn Write,
) -> Result<Outcome, CliError> {
    let (heap, profile) = session.profile()?;
    let bytes = encode_gzip(&profile).map_err(CliError::Encode)?;
    let path = output.commit(&bytes)?;
    report::write_summary(profile, ROWS, out)?;
    for loss in losses(&heap) {
        say(&loss);
    }
    if !args.quiet {
        say_what_became_of(child);
        say_how_whole(&heap);
        for line in memory::lines(&heap) {
            say(&line);
        }
        for line in cost::lines(heap.cost.as_ref(), heap.gate.is_some()) {
            say(&line);
        }
        for line in heap.gate.iter().flat_map(|gate| gate::closing_lines(gate, &heap.counters)) {
            say(&line);
        }
        say(&format!("wrote {}", path.display()));
        say(&format!(
            "open it with `heaptap report {0} --lines` or `go tool pprof -http=: {0}`",
            path.display()
        ));
    }
    if heap.entries.is_empty() {
        let seconds = heap.duration.as_secs_f64();
        say(&format!("{} were probed, and not one allocated in {seconds:.1} s", session.probed()));
        say(&format!("hint: record for longer; `heaptap inspect --pid {}` shows what is probed", heap.pid));
        return Ok(Outcome::NothingToShow);
    }
    Ok(Outcome::Done)
}

/// Says how many allocations have a whole stack, and why the others have not, where there are others.
fn say_how_whole(heap: &RawHeap) {
    let health = Health::of(heap);
    let (whole, all) = health.whole_of_all();
    if whole == all {
        return;
    }
    say(&format!("{:.2} % of {all} allocations have a whole stack", whole as f64 / all as f64 * 100.0));
    if let Some(cut) = health.by_end.get(&WalkEnd::Cut) {
        say(&format!("  {cut} have more frames than --stack-depth keeps"));
    }
    for ((end, file), allocations) in &health.broken {
        say(&format!("  {allocations} in {file}: {}", end.text()));
    }
}

fn say_what_became_of(child: Option<Child>) {
    let Some(mut child) = child else { return };
    match child.try_wait() {
        Ok(Some(status)) if status.success() => {}
        Ok(Some(status)) => say(&format!("the command ended with {status}")),
        Ok(None) => say(&format!("the command runs on as process {}", child.id())),
        Err(error) => tracing::warn!(%error, "cannot tell how the command ended"),
    }
}

/// The file to write, with its name.
pub(super) struct Output {
    pub(super) file: OutputFile,
    pub(super) path: PathBuf,
}

impl Output {
    /// Writes the profile, and says where. What was recorded is not lost to a name that was taken meanwhile or to a
    /// full disk, if there is any other place for it.
    pub(super) fn commit(self, bytes: &[u8]) -> Result<PathBuf, CliError> {
        let Self { file, path } = self;
        let Err(error) = file.commit(bytes) else { return Ok(path) };
        match rescue(&path, bytes) {
            Ok(rescued) => {
                say(&format!("the profile was written to {} instead", rescued.display()));
                Err(error.into())
            }
            Err(_) => Err(error.into()),
        }
    }
}

fn rescue(path: &Path, bytes: &[u8]) -> Result<PathBuf, FileError> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let rescued = std::env::temp_dir().join(format!("heaptap-{}-{name}", std::process::id()));
    OutputFile::create(&rescued, false)?.commit(bytes)?;
    Ok(rescued)
}

/// `heap.<name>.<pid>.pb.gz`, where the name is the target's to choose.
fn default_path(comm: &str, pid: u32) -> PathBuf {
    let safe = |letter: char| if letter.is_alphanumeric() || "-_+".contains(letter) { letter } else { '_' };
    PathBuf::from(format!("heap.{}.{pid}.pb.gz", comm.chars().map(safe).collect::<String>()))
}

/// Why a recording was stopped, in words.
pub(super) fn too_costly(Excess { limit_percent, percent }: Excess) -> String {
    format!(
        "stopped: it costs the process {percent:.1} % of a CPU, above --max-overhead {limit_percent}; it runs at full speed again"
    )
}

/// Says one line to people, on stderr. Nobody listening is no reason to stop.
pub(super) fn say(text: &str) {
    let _ = writeln!(io::stderr(), "heaptap: {}", Printable(text));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_targets_name_cannot_lead_out_of_the_directory() {
        assert_eq!(default_path("redis-server", 7), PathBuf::from("heap.redis-server.7.pb.gz"));
        assert_eq!(default_path("../../etc/x", 7), PathBuf::from("heap.______etc_x.7.pb.gz"));
    }
}
