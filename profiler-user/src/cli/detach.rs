//! `heaptap detach`: takes out what a heaptap has left in a process that was killed.

use std::io::Write;

use super::{args::DetachArgs, error::CliError};
use crate::{gated, profile::gate::gates, target::Process};

/// Looks for gates and takes them out; says what has become of each.
pub(super) fn run(args: &DetachArgs, out: &mut dyn Write) -> Result<(), CliError> {
    let process = Process::open(args.pid)?;
    let failed = |source| CliError::Detach { pid: args.pid, source };
    let left = gated::find(args.pid).map_err(failed)?;
    let who = format!("process {} ({})", args.pid, crate::profile::printable::Printable(process.comm()));
    if left.is_empty() {
        return writeln!(out, "{who} has no gate").map_err(CliError::Stdout);
    }
    writeln!(out, "{who} has {}", gates(left.len())).map_err(CliError::Stdout)?;
    for gate in &left {
        let departure = gate.leave().map_err(failed)?;
        let mut said = if gate.functions() == 0 {
            "  none of its functions had been changed yet".to_owned()
        } else {
            format!("  {} of {} functions are as they were before", departure.taken_out, gate.functions())
        };
        if departure.left_alone > 0 {
            said += &format!("; {} had been put back already, or changed by others", departure.left_alone);
        }
        if departure.closed > 0 {
            said += "; its file was open, and is closed";
        }
        match departure.stays {
            Some(stay) => said += &format!("; its memory stays: {stay}"),
            None => said += "; its memory is gone",
        }
        let stood_ms = departure.stood.as_secs_f64() * 1e3;
        writeln!(out, "{said}; it stood still for {stood_ms:.1} ms").map_err(CliError::Stdout)?;
    }
    Ok(())
}
