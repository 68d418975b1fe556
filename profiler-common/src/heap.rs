//! Live blocks and totals per stack: the keys and values of the `LIVE` and `TOTALS` maps.

use core::hint::black_box;

use crate::sampling::{RATE_BITS, RATES};

/// A block, the key of the `LIVE` map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct LiveKey {
    /// The block's address in the target.
    pub address: u64,
    /// Whose block it is: [`crate::target::Target::owner`].
    pub owner: u64,
}

/// A live block, the value of the `LIVE` map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct LiveBlock {
    /// Bytes asked for, below the four bits that say at which rate it was sampled, a bit that says whether the process has it
    /// from its parent, and the eight bits that say whose function gave it.
    size_and_allocator: u64,
    /// Hash of the stack that allocated it.
    pub stack: u64,
}

/// A place of a block, the value of the `FRESH` map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FreshBlock {
    /// Whose place it is, as [`LiveKey::address`]; 0 for nobody's.
    pub address: u64,
    /// As [`LiveKey::owner`].
    pub owner: u64,
    /// The block.
    pub block: LiveBlock,
    /// How many blocks are in `LIVE` whose place this is as well; never less than there are.
    pub more: u64,
}

impl FreshBlock {
    /// The place of a block, of 2 to the power of 64 less `shift`. The constants are odd, the second is 2⁶⁴ divided by the golden ratio.
    #[inline(always)]
    pub const fn place(key: LiveKey, shift: u32) -> u32 {
        let mixed = key.address ^ key.owner.wrapping_mul(0xd6e8_feb8_6659_fd93);
        (mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (shift & 63)) as u32
    }
}

const _: () = assert!(size_of::<FreshBlock>() == 40, "no padding");

/// Sizes have 51 bits: 2 PiB, more than any machine has.
const SIZE_BITS: u32 = 51;
const LARGEST_SIZE_BYTES: u64 = (1 << SIZE_BITS) - 1;
const INHERITED_BIT: u32 = SIZE_BITS + RATE_BITS;
const INHERITED: u64 = 1 << INHERITED_BIT;
const ALLOCATOR_BIT: u32 = INHERITED_BIT + 1;

impl LiveBlock {
    /// A block that the allocator with this number gave, sampled at a rate.
    #[inline(always)]
    pub const fn new(size_bytes: u64, rate: u64, allocator: u64, stack: u64) -> Self {
        let size_bytes = if size_bytes > LARGEST_SIZE_BYTES { LARGEST_SIZE_BYTES } else { size_bytes };
        let rate = rate & (RATES as u64 - 1);
        Self { size_and_allocator: size_bytes | rate << SIZE_BITS | allocator << ALLOCATOR_BIT, stack }
    }

    /// All but the stack, as a word.
    #[inline(always)]
    pub const fn to_raw(&self) -> u64 {
        self.size_and_allocator
    }

    /// The block that such a word says, on a stack.
    #[inline(always)]
    pub const fn from_raw(raw: u64, stack: u64) -> Self {
        Self { size_and_allocator: raw, stack }
    }

    /// Bytes asked for.
    #[inline(always)]
    pub const fn size_bytes(&self) -> u64 {
        self.size_and_allocator & LARGEST_SIZE_BYTES
    }

    /// The rate at which it was sampled.
    #[inline(always)]
    pub const fn rate(&self) -> u32 {
        (self.size_and_allocator >> SIZE_BITS) as u32 & (RATES - 1)
    }

    /// Whose function gave it.
    #[inline(always)]
    pub const fn allocator(&self) -> u64 {
        self.size_and_allocator >> ALLOCATOR_BIT
    }

    /// The same block, counted under another stack.
    #[inline(always)]
    pub const fn on_stack(&self, stack: u64) -> Self {
        Self { size_and_allocator: self.size_and_allocator, stack }
    }

    /// The same block as a child process has it, counted under `stack`.
    #[inline(always)]
    pub const fn inherited(&self, stack: u64) -> Self {
        Self { size_and_allocator: self.size_and_allocator | INHERITED, stack }
    }

    /// Whether the process has it from its parent, and has not allocated it itself.
    #[inline(always)]
    pub const fn is_inherited(&self) -> bool {
        self.size_and_allocator & INHERITED != 0
    }
}

/// The stack hash under which allocations are counted when `TOTALS` has no room for their own; these are in `OVERFLOWS`.
pub const OVERFLOW_STACK: u64 = 0;

/// The stack hash under which allocations are counted whose stack the kernel could neither walk nor send.
pub const UNLEARNED_STACK: u64 = 1;

/// What stands for the stack of a call that is not counted: it is part of another one, or not in the sample.
pub const NESTED_STACK: u64 = 2;

