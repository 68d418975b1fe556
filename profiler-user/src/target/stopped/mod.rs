//! A process all of whose threads are stopped for a moment, so that it can be changed.
//!
//! ptrace(2) stops them (`PTRACE_SEIZE`, `PTRACE_INTERRUPT`), which neither sends signals nor ends a stop by SIGSTOP, and which
//! the kernel undoes when the tracer ends, however that comes. The kernel knows threads for tracers: the requests come from a
//! thread that is made for them, and whose end releases even what had not stopped yet and could not be let go.
//!
//! What is done to a process is done so that our end harms it at no instant: a thread that executes a system call for us comes back
//! by itself (`frame`), and one that is moved is right where it was and where it is (`moving`). There is one exception, for the
//! few calls that a stop makes fail (`repeat`).
//!
//! If the process is a child of ours, nobody may wait for it meanwhile with anything but its own end in mind: a plain
//! `waitpid` would be told of the stops in the place of this.

mod caller;
mod error;
mod extent;
mod frame;
mod memory;
mod moving;
mod onward;
mod places;
mod repeat;
mod request;
mod rseq;
mod stacks;
mod state;
mod stopping;
mod syscall;
mod threads;
mod urgent;

use std::{
    ops::Range,
    sync::mpsc::{self, Receiver, Sender},
    thread::{self, JoinHandle},
    time::Duration,
};

pub use error::{StopError, Unfit};
pub use libc::user_regs_struct as Registers;
use memory::Memory;
pub use stacks::{StackWord, StackWords};
pub use syscall::Argument;
use threads::Threads;

/// Something to be done by the thread that traces.
type Task = Box<dyn FnOnce(&mut Threads) + Send>;

/// Which threads are stopped.
type Stop = fn(&mut Threads) -> Result<(), StopError>;

/// What stays as it is while all are stopped.
#[derive(Debug)]
struct Stand {
    threads: Vec<i32>,
    memory: Memory,
    tracer: u32,
}

/// Threads of a process, stopped until this is dropped or released.
#[derive(Debug)]
pub struct Stopped {
    pid: u32,
    stand: Stand,
    tasks: Option<Sender<Task>>,
    tracer: Option<JoinHandle<Duration>>,
}

impl Stopped {
    /// Stops all threads of a process, or none where that takes longer than `limit`.
    ///
    /// A process that SIGSTOP has stopped is so still when it is released, and signals that come meanwhile arrive then.
    pub fn all(pid: u32, limit: Duration) -> Result<Self, StopError> {
        Self::by(pid, limit, Threads::stop_all)
    }

    /// Stops some threads of a process, which may be all of it, or none where that takes longer than `limit`: for what a thread is to do
    /// while the others go on.
    pub fn few(pid: u32, limit: Duration) -> Result<Self, StopError> {
        Self::by(pid, limit, Threads::stop_few)
    }

    fn by(pid: u32, limit: Duration, stop: Stop) -> Result<Self, StopError> {
        let (tasks, coming) = mpsc::channel();
        let (tell, told) = mpsc::channel();
        let tracer = thread::Builder::new()
            .name("tracer".to_owned())
            .spawn(move || trace(Threads::of(pid, limit), stop, &tell, &coming))
            .map_err(|source| StopError::NoTracer { pid, source: Some(source) })?;
        // Where it failed, the tracer ends by itself, and with it everything is let go.
        let stand = told.recv().map_err(|_| StopError::NoTracer { pid, source: None })??;
        Ok(Self { pid, stand, tasks: Some(tasks), tracer: Some(tracer) })
    }

    /// The threads, by their numbers.
    pub fn threads(&self) -> &[i32] {
        &self.stand.threads
    }

    /// The thread of ours that was made to stop them, by its number.
    pub const fn tracer(&self) -> u32 {
        self.stand.tracer
    }

