//! A test program that does something to a process as a process of its own, which can be killed.
//!
//! What it does is a test to the compiler, which returns at once unless the program was started for it.

use std::env;
use std::process::Command;

/// The command by which this program does what one of its tests is for, to a process that this test is told of by a variable.
pub fn command(test: &str, variable: &str, pid: u32) -> Command {
    let mut command = Command::new(env::current_exe().expect("this program has a path"));
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]);
    command.env(variable, pid.to_string());
    command
}

/// The process that this program was started for by [`command`]; `None` where it was not.
pub fn told_of(variable: &str) -> Option<u32> {
    env::var(variable).ok().map(|pid| pid.parse().expect("a PID"))
}
