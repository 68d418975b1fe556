//! A system call that a stopped thread of another process executes for us.
//!
//! The thread goes to a `syscall` instruction that is in the process anyway, and comes back. It is not stepped over it, for what
//! a step ends with is a signal, which changes what the process does at SIGTRAP where it ignores or blocks that. The kernel can
//! stop it on both sides of the call instead (`PTRACE_SYSCALL`).
//!
//! If we die meanwhile, nobody gives the thread its registers back. Before it gets others, there lies on its stack what it comes
//! back by then: behind the `syscall` is a `ret`, which leads to a call of `rt_sigreturn` and so to where it was ([`frame`]).
//! That restores everything at once; while it is still to come, signals may be let through, but not blocked without it.
//!
//! As long as we live, the kernel's way is the better one. A thread that was stopped within a system call of its own has, in
//! `rax` and `orig_rax`, what the kernel goes on by once it is let go: it repeats the call where no signal has come. The kernel
//! looks at them when it has nothing more to stop for, which is why the thread has to be in such a stop again before it gets its
//! registers back: [`Threads::settle`].
//!
//! [`frame`]: super::frame

use std::{
    ffi::CStr,
    io,
    time::{Duration, Instant},
};

use super::{
    StopError,
    caller::Caller,
    request::{self, Event, NO_CALL, Registers},
    threads::Threads,
};

/// A system call that takes so long is one that waits, and none such should be asked for.
const CALL_LIMIT: Duration = Duration::from_secs(1);

/// How often a thread is let go again that stops with something else to tell: as often as it may be sent SIGSTOP and SIGCONT in some
/// ten milliseconds.
const DETOURS_LIMIT: u32 = 1 << 12;

/// Results from here on are negative error numbers.
const FIRST_ERROR: u64 = -4095_i64 as u64;

/// An argument of a system call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Argument {
    /// A number, or an address in the process.
    Value(u64),
    /// The address of these bytes, which lie on the thread's stack for the time of the call.
    Bytes(Vec<u8>),
}

impl From<u64> for Argument {
    fn from(value: u64) -> Self {
        Self::Value(value)
    }
}

/// With the zero that ends it.
impl From<&CStr> for Argument {
    fn from(text: &CStr) -> Self {
        Self::Bytes(text.to_bytes_with_nul().to_vec())
    }
}

impl Threads {
    /// Executes a system call.
    pub(super) fn syscall(&mut self, number: u64, arguments: &[Argument]) -> Result<u64, StopError> {
        let places = self.places()?;
        let bytes: Vec<Vec<u8>> = arguments
            .iter()
            .filter_map(|argument| match argument {
                Argument::Bytes(bytes) => Some(bytes.clone()),
                Argument::Value(_) => None,
            })
            .collect();
        let caller = self.caller(places, &bytes)?;
        let [rdi, rsi, rdx, r10, r8, r9] = values(arguments, &caller.frame.arguments)
            .ok_or(StopError::Arguments { number, count: arguments.len() })?;
        let rsp = caller.frame.start;
        let (rip, orig_rax) = (places.call, NO_CALL);
        let call = Registers { rax: number, orig_rax, rip, rsp, rdi, rsi, rdx, r10, r8, r9, ..caller.saved };
        let returned = self.called(&caller, number, call)?;
        if returned >= FIRST_ERROR {
            let error = i32::try_from(returned.wrapping_neg()).unwrap_or(libc::EINVAL);
            let source = io::Error::from_raw_os_error(error);
            return Err(StopError::Call { pid: self.pid, number, source });
        }
        Ok(returned)
    }

    /// Gives a thread the registers of a call, lets it execute that, and gives it back what it had.
    fn called(&mut self, caller: &Caller, number: u64, call: Registers) -> Result<u64, StopError> {
        let thread = caller.thread;
        // From here on, the thread comes back by itself: it is only now that its signals can wait, or it would go to their
        // handlers from a place where it never was.
        request::set_registers(thread, call).map_err(self.failed(thread, "given registers"))?;
        let returned = request::block(thread, u64::MAX)
            .map_err(self.failed(thread, "kept from signals"))
            .and_then(|()| self.through(thread, number));
        // Whatever it came to, the thread gets back what it had: one that does not stop, by itself.
        let settled = self.settle(thread, CALL_LIMIT);
        // The registers come last: with them, it does not come back to the rest any more.
        let noted = caller
            .section
            .map_or(Ok(()), |(address, section)| self.memory()?.write(address, &section.to_ne_bytes()));
        let unblocked =
            request::block(thread, caller.blocked).map_err(self.failed(thread, "given its signals"));
        let restored = self.set_registers(thread, caller.saved, "given its registers");
        let returned = returned?;
        settled.and(noted).and(unblocked).and(restored).and(Ok(returned))
    }

    /// Lets a thread go that stands before the instruction, up to behind it.
    fn through(&mut self, thread: i32, number: u64) -> Result<u64, StopError> {
        let began = Instant::now();
        let (mut is_inside, mut is_late, mut signal) = (false, false, 0);
        for _ in 0..DETOURS_LIMIT {
            request::until_call(thread, signal).map_err(self.failed(thread, "let go"))?;
            signal = 0;
            let event = match self.next(thread, began, CALL_LIMIT) {
                // One last chance: a call that can be interrupted has an end, if no good one.
                Err(StopError::NotInTime { .. }) if !is_late => {
                    is_late = true;
                    request::interrupt(thread).map_err(self.failed(thread, "interrupted"))?;
                    self.next(thread, Instant::now(), CALL_LIMIT)?
                }
                event => event?,
            };
            match event {
                Event::Call if is_inside => {
                    return Ok(request::registers(thread).map_err(self.failed(thread, "asked"))?.rax);
                }
                Event::Call => is_inside = true,
                // A stop of the whole process is one that all take part in when they are let go.
                Event::Signal(met) if Event::is_group_stop(met) => signal = met,
                Event::Signal(signal) => {
                    return Err(StopError::Disturbed { pid: self.pid, thread, number, signal });
                }
                Event::Stop(_) | Event::Running | Event::Ended => {}
            }
        }
        Err(self.not_in_time(thread, CALL_LIMIT))
    }
}

/// Six values, with addresses in the place of bytes; `None` if there are more.
fn values(arguments: &[Argument], addresses: &[u64]) -> Option<[u64; 6]> {
    let mut addresses = addresses.iter();
    let mut values = [0; 6];
    for (place, argument) in arguments.iter().enumerate() {
        *values.get_mut(place)? = match argument {
            Argument::Value(value) => *value,
            Argument::Bytes(_) => *addresses.next()?,
        };
    }
    Some(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_given_by_their_address() {
        let arguments = [Argument::from(c"name"), 3.into(), Argument::Bytes(vec![1])];
        assert_eq!(arguments[0], Argument::Bytes(b"name\0".to_vec()));
        assert_eq!(values(&arguments, &[0x10, 0x20]), Some([0x10, 3, 0x20, 0, 0, 0]));
        assert_eq!(values(&vec![Argument::Value(1); 7], &[]), None);
    }
}
