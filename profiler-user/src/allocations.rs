//! The largest allocation that a piece of code makes, for tests of input that asks for too much.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

thread_local! {
    /// In bytes, of this thread since [`largest`] began.
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, watched.
struct Watched;

#[global_allocator]
static ALLOCATOR: Watched = Watched;

fn note(size_bytes: usize) {
    // A thread that is ending has none any more.
    let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(size_bytes)));
}

// SAFETY: everything is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller keeps to the same contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller keeps to the same contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size_bytes: usize) -> *mut u8 {
        note(size_bytes);
        // SAFETY: the caller keeps to the same contract.
        unsafe { System.realloc(block, layout, size_bytes) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps to the same contract.
        unsafe { System.dealloc(block, layout) }
    }
}

/// What `work` comes to, and the largest block in bytes that it asked for.
pub(crate) fn largest<T>(work: impl FnOnce() -> T) -> (T, usize) {
    LARGEST.set(0);
    let result = work();
    (result, LARGEST.get())
}

#[test]
fn the_largest_block_is_noted_even_where_it_is_refused() {
    let (refused, largest_bytes) = largest(|| Vec::<u8>::new().try_reserve_exact(1 << 60).is_err());
    assert!(refused);
    assert_eq!(largest_bytes, 1 << 60);
    assert!(largest(|| Box::new([0_u8; 100])).1 < 1 << 10);
}
