//! Every developer command of heaptap, as `cargo xtask …`.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a developer command talks to people")]

mod bench;
mod bpf_toolchain;
mod demo;
mod ebpf;
mod fuzz;
mod packages;
mod test;
mod tools;
mod vm;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Developer commands of heaptap.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Find the leak of a sample service: builds heaptap, starts the service, attaches for ten seconds
    Demo,
    /// Build the kernel object that the repository holds, or check it against its sources
    Ebpf(ebpf::EbpfArgs),
    /// Measure what recording costs the target
    Bench(bench::BenchArgs),
    /// Run every test: unit tests, and as root the tests against real processes and the running kernel
    Test(test::TestArgs),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Demo => demo::run(),
        Command::Ebpf(args) => ebpf::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Test(args) => test::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("xtask: {err:#}");
            ExitCode::FAILURE
        }
    }
}
