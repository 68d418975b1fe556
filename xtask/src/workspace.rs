//! Where things are, and cargo.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The folder of the workspace.
pub(crate) fn root() -> Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask is a folder of the workspace")
}

/// The folder that cargo builds in: xtask itself is in `target/PROFILE`.
pub(crate) fn target_dir() -> Result<PathBuf> {
    let xtask = env::current_exe().context("cannot tell where xtask is")?;
    let target = xtask.ancestors().nth(2).context("xtask is not where cargo puts binaries")?;
    Ok(target.to_path_buf())
}

/// The cargo that runs us, in the workspace.
pub(crate) fn cargo() -> Result<Command> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root()?).env("CARGO_TARGET_DIR", target_dir()?);
    Ok(cargo)
}

/// Runs a command to its end; it talks to the terminal itself.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let what = format!("{command:?}");
    let status = command.status().with_context(|| format!("cannot run {what}"))?;
    ensure!(status.success(), "{what} failed: {status}");
    Ok(())
}

/// Runs a command to its end and gives what it says.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let what = format!("{command:?}");
    let output = command.output().with_context(|| format!("cannot run {what}"))?;
    ensure!(output.status.success(), "{what} failed: {}", output.status);
    String::from_utf8(output.stdout).with_context(|| format!("{what} speaks no UTF-8"))
}

/// Whether we may load BPF programs and look into other processes.
pub(crate) fn is_root() -> bool {
    nix::unistd::Uid::effective().is_root()
}
