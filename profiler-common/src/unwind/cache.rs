//! Rows where the kernel side finds them soonest.

use super::Row;
use crate::heap::RowKey;

/// A row in a slot of the `ROW_CACHE` map, which has those of the `ROWS` map that were taught last.
///
/// A slot is two words that user space replaces while the kernel reads them. The second tells whether they belong together
/// and to the key that is asked for: it is never that of another pc of the same process and epoch, nor that of another row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CachedRow {
    row: u64,
    check: u64,
}

impl CachedRow {
    /// Slots of the map, as a power of two.
    pub const SLOTS_LOG2: u32 = 16;

    /// The slot for a key. The constant is 2⁶⁴ divided by the golden ratio.
    #[inline(always)]
    pub const fn slot(key: RowKey) -> u32 {
        (mix(key).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - Self::SLOTS_LOG2)) as u32
    }

    /// What the slot of a key holds once its row is in it.
    pub const fn new(key: RowKey, row: Row) -> Self {
        let row = row.to_raw();
        Self { row, check: check(key, row) }
    }

    /// The row of a key; `None` where the slot holds another one's.
    #[inline(always)]
    pub const fn row(&self, key: RowKey) -> Option<Row> {
        if self.check == check(key, self.row) { Some(Row::from_raw(self.row)) } else { None }
    }
}

/// An odd number: what is multiplied by it can be told from the product.
const ODD: u64 = 0xd6e8_feb8_6659_fd93;

/// A number for a key: one of its own for each pc of a process in an epoch.
#[inline(always)]
const fn mix(key: RowKey) -> u64 {
    let space = (key.tgid as u64) << 32 | key.epoch as u64;
    key.pc ^ space.wrapping_mul(ODD)
}

#[inline(always)]
const fn check(key: RowKey, row: u64) -> u64 {
    mix(key) ^ row.wrapping_mul(ODD)
}

const _: () = assert!(size_of::<CachedRow>() == 16, "no padding");

#[cfg(feature = "user")]
// SAFETY: repr(C), no padding (asserted above), any bit pattern is valid.
unsafe impl aya::Pod for CachedRow {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unwind::WalkEnd;

    const KEY: RowKey = RowKey { pc: 0x5555_5555_1234, tgid: 7, epoch: 2 };

    #[test]
    fn a_row_is_found_by_its_key_only() {
        let cached = CachedRow::new(KEY, Row::FRAME_POINTER);
        assert_eq!(cached.row(KEY), Some(Row::FRAME_POINTER));
        for other in [RowKey { pc: KEY.pc + 1, ..KEY }, RowKey { tgid: 8, ..KEY }, RowKey { epoch: 3, ..KEY }]
        {
            assert_eq!(cached.row(other), None, "{other:?}");
        }
        assert_eq!(CachedRow::default().row(KEY), None);
    }

    #[test]
    fn a_slot_that_is_half_replaced_holds_nothing() {
        let old = CachedRow::new(KEY, Row::FRAME_POINTER);
        let successors = [
            (KEY, Row::stop(WalkEnd::NoCode)),
            (RowKey { pc: KEY.pc + 1, ..KEY }, Row::FRAME_POINTER),
            (RowKey { pc: KEY.pc + 1, ..KEY }, Row::END),
            (RowKey { epoch: 3, ..KEY }, Row::END),
        ];
        for (key, row) in successors {
            let new = CachedRow::new(key, row);
            for asked in [KEY, key] {
                let halves = [CachedRow { row: new.row, ..old }, CachedRow { check: new.check, ..old }];
                for half in halves {
                    assert!(half.row(asked).is_none() || half == old || half == new, "{asked:?} {row:?}");
                }
            }
        }
    }

    #[test]
    fn slots_lie_within_the_map_and_neighbours_apart() {
        let slots: Vec<u32> = (0..64).map(|pc| CachedRow::slot(RowKey { pc: KEY.pc + pc, ..KEY })).collect();
        assert!(slots.iter().all(|&slot| slot < 1 << CachedRow::SLOTS_LOG2));
        let mut distinct = slots.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), slots.len());
    }
}
