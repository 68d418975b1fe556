//! Whether one allocator call is part of another.

use super::{ReadMemory, Regs, Row, step};

/// Whether a call is part of an outer one, found out frame by frame.
///
/// The outer call's return address still lies at its stack pointer, but that alone does not prove that the call
/// is under way: it may have been abandoned (longjmp) with nothing written over it yet. Walking up from the
/// inner call tells: frames of the outer call lead to exactly that return address, others pass it by.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Nesting {
    regs: Regs,
    outer_sp: u64,
    /// 1 once a frame was found that lies below the outer call's return address.
    below: u32,
    /// 1 once the walk has come to that return address.
    arrived: u32,
}

impl Nesting {
    /// The question for a call whose caller has `regs`, and an outer call with its return address at `outer_sp`.
    #[inline(always)]
    pub const fn new(regs: Regs, outer_sp: u64) -> Self {
        Self { regs, outer_sp, below: 0, arrived: 0 }
    }

    /// The pc of the frame that is up next.
    #[inline(always)]
    pub const fn pc(&self) -> u64 {
        self.regs.pc
    }

    /// Goes one frame up, by the row that holds at [`Nesting::pc`]; false when the answer is known.
    #[inline(always)]
    pub fn advance(&mut self, row: Row, memory: &impl ReadMemory) -> bool {
        let Ok(caller) = step(row, &self.regs, memory) else {
            return false;
        };
        self.regs = caller;
        // A call pushes its return address right below the caller's frame.
        let slot = caller.sp.wrapping_sub(8);
        if slot < self.outer_sp {
            self.below = 1;
            return true;
        }
        self.arrived = u32::from(slot == self.outer_sp);
        false
    }

    /// Takes note that something else than the walk has proved the nesting.
    #[inline(always)]
    pub const fn arrive(&mut self) {
        self.arrived = 1;
    }

    /// Whether the walk has come to the outer call's return address, which proves the nesting.
    #[inline(always)]
    pub const fn has_arrived(&self) -> bool {
        self.arrived != 0
    }

    /// The answer. Where no frame shows itself below the outer call's return address, as in code that keeps no frame
    /// pointers, the return address is all there is to go by.
    #[inline(always)]
    pub const fn is_inside(&self) -> bool {
        self.arrived != 0 || self.below == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unwind::stack::Stack;

    fn is_inside(stack: &Stack<'_>, sp: u64, fp: u64, outer_sp: u64) -> bool {
        let mut nesting = Nesting::new(Regs { pc: 9, sp, fp }, outer_sp);
        while nesting.advance(Row::FRAME_POINTER, stack) {}
        nesting.is_inside()
    }

    #[test]
    fn frames_that_lead_to_themselves_give_an_answer() {
        // A record at 0x1010 that leads to itself, and two at 0x1020 and 0x1030 that lead to each other.
        let words = [0, 0, 0x1010, 0xa, 0x1030, 0xb, 0x1020, 0xc, 0, 0];
        let stack = Stack(0x1000, &words);
        assert!(!is_inside(&stack, 0x1000, 0x1010, 0x1040), "it goes no further");
        assert!(!is_inside(&stack, 0x1000, 0x1020, 0x1048), "nor do they");
        assert!(is_inside(&stack, 0x1000, 0x1020, 0x1038), "the second one's return address");
    }

    #[test]
    fn a_call_is_nested_only_where_its_frames_lead_to_the_outer_ones_return_address() {
        // Frame records at 0x1010 and 0x1030, the outermost at 0x1050.
        let words = [0, 0, 0x1030, 0xa, 0, 0, 0x1050, 0xb, 0, 0, 0, 0];
        let stack = Stack(0x1000, &words);
        assert!(is_inside(&stack, 0x1000, 0x1010, 0x1018), "a record's own return address");
        assert!(is_inside(&stack, 0x1000, 0x1010, 0x1038), "the next one's");
        assert!(!is_inside(&stack, 0x1000, 0x1010, 0x1028), "passed by");
        assert!(is_inside(&stack, 0x1000, 0x1030, 0x1020), "no frame pointer below it: they do not tell");
        assert!(is_inside(&stack, 0x1000, 7, 0x1020), "no frame pointers at all");
    }
}
