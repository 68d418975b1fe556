//! Allocator functions by the shape of their arguments, and calls of them that are under way.

use crate::heap::LiveBlock;

/// How a function takes its arguments and gives its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Shape {
    /// `f(size, …)`, the block is returned: malloc, valloc, pvalloc, mallocx, operator new.
    Size,
    /// `f(count, size, …)`, the block is returned: calloc.
    CountSize,
    /// `f(_, size, …)`, the block is returned: aligned_alloc, memalign; mi_heap_malloc, whose first argument is a heap.
    AlignSize,
    /// `f(_, count, size, …)`, the block is returned: mi_heap_calloc.
    HeapCountSize,
    /// `f(&block, alignment, size)`, 0 is returned and the block stored: posix_memalign.
    OutAlignSize,
    /// `f(old, size, …)`, the block is returned: realloc, rallocx.
    Resize,
    /// `f(old, count, size, …)`, the block is returned: reallocarray.
    ResizeCount,
    /// `f(_, old, size, …)`, the block is returned: mi_heap_realloc.
    HeapResize,
    /// `f(_, old, count, size, …)`, the block is returned: mi_heap_reallocn.
    HeapResizeCount,
    /// `f(old, size)`, the block is returned; where it is null the old one has been freed: reallocf.
    ResizeOrFree,
    /// `f(_, old, size)`, the same: mi_heap_reallocf.
    HeapResizeOrFree,
    /// `f(old, size, …)`, the block stays where it is and its new size is returned; a smaller one than was asked for is a
    /// failure: xallocx.
    Extend,
    /// `f(old, size)`, the block stays where it is and is returned; null is a failure: mi_expand.
    Expand,
    /// `f(block, …)`, nothing is returned: free, dallocx, operator delete.
    Free,
    /// `f(heap)`, every block of the heap is freed: mi_heap_destroy.
    Destroy,
    /// `f(…)`, a block is returned whose size no argument tells: mi_strdup.
    Unsized,
    /// `f(_, length, _, flags, …)`, the mapping is returned: mmap.
    Map,
    /// `f(old, old_length, length, flags, …)`, the mapping is returned: mremap.
    Remap,
    /// `f(end)`, 0 is returned where the data segment ends there from now on: brk.
    Break,
    /// `f(address, length)`: munmap.
    Unmap,
}

impl Shape {
    /// Which argument is what; `None` for functions that allocate nothing.
    pub const fn convention(self) -> Option<Convention> {
        let (size, count, old, out, outcome) = match self {
            Self::Size => (1, 0, 0, 0, Outcome::Returned),
            Self::CountSize => (2, 1, 0, 0, Outcome::Returned),
            Self::AlignSize => (2, 0, 0, 0, Outcome::Returned),
            Self::HeapCountSize => (3, 2, 0, 0, Outcome::Returned),
            Self::OutAlignSize => (3, 0, 0, 1, Outcome::Stored),
            Self::Resize => (2, 0, 1, 0, Outcome::Returned),
            Self::ResizeCount => (3, 2, 1, 0, Outcome::Returned),
            Self::HeapResize => (3, 0, 2, 0, Outcome::Returned),
            Self::HeapResizeCount => (4, 3, 2, 0, Outcome::Returned),
            Self::ResizeOrFree => (2, 0, 1, 0, Outcome::ReturnedOrFreed),
            Self::HeapResizeOrFree => (3, 0, 2, 0, Outcome::ReturnedOrFreed),
            Self::Extend => (2, 0, 1, 1, Outcome::Size),
            Self::Expand => (2, 0, 1, 1, Outcome::InPlace),
            Self::Map => (2, 0, 0, 0, Outcome::Mapped),
            Self::Remap => (3, 0, 0, 0, Outcome::Remapped),
            Self::Break => (0, 0, 0, 0, Outcome::Broke),
            Self::Free | Self::Destroy | Self::Unsized | Self::Unmap => return None,
        };
        Some(Convention(size | count << 4 | old << 8 | out << 12 | (outcome as u64) << 16))
    }
}

/// What a function's result says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Outcome {
    /// The block, or null where there is none.
    Returned = 0,
    /// The same; with null the old block was freed.
    ReturnedOrFreed = 1,
    /// 0 where the block was stored.
    Stored = 2,
    /// The size that the block has now.
    Size = 3,
    /// The block, which is where it was, or null.
    InPlace = 4,
    /// The mapping, or −1.
    Mapped = 5,
    /// The mapping, which may have moved, or −1.
    Remapped = 6,
    /// 0 where the data segment ends where it was to.
    Broke = 7,
}

