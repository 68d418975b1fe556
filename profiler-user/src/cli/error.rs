//! Everything that can go wrong in a command, for [`super::hints`] to give the next step.

use std::{io, net::SocketAddr};

use super::report::ReportError;
use crate::{
    gated::GateError,
    output::file::FileError,
    profile::builder::BuildError,
    source::uprobe::{RecordError, capture::CaptureError},
    target::{identity::IdentityError, launch::LaunchError, prerequisites::Check, process::ProcessError},
};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CliError {
    /// The machine lacks something.
    #[error("cannot do without {}, to {}: {}", .0.name, .0.purpose, .0.verdict.found())]
    Prerequisite(Box<Check>),
    /// The process cannot be profiled.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The command could not be started.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The user behind sudo cannot be told.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The recording failed.
    #[error("cannot record process {pid}")]
    Record {
        /// The process.
        pid: u32,
        /// Why.
        #[source]
        source: RecordError,
    },
    /// What was left in the process could not be taken out.
    #[error("cannot detach from process {pid}")]
    Detach {
        /// The process.
        pid: u32,
        /// Why.
        #[source]
        source: GateError,
    },
    /// The profile could not be put together.
    #[error("cannot put the profile together")]
    Build(#[from] BuildError),
    /// The profile could not be compressed.
    #[error("cannot compress the profile")]
    Encode(#[source] io::Error),
    /// The profile could not be written.
    #[error("cannot write the profile")]
    Output(#[from] FileError),
    /// The file of stacks could not be written.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The closing table or a report could not be made.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// The address is not one of this machine's own.
    #[error("{listen} is not a loopback address")]
    NotLoopback {
        /// The address.
        listen: SocketAddr,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {listen}")]
    Listen {
        /// The address.
        listen: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Signals, timers or sockets could not be set up.
    #[error("cannot set up {what}")]
    Runtime {
        /// What.
        what: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Whoever wanted debug information does not talk as heaptap does.
    #[error("cannot read debug information for another program")]
    Reader(#[source] io::Error),
    /// Standard output cannot be written.
    #[error("cannot write to standard output")]
    Stdout(#[source] io::Error),
}

impl CliError {
    /// The error of a recording of the process `pid`.
    pub(super) fn record(pid: u32) -> impl FnOnce(RecordError) -> Self {
        move |source| match source {
            RecordError::Process(error) => Self::Process(error),
            source => Self::Record { pid, source },
        }
    }
}