    /// The registers of each thread, by its number; that of one that waits in a system call has `orig_rax` other than -1.
    pub fn registers(&self) -> Result<Vec<(i32, Registers)>, StopError> {
        self.ask(|threads| {
            let asked = threads.states.keys().map(|thread| {
                let registers = request::registers(*thread);
                Ok((*thread, registers.map_err(threads.failed(*thread, "asked for its registers"))?))
            });
            asked.collect()
        })
    }

    /// Reads memory, all of it or none.
    pub fn read(&self, address: u64, length: usize) -> Result<Vec<u8>, StopError> {
        let mut bytes = vec![0; length];
        self.stand.memory.read(address, &mut bytes)?;
        Ok(bytes)
    }

    /// Writes memory that the process may write to.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), StopError> {
        self.stand.memory.write(address, bytes)
    }

    /// Writes memory that the process may only read or execute: it gets its own copy of the page.
    pub fn write_code(&self, address: u64, bytes: &[u8]) -> Result<(), StopError> {
        self.stand.memory.write_code(address, bytes)
    }

    /// Has one of the threads execute a system call, and go on as if it had not, even if we die meanwhile. Arguments that are
    /// not given are 0.
    ///
    /// For calls that return: not for such as wait, end the thread or replace the program.
    pub fn syscall<A: Into<Argument>>(
        &self,
        number: u64,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<u64, StopError> {
        let arguments: Vec<Argument> = arguments.into_iter().map(Into::into).collect();
        self.ask(move |threads| threads.syscall(number, &arguments))
    }

    /// Has each thread that is about to execute the first instruction of a pair go on at the second, which is to be a copy of it;
    /// returns how many were. One that is about to repeat a system call stands where that is made.
    pub fn move_threads(&self, pairs: &[(u64, u64)]) -> Result<usize, StopError> {
        let moves = pairs.iter().copied().collect();
        self.ask(move |threads| threads.move_threads(&moves))
    }

    /// Looks for words that lie within one of the ranges, and not at its beginning: on what each thread uses of its stack, and
    /// where it is about to go on. It is up to 1 MiB of each stack that is looked at; what is longer is told of.
    pub fn find_words(&self, ranges: &[Range<u64>]) -> Result<StackWords, StopError> {
        let ranges = ranges.to_vec();
        self.ask(move |threads| threads.find_words(&ranges))
    }

    /// How far behind its thread pointer each thread has registered its `struct rseq`, in bytes; `None` where one has not, or elsewhere.
    pub fn rseq_offset(&self) -> Result<Option<i32>, StopError> {
        self.ask(Threads::rseq_offset)
    }

    /// Lets all go, and tells for how long they were held: from before the first was stopped to after the last was let go.
    pub fn release(mut self) -> Duration {
        self.end().unwrap_or_default()
    }

    fn ask<T: Send + 'static>(
        &self,
        task: impl FnOnce(&mut Threads) -> Result<T, StopError> + Send + 'static,
    ) -> Result<T, StopError> {
        let ended = || StopError::NoTracer { pid: self.pid, source: None };
        let (tell, told) = mpsc::channel();
        // Fails where nobody waits for it any more.
        let task: Task = Box::new(move |threads| drop(tell.send(task(threads))));
        self.tasks.as_ref().ok_or_else(ended)?.send(task).map_err(|_| ended())?;
        told.recv().map_err(|_| ended())?
    }

    fn end(&mut self) -> Option<Duration> {
        drop(self.tasks.take());
        self.tracer.take()?.join().ok()
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.end();
    }
}

/// Stops, does what is asked for, and releases.
fn trace(
    mut threads: Threads,
    stop: Stop,
    tell: &Sender<Result<Stand, StopError>>,
    coming: &Receiver<Task>,
) -> Duration {
    let outcome = stop(&mut threads).and_then(|()| {
        let tracer = rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned();
        let memory = threads.memory()?;
        Ok(Stand { threads: threads.states.keys().copied().collect(), memory, tracer })
    });
    let is_stopped = outcome.is_ok();
    if !is_stopped {
        threads.release();
    }
    if tell.send(outcome).is_ok() && is_stopped {
        for task in coming {
            task(&mut threads);
        }
    }
    threads.release();
    threads.began.elapsed()
}
