//! A workload at work: a guest by commands, or redis-server by its own benchmark.

use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::redis::Redis;
use crate::bench::processes;
use crate::bench::said::Said;

/// Starting under valgrind takes seconds.
const START: Duration = Duration::from_secs(60);

/// Beyond what the work should take: the first operations of a slow profiler may be very slow.
const GRACE: Duration = Duration::from_secs(30);

/// What is started.
#[derive(Clone, Debug)]
pub(super) enum Program {
    /// A program that works by commands.
    Guest(Vec<OsString>),
    /// redis-server, and how many requests its benchmark sends at once on a connection.
    Redis { pipeline: u32, folder: PathBuf },
}

/// What goes before the command of a program that a profiler starts, and into its environment.
#[derive(Debug, Default)]
pub(super) struct Launcher {
    pub(super) words: Vec<OsString>,
    pub(super) environment: Vec<(&'static str, OsString)>,
}

/// What the work came to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work {
    pub(super) operation_ns: f64,
    /// How many there were in each thread.
    pub(super) operations: f64,
    /// The 99th percentile, where operations are requests.
    pub(super) p99_ms: Option<f64>,
}

/// A program at work, which ends when this does.
#[derive(Debug)]
pub(super) struct Target {
    child: Child,
    pid: u32,
    side: Side,
    busy: Option<Child>,
}

#[derive(Debug)]
enum Side {
    Guest { input: ChildStdin, said: Said },
    Redis(Redis),
}

impl Target {
    /// Starts a program, and waits until it is ready.
    pub(super) fn start(program: &Program, launcher: &Launcher) -> Result<Self> {
        let until = Instant::now() + START;
        let (command, redis) = match program {
            Program::Guest(command) => (command.clone(), None),
            Program::Redis { pipeline, folder } => {
                let redis = Redis::new(*pipeline, folder)?;
                (redis.server(), Some(redis))
            }
        };
        let mut words = launcher.words.iter().chain(&command);
        let mut child = Command::new(words.next().context("no program")?)
            .args(words)
            .envs(launcher.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start")?;
        let input = child.stdin.take().context("stdin is piped")?;
        let said = Said::of(streams(&mut child)?);
        let side = match redis {
            Some(redis) => Side::Redis(redis),
            None => Side::Guest { input, said },
        };
        let mut target = Self { pid: child.id(), child, side, busy: None };
        target.pid = match &mut target.side {
            Side::Redis(redis) => redis.wait_until_ready(until)?,
            Side::Guest { said, .. } => said.wait_for(until, ready_pid).context("the target")?,
        };
        Ok(target)
    }

    /// The PID of the program itself, which is not that of the profiler that has started it.
    pub(super) const fn pid(&self) -> u32 {
        self.pid
    }

    /// All that was started before it, with it and by it.
    pub(super) fn processes(&self) -> Vec<u32> {
        processes::tree(self.child.id())
    }

    /// Has it work for some seconds.
    pub(super) fn work(&mut self, seconds: f64) -> Result<Work> {
        let until = Instant::now() + Duration::from_secs_f64(seconds) + GRACE;
        match &mut self.side {
            Side::Guest { input, said } => {
                writeln!(input, "{seconds}").context("the target has ended")?;
                let operation_ns = said.wait_for(until, |line| line.parse().ok()).context("the target")?;
                Ok(Work { operation_ns, operations: seconds * 1e9 / operation_ns, p99_ms: None })
            }
            Side::Redis(redis) => redis.work(seconds, until),
        }
    }

    /// Has it work to its end, while others look at something else.
    pub(super) fn keep_busy(&mut self) -> Result<()> {
        match &mut self.side {
            Side::Guest { input, .. } => writeln!(input, "3600").context("the target has ended"),
            Side::Redis(redis) => {
                self.busy = Some(redis.keep_busy()?);
                Ok(())
            }
        }
    }

    /// Whether the program still runs.
    pub(super) fn is_alive(&self) -> bool {
        !self.maps().is_empty()
    }

    /// What it has mapped: nothing when it has ended.
    pub(super) fn maps(&self) -> String {
        fs::read_to_string(format!("/proc/{}/maps", self.pid)).unwrap_or_default()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(busy) = &mut self.busy {
            processes::end(busy);
        }
        // What has started the target, heaptrack's script, then takes away what it has left in /tmp.
        processes::end_with(&mut self.child, self.pid);
    }
}

fn ready_pid(line: &str) -> Option<u32> {
    line.strip_prefix("ready ")?.parse().ok()
}

/// What a program says, whichever way.
pub(super) fn streams(child: &mut Child) -> Result<[Box<dyn Read + Send>; 2]> {
    let stdout = child.stdout.take().context("stdout is piped")?;
    let stderr = child.stderr.take().context("stderr is piped")?;
    Ok([Box::new(stdout), Box::new(stderr)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(script: &str) -> Program {
        Program::Guest(["sh", "-c", script].map(OsString::from).into())
    }

    #[test]
    fn a_guest_works_on_command_whoever_has_started_it() {
        let launcher = Launcher {
            words: ["nice", "-n", "0"].map(OsString::from).into(),
            environment: vec![("NUMBER", "25.5".into())],
        };
        let program = guest("echo preloaded; echo ready $$; read seconds; echo $NUMBER; read seconds");
        let mut target = Target::start(&program, &launcher).unwrap();
        assert!(target.processes().contains(&target.pid()));
        assert!(target.is_alive());
        assert_eq!(target.work(0.1).unwrap().operation_ns, 25.5);
    }

    #[test]
    fn a_guest_that_does_not_start_says_why() {
        let reason =
            Target::start(&guest("echo 'error: no such library' >&2"), &Launcher::default()).unwrap_err();
        assert_eq!(format!("{reason:#}"), "the target: ended: error: no such library");
    }
}
