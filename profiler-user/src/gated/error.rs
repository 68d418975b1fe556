//! Why a gate is not in, or not out.

use std::{io, time::Duration};

use crate::{
    gate::code::CodeError,
    target::{process::ProcessError, stopped::StopError},
};

/// Why.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GateError {
    /// The process is not there, or cannot be looked at.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Its threads cannot be stopped, or do not do what they are stopped for.
    #[error(transparent)]
    Stop(#[from] StopError),
    /// There is no code for its functions.
    #[error(transparent)]
    Code(#[from] CodeError),
    /// There is no room where jumps reach.
    #[error("process {pid} has no {bytes} bytes free within 2 GiB of {start:#x}")]
    NoRoom {
        /// The process.
        pid: u32,
        /// What is needed.
        bytes: u64,
        /// Where its allocator begins.
        start: u64,
    },
    /// The process may make no file in memory that is executable.
    #[error(
        "process {pid} may make no memory executable by a file of its own: vm.memfd_noexec is 2 where it runs"
    )]
    NoExec {
        /// The process.
        pid: u32,
    },
    /// What was mapped is smaller than what is to go there: a defect of heaptap.
    #[error("the gate takes {bytes} bytes, and {room} were made ready")]
    TooLarge {
        /// What it takes.
        bytes: u64,
        /// What there is.
        room: u64,
    },
    /// The file that the gate is in cannot be opened, or written.
    #[error("the memory of the gate in process {pid} cannot be {done}")]
    File {
        /// The process.
        pid: u32,
        /// What was to be done.
        done: &'static str,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// Somebody else has changed a function.
    #[error(
        "{function} at {address:#x} of process {pid} is not what its file has there, but {is:02x?}: another tool has changed it"
    )]
    Changed {
        /// The process.
        pid: u32,
        /// The function.
        function: String,
        /// Where.
        address: u64,
        /// What is there.
        is: Vec<u8>,
    },
    /// A call that a jump covers would return where the processor does not expect it.
    #[error(
        "process {pid} has a shadow stack, which holds no return addresses but those of calls, and {function} begins with a call that \
         would be made otherwise"
    )]
    ShadowStack {
        /// The process.
        pid: u32,
        /// The function.
        function: String,
    },
    /// Code that a jump is to cover is always being returned to.
    #[error(
        "process {pid} would return into the place of a jump, each of {tries} times that this was looked at, over {waited:?}"
    )]
    Busy {
        /// The process.
        pid: u32,
        /// How often it was looked at.
        tries: u32,
        /// How long that took.
        waited: Duration,
    },
    /// What was to be done when the gate took another one's place could not be.
    #[error("the gate cannot take the place of another")]
    Turn(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The process runs another program by now.
    #[error("process {pid} has replaced its program meanwhile")]
    Replaced {
        /// The process.
        pid: u32,
    },
    /// Another process has the same memory, and is not stopped with it.
    #[error("process {other} has the memory of process {pid} in common with it (clone or vfork)")]
    Shared {
        /// The process.
        pid: u32,
        /// The other one.
        other: u32,
    },
    /// Another heaptap counts by a gate in the process.
    #[error("process {pid} is gated by another heaptap, which runs")]
    Taken {
        /// The process.
        pid: u32,
    },
}

impl GateError {
    /// The error for a file that could not be used.
    pub(super) fn file(pid: u32, done: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File { pid, done, source }
    }

    /// Whether it is that something else is mapped where the gate was to be.
    pub(super) fn is_occupied(&self) -> bool {
        matches!(self, Self::Stop(StopError::Call { source, .. }) if source.raw_os_error() == Some(libc::EEXIST))
    }
}
