//! Why threads are not stopped, or do not do what they were stopped for.

use std::{io, time::Duration};

/// Why.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// The process has ended.
    #[error("process {pid} has ended")]
    Gone {
        /// The process.
        pid: u32,
    },
    /// A debugger, or the like of it, has the thread.
    #[error("thread {thread} of process {pid} is already traced by {tracer}")]
    Traced {
        /// The process.
        pid: u32,
        /// The thread.
        thread: i32,
        /// The thread that traces it.
        tracer: i32,
    },
    /// The kernel does not let us.
    #[error("thread {thread} of process {pid} may not be traced")]
    NotPermitted {
        /// The process.
        pid: u32,
        /// The thread.
        thread: i32,
        /// What the kernel says.
        source: io::Error,
    },
    /// A thread sleeps in the kernel where nothing interrupts it, or got no processor.
    #[error("thread {thread} ({name:?}) of process {pid}, in state {state}, did not stop within {limit:?}")]
    NotInTime {
        /// The process.
        pid: u32,
        /// The thread.
        thread: i32,
        /// Its name.
        name: String,
        /// What the kernel says that it does.
        state: String,
        /// How long it was waited for.
        limit: Duration,
    },
    /// Threads come faster than they are stopped.
    #[error("process {pid} went on to start threads for {limit:?}")]
    TooMany {
        /// The process.
        pid: u32,
        /// For how long they were stopped as they came.
        limit: Duration,
    },
    /// The process runs 32-bit code.
    #[error("thread {thread} of process {pid} runs 32-bit code")]
    Bits32 {
        /// The process.
        pid: u32,
        /// The thread.
        thread: i32,
    },
    /// A filter may kill the process at a system call that is not in its program.
    #[error("process {pid} has its system calls filtered (seccomp mode {mode})")]
    Filtered {
        /// The process.
        pid: u32,
        /// The mode: 1 is strict, 2 is with a filter.
        mode: u32,
    },
    /// No thread is in a condition to execute a system call.
    #[error("no thread of process {pid} can execute a system call")]
    NoThread {
        /// The process.
        pid: u32,
    },
    /// There is no `syscall` instruction.
    #[error("process {pid} has no system call instruction that could be used")]
    NoInstruction {
        /// The process.
        pid: u32,
    },
    /// A thread stopped otherwise than it should have; its registers are what they were.
    #[error(
        "thread {thread} of process {pid} met signal {signal} where it should execute system call {number}"
    )]
    Disturbed {
        /// The process.
        pid: u32,
        /// The thread.
        thread: i32,
        /// The system call.
        number: u64,
        /// What it met.
        signal: i32,
    },
    /// The system call failed.
    #[error("system call {number} in process {pid} failed")]
    Call {
        /// The process.
        pid: u32,
        /// The system call.
        number: u64,
        /// What it returned.
        source: io::Error,
    },
    /// A thread does not leave the range that it is in.
    #[error("thread {thread} of process {pid} is still at {address:#x} after {steps} instructions")]
    Inside {
        /// The process.
        pid: u32,
        /// The thread.
        thread: i32,
        /// Where it is.
        address: u64,
        /// How far it was let go.
        steps: u32,
    },
    /// What a step ends with is a signal that the process ignores, and the kernel would make it stop ignoring it.
    #[error("process {pid} ignores SIGTRAP, so that thread {thread} cannot be stepped")]
    IgnoresSteps {
        /// The process.
        pid: u32,
        /// The thread.
        thread: i32,
    },
    /// Memory cannot be read or written.
    #[error("{length} bytes at {address:#x} of process {pid} cannot be {done}")]
    Memory {
        /// The process.
        pid: u32,
        /// The first address.
        address: u64,
        /// How many bytes.
        length: usize,
        /// `read` or `written`.
        done: &'static str,
        /// What the kernel says.
        source: io::Error,
    },
    /// Another request failed.
    #[error("thread {thread} of process {pid} cannot be {done}")]
    Request {
        /// The process.
        pid: u32,
        /// The thread.
        thread: i32,
        /// What was asked for.
        done: &'static str,
        /// What the kernel says.
        source: io::Error,
    },
    /// We have no thread to trace from.
    #[error("no thread to stop process {pid} from")]
    NoTracer {
        /// The process.
        pid: u32,
        /// Why, where it could not be started; it came to its end where there is nothing here.
        source: Option<io::Error>,
    },
}
