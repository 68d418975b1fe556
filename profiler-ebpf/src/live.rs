//! The live blocks: in `FRESH` as far as there is room, where a block takes no call of a helper, and in `LIVE`.
//!
//! A block has one place in `FRESH`, which another may have taken. Then it goes into `LIVE`, and the place counts it for as long as it is
//! there, for `LIVE` need not be asked otherwise. Nobody else speaks of a block meanwhile: its address is given to one thread at a time.

use core::intrinsics::{AtomicOrdering, atomic_cxchg};

use profiler_common::heap::{FreshBlock, LiveBlock, LiveKey};

use crate::{
    counters::add,
    maps::{FRESH, LIVE, NO_EXIST},
};

/// 64 less the binary logarithm of the number of places in `FRESH`.
#[unsafe(no_mangle)]
static FRESH_SHIFT: u32 = 63;

/// Stands for an address while a place is being given or left.
const CHANGING: u64 = u64::MAX;

/// One less, as what is added.
const ONE_LESS: u64 = u64::MAX;

/// `EEXIST` of include/uapi/asm-generic/errno-base.h.
const EEXIST: i64 = 17;

/// Why a block could not be kept.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Unkept {
    /// There is one at its address.
    Exists,
    /// There is no room.
    Full,
}

/// Keeps an owner's block among the live ones, unless there is one at its address.
#[inline(always)]
pub fn keep(owner: u64, address: u64, block: &LiveBlock) -> Result<(), Unkept> {
    match keep_live(owner, address, block.to_raw(), block.stack) {
        0 => Ok(()),
        error if error == -EEXIST => Err(Unkept::Exists),
        _ => Err(Unkept::Full),
    }
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn keep_live(owner: u64, address: u64, block: u64, stack: u64) -> i64 {
    let block = LiveBlock::from_raw(block, stack);
    let key = LiveKey { address, owner };
    let Some(place) = place(key) else { return -1 };
    // SAFETY: aligned words of a map value.
    let (taken, owned, more) = unsafe {
        (
            (&raw const (*place).address).read_volatile(),
            (&raw const (*place).owner).read_volatile(),
            (&raw const (*place).more).read_volatile(),
        )
    };
    if taken == address && owned == owner || taken == 0 && more != 0 && LIVE.get_ptr(key).is_some() {
        return -EEXIST;
    }
    if taken == 0 && exchange(place, 0, CHANGING) {
        // The address comes last, when all else is there.
        // SAFETY: as above.
        unsafe {
            (&raw mut (*place).block).write_volatile(block);
            (&raw mut (*place).owner).write_volatile(owner);
            (&raw mut (*place).address).write_volatile(address);
        }
        return 0;
    }
    // Before it is there, so that it is never there uncounted.
    // SAFETY: as above.
    add(unsafe { &raw mut (*place).more }, 1);
    match LIVE.insert(key, block, NO_EXIST) {
        Ok(()) => 0,
        Err(error) => {
            // SAFETY: as above.
            add(unsafe { &raw mut (*place).more }, ONE_LESS);
            error.into()
        }
    }
}

/// Takes an owner's block out of the live ones: of two threads that try, one succeeds. There is none at null.
#[inline(always)]
pub fn take(owner: u64, address: u64) -> Option<LiveBlock> {
    // What it is overwritten with means nothing; for zeros the compiler would call.
    let mut block = LiveBlock::from_raw(address, owner);
    take_into(owner, address, &mut block).then_some(block)
}

/// The same, for those who have no room on the stack: false where there is none. What is in `block` then means nothing.
#[inline(always)]
pub fn take_into(owner: u64, address: u64, block: &mut LiveBlock) -> bool {
    address != 0 && take_live(owner, address, block) != 0
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn take_live(owner: u64, address: u64, taken: *mut LiveBlock) -> u64 {
    // SAFETY: `take_into` passes what it has.
    let Some(taken) = (unsafe { taken.as_mut() }) else { return 0 };
    let key = LiveKey { address, owner };
    let Some(place) = place(key) else { return 0 };
    // SAFETY: aligned words of a map value.
    let (at, owned) = unsafe {
        ((&raw const (*place).address).read_volatile(), (&raw const (*place).owner).read_volatile())
    };
    if at == address && owned == owner {
        // SAFETY: copied before it is left, after which it may be another's.
        *taken = unsafe { (&raw const (*place).block).read_volatile() };
        return u64::from(leave(place, address));
    }
    // SAFETY: an aligned word of a map value.
    if unsafe { (&raw const (*place).more).read_volatile() } == 0 {
        return 0;
    }
    let Some(block) = LIVE.get_ptr(key) else { return 0 };
    // SAFETY: copied before it is removed, after which the kernel may use its memory again.
    *taken = unsafe { *block };
    u64::from(remove(key, place))
}

/// Forgets a block that is in `LIVE`, unless it has gone from there already.
#[inline(always)]
pub fn forget(key: LiveKey) {
    if let Some(place) = place(key) {
        remove(key, place);
    }
}

/// Takes a block out of `LIVE`, of which the place is given; false where it was not there any more.
#[inline(always)]
fn remove(key: LiveKey, place: *mut FreshBlock) -> bool {
    let is_removed = LIVE.remove(key).is_ok();
    if is_removed {
        // SAFETY: an aligned word of a map value.
        add(unsafe { &raw mut (*place).more }, ONE_LESS);
    }
    is_removed
}

/// Leaves a place to others; false where that was done meanwhile.
#[inline(always)]
pub fn leave(place: *mut FreshBlock, address: u64) -> bool {
    if !exchange(place, address, CHANGING) {
        return false;
    }
    // SAFETY: aligned words of a map value. Whoever comes by in between sees a place that is nobody's.
    unsafe {
        (&raw mut (*place).owner).write_volatile(0);
        (&raw mut (*place).address).write_volatile(0);
    }
    true
}

/// The place of a block.
#[inline(always)]
fn place(key: LiveKey) -> Option<*mut FreshBlock> {
    // SAFETY: a constant of the object, which the loader has set.
    let shift = unsafe { (&raw const FRESH_SHIFT).read_volatile() };
    FRESH.get_ptr_mut(FreshBlock::place(key, shift))
}

/// Replaces the address at a place by another one, if it is the one that is expected.
#[inline(always)]
fn exchange(place: *mut FreshBlock, from: u64, to: u64) -> bool {
    // SAFETY: an aligned word of a map value.
    let (_, is_replaced) = unsafe {
        atomic_cxchg::<u64, { AtomicOrdering::Relaxed }, { AtomicOrdering::Relaxed }>(
            &raw mut (*place).address,
            from,
            to,
        )
    };
    is_replaced
}
