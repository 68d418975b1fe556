//! Which thread executes a system call for us: one that comes back by itself, should we die meanwhile.

use std::fs;

use super::{
    StopError,
    error::Unfit,
    extent::Extent,
    frame::{Frame, Saved},
    onward,
    places::Places,
    request::{self, NO_CALL, Registers},
    state,
    threads::{State, Threads},
};

/// Where in `struct rseq` the section is noted that a thread is in (`rseq_cs`).
const SECTION_OFFSET: u64 = 8;

/// The thread, what it has to get back, and what it would go by without us, which lies on its stack.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) thread: i32,
    pub(super) saved: Registers,
    pub(super) blocked: u64,
    /// Where it says which restartable sequence it may be in, and what it says: the kernel forgets it when the thread executes
    /// something else, and would not restart it.
    pub(super) section: Option<(u64, u64)>,
    pub(super) frame: Frame,
}

impl Threads {
    /// Chooses a thread and writes what it would go by: best one that waits in a system call, for that is in no sequence of
    /// instructions which the kernel restarts when it is interrupted.
    pub(super) fn caller(&mut self, places: Places, arguments: &[Vec<u8>]) -> Result<Caller, StopError> {
        let mut ranked: Vec<(u8, i32, Registers)> = self
            .states
            .iter()
            .filter_map(|(thread, state)| {
                let registers = self.registers_of(*thread).ok()?;
                Some((rank(*state, &registers)?, *thread, registers))
            })
            .collect();
        ranked.sort_by_key(|(rank, thread, _)| (*rank, *thread));
        let mut refused = None;
        for (_, thread, registers) in ranked {
            match self.prepare(thread, registers, places, arguments) {
                Ok(caller) => return Ok(caller),
                Err(source) => drop(refused.get_or_insert((thread, source))),
            }
        }
        let (thread, source) = refused.ok_or_else(|| self.gone())?;
        Err(StopError::NoThread { pid: self.pid, thread, source })
    }

    fn prepare(
        &mut self,
        thread: i32,
        saved: Registers,
        places: Places,
        arguments: &[Vec<u8>],
    ) -> Result<Caller, Unfit> {
        is_free(thread)?;
        let extent = self.extent_at(saved.rsp).map_err(|_| Unfit::Ended)?;
        if !extent.is_some_and(|extent| is_own_stack(&saved, &extent)) {
            return Err(Unfit::OtherStack);
        }
        let section = self.section(thread);
        let code = |behind: u64| {
            let mut code = [0; onward::CODE_BYTES as usize];
            self.memory().ok()?.read(behind.checked_sub(onward::CODE_BYTES)?, &mut code).ok()?;
            Some(code)
        };
        let mut onward = onward::registers(&saved, code).ok_or(Unfit::Napping)?;
        if let Some((_, section)) = section {
            onward.rip = self.aborted(section, onward.rip).ok_or(Unfit::Ended)?;
        }
        let blocked = request::blocked(thread).map_err(|_| Unfit::Ended)?;
        let state = state::of(thread).map_err(|_| Unfit::NoState)?;
        let onward = Saved { registers: &onward, blocked, state: &state };
        let frame = Frame::below(saved.rsp, places.returns, &onward, arguments).ok_or(Unfit::NoRoom)?;
        self.memory()
            .and_then(|memory| memory.write(frame.start, &frame.bytes))
            .map_err(|_| Unfit::NoRoom)?;
        Ok(Caller { thread, saved, blocked, section, frame })
    }

    fn section(&self, thread: i32) -> Option<(u64, u64)> {
        let address = request::restartable(thread)?.checked_add(SECTION_OFFSET)?;
        let mut section = [0; 8];
        self.memory().ok()?.read(address, &mut section).ok()?;
        Some((address, u64::from_ne_bytes(section))).filter(|(_, section)| *section != 0)
    }

    /// Where a thread goes on that is taken away from an address: if that is in a restartable sequence, where this is aborted.
    fn aborted(&self, section: u64, address: u64) -> Option<u64> {
        // struct rseq_cs: version and flags, the start, the length, where it is aborted.
        let mut told = [0; 32];
        self.memory().ok()?.read(section, &mut told).ok()?;
        let (_, told) = told.split_first_chunk::<8>()?;
        let (start, told) = told.split_first_chunk()?;
        let (length, told) = told.split_first_chunk()?;
        let abort = told.first_chunk()?;
        let is_inside = address.wrapping_sub(u64::from_ne_bytes(*start)) < u64::from_ne_bytes(*length);
        Some(if is_inside { u64::from_ne_bytes(*abort) } else { address })
    }
}

/// The lower the better; `None` for one that is none.
fn rank(state: State, registers: &Registers) -> Option<u8> {
    let State::Stopped { by_group } = state else { return None };
    let rank = match registers.orig_rax {
        NO_CALL => 1,
        _ if onward::is_napping(registers) => 2,
        _ => 0,
    };
    // A stop of the whole process is one that it takes part in first.
    Some(if by_group { rank + 3 } else { rank })
}

/// Whether a thread's calls are those that it makes, and its returns go where its stack says. Each thread has its own filters.
fn is_free(thread: i32) -> Result<(), Unfit> {
    let status = fs::read(format!("/proc/{thread}/status")).map_err(|_| Unfit::Ended)?;
    let status = String::from_utf8_lossy(&status);
    let value = |name| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
    if !matches!(value("Seccomp:"), "" | "0") {
        return Err(Unfit::Filtered);
    }
    if value("x86_Thread_features:").split(' ').any(|feature| feature == "shstk") {
        return Err(Unfit::ShadowStack);
    }
    if request::dispatches_calls(thread) { Err(Unfit::Dispatches) } else { Ok(()) }
}

/// Whether what is below the stack pointer is free, as far as it is mapped: not so on the stacks of coroutines, below which
/// there may be anything. The C library keeps what belongs to a thread, which `fs_base` points to, at the upper end of its stack.
fn is_own_stack(registers: &Registers, extent: &Extent) -> bool {
    extent.is_main_stack || (registers.rsp..extent.range.end).contains(&registers.fs_base)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_on_its_own_stack_below_what_belongs_to_it() {
        let other = Extent { range: 0x2000..0x9000, is_main_stack: false };
        let first = Extent { range: 0xf000..0xffff, is_main_stack: true };
        // SAFETY: it is numbers, for which zero is a value.
        let zero: Registers = unsafe { std::mem::zeroed() };
        for (extent, rsp, fs_base, expected) in [
            (&other, 0x8000, 0x8800, true),
            (&other, 0x8000, 0x7000, false),
            (&other, 0x8000, 0xb000, false),
            (&first, 0xf800, 0xb000, true),
        ] {
            let registers = Registers { rsp, fs_base, ..zero };
            assert_eq!(is_own_stack(&registers, extent), expected, "{rsp:#x} {fs_base:#x}");
        }
    }
}
