//! One step up a stack, written once for the kernel and for user space.

/// The registers that a walk needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Regs {
    /// Program counter: a return address after the first step.
    pub pc: u64,
    /// Stack pointer.
    pub sp: u64,
    /// Frame pointer, rbp.
    pub fp: u64,
}

/// How the caller's registers follow from those of a frame, in eight bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Row(u64);

impl Row {
    /// The frame keeps rbp as its frame pointer: `[rbp]` is the caller's, `[rbp + 8]` the return address.
    pub const FRAME_POINTER: Self = Self(1);
}

/// The row that holds at `pc`.
///
/// Every pc has a frame pointer as far as this version knows.
#[inline(always)]
pub const fn row_at(_pc: u64) -> Row {
    Row::FRAME_POINTER
}

/// Where a walk reads the target's stack.
pub trait ReadMemory {
    /// The two words at `address`, or `None` where they cannot be read.
    fn read_pair(&self, address: u64) -> Option<[u64; 2]>;
}

/// How a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum WalkEnd {
    /// At the outermost frame of the thread.
    Whole = 0,
    /// At the depth limit; the leaf side is kept.
    Cut = 1,
    /// At a frame pointer that cannot be read.
    Unreadable = 2,
    /// At a frame pointer that does not lie above the frame.
    NotAscending = 3,
    /// At the return address of a pending uretprobe that is not ours to look behind.
    Trampoline = 4,
    /// At a row that this version does not know.
    UnknownRow = 5,
}

impl WalkEnd {
    /// Every way in which a walk can end.
    pub const ALL: [Self; 6] =
        [Self::Whole, Self::Cut, Self::Unreadable, Self::NotAscending, Self::Trampoline, Self::UnknownRow];

    /// The end that a record's number stands for.
    pub const fn from_raw(raw: u32) -> Option<Self> {
        Some(match raw {
            0 => Self::Whole,
            1 => Self::Cut,
            2 => Self::Unreadable,
            3 => Self::NotAscending,
            4 => Self::Trampoline,
            5 => Self::UnknownRow,
            _ => return None,
        })
    }

    /// The end in words, for people.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Cut => "cut at the depth limit",
            Self::Unreadable => "broken: unreadable frame pointer",
            Self::NotAscending => "broken: frame pointer does not ascend",
            Self::Trampoline => "broken: somebody else's return probe",
            Self::UnknownRow => "broken: unknown unwind row",
        }
    }
}

/// The caller's registers, or how the walk ends here.
#[inline(always)]
pub fn step(row: Row, regs: &Regs, memory: &impl ReadMemory) -> Result<Regs, WalkEnd> {
    match row {
        Row::FRAME_POINTER => step_frame_pointer(regs, memory),
        Row(_) => Err(WalkEnd::UnknownRow),
    }
}

