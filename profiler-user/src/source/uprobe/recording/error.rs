//! Why a recording is not there, or cannot be read.

use std::io;

use super::super::{attach::AttachError, kernel::KernelError};
use crate::{gated::GateError, target::process::ProcessError};

/// Why a recording could not begin or be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The process is not, or no longer, there to be recorded.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Nothing in the process can be probed.
    #[error("process {pid} ({comm}) has no allocator that heaptap knows; looked at {looked_at}")]
    NoAllocator {
        /// The process's PID.
        pid: u32,
        /// Its name.
        comm: String,
        /// The files that were looked at, each with what was found.
        looked_at: String,
    },
    /// The kernel side could not be set up.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The probes could not be attached.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// Somebody has written over a function that would be probed.
    #[error(
        "{function} at {address:#x} of process {pid} is not what its file has there, but {is:02x?}: another tool has changed it, and a probe there would break it"
    )]
    Changed {
        /// The process's PID.
        pid: u32,
        /// The function.
        function: String,
        /// Where.
        address: u64,
        /// What is there.
        is: Vec<u8>,
    },
    /// A gate is wanted, and there is none.
    #[error("process {pid} cannot be gated: {reasons}")]
    NotGated {
        /// The process's PID.
        pid: u32,
        /// Why.
        reasons: String,
    },
    /// The same, and why.
    #[error(transparent)]
    Gate(#[from] GateError),
    /// The thread that draws the gates' gaps could not be started.
    #[error("cannot start to draw the gate's gaps")]
    Feeder(#[source] io::Error),
    /// The thread that drains the ring buffer could not be started.
    #[error("cannot start to drain the ring buffer")]
    Drain(#[source] io::Error),
    /// That thread has failed: a defect of heaptap.
    #[error("the thread that drains the ring buffer has failed")]
    Drained,
}
