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
    /// No thread is in a condition to execute a system call.
    #[error("no thread of process {pid} can execute a system call, and thread {thread} not because")]
    NoThread {
        /// The process.
        pid: u32,
        /// The one that would have been best.
        thread: i32,
        /// Why it cannot.
        source: Unfit,
    },
    /// There are no instructions that would execute a system call and come back from it.
    #[error("the code of process {pid} has no {missing}, without which it can execute no system call for us")]
    NoInstruction {
        /// The process.
        pid: u32,
        /// What was looked for.
        missing: &'static str,
    },
    /// A system call takes six arguments at most.
    #[error("system call {number} is given {count} arguments")]
    Arguments {
        /// The system call.
        number: u64,
        /// How many.
        count: usize,
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

/// Why a thread does not execute a system call for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// A filter may kill the process at a call that is not in its program.
    #[error("its system calls are filtered (seccomp)")]
    Filtered,
    /// It has its calls sent to itself, as signals.
    #[error("its system calls are dispatched")]
    Dispatches,
    /// The processor lets it return only to where it was called from.
    #[error("it has a shadow stack")]
    ShadowStack,
    /// It is on the stack of a coroutine or of a signal's handler, below which there may be anything.
    #[error("it is on a stack that is not the thread's own")]
    OtherStack,
    /// There is no memory below what it uses of its stack.
    #[error("its stack has no room")]
    NoRoom,
    /// It was stopped in a call that only the kernel could go on with.
    #[error("it waits in a system call that cannot be told")]
    Napping,
    /// The state of its floating point unit is not to be had.
    #[error("its registers cannot be saved")]
    NoState,
    /// It is no more, or its memory is not.
    #[error("it has ended")]
    Ended,
}
