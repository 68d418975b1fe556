//! Keeping some of the allocations.

use aya_ebpf::helpers::bpf_get_prandom_u32;
use profiler_common::{
    heap::size_class,
    sampling::{NOT_KEPT, is_kept, slot},
};

use crate::maps::{self, THRESHOLDS};

/// The rate at which an allocation is kept, or [`NOT_KEPT`].
#[inline(always)]
pub fn rate_of(size_bytes: u64) -> u64 {
    draw(size_bytes)
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn draw(size_bytes: u64) -> u64 {
    let rate = maps::rate();
    if rate == 0 {
        return 0;
    }
    let Some(threshold) = THRESHOLDS.get_ptr(slot(rate, size_class(size_bytes))) else { return 0 };
    // SAFETY: an aligned word of a map value; the helper takes nothing.
    let (threshold, random) = unsafe { (threshold.read_volatile(), bpf_get_prandom_u32()) };
    if is_kept(threshold, random) { u64::from(rate) } else { NOT_KEPT }
}
