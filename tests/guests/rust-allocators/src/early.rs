//! Blocks from before main.

use std::alloc::{Layout, alloc, dealloc};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering::Relaxed};

use crate::ledger::{Scope, disown, site};

const EARLY: usize = 60;
const A_RUN: usize = 7;

static BLOCKS: [AtomicPtr<u8>; EARLY] = [const { AtomicPtr::new(ptr::null_mut()) }; EARLY];
static FREED: AtomicUsize = AtomicUsize::new(0);

fn layout(index: usize) -> Layout {
    Layout::from_size_align(100 + index, 8).expect("a small layout")
}

#[unsafe(no_mangle)]
#[inline(never)]
fn early_alloc(index: usize) -> *mut u8 {
    let _scope = Scope::of("early_alloc");
    unsafe { alloc(layout(index)) }
}

/// What the loader calls before main.
#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = allocate;

extern "C" fn allocate() {
    for (index, block) in BLOCKS.iter().enumerate() {
        block.store(early_alloc(index), Relaxed);
        if index % 4 == 0 {
            free(index);
        }
    }
}

/// Frees a block; says whether there was one.
fn free(index: usize) -> bool {
    let address = BLOCKS[index].swap(ptr::null_mut(), Relaxed);
    if !address.is_null() {
        unsafe { dealloc(address, layout(index)) };
    }
    !address.is_null()
}

/// Frees a few, as long as there are any.
pub(crate) fn free_some() {
    let freed = (0..EARLY).filter(|&index| free(index)).take(A_RUN).count();
    FREED.fetch_add(freed, Relaxed);
}

/// Takes them off the ledger, for nobody has seen them come.
pub(crate) fn forget() {
    for block in &BLOCKS {
        let address = block.load(Relaxed);
        if !address.is_null() {
            unsafe { disown(address) };
        }
    }
    site("early_alloc").reset();
    FREED.store(0, Relaxed);
}

/// How many were freed since.
pub(crate) fn freed() -> usize {
    FREED.load(Relaxed)
}
