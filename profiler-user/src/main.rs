//! The `heaptap` command.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Parser;
use profiler_user::cli::{
    Outcome,
    args::Cli,
    hints::{chain, hint},
};

/// Nothing to show, though nothing failed.
const NOTHING: u8 = 1;

/// Failed; clap uses it for what was typed wrongly, too.
const FAILED: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    // The kernel side's diagnostics come through `log`, which the subscriber takes over.
    tracing_subscriber::fmt().with_max_level(cli.log).with_writer(io::stderr).without_time().init();
    match profiler_user::cli::run(cli, &mut io::stdout().lock()) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::NothingToShow) => ExitCode::from(NOTHING),
        Err(error) => {
            let causes: Vec<_> = chain(&error).map(ToString::to_string).collect();
            // Nobody listening is no reason to panic.
            let _ = writeln!(io::stderr(), "heaptap: {}\nhint: {}", causes.join(": "), hint(&error));
            ExitCode::from(FAILED)
        }
    }
}