const INHERITED_CLASS: u32 = 1 << 31;
const IMAGE_BIT: u32 = 16;
const IMAGE_MASK: u32 = (1 << 15) - 1;

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

/// A stack and a size class, the key of the `TOTALS` map and of `OVERFLOWS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct TotalsKey {
    /// Hash of the stack, or [`OVERFLOW_STACK`].
    pub stack: u64,
    /// The target's tgid, which has 22 bits (`PID_MAX_LIMIT` in include/linux/threads.h), below the eight of the rate.
    tgid_and_rate: u32,
    /// [`size_class`] of the blocks, below the eight bits that say whose function gave them, and those
    /// below the low 15 bits of [`crate::target::Target::image`], and the highest bit set for blocks that the process has from
    /// its parent.
    class: u32,
}

const TGID_BITS: u32 = 24;
const TGID_MASK: u32 = (1 << TGID_BITS) - 1;

impl TotalsKey {
    /// The entry that counts a block of an owner's ([`crate::target::Target::owner`]).
    #[inline(always)]
    pub fn of(owner: u64, block: &LiveBlock) -> Self {
        let tgid_and_rate = owner as u32 & TGID_MASK | block.rate() << TGID_BITS;
        let inherited = if block.is_inherited() { INHERITED_CLASS } else { 0 };
        let image = (owner >> 32) as u32 & IMAGE_MASK;
        let class = size_class(block.size_bytes()) | (block.allocator() as u32) << 8 | image << IMAGE_BIT;
        Self { stack: block.stack, tgid_and_rate, class: class | inherited }
    }

    /// All of it but the stack, as a number; never 0, as no tgid is.
    #[inline(always)]
    pub const fn without_stack(&self) -> u64 {
        (self.tgid_and_rate as u64) << 32 | self.class as u64
    }

    /// The target's tgid.
    pub const fn tgid(&self) -> u32 {
        self.tgid_and_rate & TGID_MASK
    }

    /// The rate at which the blocks were sampled.
    pub const fn rate(&self) -> u32 {
        self.tgid_and_rate >> TGID_BITS
    }

    /// The blocks' [`size_class`].
    pub const fn size_class(&self) -> u32 {
        self.class & 0xff
    }

    /// Whether the process has replaced the program whose blocks these were, when it has done so as often as `image` says.
    pub const fn is_gone(&self, image: u32) -> bool {
        let since = image.wrapping_sub(self.class >> IMAGE_BIT) & IMAGE_MASK;
        // Those of a program that came after that was asked count backwards.
        since != 0 && since <= IMAGE_MASK / 2
    }

    /// Whether these are blocks that the process has from its parent.
    pub const fn is_inherited(&self) -> bool {
        self.class & INHERITED_CLASS != 0
    }

