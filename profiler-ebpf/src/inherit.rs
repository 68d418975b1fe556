//! What a child process has from its parent: a copy of every block.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_for_each_map_elem;
use profiler_common::{
    counters::Counter,
    heap::{FreshBlock, LiveBlock, LiveKey, OVERFLOW_STACK, Totals, TotalsKey},
    thread::Thread,
};

use crate::{
    counters::{add, count},
    inflight, live,
    maps::{FRESH, LIVE, NO_EXIST, THREADS, TOTALS},
    record::NOTHING,
};

/// Whose blocks are whose from now on.
#[repr(C)]
struct Inheritance {
    parent: u64,
    child: u64,
}

/// Gives one owner all blocks of another one; both have them from then on.
///
/// What other threads of the parent allocate and free between the copy of its memory and this one is taken as it is now.
#[inline(always)]
pub fn inherit_blocks(parent: u64, child: u64) {
    let mut inheritance = Inheritance { parent, child };
    let places = (&raw const FRESH).cast_mut().cast();
    let map = (&raw const LIVE).cast_mut().cast();
    // SAFETY: the callbacks have the signature that the helper asks for, and `inheritance` outlives the calls.
    unsafe {
        bpf_for_each_map_elem(places, inherit_place as *mut c_void, (&raw mut inheritance).cast(), 0);
        bpf_for_each_map_elem(map, inherit_entry as *mut c_void, (&raw mut inheritance).cast(), 0);
    };
}

unsafe extern "C" fn inherit_entry(
    _map: *mut c_void,
    key: *const LiveKey,
    block: *const LiveBlock,
    inheritance: *mut c_void,
) -> i64 {
    // SAFETY: `inherit_blocks` passes an `Inheritance` of its own; the entry is there for as long as this runs.
    let (key, inheritance) = unsafe { (&*key, &*inheritance.cast::<Inheritance>()) };
    // Those that were just added may be met, too.
    if key.owner == inheritance.parent {
        // SAFETY: as above.
        let block = unsafe { &*block };
        inherit_block(inheritance.child, key.address, block.to_raw(), block.stack);
    }
    0
}

unsafe extern "C" fn inherit_place(
    _map: *mut c_void,
    _index: *const u32,
    place: *const FreshBlock,
    inheritance: *mut c_void,
) -> i64 {
    // SAFETY: `inherit_blocks` passes an `Inheritance` of its own; the value is aligned words.
    let (place, inheritance) = unsafe { (place.read_volatile(), &*inheritance.cast::<Inheritance>()) };
    if place.owner == inheritance.parent {
        inherit_block(inheritance.child, place.address, place.block.to_raw(), place.block.stack);
    }
    0
}

/// Gives a child a block. In two functions, of which one has ended when the other begins, for the little stack that there is.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn inherit_block(child: u64, address: u64, block: u64, stack: u64) -> u64 {
    let inherited = count_inherited(child, &LiveBlock::from_raw(block, stack));
    if live::keep(child, address, &inherited).is_err() {
        count(child as u32, Counter::UninheritedBlocks, 1);
        crate::record::freed(child, &inherited);
    }
    0
}

/// Counts a block among those that an owner has from its parent; gives it as it is to be kept.
#[inline(always)]
fn count_inherited(owner: u64, block: &LiveBlock) -> LiveBlock {
    block.inherited(count_block(owner, block.to_raw(), block.stack))
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn count_block(owner: u64, block: u64, stack: u64) -> u64 {
    let block = LiveBlock::from_raw(block, stack);
    let mut inherited = block.inherited(block.stack);
    let key = TotalsKey::of(owner, &inherited);
    let nothing: &Totals = &NOTHING;
    if TOTALS.get_ptr(key).is_none() && TOTALS.insert(key, nothing, NO_EXIST).is_err() {
        count(owner as u32, Counter::TotalsFull, 1);
        inherited = block.inherited(OVERFLOW_STACK);
    }
    if let Some(totals) = crate::record::totals_of(owner, &inherited) {
        // SAFETY: aligned words of a map value.
        unsafe {
            add(&raw mut (*totals).alloc_objects, 1);
            add(&raw mut (*totals).alloc_bytes, block.size_bytes());
        }
    }
    inherited.stack
}

/// Goes on in the child with the call that the thread was in that forked, if it was in one: it comes back in both.
#[inline(always)]
pub fn inherit_call(pid_tgid: u64, owner: u64) {
    let Some(thread) = inflight::in_call(THREADS.get_ptr_mut(pid_tgid)) else { return };
    // SAFETY: only this thread writes its entry, so that it is whole and stays.
    let mut call = unsafe { (*thread).call };
    let tgid = owner & u64::from(u32::MAX);
    if call.old_address != 0 {
        call.old = count_inherited(owner, &call.old);
    }
    if THREADS.insert(tgid << 32 | tgid, Thread { call, is_inside: 1, walks: 0 }, 0).is_err() {
        count(tgid as u32, Counter::InflightFull, 1);
        inflight::put_back(owner, call.old_address, &call.old);
    }
}
