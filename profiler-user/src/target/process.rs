//! A process that can be profiled, checked once and held by a pidfd.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::PathBuf,
    time::Duration,
};

use procfs::{FromBufRead, ProcResult, process::Status};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, pidfd_open},
};

use super::root::name_inside;

/// Why a process cannot be profiled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessError {
    /// Nothing runs under this PID.
    #[error("there is no process with PID {pid}")]
    NotFound {
        /// The PID asked for.
        pid: u32,
    },
    /// The number is a thread's.
    #[error("{tid} is a thread of process {pid} ({comm})")]
    IsThread {
        /// The number asked for.
        tid: u32,
        /// The process that it belongs to.
        pid: u32,
        /// That process's name.
        comm: String,
    },
    /// The number is a kernel thread's.
    #[error("{pid} ({comm}) is a kernel thread and has no heap in user space")]
    KernelThread {
        /// The PID asked for.
        pid: u32,
        /// The thread's name.
        comm: String,
    },
    /// The process has ended and waits for its parent.
    #[error("process {pid} ({comm}) has already ended")]
    Zombie {
        /// The PID asked for.
        pid: u32,
        /// The process's name.
        comm: String,
    },
    /// The process does not run 64-bit x86 code.
    #[error("process {pid} ({comm}) runs {found} code")]
    Architecture {
        /// The PID asked for.
        pid: u32,
        /// The process's name.
        comm: String,
        /// What it runs.
        found: &'static str,
    },
    /// The PID is our own.
    #[error("{pid} is heaptap itself")]
    Ourselves {
        /// The PID asked for.
        pid: u32,
    },
    /// The process ended while it was looked at.
    #[error("process {pid} ended while heaptap looked at it")]
    Gone {
        /// The PID asked for.
        pid: u32,
    },
    /// Something about the process cannot be read.
    #[error("cannot read {what} of process {pid}")]
    Unreadable {
        /// The PID asked for.
        pid: u32,
        /// What was to be read.
        what: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// A running 64-bit process.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    program: Program,
    /// `None` where it had ended when it was first looked at.
    pidfd: Option<OwnedFd>,
}

/// What a process runs, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The process's name, at most 15 bytes, as the kernel has it.
    pub comm: String,
    /// The executable's path, as the process itself names it.
    pub exe: PathBuf,
}

impl Program {
    /// What a process runs now, after checking that it can be profiled.
    fn of(pid: u32, comm: String, has_ended: impl Fn() -> bool) -> Result<Self, ProcessError> {
        let unreadable = |what| move |source| ProcessError::Unreadable { pid, what, source };
        let thread = live_thread(pid).ok_or(ProcessError::Gone { pid })?;
        let exe_link = format!("/proc/{thread}/exe");
        let found = match File::open(&exe_link).and_then(|file| machine(&file)) {
            Ok(found) => found,
            Err(_) if has_ended() => return Err(ProcessError::Gone { pid }),
            Err(source) => return Err(unreadable("the executable (/proc/PID/exe)")(source)),
        };
        if found != X86_64 {
            return Err(ProcessError::Architecture { pid, comm, found });
        }
        let exe =
            std::fs::read_link(&exe_link).map_err(unreadable("the executable's name (/proc/PID/exe)"))?;
        let exe = name_inside(thread, exe.as_os_str().as_bytes());
        Ok(Self { exe: PathBuf::from(OsStr::from_bytes(exe)), comm })
    }
}

/// `PF_KTHREAD` of include/linux/sched.h.
const PF_KTHREAD: u32 = 0x0020_0000;

impl Process {
    /// The process that runs under `pid`, after checking that it can be profiled.
    pub fn open(pid: u32) -> Result<Self, ProcessError> {
        if pid == std::process::id() {
            return Err(ProcessError::Ourselves { pid });
        }
        let number = i32::try_from(pid).map_err(|_| ProcessError::NotFound { pid })?;
        let raw = Pid::from_raw(number).ok_or(ProcessError::NotFound { pid })?;
        // The pidfd comes before everything else: what is read below is of this process unless it has ended.
        let pidfd = match pidfd_open(raw, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(Errno::SRCH) => return Err(ProcessError::NotFound { pid }),
            // EINVAL, and ENOENT since 6.15: the number is a thread's.
            Err(errno) => return Err(thread_or(pid, number, errno.into())),
        };
        let entry = procfs::process::Process::new(number).map_err(|error| proc_error(pid, "/proc", error))?;
        let stat = entry.stat().map_err(|error| proc_error(pid, "stat", error))?;
        let comm = stat.comm.clone();
        if stat.flags & PF_KTHREAD != 0 {
            return Err(ProcessError::KernelThread { pid, comm });
        }
        if has_ended(&pidfd) {
            return Err(ProcessError::Zombie { pid, comm });
        }
        let program = Program::of(pid, comm, || has_ended(&pidfd))?;
        Ok(Self { pid, program, pidfd: Some(pidfd) })
    }

