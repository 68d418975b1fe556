//! A running guest and its answers.

use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;
use std::process::{ChildStdin, Command, ExitStatus, Stdio};

use rustix::process::Signal;

use crate::chains::Chains;
use crate::compile::{self, Variant};
use crate::ledger::Ledger;
use crate::process::{Lines, Process};

/// A guest that answers commands; it is killed when dropped.
#[derive(Debug)]
pub struct Guest {
    process: Process,
    commands: ChildStdin,
    answers: Lines,
    name: String,
}

impl Guest {
    /// Compiles and starts `guests/NAME`, and waits until it is ready.
    pub fn start(name: &str) -> Self {
        Self::start_as(name, Variant::FramePointers)
    }

    /// The same, with or without frame pointers.
    pub fn start_as(name: &str, variant: Variant) -> Self {
        Self::start_program(name, &compile::program_as(name, variant))
    }

    /// The same, with all its addresses where they are in every such run.
    pub fn start_without_randomisation(name: &str) -> Self {
        let mut command = Command::new("setarch");
        command.arg("--addr-no-randomize").arg(compile::program(name));
        let mut guest = Self::spawn_command(name, command);
        guest.line("ready");
        guest
    }

    /// The same as [`Guest::start`], with a library preloaded.
    pub fn start_preloaded(name: &str, library: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(compile::program(name));
        command.env("LD_PRELOAD", library);
        let mut guest = Self::spawn_command(name, command);
        guest.line("ready");
        guest
    }

    /// Starts a program of ours that was compiled otherwise, and waits until it is ready.
    pub fn start_program(name: &str, program: &Path) -> Self {
        let mut guest = Self::spawn(name, program);
        guest.line("ready");
        guest
    }

    /// Starts a program that need not know the protocol.
    pub fn spawn(name: &str, program: &Path) -> Self {
        Self::spawn_command(name, Command::new(program))
    }

    /// The same, of a command.
    pub fn spawn_command(name: &str, mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::spawn(command);
        let child = process.child();
        let commands = child.stdin.take().expect("stdin is piped");
        let answers = Lines::of(child.stdout.take().expect("stdout is piped"));
        Self { process, commands, answers, name: name.to_owned() }
    }

    /// The process ID.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Waits for a line that begins so.
    pub fn line(&mut self, beginning: &str) -> String {
        self.answers
            .find(format_args!("`{beginning}` from {}", self.name), |line| line.starts_with(beginning))
    }

    /// Gives a command without waiting for it to be done.
    pub fn send(&mut self, command: &str) {
        writeln!(self.commands, "{command}")
            .unwrap_or_else(|err| panic!("{} does not take `{command}`: {err}", self.name));
    }

    /// Gives a command and returns the lines of its answer.
    pub fn command(&mut self, command: &str) -> Vec<String> {
        self.send(command);
        self.until(command, "done")
    }

    /// Gives a command whose answer is a name and a number.
    pub fn number(&mut self, command: &str) -> u64 {
        let answer = self.command(command);
        answer
            .first()
            .and_then(|line| line.split(' ').nth(1)?.parse().ok())
            .unwrap_or_else(|| panic!("{} answered `{command}` with {answer:?}", self.name))
    }

    /// What the guest has counted.
    pub fn ledger(&mut self) -> Ledger {
        self.send("ledger");
        Ledger::parse(&self.until("ledger", "end"))
    }

    /// The chains of its sites: the functions that a stack has to hold.
    pub fn chains(&mut self) -> Chains {
        Chains::parse(&self.command("chains"))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Waits for the guest's own end.
    pub fn wait(mut self) -> ExitStatus {
        self.process.wait()
    }

    /// Ends the guest; panics unless it ends well.
    pub fn exit(mut self) {
        self.command("exit");
        let name = self.name.clone();
        let status = self.wait();
        assert!(status.success(), "{name} ended with {status}");
    }

    fn until(&mut self, command: &str, end: &str) -> Vec<String> {
        let mut answer = Vec::new();
        loop {
            match self.answers.next(format_args!("`{end}` after `{command}` from {}", self.name)) {
                Some(line) if line == end => return answer,
                Some(line) => answer.push(line),
                None => panic!("{} ended during `{command}`, after {answer:?}", self.name),
            }
        }
    }
}
