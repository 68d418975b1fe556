//! The hash by which the kernel tells stacks apart.

use super::WalkEnd;
use crate::heap::NESTED_STACK;

/// The hash of a stack, built frame by frame as it is walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct StackHash(u64);

impl StackHash {
    /// The hash of no frames, in an epoch: the same addresses mean something else in another.
    #[inline(always)]
    pub const fn new(epoch: u32) -> Self {
        Self(0x243f_6a88_85a3_08d3 ^ epoch as u64)
    }

    /// The hash with one more frame; the constant is 2⁶⁴ divided by the golden ratio.
    #[inline(always)]
    pub const fn push(self, pc: u64) -> Self {
        let mixed = (self.0 ^ pc).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self(mixed ^ (mixed >> 32))
    }

    /// The finished hash. Stacks that ended differently differ, and none is one of the hashes that stand for no stack.
    #[inline(always)]
    pub const fn finish(self, end: WalkEnd) -> u64 {
        let hash = self.push(end as u64).0;
        if hash <= NESTED_STACK { !hash } else { hash }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacks_that_end_differently_differ() {
        let hash = StackHash::new(0).push(1).push(2);
        let mut seen = WalkEnd::ALL.map(|end| hash.finish(end));
        seen.sort_unstable();
        assert!(seen.windows(2).all(|pair| pair[0] != pair[1]), "{seen:x?}");
    }
}