    /// A process that has ended before anybody could look at it, and ran this program.
    pub const fn ended(pid: u32, program: Program) -> Self {
        Self { pid, program, pidfd: None }
    }

    /// What the process runs by now: it may have replaced its program since.
    pub fn program_now(&self) -> Result<Program, ProcessError> {
        let Self { pid, .. } = *self;
        let number = i32::try_from(pid).map_err(|_| ProcessError::NotFound { pid })?;
        let entry = procfs::process::Process::new(number).map_err(|error| proc_error(pid, "/proc", error))?;
        let comm = entry.stat().map_err(|error| proc_error(pid, "stat", error))?.comm;
        Program::of(pid, comm, || self.has_ended())
    }

    /// The process's PID, as this PID namespace numbers it.
    pub const fn pid(&self) -> u32 {
        self.pid
    }

    /// What the process ran when it was opened.
    pub const fn program(&self) -> &Program {
        &self.program
    }

    /// The name that the process had when it was opened, at most 15 bytes, as the kernel has it.
    pub fn comm(&self) -> &str {
        &self.program.comm
    }

    /// The path of the executable that it ran then, as the process itself names it.
    pub fn exe(&self) -> &std::path::Path {
        &self.program.exe
    }

    /// The memory that the process has resident, in bytes; 0 where that cannot be told.
    pub fn rss_bytes(&self) -> u64 {
        let thread = live_thread(self.pid).and_then(|thread| i32::try_from(thread).ok());
        let status = thread.and_then(|thread| status(thread).ok());
        status.and_then(|status| status.vmrss).map_or(0, |kibibytes| kibibytes.saturating_mul(1024))
    }

    /// Whether the process has ended.
    pub fn has_ended(&self) -> bool {
        self.pidfd.as_ref().is_none_or(has_ended)
    }

    /// What becomes readable when the process ends; `None` where it has.
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.as_ref().map(AsFd::as_fd)
    }
}

/// Older kernels (6.1) take a process for ended for a few microseconds while a thread other than its first replaces the
/// program, and hands on the first one's number (`de_thread` in fs/exec.c).
const REPLACEMENT: Duration = Duration::from_millis(2);

fn has_ended(pidfd: &OwnedFd) -> bool {
    // A pidfd becomes readable when the whole thread group has ended (pidfd_open(2)).
    let is_readable = || {
        let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
        matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(1..))
    };
    is_readable() && {
        std::thread::sleep(REPLACEMENT);
        is_readable()
    }
}

const X86_64: &str = "64-bit x86";

/// What an ELF file's header says of the code in it.
fn machine(mut file: &File) -> io::Result<&'static str> {
    let mut header = [0; 20];
    file.read_exact(&mut header)?;
    // ELF-64 object file format: e_ident[EI_CLASS] at 4, e_machine at 18.
    let [0x7f, b'E', b'L', b'F', class, .., low, high] = header else {
        return Ok("no ELF");
    };
    Ok(match (class, u16::from_le_bytes([low, high])) {
        (2, 62) => X86_64,
        (1, 62) => "x32 (32-bit pointers)",
        (1, 3) => "32-bit x86",
        (1, _) => "32-bit",
        _ => "foreign",
    })
}

/// A thread of the process that has not ended.
///
/// What /proc and the kernel's probes tell of a process they take from one thread, and the first one's memory is
/// gone once it has ended, even where others go on.
pub(crate) fn live_thread(pid: u32) -> Option<u32> {
    live_threads(pid).next()
}

/// All of them. One that is ending is not shown as ended at once.
pub(crate) fn live_threads(pid: u32) -> impl Iterator<Item = u32> {
    let entry = i32::try_from(pid).ok().and_then(|pid| procfs::process::Process::new(pid).ok());
    let tasks = entry.and_then(|entry| entry.tasks().ok()).into_iter().flatten().flatten();
    tasks.filter_map(|task| {
        let state = task.stat().ok()?.state;
        (!matches!(state, 'Z' | 'X')).then(|| u32::try_from(task.tid).ok()).flatten()
    })
}

/// What the kernel says of a process or a thread.
///
/// Its name may be any bytes, by which procfs's own reading of the file fails.
pub(crate) fn status(number: i32) -> ProcResult<Status> {
    let text = std::fs::read(format!("/proc/{number}/status"))?;
    Status::from_buf_read(String::from_utf8_lossy(&text).as_bytes())
}

