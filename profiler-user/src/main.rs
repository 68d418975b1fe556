//! The `heaptap` command.

use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
};

use clap::Parser;
use profiler_user::{
    causes::with_causes,
    cli::{Outcome, args::Cli, hints::hint},
    profile::printable::Printable,
};
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

/// Nothing to show, though nothing failed.
const NOTHING: u8 = 1;

/// Failed; clap uses it for what was typed wrongly, too.
const FAILED: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    start_logging(cli.log);
    match profiler_user::cli::run(cli, &mut io::stdout().lock()) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::NothingToShow) => ExitCode::from(NOTHING),
        Err(error) => {
            // Nobody listening is no reason to panic.
            let (error, hint) = (with_causes(&error), hint(&error));
            let _ = writeln!(io::stderr(), "heaptap: {}\nhint: {}", Printable(&error), Printable(&hint));
            ExitCode::from(FAILED)
        }
    }
}

/// Logs to stderr from `level` on. The kernel side's diagnostics come through `log`, which this takes over.
fn start_logging(level: LevelFilter) {
    // The loader tells every relocation that it does, which is of interest to its own developers.
    let loader = if level == LevelFilter::TRACE { level } else { level.min(LevelFilter::WARN) };
    let filter = Targets::new().with_default(level).with_target("aya", loader).with_target("aya_obj", loader);
    let format = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .without_time();
    tracing_subscriber::registry().with(format).with(filter).init();
}
