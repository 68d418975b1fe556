//! The next step after each error.

use std::io;

use super::{error::CliError, report::ReportError};
use crate::{
    causes::causes,
    gated::GateError,
    output::file::FileError,
    profile::read::ReadError,
    source::uprobe::{AttachError, InheritedError, RecordError, TracefsError, capture::CaptureError},
    target::{
        launch::LaunchError,
        prerequisites::{Check, Verdict},
        process::ProcessError,
        stopped::StopError,
    },
};

/// What to do about an error.
pub fn hint(error: &CliError) -> String {
    match error {
        CliError::Prerequisite(check) => prerequisite(check),
        CliError::Process(error) => process(error),
        CliError::Launch(error) => launch(error),
        CliError::Identity(_) => "start the command as root with --as-root".to_owned(),
        CliError::Record { pid, source } => record(*pid, source),
        CliError::Detach { pid, source } => gate(*pid, source),
        CliError::Build(_) => {
            "this is a defect of heaptap: please report it with the output of `heaptap doctor`".to_owned()
        }
        CliError::Encode(_) | CliError::Stdout(_) => {
            "free some disk space, or write somewhere else".to_owned()
        }
        CliError::Output(error) => output(error),
        CliError::Capture(error) => capture(error),
        CliError::Report(error) => report(error),
        CliError::NotLoopback { listen } => {
            format!("use --listen 127.0.0.1:{}: profiles tell much about a program", listen.port())
        }
        CliError::Listen { listen, source } if source.kind() == io::ErrorKind::AddrInUse => {
            format!("choose another port, or any free one with --listen {}:0", listen.ip())
        }
        CliError::Listen { .. } => "choose another address with --listen".to_owned(),
        CliError::Reader(_) => {
            "heaptap starts this by itself; for the names in a profile use `heaptap record`".to_owned()
        }
        CliError::Runtime { .. } => "run `heaptap doctor` and see to what it says".to_owned(),
    }
}

fn capture(error: &CaptureError) -> String {
    match error.source.kind() {
        io::ErrorKind::AlreadyExists => {
            "choose another --capture-stacks, or replace it with --force".to_owned()
        }
        io::ErrorKind::NotFound => "make the directory first".to_owned(),
        _ => "write somewhere else with --capture-stacks; the profile does without it".to_owned(),
    }
}

fn prerequisite(check: &Check) -> String {
    match &check.verdict {
        Verdict::Missing { next_step, .. } => next_step.clone(),
        Verdict::Present(_) | Verdict::Optional(_) => "run `heaptap doctor`".to_owned(),
    }
}

fn process(error: &ProcessError) -> String {
    match error {
        ProcessError::NotFound { .. } | ProcessError::Gone { .. } | ProcessError::Zombie { .. } => {
            "look for its present PID with `pgrep -a NAME`; short-lived commands can be started by `heaptap record -- COMMAND`".to_owned()
        }
        ProcessError::IsThread { pid, .. } => format!("use --pid {pid}: all threads of a process share one heap"),
        ProcessError::KernelThread { .. } => "choose a process of user space".to_owned(),
        ProcessError::Architecture { .. } => "heaptap profiles 64-bit x86 programs only".to_owned(),
        ProcessError::Ourselves { .. } => "start a second heaptap to look at the first".to_owned(),
        ProcessError::Unreadable { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            "run heaptap as root, and outside of containers that hide other processes".to_owned()
        }
        ProcessError::Unreadable { .. } => "run `heaptap doctor` and see to what it says".to_owned(),
    }
}

fn launch(error: &LaunchError) -> String {
    match error {
        LaunchError::Start { command, source } if source.kind() == io::ErrorKind::NotFound => {
            format!(
                "check the spelling; a program that is not in $PATH needs its directory, such as ./{command}"
            )
        }
        LaunchError::Start { command, source } if source.kind() == io::ErrorKind::PermissionDenied => {
            format!("make it executable with `chmod +x {command}`, or see whether this user may run it")
        }
        LaunchError::Start { .. } => "run the command by itself first".to_owned(),
        LaunchError::Ended { .. } => "run the command by itself first: its loader gave up".to_owned(),
        LaunchError::Hold { .. } => {
            "start the command by itself and attach with --pid; its first allocations will be missing"
                .to_owned()
        }
    }
}