/// Whether a process has the processor keep a second stack, of return addresses alone, that returns are held against.
pub(crate) fn has_shadow_stack(pid: u32) -> io::Result<bool> {
    std::fs::read(format!("/proc/{pid}/status")).map(|status| names_shadow_stack(&status))
}

/// The same of its status (Documentation/arch/x86/shstk.rst, since kernel 6.6).
fn names_shadow_stack(status: &[u8]) -> bool {
    let features =
        status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"x86_Thread_features:"));
    features
        .is_some_and(|features| features.split(u8::is_ascii_whitespace).any(|feature| feature == b"shstk"))
}

fn thread_or(tid: u32, number: i32, source: io::Error) -> ProcessError {
    let unreadable = ProcessError::Unreadable { pid: tid, what: "the pidfd", source };
    match status(number) {
        Ok(status) if status.tgid != number => {
            let pid = u32::try_from(status.tgid).unwrap_or_default();
            let leader = procfs::process::Process::new(status.tgid).and_then(|entry| entry.stat());
            let comm = leader.map_or_else(|_| status.name.clone(), |stat| stat.comm);
            ProcessError::IsThread { tid, pid, comm }
        }
        Ok(_) => unreadable,
        Err(_) => ProcessError::NotFound { pid: tid },
    }
}

/// What an error of procfs means for the process with this PID.
pub(crate) fn proc_error(pid: u32, what: &'static str, error: procfs::ProcError) -> ProcessError {
    match error {
        procfs::ProcError::NotFound(_) => ProcessError::Gone { pid },
        procfs::ProcError::Io(source, _) => ProcessError::Unreadable { pid, what, source },
        procfs::ProcError::PermissionDenied(_) => {
            ProcessError::Unreadable { pid, what, source: io::ErrorKind::PermissionDenied.into() }
        }
        other => ProcessError::Unreadable { pid, what, source: io::Error::other(other) },
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use super::*;

    #[test]
    fn our_own_pid_and_unused_ones_are_refused() {
        assert!(matches!(Process::open(std::process::id()), Err(ProcessError::Ourselves { .. })));
        assert!(matches!(Process::open(0), Err(ProcessError::NotFound { pid: 0 })));
        assert!(matches!(Process::open(u32::MAX), Err(ProcessError::NotFound { .. })));
    }

    #[test]
    fn what_a_program_is_made_for_is_told_by_its_header() {
        let told = |header: &[u8]| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(header).unwrap();
            file.rewind().unwrap();
            machine(&file)
        };
        let header = |class: u8, number: u16| {
            let mut header = [0; 64];
            header[..5].copy_from_slice(&[0x7f, b'E', b'L', b'F', class]);
            header[18..20].copy_from_slice(&number.to_le_bytes());
            told(&header).unwrap()
        };
        assert_eq!(header(2, 62), X86_64);
        // EM_386, EM_ARM and EM_AARCH64.
        assert_eq!([header(1, 62), header(1, 3)], ["x32 (32-bit pointers)", "32-bit x86"]);
        assert_eq!([header(1, 40), header(2, 183), header(0, 62)], ["32-bit", "foreign", "foreign"]);
        assert_eq!(told(b"#!/usr/bin/python3\n\n").unwrap(), "no ELF");
        assert_eq!(told(b"\x7fELF").unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn who_has_a_shadow_stack_says_so() {
        let of = |features: &str| {
            let status = format!(
                "Name:\tshstk\nx86_Thread_features:\t{features}\nx86_Thread_features_locked:\tshstk wrss \n"
            );
            names_shadow_stack(status.as_bytes())
        };
        assert!(of("shstk ") && of("wrss shstk"));
        assert!(!of("") && !of("wrss ") && !names_shadow_stack(b"Name:\tx86_Thread_features:\tshstk"));
        assert!(
            !has_shadow_stack(std::process::id()).unwrap(),
            "a Rust program of this toolchain asks for none"
        );
    }

    #[test]
    fn a_threads_number_leads_to_its_process() {
        let (send, receive) = std::sync::mpsc::channel();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            // A name may be any bytes.
            rustix::thread::set_name(c"\xff:\xfe").unwrap();
            send.send(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
            let _ = stopped.recv();
        });
        let tid = u32::try_from(receive.recv().unwrap()).unwrap();
        let error = Process::open(tid).unwrap_err();
        assert!(
            matches!(error, ProcessError::IsThread { pid, .. } if pid == std::process::id()),
            "{error:?}"
        );
        drop(stop);
        thread.join().unwrap();
    }
}