impl Outcome {
    /// Whether it is a mapping that the function gives, and not a block.
    #[inline(always)]
    pub const fn is_mapping(number: u64) -> bool {
        number >= Self::Mapped as u64
    }
}

/// What the kernel side has to know of a function; travels as the probe's cookie.
///
/// From bit 0 on, in fours: which argument, counted from 1, is the size, the count, the old block, and where the block's
/// address is stored or the block that stays; 0 for none. Bits 16 to 19 have the [`Outcome`], and bits 20 to 23 what a call
/// that is under way is about to do, where the function may do several things. Bits 24 to 31 say whose
/// function it is. Bit 32 is set where its returns are seen at its own `ret` instructions, and bit 33 where it may come back through
/// another function that is probed. The bits above say how far behind
/// the probe the word lies that the function goes by, with a sign.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Convention(u64);

/// The cookie of a function that frees, where one program sees both kinds: no [`Outcome`] has this number.
pub const FREES: u64 = 15 << 16;

const BY_RET: u64 = 1 << 32;

const JUMPS: u64 = 1 << 33;

const STATE_BIT: u32 = 34;

impl Convention {
    /// The convention that a cookie stands for.
    #[inline(always)]
    pub const fn from_cookie(cookie: u64) -> Self {
        Self(cookie)
    }

    /// The cookie that stands for it.
    #[inline(always)]
    pub const fn cookie(self) -> u64 {
        self.0
    }

    /// The same, of a function of the given allocator.
    pub const fn of_allocator(self, allocator: u8) -> Self {
        Self(self.0 | (allocator as u64) << 24)
    }

    /// The same, where the function may throw: its returns are seen at its `ret` instructions.
    pub const fn by_ret(self) -> Self {
        Self(self.0 | BY_RET)
    }

    /// The same, where the function may jump to another one that is probed, and so come back through it.
    pub const fn jumps(self) -> Self {
        Self(self.0 | JUMPS)
    }

    /// Whether the function may come back through another one that is probed.
    #[inline(always)]
    pub const fn may_jump(self) -> bool {
        self.0 & JUMPS != 0
    }

    /// The same, of a function that goes by a word so far behind its probe; `None` where that is too far.
    pub const fn with_state_at(self, distance: i64) -> Option<Self> {
        let high = distance << STATE_BIT;
        if high >> STATE_BIT != distance {
            return None;
        }
        Some(Self(self.0 & ((1 << STATE_BIT) - 1) | high.cast_unsigned()))
    }

    /// How far behind its probe the word lies that the function goes by, as an addend.
    #[inline(always)]
    pub const fn state_distance(self) -> u64 {
        (self.0.cast_signed() >> STATE_BIT).cast_unsigned()
    }

    /// The same, of a call that is about to do one of several things.
    #[inline(always)]
    pub const fn with_plan(self, plan: u64) -> Self {
        Self(self.0 & !(15 << 20) | (plan & 15) << 20)
    }

    /// Which of several things a call is about to do.
    #[inline(always)]
    pub const fn plan(self) -> u64 {
        self.0 >> 20 & 15
    }

    /// Whether returns are seen at the function's `ret` instructions.
    #[inline(always)]
    pub const fn is_by_ret(self) -> bool {
        self.0 & BY_RET != 0
    }

    /// Whose function it is.
    #[inline(always)]
    pub const fn allocator(self) -> u64 {
        self.0 >> 24 & 0xff
    }

    /// The argument that is the size, counted from 1.
    #[inline(always)]
    pub const fn size_argument(self) -> u64 {
        self.0 & 15
    }

    /// The argument that the size is multiplied by; 0 for none.
    #[inline(always)]
    pub const fn count_argument(self) -> u64 {
        self.0 >> 4 & 15
    }

    /// The argument that is the old block; 0 for none.
    #[inline(always)]
    pub const fn old_argument(self) -> u64 {
        self.0 >> 8 & 15
    }

    /// The argument that says where the block's address is stored, or is the block that stays; 0 for none.
    #[inline(always)]
    pub const fn out_argument(self) -> u64 {
        self.0 >> 12 & 15
    }

    /// What the result says, an [`Outcome`] as its number.
    #[inline(always)]
    pub const fn outcome(self) -> u64 {
        self.0 >> 16 & 15
    }
}