    /// Whose function gave the blocks.
    pub const fn allocator(&self) -> u8 {
        (self.class >> 8) as u8
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
unsafe impl aya::Pod for FreshBlock {}
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
/// The largest class of a 64-bit size is 240.
#[inline(always)]
pub fn size_class(size_bytes: u64) -> u32 {
    if size_bytes <= SMALL_BYTES {
        // The mask says what the compiler knows already, and would leave out, but not the kernel's verifier.
        let quarter = black_box(size_bytes.wrapping_add(3) >> 2) & SMALL_MASK;
        return SMALL_CLASSES.get(quarter as usize).copied().unwrap_or_default().into();
    }
    log_class(size_bytes)
}

/// [`size_class`] by the logarithm, for which BPF has no instruction.
#[inline(always)]
const fn log_class(size_bytes: u64) -> u32 {
    if size_bytes <= 16 {
        return 0;
    }
    let last = size_bytes - 1;
    let log2 = 63 - last.leading_zeros();
    ((log2 - 4) << 2) + ((last >> (log2 - 2)) as u32 & 3) + 1
}

/// The largest of the sizes whose classes are in a table: most blocks are smaller.
const SMALL_BYTES: u64 = 4 * SMALL_MASK;

const SMALL_MASK: u64 = 255;

/// The class of each multiple of four bytes, and of the sizes right below it: no class has a limit between. In the kernel's object a
/// mangled name would have the place of the sources in it.
#[cfg_attr(target_arch = "bpf", unsafe(no_mangle))]
#[expect(clippy::indexing_slicing, reason = "the compiler does it, which is where it would fail")]
static SMALL_CLASSES: [u8; SMALL_MASK as usize + 1] = {
    let mut classes = [0; SMALL_MASK as usize + 1];
    let mut quarter = 0;
    while quarter < classes.len() {
        classes[quarter] = log_class(4 * quarter as u64) as u8;
        quarter += 1;
    }
    classes
};

/// The smallest size of a size class, in bytes.
#[inline(always)]
pub const fn least_bytes(class: u32) -> u64 {
    if class == 0 {
        return 0;
    }
    // No block is in a class above the last.
    let above = if class > LAST_CLASS { LAST_CLASS - 1 } else { class - 1 };
    ((4 + above as u64 % 4) << (above / 4 + 2)) + 1
}

/// The class of the largest 64-bit size.
const LAST_CLASS: u32 = 240;

/// The largest size of a size class, in bytes.
pub const fn class_limit_bytes(class: u32) -> u64 {
    if class == 0 {
        return 16;
    }
    let (log2, quarter) = ((class - 1) / 4 + 4, (class - 1) % 4);
    // The limit of the last class is no 64-bit number.
    if log2 >= 64 || (log2 == 63 && quarter == 3) {
        return u64::MAX;
    }
    (5 + quarter as u64) << (log2 - 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_side_by_side_and_those_of_two_processes_have_places_apart() {
        let places = |stride: u64, owner: u64| {
            let place = move |index: u64| {
                let key = LiveKey { address: 0x7f12_3400_0010 + index * stride, owner };
                FreshBlock::place(key, 64 - 12)
            };
            (0..1024).map(place).collect::<std::collections::HashSet<u32>>()
        };
        for stride in [16, 32, 48, 80, 112, 4096, 1 << 20] {
            // As many as if each place was as likely as any other, or more.
            assert!(places(stride, 1).len() >= 850, "{stride}: {}", places(stride, 1).len());
            assert_ne!(places(stride, 1), places(stride, 1 << 32 | 1), "{stride}");
        }
    }

    #[test]
    fn what_is_gone_is_what_an_earlier_program_had() {
        let block = LiveBlock::new(100, 0, 2, 7);
        let of = |image: u64| TotalsKey::of(image << 32 | 1, &block);
        assert_eq!((of(3).tgid(), of(3).allocator()), (1, 2));
        assert_ne!(of(3), of(4));
        assert!(of(3).is_gone(4) && !of(4).is_gone(4));
        assert!(!of(5).is_gone(4), "it came after that was asked");
        assert!(of(0x7fff).is_gone(0x8000) && !of(0x8000).is_gone(0x8000), "the low bits tell");
    }

    #[test]
    fn what_was_inherited_is_counted_by_itself() {
        let block = LiveBlock::new(4096, 15, 255, 7);
        let inherited = block.inherited(7);
        assert_eq!((inherited.size_bytes(), inherited.allocator(), inherited.stack), (4096, 255, 7));
        assert!(inherited.is_inherited() && !block.is_inherited());
        assert_eq!((inherited.rate(), block.rate()), (15, 15));
        let keys = [&block, &inherited].map(|block| TotalsKey::of(0xffff << 32 | 1, block));
        assert_eq!(keys.map(|key| key.is_inherited()), [false, true]);
        assert_eq!(keys.map(|key| key.allocator()), [255, 255]);
        assert!(keys[1].is_gone(0x8000) && !keys[1].is_gone(0xffff));
    }

    #[test]
    fn a_block_keeps_its_size_and_whose_it_is() {
        let block = LiveBlock::new(4096, 3, 255, 7);
        assert_eq!((block.size_bytes(), block.rate(), block.allocator(), block.stack), (4096, 3, 255, 7));
        let key = TotalsKey::of(7 << 32 | 1, &block);
        assert_eq!((key.allocator(), key.size_class(), key.stack), (255, size_class(4096), 7));
        let key = TotalsKey::of(7 << 32 | 0x3f_ffff, &block);
        assert_eq!((key.tgid(), key.rate()), (0x3f_ffff, 3), "the highest PID there is");
        let largest = LiveBlock::new(u64::MAX, 0, 2, 7);
        assert_eq!((largest.allocator(), largest.rate()), (2, 0), "a size that cannot be stays a size");
    }

    #[test]
    fn classes_rise_with_the_size_and_hold_a_quarter_of_a_doubling() {
        let bounds = [16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128];
        for (class, &bound) in bounds.iter().enumerate() {
            assert_eq!(size_class(bound), class as u32, "{bound} is the largest of its class");
            assert_eq!(size_class(bound + 1), class as u32 + 1, "{bound} + 1 begins the next");
        }
        for class in 1..=240 {
            let limit_bytes = class_limit_bytes(class);
            assert_eq!(size_class(limit_bytes), class);
            assert_eq!(size_class(class_limit_bytes(class - 1) + 1), class);
            assert_eq!(least_bytes(class), class_limit_bytes(class - 1) + 1);
        }
        for size_bytes in 0..4 * SMALL_BYTES {
            assert_eq!(size_class(size_bytes), log_class(size_bytes), "{size_bytes}");
        }
        assert_eq!(class_limit_bytes(255), u64::MAX);
        assert_eq!(size_class(0), 0);
        assert_eq!(size_class(u64::MAX), 240);
    }
}
