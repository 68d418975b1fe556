//! The table of a gate as it is before the gate is in: with the blocks that another gate had in its sample.

use super::layout::{BUCKET_BYTES, HAS_OVERFLOWED, Layout, SLOTS};

/// A filter and the buckets behind it, as they lie in a gate's data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    layout: Layout,
    bytes: Vec<u8>,
    /// How many blocks had no room in their bucket.
    pub overflows: u64,
}

impl Table {
    /// An empty one.
    pub fn new(layout: Layout) -> Self {
        Self { layout, bytes: vec![0; length(layout)], overflows: 0 }
    }

    /// One that was read; `None` where it is not as long as it should be.
    pub fn of_bytes(layout: Layout, bytes: Vec<u8>) -> Option<Self> {
        (bytes.len() == length(layout)).then_some(Self { layout, bytes, overflows: 0 })
    }

    /// Its bytes, which belong at [`Layout::filter`].
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The blocks in it.
    pub fn blocks(&self) -> impl Iterator<Item = u64> {
        let buckets = self.bytes.get(buckets(self.layout)..).unwrap_or_default();
        buckets.as_chunks().0.iter().map(|block| u64::from_le_bytes(*block)).filter(|block| *block != 0)
    }

    /// Whether a block may have had no room in its bucket.
    pub fn may_lack(&self, block: u64) -> bool {
        let bucket = usize::try_from(self.layout.bucket_of(block)).unwrap_or(usize::MAX);
        self.bytes.get(bucket).is_some_and(|entries| entries & HAS_OVERFLOWED != 0)
    }

    /// Puts a block in, unless it is there.
    pub fn insert(&mut self, block: u64) {
        let bucket = usize::try_from(self.layout.bucket_of(block)).unwrap_or(usize::MAX);
        let (filter, table) = self.bytes.split_at_mut(buckets(self.layout));
        let slots = table.chunks_mut(BUCKET_BYTES as usize).nth(bucket).unwrap_or_default();
        let mut slots = slots.as_chunks_mut().0.iter_mut();
        let slot = slots.find(|slot| [0, block].contains(&u64::from_le_bytes(**slot)));
        let Some(entries) = filter.get_mut(bucket) else { return };
        match slot {
            Some(slot) if *slot == block.to_le_bytes() => {}
            Some(slot) => {
                *slot = block.to_le_bytes();
                *entries += 1;
            }
            None => {
                *entries |= HAS_OVERFLOWED;
                self.overflows += 1;
            }
        }
    }
}

fn buckets(layout: Layout) -> usize {
    usize::try_from(layout.buckets()).unwrap_or(usize::MAX)
}

fn length(layout: Layout) -> usize {
    buckets(layout) * (1 + SLOTS as usize * 8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numbers::Numbers;

    #[test]
    fn blocks_that_are_put_in_are_in_once() {
        let mut numbers = Numbers::new();
        let layout = Layout::for_blocks(5_000);
        let mut table = Table::new(layout);
        let mut blocks: Vec<u64> = (0..5_000).map(|_| 16 * (1 + numbers.below(1 << 40))).collect();
        for block in blocks.iter().chain(&blocks) {
            table.insert(*block);
        }
        assert_eq!(table.overflows, 0);
        let mut found: Vec<u64> = table.blocks().collect();
        found.sort_unstable();
        blocks.sort_unstable();
        blocks.dedup();
        assert_eq!(found, blocks);
        let filter: u64 = table.bytes()[..buckets(layout)].iter().map(|entries| u64::from(*entries)).sum();
        assert_eq!(filter, blocks.len() as u64);
        assert_eq!(Table::of_bytes(layout, table.bytes().to_vec()), Some(table));
        assert_eq!(Table::of_bytes(layout, vec![0; 3]), None);
    }

    #[test]
    fn a_full_bucket_says_that_it_lacks_something() {
        let layout = Layout::for_blocks(0);
        let mut table = Table::new(layout);
        let bucket = layout.bucket_of(16);
        let together: Vec<u64> = (1..)
            .map(|index| 16 * index)
            .filter(|block| layout.bucket_of(*block) == bucket)
            .take(10)
            .collect();
        for block in &together {
            table.insert(*block);
        }
        assert_eq!((table.overflows, table.blocks().count()), (2, SLOTS as usize));
        assert!(table.may_lack(together[9]) && table.may_lack(16));
        let other = (1..).map(|index| 16 * index).find(|block| layout.bucket_of(*block) != bucket).unwrap();
        assert!(!table.may_lack(other));
    }
}
