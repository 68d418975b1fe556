//! What lies where in a gate's data: the budgets, the gaps that they are refilled by, and the table of the blocks in the sample.

use profiler_common::sampling::GATE_CHARGE_BYTES;

use super::gaps::GAPS;

/// What the words in front of the budgets have: a cache line of their own.
const HEAD_BYTES: u64 = 64;

/// Budgets of bytes: each processor has one, so that threads seldom share one. As many as a byte can tell apart, by which
/// they are found.
pub const BUDGETS: u64 = 256;

/// Each is in cache lines of its own: of a number in the second byte of what is read, that is the offset already.
pub const BUDGET_BYTES: u64 = 1 << 8;

/// Where in a budget's line the place of its next gap is.
pub const NEXT_GAP: u64 = 8;

/// Blocks that a bucket has room for: a cache line of addresses.
pub const SLOTS: u64 = 8;

/// Bytes of a bucket.
pub const BUCKET_BYTES: u64 = SLOTS * 8;

/// What a bucket's byte in the filter has, beside the number of its entries, once one has not fitted: from then on the kernel side has to
/// be asked for each free of a block of this bucket.
pub const HAS_OVERFLOWED: u8 = 0x80;

/// What every block is charged beyond its size, in bytes.
pub const CHARGE_BYTES: i32 = GATE_CHARGE_BYTES as i32;

/// By this, the lower halves of addresses are multiplied for their buckets, of which the highest bits of the product's lower half are the
/// number: in two instructions, each of which takes one of the registers in which the processor keeps what is under way. An odd number by
/// which blocks that lie side by side are spread, whatever their size.
pub const HASH_FACTOR: u32 = 0xc0fc_9253;

/// The same for whole addresses, where there may be so many blocks that some which are large and lie in line would have the same lower half.
/// With 2⁶⁴ by the golden ratio, which is used elsewhere, one in twenty-five of those of 880 or 976 bytes overflows.
pub const LONG_HASH_FACTOR: u64 = 0xd6e8_feb8_6659_fd93;

/// Up to so many buckets, as a power of two, lower halves will do: there are 4,096 of blocks of 1 MiB in line, and as many blocks are expected.
const SHORT_HASH_BITS: u32 = 16;

/// Fewest and most buckets, as powers of two: 1 KiB of filter, of which the first cache, where the process has its own things, hardly
/// notices; and a million blocks.
const BUCKET_BITS: std::ops::RangeInclusive<u32> = 10..=18;

/// How many buckets there are for a block that is expected in the sample: where few have one, few frees of other blocks look for it.
const BUCKETS_PER_BLOCK: u64 = 16;

/// With a block in more than one of so many buckets a table is crowded: one in eight frees then looks for its block.
const CROWDED_SHARE: u64 = 8;

/// What memory is mapped by.
pub const PAGE_BYTES: u64 = 4096;

/// Where things are, in bytes from the start of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    bucket_bits: u32,
}

impl Layout {
    /// The layout for so many blocks in the sample at a time.
    pub fn for_blocks(blocks: u64) -> Self {
        let buckets = blocks.saturating_mul(BUCKETS_PER_BLOCK).clamp(1, 1 << BUCKET_BITS.end());
        Self::of_buckets(buckets.next_power_of_two().ilog2())
    }

    /// The layout with so many buckets, as a power of two, or as near to it as there is one.
    pub fn of_buckets(bits: u32) -> Self {
        Self { bucket_bits: bits.clamp(*BUCKET_BITS.start(), *BUCKET_BITS.end()) }
    }

    /// For how many blocks a layout is the next larger one, with four times as many buckets; `None` where this is the largest.
    pub fn larger(self) -> Option<u64> {
        (self.bucket_bits < *BUCKET_BITS.end()).then(|| self.buckets() * 4 / BUCKETS_PER_BLOCK)
    }

    /// Whether a larger one would be better where the filter is this.
    pub fn is_crowded(self, filter: &[u8]) -> bool {
        let in_use = filter.iter().filter(|entries| **entries != 0).count() as u64;
        in_use > self.buckets() / CROWDED_SHARE
    }

    /// The number of bits that tell buckets apart.
    pub const fn bucket_bits(self) -> u32 {
        self.bucket_bits
    }

    /// The number of buckets.
    pub const fn buckets(self) -> u64 {
        1 << self.bucket_bits
    }

    /// Whether buckets are found by the lower halves of addresses.
    pub const fn has_short_hash(self) -> bool {
        self.bucket_bits <= SHORT_HASH_BITS
    }

    /// The bucket of a block.
    pub const fn bucket_of(self, address: u64) -> u64 {
        if self.has_short_hash() {
            ((address as u32).wrapping_mul(HASH_FACTOR) >> (u32::BITS - self.bucket_bits)) as u64
        } else {
            address.wrapping_mul(LONG_HASH_FACTOR) >> (u64::BITS - self.bucket_bits)
        }
    }