fn record(pid: u32, error: &RecordError) -> String {
    if causes(error).any(|cause| cause.to_string().contains("os error 1)")) {
        return "run heaptap as root; in a container it needs to be privileged".to_owned();
    }
    match error {
        RecordError::Process(error) => process(error),
        RecordError::Gate(error) => gate(pid, error),
        RecordError::Changed { .. } => {
            "end the tool that has changed it, or start the program anew; `heaptap detach` takes out what a heaptap has left"
                .to_owned()
        }
        RecordError::NotGated { .. } => format!(
            "use --gate alone, which takes ordinary probes then; `heaptap inspect --gate --pid {pid}` shows what can be gated"
        ),
        RecordError::NoAllocator { .. } => format!(
            "heaptap knows glibc's allocator in a shared library so far; `heaptap inspect --pid {pid}` shows what the process has"
        ),
        RecordError::Attach(AttachError::Tracefs(TracefsError::Missing)) => {
            "mount it with `mount -t tracefs tracefs /sys/kernel/tracing`, or record without --follow-forks"
                .to_owned()
        }
        RecordError::Attach(AttachError::Inherited(InheritedError::TooMany { .. })) => {
            "allow more open files with `ulimit -n`, or record without --follow-forks".to_owned()
        }
        RecordError::Kernel(_)
        | RecordError::Attach(_)
        | RecordError::Feeder(_)
        | RecordError::Drain(_)
        | RecordError::Drained => {
            "run `heaptap doctor`; if all is well there, run again with --log debug and report what it says"
                .to_owned()
        }
    }
}

fn gate(pid: u32, error: &GateError) -> String {
    match error {
        GateError::Process(error) => process(error),
        GateError::Taken { .. } => "end the other heaptap first, or wait for it".to_owned(),
        GateError::Stop(StopError::Traced { tracer, .. }) => {
            format!("end the debugger or tracer (process {tracer}) first")
        }
        GateError::Stop(StopError::NotInTime { .. } | StopError::TooMany { .. }) => {
            "try again when the process is less busy, or do without --gate".to_owned()
        }
        _ => format!("record without --gate; `heaptap inspect --gate --pid {pid}` shows what can be gated"),
    }
}

fn output(error: &FileError) -> String {
    match error {
        FileError::NoParent { parent, .. } => format!("make it with `mkdir -p {}`", parent.display()),
        FileError::NotWritable { .. } => "choose a directory that can be written".to_owned(),
        FileError::Exists { .. } => {
            "choose another name with --output, or overwrite it with --force".to_owned()
        }
        FileError::NotAFile { .. } => "name a file, not a directory or a device".to_owned(),
        FileError::Write { .. } => "free some disk space, or choose another place".to_owned(),
    }
}

fn report(error: &ReportError) -> String {
    match error {
        ReportError::Read(ReadError::Io { .. }) => "check the file's name, and that it can be read".to_owned(),
        ReportError::Read(ReadError::Decode { .. }) => {
            "give a pprof profile, such as `heaptap record` writes; fetch or record it again if it was cut short".to_owned()
        }
        ReportError::SampleIndex(_) => "choose one of those with --sample-index".to_owned(),
        ReportError::Base(_) => "give two profiles of the same kind".to_owned(),
        ReportError::File(error) => output(error),
        ReportError::Flamegraph(_) => "choose values that the profile has with --sample-index".to_owned(),
        ReportError::Write(_) => "free some disk space, or write somewhere else".to_owned(),
        ReportError::Recorded(_) => "this is a defect of heaptap: please report it".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_name_the_value_to_use_next() {
        let thread = ProcessError::IsThread { tid: 12, pid: 10, comm: "guest".to_owned() };
        assert!(hint(&CliError::Process(thread)).contains("--pid 10"));
        let listen = "0.0.0.0:6060".parse().unwrap();
        assert!(hint(&CliError::NotLoopback { listen }).contains("--listen 127.0.0.1:6060"));
        let busy = CliError::Listen { listen, source: io::ErrorKind::AddrInUse.into() };
        assert!(hint(&busy).contains(":0"));
    }
}