#[inline(always)]
fn step_frame_pointer(regs: &Regs, memory: &impl ReadMemory) -> Result<Regs, WalkEnd> {
    // The psABI asks the first frame of a thread to have a zero rbp (System V x86-64, section 3.4.1).
    if regs.fp == 0 {
        return Err(WalkEnd::Whole);
    }
    if regs.fp < regs.sp || !regs.fp.is_multiple_of(8) {
        return Err(WalkEnd::NotAscending);
    }
    let Some([fp, pc]) = memory.read_pair(regs.fp) else {
        return Err(WalkEnd::Unreadable);
    };
    if pc == 0 {
        return Err(WalkEnd::Whole);
    }
    Ok(Regs { pc, sp: regs.fp.wrapping_add(16), fp })
}

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

    /// Goes one frame up; false when the answer is known.
    #[inline(always)]
    pub fn advance(&mut self, memory: &impl ReadMemory) -> bool {
        let Ok(caller) = step(row_at(self.regs.pc), &self.regs, memory) else {
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

    /// The answer. Where no frame shows itself below the outer call's return address, as in code that keeps no frame
    /// pointers, the return address is all there is to go by.
    #[inline(always)]
    pub const fn is_inside(&self) -> bool {
        self.arrived != 0 || self.below == 0
    }
}

/// The hash of a stack, built frame by frame as it is walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct StackHash(u64);

impl Default for StackHash {
    fn default() -> Self {
        Self::NEW
    }
}

impl StackHash {
    /// The hash of no frames.
    pub const NEW: Self = Self(0x243f_6a88_85a3_08d3);

    /// The hash with one more frame; the constant is 2⁶⁴ divided by the golden ratio.
    #[inline(always)]
    pub const fn push(self, pc: u64) -> Self {
        let mixed = (self.0 ^ pc).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self(mixed ^ (mixed >> 32))
    }

    /// The finished hash. Stacks that ended differently differ, and none is
    /// [`crate::heap::OVERFLOW_STACK`].
    #[inline(always)]
    pub const fn finish(self, end: WalkEnd) -> u64 {
        let hash = self.push(end as u64).0;
        if hash == crate::heap::OVERFLOW_STACK { 1 } else { hash }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stack that begins at an address, as words.
    struct Stack<'a>(u64, &'a [u64]);

    impl ReadMemory for Stack<'_> {
        fn read_pair(&self, address: u64) -> Option<[u64; 2]> {
            let index = usize::try_from(address.checked_sub(self.0)? / 8).ok()?;
            Some([*self.1.get(index)?, *self.1.get(index + 1)?])
        }
    }

    fn walk(mut regs: Regs, stack: &Stack<'_>) -> (Vec<u64>, WalkEnd) {
        let mut pcs = vec![regs.pc];
        loop {
            match step(row_at(regs.pc), &regs, stack) {
                Ok(caller) => regs = caller,
                Err(end) => return (pcs, end),
            }
            pcs.push(regs.pc);
        }
    }

    #[test]
    fn frame_pointers_lead_to_the_first_frame() {
        let stack = Stack(0x1000, &[0x1020, 0xa, 0, 0, 0x1030, 0xb, 0, 0xc]);
        let start = Regs { pc: 9, sp: 0x1000, fp: 0x1000 };
        assert_eq!(walk(start, &stack), (vec![9, 0xa, 0xb, 0xc], WalkEnd::Whole));
    }

    #[test]
    fn a_null_return_address_ends_the_stack() {
        let stack = Stack(0x1000, &[0x1010, 0]);
        let start = Regs { pc: 9, sp: 0x1000, fp: 0x1000 };
        assert_eq!(walk(start, &stack), (vec![9], WalkEnd::Whole));
    }

    #[test]
    fn a_frame_pointer_below_the_frame_or_off_the_stack_breaks_the_walk() {
        let stack = Stack(0x1000, &[0x1000, 0xa]);
        let start = Regs { pc: 9, sp: 0x1000, fp: 0x1000 };
        assert_eq!(walk(start, &stack), (vec![9, 0xa], WalkEnd::NotAscending));
        let odd = Regs { fp: 0x1004, ..start };
        assert_eq!(walk(odd, &stack), (vec![9], WalkEnd::NotAscending));
        let away = Regs { fp: 0x2000, ..start };
        assert_eq!(walk(away, &stack), (vec![9], WalkEnd::Unreadable));
    }

    fn is_inside(stack: &Stack<'_>, sp: u64, fp: u64, outer_sp: u64) -> bool {
        let mut nesting = Nesting::new(Regs { pc: 9, sp, fp }, outer_sp);
        while nesting.advance(stack) {}
        nesting.is_inside()
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

    #[test]
    fn ends_come_back_from_their_number_and_change_the_hash() {
        let hash = StackHash::NEW.push(1).push(2);
        let mut seen = Vec::new();
        for end in WalkEnd::ALL {
            assert_eq!(WalkEnd::from_raw(end as u32), Some(end));
            seen.push(hash.finish(end));
        }
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), WalkEnd::ALL.len());
    }
}
