//! What becomes of a heap that is gone as a whole.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_for_each_map_elem;
use profiler_common::heap::LiveKey;

use crate::maps::{self, LIVE};

/// Forgets the blocks that nobody has any more: those of programs that were replaced, and of processes that are no longer watched.
#[inline(always)]
pub fn sweep_live() {
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
    let tgid = key.owner as u32;
    if maps::target(tgid).is_none_or(|target| target.owner(tgid) != key.owner) {
        // Failing means that it has gone already.
        let _ = LIVE.remove(key);
    }
    0
}
