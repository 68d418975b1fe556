//! The command line: what was typed, done.

pub mod args;

pub mod error;

pub mod hints;

mod session;

mod family;

mod live;

mod limit;

mod record;

mod serve;

mod inspect;

mod detach;

mod doctor;

pub mod report;

use std::io::Write;

use args::{Cli, Command};
use error::CliError;

use crate::symbolize::reader;

/// How a command ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It did what was asked.
    Done,
    /// It ran, but there was nothing to show.
    NothingToShow,
}

/// Does what was typed. Results go to `out`, talk to stderr.
pub fn run(cli: Cli, out: &mut dyn Write) -> Result<Outcome, CliError> {
    let diagnostics = cli.log >= tracing::level_filters::LevelFilter::DEBUG;
    match cli.command {
        Command::Record(args) => record::run(&args, diagnostics, out),
        Command::Serve(args) => serve::run(&args, diagnostics).map(|()| Outcome::Done),
        Command::Inspect(args) => inspect::run(&args, out).map(|()| Outcome::Done),
        Command::Detach(args) => detach::run(&args, out).map(|()| Outcome::Done),
        Command::Doctor => doctor::run(out).map(|()| Outcome::Done),
        Command::Report(args) => Ok(report::run(&args, out)?),
        Command::ReadDebugInformation(args) => {
            reader::serve(&args.debug_dirs).map(|()| Outcome::Done).map_err(CliError::Reader)
        }
    }
}
