//! With which registers a thread goes on that has nothing else to go by: the kernel has forgotten the system call that it was
//! stopped in.
//!
//! See `arch_do_signal_or_restart` in arch/x86/kernel/signal.c, for where no signal has come.

use super::request::{NO_CALL, Registers};

/// The kernel's ERESTARTSYS, ERESTARTNOINTR and ERESTARTNOHAND: again, with what the call was given.
const AGAIN: [u64; 3] = [-512_i64 as u64, -513_i64 as u64, -514_i64 as u64];

/// The kernel's ERESTART_RESTARTBLOCK: go on with what the kernel has noted of the call, which a frame makes it forget.
const GO_ON: u64 = -516_i64 as u64;

/// Bytes of the instruction that made the call.
pub(super) const CALL_BYTES: u64 = 2;

/// Bytes up to the end of that, with one that says which call: `mov $NUMBER,%eax; syscall`.
pub(super) const CODE_BYTES: u64 = 7;

/// The calls that go on so.
const NAPS: [libc::c_long; 4] =
    [libc::SYS_poll, libc::SYS_nanosleep, libc::SYS_futex, libc::SYS_clock_nanosleep];

/// Whether a thread was stopped in a call that a frame makes it begin anew, its limit of time as well.
pub(super) const fn is_napping(registers: &Registers) -> bool {
    registers.orig_rax != NO_CALL && registers.rax == GO_ON
}

/// Whether a thread makes the call once more that it was stopped in, from the instruction before the one where it stands.
pub(super) fn is_repeated(registers: &Registers) -> bool {
    registers.orig_rax != NO_CALL && (registers.rax == GO_ON || AGAIN.contains(&registers.rax))
}

/// The registers; `None` where it is not known which call to make. `code` reads what precedes an address.
pub(super) fn registers(
    stopped: &Registers,
    code: impl FnOnce(u64) -> Option<[u8; CODE_BYTES as usize]>,
) -> Option<Registers> {
    if !is_repeated(stopped) {
        return Some(*stopped);
    }
    // Where it has gone on before, that is the call by which it did.
    let has_gone_on = u64::try_from(libc::SYS_restart_syscall).ok() == Some(stopped.orig_rax);
    let number = if has_gone_on { number(code(stopped.rip)?)? } else { stopped.orig_rax };
    Some(Registers { rax: number, rip: stopped.rip.checked_sub(CALL_BYTES)?, ..*stopped })
}

fn number(code: [u8; CODE_BYTES as usize]) -> Option<u64> {
    let [0xb8, number @ .., 0x0f, 0x05] = code else { return None };
    let number = u64::from(u32::from_le_bytes(number));
    NAPS.iter().any(|nap| u64::try_from(*nap).is_ok_and(|nap| nap == number)).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stopped(orig_rax: u64, rax: i64) -> Registers {
        // SAFETY: it is numbers, for which zero is a value.
        let zero: Registers = unsafe { std::mem::zeroed() };
        Registers { orig_rax, rax: rax as u64, rip: 0x1002, ..zero }
    }

    fn went_on(orig_rax: u64, rax: i64, code: [u8; 7]) -> Option<(u64, u64)> {
        registers(&stopped(orig_rax, rax), |_| Some(code)).map(|registers| (registers.rip, registers.rax))
    }

    #[test]
    fn a_call_is_made_again_where_the_kernel_would() {
        let none = [0; 7];
        for error in [-512, -513, -514, -516] {
            assert_eq!(went_on(202, error, none), Some((0x1000, 202)), "{error}");
        }
        assert_eq!(went_on(0, 5, none), Some((0x1002, 5)));
        assert_eq!(went_on(0, -4, none), Some((0x1002, -4_i64 as u64)));
        assert_eq!(went_on(NO_CALL, -512, none), Some((0x1002, -512_i64 as u64)));
    }

    #[test]
    fn which_call_it_goes_on_with_is_in_the_code() {
        assert_eq!(went_on(219, -516, [0xb8, 0xe6, 0, 0, 0, 0x0f, 0x05]), Some((0x1000, 230)));
        assert_eq!(went_on(219, -516, [0xb8, 0xe7, 0, 0, 0, 0x0f, 0x05]), None, "exit_group");
        assert_eq!(went_on(219, -516, [0x90, 0xe6, 0, 0, 0, 0x0f, 0x05]), None);
        assert_eq!(registers(&stopped(219, -516), |_| None).map(|registers| registers.rax), None);
    }
}
