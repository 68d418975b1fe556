//! A profiler that has attached to the target.

use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::target::streams;
use super::usage::Memory;
use crate::bench::processes;
use crate::bench::said::Said;

/// Attaching and detaching take less, unless something hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// Looked at so often while it ends; its memory, which takes longer, every so many looks.
const LOOK: Duration = Duration::from_millis(1);
const MEMORY_EVERY: u32 = 20;

/// The profiler, which ends when this does.
#[derive(Debug)]
pub(super) struct Attached {
    child: Child,
    said: Said,
}

impl Attached {
    /// Starts it, and waits until it says that it counts.
    pub(super) fn start(mut command: Command, counts: impl Fn(&str) -> bool) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let said = Said::of(streams(&mut child)?);
        let mut attached = Self { child, said };
        attached.wait_for(counts)?;
        Ok(attached)
    }

    /// Waits until it says something.
    pub(super) fn wait_for(&mut self, found: impl Fn(&str) -> bool) -> Result<()> {
        self.said.wait_for(Instant::now() + PATIENCE, |line| found(line).then_some(())).context("attaching")
    }

    /// Its processes.
    pub(super) fn processes(&self) -> Vec<u32> {
        processes::tree(self.child.id())
    }

    /// Has it finish, and gives the seconds that this took.
    pub(super) fn detach(mut self, memory: &mut Memory) -> Result<f64> {
        let began = Instant::now();
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGINT)
            .context("the profiler has ended")?;
        for look in 0.. {
            if self.child.try_wait()?.is_some() {
                break;
            }
            if look % MEMORY_EVERY == 0 {
                memory.look(&self.processes());
            }
            if began.elapsed() > PATIENCE {
                bail!("detaching: timeout");
            }
            thread::sleep(LOOK);
        }
        Ok(began.elapsed().as_secs_f64())
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        processes::end(&mut self.child);
    }
}
