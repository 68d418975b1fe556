//! Counting what was lost or guessed.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use profiler_common::counters::{COUNTERS as COUNT, Counter};

use crate::maps::COUNTERS;

/// Adds to a word of a map value that other CPUs add to as well.
#[inline(always)]
pub fn add(word: *mut u64, amount: u64) {
    // SAFETY: callers pass an aligned word inside a map value, which outlives the program's run. The intrinsic
    // stands in for `AtomicU64::fetch_add`, which core has only for targets that can also compare and swap.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(word, amount) };
}

/// Raises a number by one that other CPUs raise as well.
#[inline(always)]
pub fn raise(number: *mut u32) {
    // SAFETY: as for `add`, of half a word.
    unsafe { atomic_xadd::<u32, u32, { AtomicOrdering::Relaxed }>(number, 1) };
}

/// Raises a counter of a target.
#[inline(always)]
pub fn count(tgid: u32, counter: Counter, amount: u64) {
    count_each(tgid, [counter], amount);
}

/// Raises several counters of a target.
#[inline(always)]
pub fn count_each<const N: usize>(tgid: u32, which: [Counter; N], amount: u64) {
    const { assert!(Counter::GateLostBudgets as usize == COUNT - 1) };
    if let Some(counters) = COUNTERS.get_ptr_mut(tgid) {
        for counter in which {
            // SAFETY: the counter's number is below COUNTERS, the length of the array.
            add(unsafe { counters.cast::<u64>().add(counter as usize) }, amount);
        }
    }
}