    /// How many threads are inside a call with something of the gate on their stack: a word.
    pub const fn inside(self) -> u64 {
        0
    }

    /// How many blocks had no room in their bucket: a word.
    pub const fn overflows(self) -> u64 {
        8
    }

    /// How often a call found its budget used up by another that had yet to fill it up again: a word.
    pub const fn lost_budgets(self) -> u64 {
        16
    }

    /// The budgets, [`BUDGETS`] of [`BUDGET_BYTES`]: a signed word that is counted down, and half a word with the place of the next gap.
    pub const fn budgets(self) -> u64 {
        HEAD_BYTES
    }

    /// The gaps, [`GAPS`] words, on pages of their own: the process only reads them, so that it sees what is written to the file that it has
    /// mapped there.
    pub const fn gaps(self) -> u64 {
        (self.budgets() + BUDGETS * BUDGET_BYTES).next_multiple_of(PAGE_BYTES)
    }

    /// The filter: for each bucket a byte with the number of its entries.
    pub const fn filter(self) -> u64 {
        (self.gaps() + GAPS as u64 * 8).next_multiple_of(PAGE_BYTES)
    }

    /// The buckets, of [`BUCKET_BYTES`]: addresses of blocks, or 0.
    pub const fn table(self) -> u64 {
        self.filter() + self.buckets()
    }

    /// The size of all of it, in bytes: whole pages.
    pub const fn bytes(self) -> u64 {
        (self.table() + self.buckets() * BUCKET_BYTES).next_multiple_of(PAGE_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numbers::Numbers;

    #[test]
    fn the_parts_follow_each_other_and_lines_are_whole() {
        for blocks in [0, 1, 32_768, 100_000, 1 << 30] {
            let layout = Layout::for_blocks(blocks);
            assert!(layout.lost_budgets() + 8 <= layout.budgets());
            assert!(
                [layout.gaps(), layout.filter(), layout.bytes()].iter().all(|page| page % PAGE_BYTES == 0)
            );
            for line in [layout.budgets(), layout.gaps(), layout.filter(), layout.table(), layout.bytes()] {
                assert_eq!(line % 64, 0, "{layout:?}");
            }
            assert!(layout.bytes() < 1 << 25, "{layout:?}");
            for address in [0, 1, 0x5555_0000_1230, u64::MAX] {
                assert!(layout.bucket_of(address) < layout.buckets());
            }
        }
        assert_eq!(Layout::for_blocks(0).bucket_bits(), 10);
        assert_eq!(Layout::for_blocks(1_000).bucket_bits(), 14);
        assert_eq!(Layout::for_blocks(u64::MAX / 2).bucket_bits(), 18);
    }

    #[test]
    fn a_larger_layout_has_four_times_the_buckets_until_it_is_the_largest() {
        let larger = |layout: Layout| layout.larger().map(|blocks| Layout::for_blocks(blocks).bucket_bits());
        assert_eq!(larger(Layout::for_blocks(0)), Some(12));
        assert_eq!(larger(Layout::of_buckets(17)), Some(18));
        assert_eq!(larger(Layout::of_buckets(18)), None);
    }

    #[test]
    fn a_layout_is_crowded_where_one_bucket_in_eight_is_in_use() {
        let layout = Layout::for_blocks(0);
        let mut filter = vec![0; 1024];
        for (number, entries) in filter.iter_mut().step_by(8).enumerate() {
            *entries = if number % 2 == 0 { 2 } else { HAS_OVERFLOWED };
        }
        assert!(!layout.is_crowded(&filter));
        filter[1] = 1;
        assert!(layout.is_crowded(&filter));
    }

    #[test]
    fn blocks_that_lie_side_by_side_are_spread() {
        let mut numbers = Numbers::new();
        let mut number = || numbers.next();
        for bits in [10, 13, 16, 17] {
            let layout = Layout::of_buckets(bits);
            for stride in (16..=2048).step_by(16).chain([4096, 8192, 65_536, 1 << 20]) {
                let mut entries = vec![0_u64; 1 << bits];
                let mut overflows = 0;
                // Far more than are expected, but of large ones, of which few have lower halves of their own.
                let blocks = if stride < 1 << 20 { 2 << bits } else { layout.buckets() / BUCKETS_PER_BLOCK };
                for _ in 0..blocks {
                    let block = 0x7f00_1234_5010 + stride * (number() % (32 << bits));
                    let bucket = usize::try_from(layout.bucket_of(block)).unwrap();
                    entries[bucket] += 1;
                    overflows += u64::from(entries[bucket] > SLOTS);
                }
                assert!(overflows <= blocks / 200, "{overflows} at {stride}, {bits}");
            }
        }
    }
}
