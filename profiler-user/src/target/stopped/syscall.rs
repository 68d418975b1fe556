//! A system call that a stopped thread of another process executes for us.
//!
//! The thread goes to a `syscall` instruction that is in the process anyway, and comes back. It is not stepped over it, for what
//! a step ends with is a signal, which changes what the process does at SIGTRAP where it ignores or blocks that. The kernel can
//! stop it on both sides of the call instead (`PTRACE_SYSCALL`).
//!
//! A thread that was stopped within a system call of its own has, in `rax` and `orig_rax`, what the kernel goes on by once it is
//! let go: it repeats the call where no signal has come. The kernel looks at them when it has nothing more to stop for, which
//! is why the thread has to be in such a stop again before it gets its registers back: [`Threads::settle`].

use std::{
    io,
    time::{Duration, Instant},
};

use super::{
    super::{mapping, process::status},
    StopError,
    request::{self, Event, Registers},
    threads::{State, Threads},
};

/// A system call that takes so long is one that waits, and none such should be asked for.
const CALL_LIMIT: Duration = Duration::from_secs(1);

/// How often a thread is let go again that stops with something else to tell.
const DETOURS_LIMIT: u32 = 64;

/// What is read of mappings at once and at most, in search of the instruction.
const SEARCH_CHUNK_BYTES: usize = 64 << 10;
const SEARCH_LIMIT_BYTES: u64 = 64 << 20;

const SYSCALL_INSTRUCTION: [u8; 2] = [0x0f, 0x05];

/// No system call, so that the kernel does not repeat one.
const NO_CALL: u64 = u64::MAX;

/// Results from here on are negative error numbers.
const FIRST_ERROR: u64 = -4095_i64 as u64;

/// Where in `struct rseq` the section is noted that a thread is in (`rseq_cs`).
const SECTION_OFFSET: u64 = 8;

impl Threads {
    /// Executes a system call.
    pub(super) fn syscall(&mut self, number: u64, arguments: [u64; 6]) -> Result<u64, StopError> {
        let instruction = self.instruction()?;
        let (thread, saved) = self.caller()?;
        let blocked = request::blocked(thread).map_err(self.failed(thread, "asked for its signals"))?;
        let section = self.section(thread);
        let [rdi, rsi, rdx, r10, r8, r9] = arguments;
        let call = Registers {
            rax: number,
            orig_rax: NO_CALL,
            rip: instruction,
            rdi,
            rsi,
            rdx,
            r10,
            r8,
            r9,
            ..saved
        };

        // Signals wait, or the thread would go to their handlers from a place where it never was.
        request::block(thread, u64::MAX).map_err(self.failed(thread, "kept from signals"))?;
        let returned = request::set_registers(thread, call)
            .map_err(self.failed(thread, "given registers"))
            .and_then(|()| self.through(thread, number));
        // Whatever it came to, the thread gets back what it had.
        let settled = self.settle(thread, CALL_LIMIT);
        let restored =
            request::set_registers(thread, saved).map_err(self.failed(thread, "given its registers"));
        let unblocked = request::block(thread, blocked).map_err(self.failed(thread, "given its signals"));
        let noted = section.map_or(Ok(()), |(address, section)| self.write(address, &section.to_ne_bytes()));
        let returned = returned?;
        settled.and(restored).and(unblocked).and(noted)?;
        if returned >= FIRST_ERROR {
            let error = i32::try_from(returned.wrapping_neg()).unwrap_or(libc::EINVAL);
            let source = io::Error::from_raw_os_error(error);
            return Err(StopError::Call { pid: self.pid, number, source });
        }
        Ok(returned)
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

    /// The thread to do it, and its registers: best one that waits in a system call, for that is in no sequence of instructions
    /// which the kernel restarts when it is interrupted.
    fn caller(&self) -> Result<(i32, Registers), StopError> {
        let mut best: Option<(u8, i32, Registers)> = None;
        for (thread, state) in &self.states {
            let Ok(registers) = request::registers(*thread) else { continue };
            let rank = match state {
                State::Stopped { by_group: false } if registers.orig_rax != NO_CALL => 3,
                State::Stopped { by_group: false } => 2,
                State::Stopped { by_group: true } => 1,
                State::Stopping => 0,
            };
            if rank > best.as_ref().map_or(0, |best| best.0) && is_unfiltered(*thread) {
                best = Some((rank, *thread, registers));
            }
            if rank == 3 && best.is_some_and(|best| best.0 == 3) {
                break;
            }
        }
        best.map(|(_, thread, registers)| (thread, registers)).ok_or(StopError::NoThread { pid: self.pid })
    }

    /// The restartable sequence that a thread may be in, and where it says so: the kernel forgets it when the thread executes
    /// something else, and would not restart it.
    fn section(&self, thread: i32) -> Option<(u64, u64)> {
        let address = request::restartable(thread)?.checked_add(SECTION_OFFSET)?;
        let mut section = [0; 8];
        self.read(address, &mut section).ok()?;
        Some((address, u64::from_ne_bytes(section))).filter(|(_, section)| *section != 0)
    }

    /// An address with a `syscall` instruction, best in the vDSO, which is small.
    fn instruction(&self) -> Result<u64, StopError> {
        let thread = u32::try_from(self.any()?).unwrap_or_default();
        let mut mappings = mapping::executable(self.pid, thread).map_err(|_| self.gone())?;
        mappings.sort_by_key(|mapping| mapping.name != b"[vdso]");
        let mut chunk = vec![0; SEARCH_CHUNK_BYTES];
        let mut left = SEARCH_LIMIT_BYTES;
        for mapping in mappings {
            let mut start = mapping.start;
            while start < mapping.end && left > 0 {
                let length = mapping.end.saturating_sub(start).min(SEARCH_CHUNK_BYTES as u64);
                left = left.saturating_sub(length);
                let Some(bytes) = usize::try_from(length).ok().and_then(|length| chunk.get_mut(..length))
                else {
                    break;
                };
                if self.read(start, bytes).is_err() {
                    break;
                }
                if let Some(at) = bytes.windows(2).position(|bytes| bytes == SYSCALL_INSTRUCTION) {
                    return Ok(start.saturating_add(at as u64));
                }
                start = start.saturating_add(length);
            }
        }
        Err(StopError::NoInstruction { pid: self.pid })
    }
}

/// Each thread has its own filters.
fn is_unfiltered(thread: i32) -> bool {
    status(thread).is_ok_and(|status| status.seccomp.unwrap_or_default() == 0)
}
