//! Threads that stand within code that is to be changed go on in a copy of it.
//!
//! Nothing but an address changes, at once, and it is right before the code is changed and after: if we die, so be it.

use std::collections::BTreeMap;

use super::{StopError, onward, request::Registers, threads::Threads};

impl Threads {
    /// Has each thread that is about to execute one of the first instructions execute the second in its place.
    pub(super) fn move_threads(&mut self, moves: &BTreeMap<u64, u64>) -> Result<usize, StopError> {
        let mut moved: usize = 0;
        let threads: Vec<i32> = self.states.keys().copied().collect();
        for thread in threads {
            let registers = self.registers_of(thread)?;
            if let Some(rip) = destination(&registers, moves) {
                self.set_registers(thread, Registers { rip, ..registers }, "moved")?;
                moved = moved.saturating_add(1);
            }
        }
        Ok(moved)
    }
}

fn destination(registers: &Registers, moves: &BTreeMap<u64, u64>) -> Option<u64> {
    if onward::is_repeated(registers) {
        // It stands behind the call, and the kernel takes it back to that when it lets it go.
        let call = registers.rip.checked_sub(onward::CALL_BYTES)?;
        return moves.get(&call)?.checked_add(onward::CALL_BYTES);
    }
    moves.get(&registers.rip).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_moved_from_where_it_will_go_on() {
        let moves = BTreeMap::from([(0x1000, 0x2000), (0x1002, 0x3002)]);
        // SAFETY: it is numbers, for which zero is a value.
        let zero: Registers = unsafe { std::mem::zeroed() };
        let to = |rip: u64, orig_rax: u64, rax: i64| {
            destination(&Registers { rip, orig_rax, rax: rax as u64, ..zero }, &moves)
        };
        assert_eq!(to(0x1000, u64::MAX, 0), Some(0x2000));
        assert_eq!(to(0x1001, u64::MAX, 0), None);
        assert_eq!(to(0x1002, 0, 5), Some(0x3002), "the call has returned");
        assert_eq!(to(0x1002, 0, -512), Some(0x2002), "the call is made again");
        assert_eq!(to(0x1000, 0, -512), None, "the call is before what is moved");
    }
}
