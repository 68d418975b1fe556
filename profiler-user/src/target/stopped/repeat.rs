//! System calls that the kernel ends when a thread is stopped, and does not repeat by itself.
//!
//! Most go on after a stop. Some fail with EINTR, as after SIGSTOP and SIGCONT (signal(7)), which few programs expect where they
//! handle no signals. The kernel repeats them if it finds the result that others have in that place: "again, unless a signal's
//! handler is called". A time limit of theirs begins anew.
//!
//! Between the stop and that, our end has them fail: so it is with every process that is stopped, by whatever means.

use std::io;

use super::request::{self, Registers};

/// The kernel's ERESTARTNOHAND.
const AGAIN_UNLESS_HANDLED: u64 = -514_i64 as u64;

const INTERRUPTED: u64 = -(libc::EINTR as i64) as u64;

/// Calls that have done nothing yet when they fail with EINTR.
///
/// Those of sockets do so where they have a time limit (SO_RCVTIMEO, SO_SNDTIMEO). `connect` is none of them, for it goes on.
const CALLS: [libc::c_long; 18] = [
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_io_getevents,
    libc::SYS_io_uring_enter,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
];

/// Has a thread repeat the call that our stopping it has ended.
pub(super) fn if_interrupted(thread: i32, registers: Registers) -> io::Result<()> {
    if !is_interrupted(registers.orig_rax, registers.rax) {
        return Ok(());
    }
    request::set_registers(thread, Registers { rax: AGAIN_UNLESS_HANDLED, ..registers })
}

fn is_interrupted(number: u64, result: u64) -> bool {
    result == INTERRUPTED && CALLS.iter().any(|call| u64::try_from(*call).is_ok_and(|call| call == number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_interrupted_call_that_did_nothing_is_repeated() {
        let number = |call: libc::c_long| u64::try_from(call).unwrap();
        assert!(is_interrupted(number(libc::SYS_epoll_wait), -4_i64 as u64));
        assert!(!is_interrupted(number(libc::SYS_epoll_wait), 0));
        assert!(!is_interrupted(number(libc::SYS_close), -4_i64 as u64));
        assert!(!is_interrupted(number(libc::SYS_connect), -4_i64 as u64));
        assert!(!is_interrupted(u64::MAX, -4_i64 as u64));
    }
}
