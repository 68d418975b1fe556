//! Which allocations are kept where not all are.
//!
//! A rate is the number of a sampling interval; rate 0 keeps every allocation. Each allocation is kept or not by itself, with the
//! probability that its size class has at the rate of that moment. All blocks of a class at a rate have the same, so that
//! what was kept can be counted as it is, and be scaled when it is read.

/// Bits of a rate.
pub const RATE_BITS: u32 = 4;

/// Number of rates.
pub const RATES: u32 = 1 << RATE_BITS;

/// What stands for the rate of an allocation that is not kept.
pub const NOT_KEPT: u64 = u32::MAX as u64;

/// Size classes of each rate in the `THRESHOLDS` map.
pub const CLASSES: u32 = 256;

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
