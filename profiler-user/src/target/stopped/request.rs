//! What ptrace(2) and waitid(2) are asked for.
//!
//! The kernel answers only the thread that seized. Signals are numbers here: those of real time have no name.

use std::{io, ptr};

use nix::{
    sys::ptrace::{self, Options},
    unistd::Pid,
};

pub(super) use libc::user_regs_struct as Registers;

/// What has become of a thread that was let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// It has not stopped yet.
    Running,
    /// At the beginning or at the end of a system call.
    Call,
    /// Because it was interrupted, or the whole process was; the signal tells which.
    Stop(i32),
    /// It has a signal to take, and asks whether to.
    Signal(i32),
    /// It is no more.
    Ended,
}

impl Event {
    /// Whether a thread that is interrupted was in a stop of the whole process.
    pub(super) fn is_group_stop(signal: i32) -> bool {
        matches!(signal, libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU)
    }
}

/// `PTRACE_EVENT_STOP` in the upper byte of a stop's status.
const EVENT_STOP: i32 = 128;

/// What `PTRACE_O_TRACESYSGOOD` adds, so that a system call's stop is told from a signal's.
const CALL_STOP: i32 = libc::SIGTRAP | 0x80;

/// `PTRACE_GET_RSEQ_CONFIGURATION`
const GET_RSEQ: libc::c_uint = 0x420f;

/// `PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG`
const GET_DISPATCH: libc::c_uint = 0x4211;

/// `PR_SYS_DISPATCH_OFF`
const DISPATCH_OFF: u64 = 0;

/// What `orig_rax` is where a thread is in no system call, so that the kernel does not repeat one.
pub(super) const NO_CALL: u64 = u64::MAX;

/// `NT_PRFPREG` and `NT_X86_XSTATE`
pub(super) const FLOATING_POINT: usize = 2;
pub(super) const EXTENDED_STATE: usize = 0x202;

/// Bytes of a set of signals, as the kernel has it.
const SIGNALS_BYTES: usize = size_of::<u64>();

/// Begins to trace. Without `PTRACE_O_EXITKILL`: if this process is killed, the threads go on.
pub(super) fn seize(thread: i32) -> io::Result<()> {
    Ok(ptrace::seize(Pid::from_raw(thread), Options::PTRACE_O_TRACESYSGOOD)?)
}

/// Makes a thread stop as soon as it can.
pub(super) fn interrupt(thread: i32) -> io::Result<()> {
    Ok(ptrace::interrupt(Pid::from_raw(thread))?)
}

/// Ends tracing of a thread that is stopped.
pub(super) fn detach(thread: i32) -> io::Result<()> {
    Ok(ptrace::detach(Pid::from_raw(thread), None)?)
}

/// Lets a thread go up to the next beginning or end of a system call, or to its next stop.
pub(super) fn until_call(thread: i32, signal: i32) -> io::Result<()> {
    resume(libc::PTRACE_SYSCALL, thread, signal)
}

/// Lets a thread go, with a signal to take or 0.
pub(super) fn go_on(thread: i32, signal: i32) -> io::Result<()> {
    resume(libc::PTRACE_CONT, thread, signal)
}

fn resume(request: libc::c_uint, thread: i32, signal: i32) -> io::Result<()> {
    // SAFETY: these requests take a signal's number and touch no memory of ours.
    succeeded(unsafe { libc::ptrace(request, thread, 0_usize, libc::c_long::from(signal)) })
}

/// The registers of a thread that is stopped.
pub(super) fn registers(thread: i32) -> io::Result<Registers> {
    Ok(ptrace::getregs(Pid::from_raw(thread))?)
}

/// Changes them.
pub(super) fn set_registers(thread: i32, registers: Registers) -> io::Result<()> {
    Ok(ptrace::setregs(Pid::from_raw(thread), registers)?)
}

