//! Which allocations are kept where not all are.
//!
//! A rate is the number of a sampling interval; rate 0 keeps every allocation. Each allocation is kept or not by itself, with the
//! probability that its size class has at the rate of that moment. All blocks of a class at a rate have the same, so that
//! what was kept can be counted as it is, and be scaled when it is read.

use crate::heap::least_bytes;

/// Bits of a rate.
pub const RATE_BITS: u32 = 4;

/// Number of rates.
pub const RATES: u32 = 1 << RATE_BITS;

/// What stands for the rate of an allocation that is not kept.
pub const NOT_KEPT: u64 = u32::MAX as u64;

/// Size classes of each rate in the `THRESHOLDS` map.
pub const CLASSES: u32 = 256;

/// Where in the `RATE` map the rate is of allocations that the kernel side samples, and of those that a gate has sampled.
pub const RATE_SLOT: u32 = 0;

/// See [`RATE_SLOT`].
pub const GATE_RATE_SLOT: u32 = 1;

/// Entries of the `RATE` map.
pub const RATE_SLOTS: u32 = 2;

/// What a gate charges for every block beyond its size, in bytes: so that blocks of no size are sampled as well, and those of a size
/// class with probabilities that do not differ much.
pub const GATE_CHARGE_BYTES: u64 = 16;

/// The place of a size class at a rate in the `THRESHOLDS` map.
#[inline(always)]
pub const fn slot(rate: u32, class: u32) -> u32 {
    (rate % RATES) * CLASSES + class % CLASSES
}

/// Whether an allocation is kept by a random number, where all are equally likely. The threshold is the probability in 2⁻³², or 0
/// for certainty.
#[inline(always)]
pub const fn is_kept(threshold: u32, random: u32) -> bool {
    threshold == 0 || random < threshold
}

/// The bytes of a call that count where it is to be kept by a gate's budget: those that every block of its size class has.
#[inline(always)]
pub const fn kept_bytes_behind_gate(class: u32) -> u64 {
    least_bytes(class) + GATE_CHARGE_BYTES
}

/// Whether a call is kept that a gate has sampled, by what the budget had before it.
///
/// A budget is used up where its bytes are charged, exponentially distributed. To be counted with the same probability as all others of
/// its size class, a block has to have used it up by those of its bytes that the smallest of the class has as well.
#[inline(always)]
pub const fn is_kept_behind_gate(class: u32, budget_bytes: u64) -> bool {
    budget_bytes < kept_bytes_behind_gate(class)
}
