//! `heaptap doctor`: the prerequisites, for people and for bug reports.

use std::io::{self, Write};

use super::error::CliError;
use crate::target::prerequisites::{Check, Verdict, check_all, first_missing};

/// Looks at every prerequisite and tells; fails with the first required one that is missing.
pub(super) fn run(out: &mut dyn Write) -> Result<(), CliError> {
    let checks = check_all();
    write(&checks, out).map_err(CliError::Stdout)?;
    match first_missing(&checks) {
        Some(check) => Err(CliError::Prerequisite(Box::new(check.clone()))),
        None => Ok(()),
    }
}

/// Makes sure of the prerequisites before anything is attached.
pub(super) fn require_all() -> Result<(), CliError> {
    let checks = check_all();
    first_missing(&checks).map_or(Ok(()), |check| Err(CliError::Prerequisite(Box::new(check.clone()))))
}

fn write(checks: &[Check], out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "heaptap {}", env!("CARGO_PKG_VERSION"))?;
    for Check { name, purpose, verdict } in checks {
        let (mark, found) = match verdict {
            Verdict::Present(found) => ("ok", found),
            Verdict::Optional(found) => ("absent", found),
            Verdict::Missing { found, .. } => ("MISSING", found),
        };
        writeln!(out, "{mark:<8} {name:<32} {found}")?;
        writeln!(out, "{:<8} {:<32} to {purpose}", "", "")?;
        if let Verdict::Missing { next_step, .. } = verdict {
            writeln!(out, "{:<8} {:<32} next: {next_step}", "", "")?;
        }
    }
    Ok(())
}
