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
    /// Bytes asked for.
    pub size_bytes: u64,
    /// Hash of the stack that allocated it.
    pub stack: u64,
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
    /// [`size_class`] of the blocks, or [`OVERFLOW_CLASS`].
    pub class: u32,
}

impl TotalsKey {
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
