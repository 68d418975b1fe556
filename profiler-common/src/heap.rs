//! Live blocks and totals per stack: the keys and values of the `LIVE` and `TOTALS` maps.

/// A block, the key of the `LIVE` map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct LiveKey {
    /// The block's address in the target.
    pub address: u64,
    /// The target's tgid; 64 bits wide so that the key has no padding.
    pub tgid: u64,
}

/// A live block, the value of the `LIVE` map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct LiveBlock {
    /// Bytes asked for, below the eight bits that say whose function gave it.
    size_and_allocator: u64,
    /// Hash of the stack that allocated it.
    pub stack: u64,
}

/// Sizes have 56 bits, which is more than there are addresses.
const SIZE_BITS: u32 = 56;
const LARGEST_SIZE_BYTES: u64 = (1 << SIZE_BITS) - 1;

impl LiveBlock {
    /// A block that the allocator with this number gave.
    #[inline(always)]
    pub const fn new(size_bytes: u64, allocator: u64, stack: u64) -> Self {
        let size_bytes = if size_bytes > LARGEST_SIZE_BYTES { LARGEST_SIZE_BYTES } else { size_bytes };
        Self { size_and_allocator: size_bytes | allocator << SIZE_BITS, stack }
    }

    /// Bytes asked for.
    #[inline(always)]
    pub const fn size_bytes(&self) -> u64 {
        self.size_and_allocator & LARGEST_SIZE_BYTES
    }

    /// Whose function gave it.
    #[inline(always)]
    pub const fn allocator(&self) -> u64 {
        self.size_and_allocator >> SIZE_BITS
    }
}

/// The stack hash under which allocations are counted when `TOTALS` has no room for their own.
pub const OVERFLOW_STACK: u64 = 0;

/// The stack hash under which allocations are counted whose stack the kernel could neither walk nor send.
pub const UNLEARNED_STACK: u64 = 1;

/// The size class of [`OVERFLOW_STACK`], which holds blocks of every size.
pub const OVERFLOW_CLASS: u32 = 255;

/// A return address, the key of the `ROWS` map, whose value is a [`crate::unwind::Row`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct RowKey {
    /// The pc, as a walk has it.
    pub pc: u64,
    /// The target's tgid.
    pub tgid: u32,
    /// The epoch in which the pc means this.
    pub epoch: u32,
}

/// A stack and a size class, the key of the `TOTALS` map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct TotalsKey {
    /// Hash of the stack, or [`OVERFLOW_STACK`].
    pub stack: u64,
    /// The target's tgid.
    pub tgid: u32,
    /// [`size_class`] of the blocks, or [`OVERFLOW_CLASS`], below the eight bits that say whose function gave them.
    pub class: u32,
}

impl TotalsKey {
    /// The entry that counts a block.
    #[inline(always)]
    pub const fn of(tgid: u32, block: &LiveBlock) -> Self {
        if block.stack == OVERFLOW_STACK {
            return Self::overflow(tgid);
        }
        let class = size_class(block.size_bytes()) | (block.allocator() as u32) << 8;
        Self { stack: block.stack, tgid, class }
    }

    /// Whose function gave the blocks.
    pub const fn allocator(&self) -> u8 {
        (self.class >> 8) as u8
    }

    /// The entry that takes what has no entry of its own.
    pub const fn overflow(tgid: u32) -> Self {
        Self { stack: OVERFLOW_STACK, tgid, class: OVERFLOW_CLASS }
    }
}

/// What one stack has allocated and what of it was freed, the value of the `TOTALS` map.
///
/// In use is the difference. The fields of what was freed come first because the kernel copies an entry in
/// ascending order while the target runs on: a snapshot can then miss a free but never see a free whose
/// allocation it missed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Totals {
    /// Blocks freed.
    pub freed_objects: u64,
    /// Bytes freed.
    pub freed_bytes: u64,
    /// Blocks allocated.
    pub alloc_objects: u64,
    /// Bytes allocated.
    pub alloc_bytes: u64,
    /// 1 once the stack's frames are on their way to user space.
    pub sent: u64,
}

const _: () = assert!(size_of::<LiveKey>() == 16, "no padding");
const _: () = assert!(size_of::<RowKey>() == 16, "no padding");
const _: () = assert!(size_of::<LiveBlock>() == 16, "no padding");
const _: () = assert!(size_of::<TotalsKey>() == 16, "no padding");
const _: () = assert!(size_of::<Totals>() == 40, "no padding");

#[cfg(feature = "user")]
// SAFETY: repr(C), no padding (asserted above), any bit pattern is valid.
unsafe impl aya::Pod for LiveKey {}
#[cfg(feature = "user")]
// SAFETY: repr(C), no padding (asserted above), any bit pattern is valid.
unsafe impl aya::Pod for RowKey {}
#[cfg(feature = "user")]
// SAFETY: repr(C), no padding (asserted above), any bit pattern is valid.
unsafe impl aya::Pod for LiveBlock {}
#[cfg(feature = "user")]
// SAFETY: repr(C), no padding (asserted above), any bit pattern is valid.
unsafe impl aya::Pod for TotalsKey {}
#[cfg(feature = "user")]
// SAFETY: repr(C), no padding (asserted above), any bit pattern is valid.
unsafe impl aya::Pod for Totals {}

/// The size class of a block: 0 up to 16 bytes, then four classes to every doubling.
///
/// The largest class of a 64-bit size is 240, so that [`OVERFLOW_CLASS`] stays apart.
#[inline(always)]
pub const fn size_class(size_bytes: u64) -> u32 {
    if size_bytes <= 16 {
        return 0;
    }
    let last = size_bytes - 1;
    let log2 = 63 - last.leading_zeros();
    ((log2 - 4) << 2) + ((last >> (log2 - 2)) as u32 & 3) + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_keeps_its_size_and_whose_it_is() {
        let block = LiveBlock::new(4096, 255, 7);
        assert_eq!((block.size_bytes(), block.allocator(), block.stack), (4096, 255, 7));
        let key = TotalsKey::of(1, &block);
        assert_eq!((key.allocator(), key.class & 255, key.stack), (255, size_class(4096), 7));
        let unfollowed = LiveBlock::new(4096, 3, OVERFLOW_STACK);
        assert_eq!(TotalsKey::of(1, &unfollowed), TotalsKey::overflow(1));
        assert_eq!(LiveBlock::new(u64::MAX, 2, 7).allocator(), 2, "a size that cannot be stays a size");
    }

    #[test]
    fn classes_rise_with_the_size_and_hold_a_quarter_of_a_doubling() {
        let bounds = [16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128];
        for (class, &bound) in bounds.iter().enumerate() {
            assert_eq!(size_class(bound), class as u32, "{bound} is the largest of its class");
            assert_eq!(size_class(bound + 1), class as u32 + 1, "{bound} + 1 begins the next");
        }
        assert_eq!(size_class(0), 0);
        assert_eq!(size_class(u64::MAX), 240);
    }
}
