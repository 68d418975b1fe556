//! How many bytes are allocated from one sample to the next: exponentially distributed, so that what has been allocated since the last
//! one says nothing of when the next one is due.

/// Gaps in the table of a gate, a power of two. They are used one after the other, and drawn anew before all of them are.
pub const GAPS: usize = 1 << 12;

/// The largest gap: budgets are signed, and have to stay above what any block can take off them.
const LARGEST_BYTES: f64 = (1_u64 << 46) as f64;

/// Draws gaps with a mean of `interval_bytes`, by numbers that are all equally likely.
pub fn draw(interval_bytes: u64, mut random: impl FnMut() -> u64) -> Vec<i64> {
    (0..GAPS).map(|_| gap(interval_bytes, random())).collect()
}

/// The gap that a random number stands for, by inversion of the distribution function; at least 0.
///
/// A number of 53 bits, shifted by half of its step so that it is never 0, which has no logarithm.
fn gap(interval_bytes: u64, random: u64) -> i64 {
    const STEPS: f64 = (1_u64 << 53) as f64;
    let uniform = ((random >> 11) as f64 + 0.5) / STEPS;
    (-uniform.ln() * interval_bytes as f64).min(LARGEST_BYTES) as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numbers::Numbers;

    #[test]
    fn gaps_are_distributed_exponentially() {
        let mut numbers = Numbers::new();
        let mut number = || numbers.next();
        let interval_bytes = 512 << 10;
        let mut gaps: Vec<i64> = (0..16).flat_map(|_| draw(interval_bytes, &mut number)).collect();
        gaps.sort_unstable();
        let count = gaps.len() as f64;
        assert!(gaps[0] >= 0);
        // Kolmogorov and Smirnov: beyond 1.95 / √n once in a thousand.
        let furthest = gaps.iter().enumerate().map(|(index, gap)| {
            let expected = 1.0 - (-(*gap as f64) / interval_bytes as f64).exp();
            ((index as f64 + 0.5) / count - expected).abs()
        });
        assert!(furthest.fold(0.0, f64::max) < 1.95 / count.sqrt());
    }

    #[test]
    fn the_ends_of_the_scale_are_gaps_as_well() {
        assert_eq!(gap(1 << 40, u64::MAX), 0);
        assert!(gap(1 << 40, 0) <= 1 << 46);
        assert_eq!(gap(1, u64::MAX), 0);
    }
}
