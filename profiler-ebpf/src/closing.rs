//! What becomes of a heap that is gone as a whole.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_for_each_map_elem;
use profiler_common::heap::{FreshBlock, LiveKey};

use crate::{
    live,
    maps::{self, FRESH, LIVE},
};

/// Forgets the blocks that nobody has any more: those of programs that were replaced, and of processes that are no longer watched.
#[inline(always)]
pub fn sweep_live() {
    let places = (&raw const FRESH).cast_mut().cast();
    // SAFETY: the callback has the signature that the helper asks for, and makes no use of its last argument.
    unsafe { bpf_for_each_map_elem(places, sweep_place as *mut c_void, core::ptr::null_mut(), 0) };
    let map = (&raw const LIVE).cast_mut().cast();
    // SAFETY: the callback has the signature that the helper asks for, and makes no use of its last argument.
    unsafe { bpf_for_each_map_elem(map, sweep_entry as *mut c_void, core::ptr::null_mut(), 0) };
}

unsafe extern "C" fn sweep_entry(
    _map: *mut c_void,
    key: *const LiveKey,
    _block: *mut c_void,
    _nothing: *mut c_void,
) -> i64 {
    // SAFETY: the entry is there for as long as this runs.
    let key = unsafe { *key };
    if is_gone(key.owner) {
        live::forget(key);
    }
    0
}

unsafe extern "C" fn sweep_place(
    _map: *mut c_void,
    _index: *const u32,
    place: *mut FreshBlock,
    _nothing: *mut c_void,
) -> i64 {
    // SAFETY: aligned words of a map value.
    let (address, owner) = unsafe {
        ((&raw const (*place).address).read_volatile(), (&raw const (*place).owner).read_volatile())
    };
    if owner != 0 && is_gone(owner) {
        // Failing means that it has gone already.
        let _ = live::leave(place, address);
    }
    0
}

/// Whether nobody has an owner's blocks any more.
#[inline(always)]
fn is_gone(owner: u64) -> bool {
    let tgid = owner as u32;
    maps::target(tgid).is_none_or(|target| target.owner(tgid) != owner)
}
