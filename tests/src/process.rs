//! Child processes of a test: their lines as they come, their end within a time limit, no survivors.

use std::fmt::Debug;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// How long a test waits for anything.
///
/// Generous: a probe on every call makes guests slow, and machines are shared.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A child that is killed when the test is done with it, however that comes.
#[derive(Debug)]
pub struct Process {
    child: Child,
    what: String,
}

impl Process {
    /// Starts a command.
    pub fn spawn(mut command: Command) -> Self {
        let what = format!("{command:?}");
        let child = command.spawn().unwrap_or_else(|err| panic!("cannot start {what}: {err}"));
        Self { child, what }
    }

    /// The process as the kernel numbers it.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What is left of the standard streams to take.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.raw_pid(), signal)
            .unwrap_or_else(|err| panic!("cannot signal {}: {err}", self.what));
    }

    /// Waits for the end.
    pub fn wait(&mut self) -> ExitStatus {
        let pidfd = pidfd_open(self.raw_pid(), PidfdFlags::empty());
        if let Ok(pidfd) = pidfd {
            let ended = readable_within(pidfd.as_fd(), PATIENCE);
            assert!(ended, "{} did not end within {PATIENCE:?}", self.what);
        }
        self.child.wait().unwrap_or_else(|err| panic!("cannot wait for {}: {err}", self.what))
    }

    fn raw_pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails for one that has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The letters of all threads' states.
pub fn states(pid: u32) -> String {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the process runs");
    tasks
        .filter_map(|task| {
            let stat = fs::read_to_string(task.ok()?.path().join("stat")).ok()?;
            stat.rsplit_once(") ")?.1.chars().next()
        })
        .collect()
}

/// Waits for all threads to be in such states.
pub fn until_states(pid: u32, what: &str, are: impl Fn(char) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !states(pid).chars().all(&are) {
        assert!(Instant::now() < deadline, "threads of {pid} are {} and not {what}", states(pid));
        thread::yield_now();
    }
}

/// Waits until one of a process's threads is in a state, as `/proc` has it.
#[track_caller]
pub fn until_one_is(pid: u32, state: char) {
    let deadline = Instant::now() + PATIENCE;
    while !states(pid).contains(state) {
        assert!(Instant::now() < deadline, "threads of {pid} are {} and none {state}", states(pid));
        thread::yield_now();
    }
}

/// Whether a descriptor becomes readable, which for a pidfd is the process's end.
fn readable_within(fd: BorrowedFd<'_>, limit: Duration) -> bool {
    let timeout = Timespec { tv_sec: limit.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: 0 };
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    poll(&mut fds, Some(&timeout)).expect("poll on a pidfd") > 0
}

/// The lines of a stream, read by a thread of their own so that waiting for one can time out.
#[derive(Debug)]
pub struct Lines {
    coming: Receiver<String>,
    /// Everything so far, for messages.
    seen: Vec<String>,
}

impl Lines {
    /// Begins to read.
    pub fn of(stream: impl Read + Send + 'static) -> Self {
        let (sender, coming) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    break;
                }
            }
        });
        Self { coming, seen: Vec::new() }
    }

    /// The next line, or `None` at the end of the stream.
    pub fn next(&mut self, what: impl Debug) -> Option<String> {
        self.before(Instant::now() + PATIENCE, what)
    }

    /// The first line to come for which `wanted` holds; panics where the stream ends without it.
    pub fn find(&mut self, what: impl Debug, wanted: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.before(deadline, &what) {
                Some(line) if wanted(&line) => return line,
                Some(_) => {}
                None => panic!("no {what:?}, and nothing more to come after:\n{}", self.seen.join("\n")),
            }
        }
    }

    /// Everything up to the end of the stream, with what was read before.
    pub fn all(mut self, what: impl Debug) -> String {
        while self.next(&what).is_some() {}
        self.seen.join("\n")
    }

    fn before(&mut self, deadline: Instant, what: impl Debug) -> Option<String> {
        match self.coming.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                self.seen.push(line.clone());
                Some(line)
            }
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => {
                panic!("no {what:?} within {PATIENCE:?} after:\n{}", self.seen.join("\n"))
            }
        }
    }
}