/// Reads registers of a kind, and tells how many bytes they are, at most as many as there is room for.
pub(super) fn register_set(thread: i32, kind: usize, bytes: &mut [u8]) -> io::Result<usize> {
    let mut room = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: the kernel writes to no more than `bytes`, and how many in `room`.
    succeeded(unsafe { libc::ptrace(libc::PTRACE_GETREGSET, thread, kind, &raw mut room) })?;
    Ok(room.iov_len)
}

/// The signals that a thread that is stopped does not take.
pub(super) fn blocked(thread: i32) -> io::Result<u64> {
    let mut signals = 0_u64;
    // SAFETY: the kernel writes as many bytes as the address argument says, which is what is there.
    succeeded(unsafe {
        libc::ptrace(libc::PTRACE_GETSIGMASK, thread, SIGNALS_BYTES, ptr::from_mut(&mut signals))
    })?;
    Ok(signals)
}

/// Changes them.
pub(super) fn block(thread: i32, signals: u64) -> io::Result<()> {
    // SAFETY: the kernel reads as many bytes as the address argument says, which is what is there.
    succeeded(unsafe {
        libc::ptrace(libc::PTRACE_SETSIGMASK, thread, SIGNALS_BYTES, ptr::from_ref(&signals))
    })
}

/// Where a thread has registered its `struct rseq`; `None` where it has not, or the kernel does not tell.
pub(super) fn restartable(thread: i32) -> Option<u64> {
    // struct ptrace_rseq_configuration: the address, the size and the signature, flags and padding.
    let mut told = [0_u64; 3];
    // SAFETY: the kernel writes no more bytes than the address argument says, which is what is there.
    let returned = unsafe { libc::ptrace(GET_RSEQ, thread, size_of_val(&told), told.as_mut_ptr()) };
    (returned > 0).then_some(told[0]).filter(|address| *address != 0)
}

/// Whether a thread has some of its system calls sent to itself, as signals (`PR_SET_SYSCALL_USER_DISPATCH`).
pub(super) fn dispatches_calls(thread: i32) -> bool {
    // struct ptrace_sud_config: the mode, where the selector is, and the addresses that are excepted.
    let mut told = [DISPATCH_OFF; 4];
    // SAFETY: the kernel writes no more bytes than the address argument says, which is what is there.
    let asked = unsafe { libc::ptrace(GET_DISPATCH, thread, size_of_val(&told), told.as_mut_ptr()) };
    asked >= 0 && told[0] != DISPATCH_OFF
}

fn succeeded(returned: libc::c_long) -> io::Result<()> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Asks what a thread does, without waiting. Its end is only taken note of if `reaps`.
pub(super) fn event(thread: i32, reaps: bool) -> Event {
    let Ok(number) = libc::id_t::try_from(thread) else { return Event::Ended };
    let kinds = if reaps { libc::WSTOPPED | libc::WEXITED } else { libc::WSTOPPED };
    // SAFETY: it is numbers, for which zero is a value.
    let mut told: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes a `siginfo_t`, which is what is there.
    let returned = unsafe {
        libc::waitid(
            libc::P_PID,
            number,
            &raw mut told,
            kinds | libc::WNOHANG | libc::__WALL | libc::__WNOTHREAD,
        )
    };
    if returned < 0 {
        return match io::Error::last_os_error().kind() {
            io::ErrorKind::Interrupted => Event::Running,
            _ => Event::Ended,
        };
    }
    // SAFETY: waitid fills these fields, or leaves them zero.
    let pid = unsafe { told.si_pid() };
    if pid == 0 {
        return Event::Running;
    }
    if told.si_code != libc::CLD_TRAPPED {
        return Event::Ended;
    }
    // SAFETY: as above.
    let status = unsafe { told.si_status() };
    match (status >> 8, status & 0xff) {
        (0, CALL_STOP) => Event::Call,
        (EVENT_STOP, signal) => Event::Stop(signal),
        (_, signal) => Event::Signal(signal),
    }
}
