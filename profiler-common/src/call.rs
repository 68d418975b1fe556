//! Allocator functions by the shape of their arguments, and calls of them that are under way.

/// How a function takes its arguments and gives its result; this is all the kernel side cares about.
///
/// The discriminant travels as the probe's cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u64)]
pub enum Shape {
    /// `f(size)`, the block is returned: malloc, valloc, pvalloc.
    Size = 1,
    /// `f(count, size)`, the block is returned: calloc.
    CountSize = 2,
    /// `f(alignment, size)`, the block is returned: aligned_alloc, memalign.
    AlignSize = 3,
    /// `f(&block, alignment, size)`, 0 is returned and the block stored: posix_memalign.
    OutAlignSize = 4,
    /// `f(old, size)`, the block is returned: realloc.
    Resize = 5,
    /// `f(old, count, size)`, the block is returned: reallocarray.
    ResizeCount = 6,
    /// `f(block)`, nothing is returned: free, cfree.
    Free = 7,
}

impl Shape {
    /// The shape that a probe's cookie stands for.
    #[inline(always)]
    pub const fn from_cookie(cookie: u64) -> Option<Self> {
        Some(match cookie {
            1 => Self::Size,
            2 => Self::CountSize,
            3 => Self::AlignSize,
            4 => Self::OutAlignSize,
            5 => Self::Resize,
            6 => Self::ResizeCount,
            7 => Self::Free,
            _ => return None,
        })
    }

    /// The cookie that stands for this shape.
    pub const fn cookie(self) -> u64 {
        self as u64
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

/// The outermost allocator call of a thread, the value of the `INFLIGHT` map.
///
/// The key is the thread's pid_tgid. Written at entry, taken out at return.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct InFlight {
    /// Stack pointer at entry, where the return address lies.
    pub sp: u64,
    /// Bytes asked for; saturated where count × size overflows.
    pub size_bytes: u64,
    /// Hash of the stack at entry.
    pub stack: u64,
    /// Where the function will store the block's address; 0 when it returns it.
    pub out_address: u64,
    /// Block that is being resized and was taken out of `LIVE`; 0 when there is none.
    pub old_address: u64,
    /// Its size in bytes.
    pub old_size_bytes: u64,
    /// The hash of the stack that allocated it.
    pub old_stack: u64,
    /// 1 for a resize whose old block was not null, 0 otherwise.
    pub resizes: u64,
}

const _: () = assert!(size_of::<InFlight>() == 64, "no padding");

#[cfg(feature = "user")]
// SAFETY: repr(C), no padding (asserted above), any bit pattern is valid.
unsafe impl aya::Pod for InFlight {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_come_back_as_their_shape() {
        for cookie in 1..=7 {
            assert_eq!(Shape::from_cookie(cookie).map(Shape::cookie), Some(cookie));
        }
        assert_eq!(Shape::from_cookie(0), None);
        assert_eq!(Shape::from_cookie(8), None);
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
