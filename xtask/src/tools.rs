//! Programs that cargo installs.

use std::process::Command;

use anyhow::{Context, Result};

use crate::workspace::{cargo, output, run};

/// Installs a program in this version where it is not there: another one would behave otherwise.
pub(crate) fn ensure_installed(name: &str, version: &str) -> Result<()> {
    let wanted = format!("{name} {version}");
    if output(Command::new(name).arg("--version")).is_ok_and(|found| found.trim() == wanted) {
        return Ok(());
    }
    eprintln!("xtask: installing {wanted}, which takes some minutes");
    run(cargo()?.args(["install", "--locked", "--version", version, name]))
        .with_context(|| format!("run `cargo install --locked --version {version} {name}`, then this again"))
}
