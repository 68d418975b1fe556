//! `cargo xtask demo`: a service leaks, and heaptap finds where.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigHandler, Signal, signal};

use crate::packages::{self, CC, LIBC_HEADERS};
use crate::workspace::{cargo, is_root, root, run as run_command, target_dir};

/// Where the profile goes, in the folder that the command was called from.
const PROFILE: &str = "heap.leaky-metrics.pb.gz";

/// Runs the command.
pub(crate) fn run() -> Result<()> {
    if !is_root() {
        bail!("the demonstration attaches to a process and needs root: `sudo cargo xtask demo`");
    }
    packages::ensure_installed(&[CC, LIBC_HEADERS])?;
    run_command(cargo()?.args(["build", "--release", "--package", "profiler-user", "--bin", "heaptap"]))?;
    let heaptap = target_dir()?.join("release/heaptap");
    let service = Service::start(&compile_service()?)?;
    record(&heaptap, service.child.id())?;
    drop(service);
    println!();
    println!("The profile is {PROFILE}. To look at it by the line, and in the browser:");
    println!("    {} report {PROFILE} --lines", shorten(&heaptap).display());
    println!("    go tool pprof -http=: {PROFILE}");
    Ok(())
}

/// Frame pointers, which heaptap's stacks follow, and line numbers, which its reports name.
fn compile_service() -> Result<PathBuf> {
    let folder = target_dir()?.join("demo");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let program = folder.join("leaky-metrics");
    let mut cc = Command::new("cc");
    cc.args(["-std=c11", "-O2", "-g", "-fno-omit-frame-pointer", "-o"]).arg(&program);
    run_command(cc.arg(root()?.join("tests/guests/leaky-metrics.c")))?;
    Ok(program)
}

/// The running service; it ends when this does, and when we are killed.
struct Service {
    child: Child,
    /// Held open, for a service that writes into a closed pipe dies.
    output: BufReader<ChildStdout>,
}

impl Service {
    /// Starts it and waits for its first fetch.
    fn start(program: &Path) -> Result<Self> {
        let mut command = Command::new(program);
        // A group of its own: Ctrl-C is for heaptap, which then writes what it has.
        command.stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0);
        // SAFETY: `prctl` is a bare system call, which is safe between fork and exec.
        unsafe { command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?)) };
        let mut child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let output = child.stdout.take().context("stdout is piped")?;
        let mut service = Self { child, output: BufReader::new(output) };
        for _ in 0..2 {
            let mut line = String::new();
            service.output.read_line(&mut line).context("cannot read what the service says")?;
            ensure!(!line.is_empty(), "the service ended before its first fetch");
            eprint!("{line}");
        }
        Ok(service)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Fails for one that has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the command that a user would; its report goes to our standard output.
fn record(heaptap: &Path, pid: u32) -> Result<()> {
    let pid = pid.to_string();
    // The demonstration's own file of last time may go.
    let arguments = ["record", "--pid", &pid, "--duration", "10s", "--output", PROFILE, "--force"];
    eprintln!("$ heaptap {}", arguments.join(" "));
    let mut child = Command::new(heaptap)
        .args(arguments)
        .spawn()
        .with_context(|| format!("cannot start {}", heaptap.display()))?;
    // From here on Ctrl-C ends the recording and not us, who have the service to end.
    // SAFETY: ignoring a signal runs no handler.
    unsafe { signal(Signal::SIGINT, SigHandler::SigIgn) }.context("cannot ignore SIGINT")?;
    let status = child.wait().context("cannot wait for heaptap")?;
    ensure!(status.success(), "heaptap failed: {status}");
    Ok(())
}

/// A path as it is best typed from the current folder.
fn shorten(path: &Path) -> PathBuf {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(here).unwrap_or(path).to_path_buf()
}