/// count × size in bytes, saturated: a call that overflows fails, but its size must not look like 0.
///
/// Written out in halves because BPF has no wide multiplication, for which `saturating_mul` would call.
#[inline(always)]
pub const fn array_bytes(count: u64, size_bytes: u64) -> u64 {
    const HALF: u64 = (1 << 32) - 1;
    let (high, low) = (count >> 32, count & HALF);
    let (size_high, size_low) = (size_bytes >> 32, size_bytes & HALF);
    if high != 0 && size_high != 0 {
        return u64::MAX;
    }
    let cross = high * size_low + low * size_high;
    let bottom = low * size_low;
    let product = bottom.wrapping_add(cross << 32);
    if cross > HALF || product < bottom { u64::MAX } else { product }
}

/// The outermost allocator call of a thread, from its entry to its return.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct InFlight {
    /// Stack pointer at entry, where the return address lies.
    pub sp: u64,
    /// The return address at entry.
    pub return_address: u64,
    /// Where the function's probe is, which tells functions apart.
    pub site: u64,
    /// The function's [`Convention`], as a cookie.
    pub cookie: u64,
    /// Bytes asked for; saturated where count × size overflows.
    pub size_bytes: u64,
    /// Hash of the stack at entry, or [`crate::heap::NESTED_STACK`] where the block is not counted.
    pub stack: u64,
    /// Where the function will store the block's address, or the block that it lets stay; 0 when it returns it.
    pub out_address: u64,
    /// Block that is being resized and was taken out of `LIVE`; 0 when there is none.
    pub old_address: u64,
    /// That block.
    pub old: LiveBlock,
    /// 1 for a resize whose old block was not null, 0 otherwise.
    pub resizes: u32,
    /// The rate at which it is sampled.
    pub rate: u32,
}

impl InFlight {
    /// No call.
    pub const NONE: Self = Self {
        sp: 0,
        return_address: 0,
        site: 0,
        cookie: 0,
        size_bytes: 0,
        stack: 0,
        out_address: 0,
        old_address: 0,
        old: LiveBlock::new(0, 0, 0, 0),
        resizes: 0,
        rate: 0,
    };
}

const _: () = assert!(size_of::<InFlight>() == 88, "no padding");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_tells_all_of_its_convention() {
        let convention = Shape::HeapResizeCount.convention().unwrap().of_allocator(200).by_ret();
        let read = Convention::from_cookie(convention.cookie());
        assert_eq!((read.size_argument(), read.count_argument(), read.old_argument()), (4, 3, 2));
        assert_eq!((read.out_argument(), read.outcome()), (0, Outcome::Returned as u64));
        assert_eq!((read.allocator(), read.is_by_ret(), read.may_jump()), (200, true, false));
        assert!(convention.jumps().may_jump());
        let stored = Shape::OutAlignSize.convention().unwrap();
        assert_eq!((stored.out_argument(), stored.outcome()), (1, Outcome::Stored as u64));
        assert_eq!((stored.allocator(), stored.is_by_ret()), (0, false));
        assert_eq!(Shape::Free.convention(), None);
        for distance in [0, 1, -1, 0x1d_2345, (1 << 29) - 1, -(1 << 29)] {
            let read = Shape::Break.convention().unwrap().of_allocator(255).by_ret();
            let read = read.with_state_at(distance).unwrap();
            assert_eq!(read.state_distance().cast_signed(), distance);
            assert_eq!((read.allocator(), read.is_by_ret()), (255, true));
            assert!(Outcome::is_mapping(read.outcome()));
            let planned = read.with_plan(7).with_plan(5);
            assert_eq!((planned.plan(), planned.with_plan(0)), (5, read));
        }
        assert_eq!(convention.with_state_at(1 << 29), None);
        assert!(!Outcome::is_mapping(convention.outcome()));
        assert!(Convention::from_cookie(FREES).outcome() > Outcome::Broke as u64);
    }

    #[test]
    fn array_sizes_saturate_exactly_where_they_overflow() {
        let edges = [
            0,
            1,
            2,
            3,
            7,
            4096,
            u64::from(u32::MAX),
            1 << 32,
            (1 << 32) + 1,
            1 << 63,
            u64::MAX - 1,
            u64::MAX,
        ];
        for count in edges {
            for size_bytes in edges {
                assert_eq!(
                    array_bytes(count, size_bytes),
                    count.saturating_mul(size_bytes),
                    "{count} × {size_bytes}"
                );
            }
        }
    }
}
