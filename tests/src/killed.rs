//! A program that is killed at each of its steps, one run after the other.
//!
//! Its steps are system calls, at their beginning and at their end. The program is traced (ptrace(2)) with all its threads, and so
//! may trace others itself; processes that it starts are not.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread;

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Which system calls are steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steps {
    /// Those that change another process, or what the kernel does in it.
    OnOthers,
    /// Those that write into another process, stop it or let it go: not what only asks, nor what the kernel does by itself when the program
    /// ends.
    Writing,
    /// All of them.
    All,
}

/// Runs a program again and again, until it gets through, and kills it at its first step, its second, and so on; each time it is
/// then checked what it leaves behind. Returns how often it was killed. The run that gets through has to succeed.
///
/// The check is told where the program was killed, for messages.
pub fn killed_at_every_step(steps: Steps, start: impl FnMut() -> Command, check: impl FnMut(&str)) -> usize {
    killed_at_steps(steps, 1, start, check)
}

/// The same at every so many steps, from the first one on.
pub fn killed_at_steps(
    steps: Steps,
    every: usize,
    mut start: impl FnMut() -> Command,
    mut check: impl FnMut(&str),
) -> usize {
    for kills in 0.. {
        let last = kills * every;
        let command = start();
        // The kernel knows threads for tracers, and children of others are not to be waited for.
        let killed = thread::scope(|scope| {
            let run = scope.spawn(|| Run::start(command, steps).up_to(last));
            run.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        let Some(place) = killed else {
            check("nowhere: it got through");
            return kills;
        };
        check(&format!("step {last}: {place}"));
    }
    unreachable!("there are more steps than numbers")
}

/// A traced program.
struct Run {
    root: Pid,
    steps: Steps,
    /// The step that each thread is in, by its name.
    begun: Vec<(Pid, String)>,
}

impl Run {
    /// Starts it, up to before its first instruction.
    #[expect(clippy::zombie_processes, reason = "it is waited for by its number, as its threads are")]
    fn start(mut command: Command, steps: Steps) -> Self {
        // SAFETY: it is one system call, and no memory is touched.
        unsafe { command.pre_exec(|| ptrace::traceme().map_err(io::Error::from)) };
        let child = command.spawn().unwrap_or_else(|err| panic!("cannot start {command:?}: {err}"));
        let root = Pid::from_raw(i32::try_from(child.id()).expect("a PID"));
        let stop = waitpid(root, Some(WaitPidFlag::__WALL)).expect("it can be waited for");
        assert_eq!(stop, WaitStatus::Stopped(root, Signal::SIGTRAP), "{command:?}");
        let options = Options::PTRACE_O_TRACESYSGOOD
            | Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_TRACEEXEC
            | Options::PTRACE_O_EXITKILL;
        ptrace::setoptions(root, options).expect("it can be traced");
        go_on(root, None);
        Self { root, steps, begun: Vec::new() }
    }

    /// Lets it run up to a step and kills it there; returns where, or `None` where it ended before.
    fn up_to(mut self, last: usize) -> Option<String> {
        let mut step = 0;
        loop {
            let (thread, signal) = match wait_for_any() {
                WaitStatus::Exited(pid, code) if pid == self.root => {
                    assert_eq!(code, 0, "it should have succeeded, at step {step}");
                    return None;
                }
                WaitStatus::Signaled(pid, signal, _) if pid == self.root => {
                    panic!("it was killed by {signal}, at step {step}")
                }
                WaitStatus::PtraceSyscall(thread) => {
                    if let Some(place) = self.step(thread) {
                        if step == last {
                            self.kill();
                            return Some(place);
                        }
                        step += 1;
                    }
                    (thread, None)
                }
                // A new thread begins with one.
                WaitStatus::Stopped(thread, Signal::SIGSTOP) => (thread, None),
                WaitStatus::Stopped(thread, signal) => (thread, Some(signal)),
                WaitStatus::PtraceEvent(thread, ..) => (thread, None),
                _ => continue,
            };
            go_on(thread, signal);
        }
    }

    /// What a thread begins or ends, if that is a step.
    fn step(&mut self, thread: Pid) -> Option<String> {
        let before = self.begun.iter().position(|(of, _)| *of == thread);
        let info = ptrace::syscall_info(thread).ok()?;
        if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
            return before.map(|place| format!("the end of {}", self.begun.swap_remove(place).1));
        }
        // SAFETY: it is the beginning of a call, for which the kernel fills this field.
        let entry = unsafe { info.u.entry };
        let name = name(thread, entry.nr, &entry.args);
        let name = match self.steps {
            Steps::OnOthers => name?,
            Steps::Writing => name.filter(|_| writes(entry.nr, &entry.args))?,
            Steps::All => name.unwrap_or_else(|| format!("call {}", entry.nr)),
        };
        self.begun.push((thread, name.clone()));
        Some(format!("the beginning of {name}"))
    }

    fn kill(&self) {
        kill(self.root, Signal::SIGKILL).expect("it can be killed");
        loop {
            match wait_for_any() {
                WaitStatus::Signaled(pid, ..) | WaitStatus::Exited(pid, _) if pid == self.root => return,
                _ => {}
            }
        }
    }
}

/// Fails for a thread that was killed, of which more is heard.
fn go_on(thread: Pid, signal: Option<Signal>) {
    let _ = ptrace::syscall(thread, signal);
}

fn wait_for_any() -> WaitStatus {
    loop {
        match waitpid(None, Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD)) {
            Err(Errno::EINTR) => {}
            status => return status.expect("there is something to wait for"),
        }
    }
}

/// Whether a call is more than a question, and not undone by the kernel when its caller ends.
fn writes(number: u64, [request, ..]: &[u64; 6]) -> bool {
    /// Requests that change a thread (include/uapi/linux/ptrace.h): to write its memory and registers, to let it go on or go, to mask its
    /// signals, to seize and to interrupt it.
    const CHANGING: [u64; 12] = [4, 5, 6, 7, 9, 13, 15, 17, 0x4205, 0x420b, 0x4206, 0x4207];
    match libc::c_long::try_from(number) {
        Ok(libc::SYS_ptrace) => CHANGING.contains(request),
        Ok(libc::SYS_bpf | libc::SYS_perf_event_open) => false,
        _ => true,
    }
}

/// The name of a call that changes another process, or what the kernel does in it.
fn name(thread: Pid, number: u64, arguments: &[u64; 6]) -> Option<String> {
    let [first, second, ..] = arguments;
    let name = match libc::c_long::try_from(number).ok()? {
        libc::SYS_ptrace => return Some(format!("ptrace({first:#x}, {second})")),
        libc::SYS_process_vm_writev => "process_vm_writev",
        libc::SYS_kill | libc::SYS_tgkill | libc::SYS_tkill | libc::SYS_pidfd_send_signal => "a signal",
        libc::SYS_perf_event_open => "perf_event_open",
        libc::SYS_bpf => "bpf",
        call @ (libc::SYS_write
        | libc::SYS_writev
        | libc::SYS_pwrite64
        | libc::SYS_pwritev
        | libc::SYS_pwritev2
        | libc::SYS_ftruncate
        | libc::SYS_fallocate) => {
            let file = fs::read_link(format!("/proc/{thread}/fd/{first}")).ok()?;
            let file = file.to_string_lossy();
            let is_others = file.starts_with("/proc/") || file.starts_with("/memfd:");
            return is_others.then(|| format!("call {call} on {file}"));
        }
        _ => return None,
    };
    Some(name.to_owned())
}
