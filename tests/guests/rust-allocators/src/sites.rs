//! The sites, and what calls them.

use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, realloc};
use std::collections::HashMap;
use std::hint::black_box;
use std::sync::{Barrier, LazyLock, Mutex, Once};
use std::thread;

use crate::early;
use crate::ledger::Scope;

const ROUNDS: usize = 24;
const THREADS: usize = 3;

/// More than any allocator has.
const HUGE: usize = isize::MAX as usize - 8192;

/// A block that has to be freed by hand.
struct Block(*mut u8, Layout);

// SAFETY: whoever has it, has it alone.
unsafe impl Send for Block {}

impl Drop for Block {
    fn drop(&mut self) {
        unsafe { dealloc(self.0, self.1) };
    }
}

/// What one round leaves behind.
struct Round {
    _blocks: Vec<Block>,
    _values: Vec<u64>,
    _names: HashMap<String, usize>,
    _slice: Box<[u8]>,
}

static KEPT: Mutex<Vec<Round>> = Mutex::new(Vec::new());

fn layout(size: usize, align: usize) -> Layout {
    Layout::from_size_align(size, align).expect("a valid layout")
}

/// Out of the compiler's sight, which leaves out allocations that nobody uses, and takes for granted that they succeed.
fn taken(address: *mut u8, layout: Layout) -> Block {
    let address = black_box(address);
    assert!(!address.is_null(), "out of memory");
    Block(address, layout)
}

fn resized(block: Block, address: *mut u8, size: usize) -> Block {
    let layout = layout(size, block.1.align());
    std::mem::forget(block);
    taken(address, layout)
}

#[unsafe(no_mangle)]
#[inline(never)]
fn call_alloc(size: usize) -> Block {
    let _scope = Scope::of("call_alloc");
    let layout = layout(size, 8);
    taken(unsafe { alloc(layout) }, layout)
}

#[unsafe(no_mangle)]
#[inline(never)]
fn call_alloc_zeroed(size: usize) -> Block {
    let _scope = Scope::of("call_alloc_zeroed");
    let layout = layout(size, 8);
    taken(unsafe { alloc_zeroed(layout) }, layout)
}

#[unsafe(no_mangle)]
#[inline(never)]
fn call_alloc_aligned(size: usize, align: usize) -> Block {
    let _scope = Scope::of("call_alloc_aligned");
    let layout = layout(size, align);
    taken(unsafe { alloc(layout) }, layout)
}

#[unsafe(no_mangle)]
#[inline(never)]
fn call_alloc_zeroed_aligned(size: usize, align: usize) -> Block {
    let _scope = Scope::of("call_alloc_zeroed_aligned");
    let layout = layout(size, align);
    taken(unsafe { alloc_zeroed(layout) }, layout)
}

#[unsafe(no_mangle)]
#[inline(never)]
fn call_realloc_grow(block: Block, size: usize) -> Block {
    let _scope = Scope::of("call_realloc_grow");
    let address = unsafe { realloc(block.0, block.1, size) };
    resized(block, address, size)
}

#[unsafe(no_mangle)]
#[inline(never)]
fn call_realloc_shrink(block: Block, size: usize) -> Block {
    let _scope = Scope::of("call_realloc_shrink");
    let address = unsafe { realloc(block.0, block.1, size) };
    resized(block, address, size)
}

#[unsafe(no_mangle)]
#[inline(never)]
fn call_realloc_aligned(block: Block, size: usize) -> Block {
    let _scope = Scope::of("call_realloc_aligned");
    let address = unsafe { realloc(block.0, block.1, size) };
    resized(block, address, size)
}

#[unsafe(no_mangle)]
#[inline(never)]
fn call_alloc_huge() -> bool {
    let _scope = Scope::of("call_alloc_huge");
    black_box(unsafe { alloc(layout(HUGE, 8)) }).is_null()
}

/// The old block stays.
#[unsafe(no_mangle)]
#[inline(never)]
fn call_realloc_huge(block: &Block) -> bool {
    let _scope = Scope::of("call_realloc_huge");
    black_box(unsafe { realloc(block.0, block.1, HUGE) }).is_null()
}

#[unsafe(no_mangle)]
#[inline(never)]
fn grow_vector(length: usize) -> Vec<u64> {
    let _scope = Scope::of("grow_vector");
    let mut values = Vec::new();
    for value in 0..length as u64 {
        values.push(value);
    }
    values
}

#[unsafe(no_mangle)]
#[inline(never)]
fn insert_names(round: usize) -> HashMap<String, usize> {
    let _scope = Scope::of("insert_names");
    (0..round).map(|number| (format!("the name of number {number}"), number)).collect()
}

#[unsafe(no_mangle)]
#[inline(never)]
fn box_slice(length: usize) -> Box<[u8]> {
    let _scope = Scope::of("box_slice");
    vec![0; length].into_boxed_slice()
}

fn one_round(round: usize) -> Round {
    let size = 8 + round * 24;
    let stays = call_alloc(size);
    assert!(call_alloc_huge() && call_realloc_huge(&stays), "a huge allocation did not fail");
    let blocks = vec![
        stays,
        call_alloc(size * 1000),
        call_alloc_zeroed(size),
        call_alloc_zeroed(size * 1000),
        call_alloc_aligned(size, 64),
        call_alloc_aligned(size, 4096),
        call_alloc_zeroed_aligned(size, 256),
        call_realloc_grow(call_alloc(size), size * 4),
        call_realloc_grow(call_alloc(size), size * 4000),
        call_realloc_shrink(call_alloc(size * 4), size),
        call_realloc_aligned(call_alloc_aligned(size, 128), size * 3),
    ];
    Round {
        _blocks: blocks,
        _values: grow_vector(round * 20),
        _names: insert_names(round),
        _slice: box_slice(size * 3),
    }
}

/// Keeps two rounds of three.
fn work() {
    for round in 0..ROUNDS {
        let left = one_round(round);
        if round % 3 != 0 {
            KEPT.lock().expect("nobody panics with it").push(left);
        }
    }
}

static BEGIN: LazyLock<Barrier> = LazyLock::new(|| Barrier::new(THREADS + 1));
static END: LazyLock<Barrier> = LazyLock::new(|| Barrier::new(THREADS + 1));
static START: Once = Once::new();

/// The command. The threads do not end: glibc then frees what it kept for the thread's next malloc, for a second time.
pub(crate) fn run() {
    early::free_some();
    START.call_once(|| {
        for _ in 0..THREADS {
            thread::spawn(|| {
                loop {
                    BEGIN.wait();
                    work();
                    END.wait();
                }
            });
        }
    });
    BEGIN.wait();
    work();
    END.wait();
}

/// The command: frees what was kept.
pub(crate) fn drop_kept() {
    KEPT.lock().expect("nobody panics with it").clear();
}
