//! The ledger: a header before each block says for which site it was allocated.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::ptr;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

/// A function that allocates.
pub(crate) struct Site {
    name: &'static str,
    alloc: [AtomicI64; 2],
    freed: [AtomicI64; 2],
}

impl Site {
    const fn new(name: &'static str) -> Self {
        Self {
            name,
            alloc: [AtomicI64::new(0), AtomicI64::new(0)],
            freed: [AtomicI64::new(0), AtomicI64::new(0)],
        }
    }

    /// Sets all its counters to 0.
    pub(crate) fn reset(&self) {
        for counter in self.alloc.iter().chain(&self.freed) {
            counter.store(0, Relaxed);
        }
    }
}

fn count(counters: &[AtomicI64; 2], size: usize) {
    counters[0].fetch_add(1, Relaxed);
    counters[1].fetch_add(size as i64, Relaxed);
}

/// All sites.
pub(crate) static SITES: [Site; 13] = [
    Site::new("early_alloc"),
    Site::new("call_alloc"),
    Site::new("call_alloc_zeroed"),
    Site::new("call_alloc_aligned"),
    Site::new("call_alloc_zeroed_aligned"),
    Site::new("call_realloc_grow"),
    Site::new("call_realloc_shrink"),
    Site::new("call_realloc_aligned"),
    Site::new("call_alloc_huge"),
    Site::new("call_realloc_huge"),
    Site::new("grow_vector"),
    Site::new("insert_names"),
    Site::new("box_slice"),
];

/// The site of a name; a guest has few.
pub(crate) fn site(name: &str) -> &'static Site {
    SITES.iter().find(|site| site.name == name).expect("every site is in the list")
}

/// The lines of the ledger.
pub(crate) fn lines() -> impl Iterator<Item = String> {
    SITES.iter().map(|Site { name, alloc, freed }| {
        let load = |counter: &AtomicI64| counter.load(Relaxed);
        let (objects, bytes) = (load(&alloc[0]), load(&alloc[1]));
        format!("ledger {name} {objects} {bytes} {} {}", objects - load(&freed[0]), bytes - load(&freed[1]))
    })
}

thread_local! {
    static CURRENT: Cell<Option<&'static Site>> = const { Cell::new(None) };
}

/// What allocates while this lives does so for a site.
pub(crate) struct Scope(Option<&'static Site>);

impl Scope {
    pub(crate) fn of(name: &str) -> Self {
        Self(CURRENT.replace(Some(site(name))))
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        CURRENT.set(self.0);
    }
}

type Header = Option<&'static Site>;

/// An allocator, with its blocks on the ledger.
pub struct Counting<A>(pub A);

/// Bytes before a block, of which the header takes the last.
fn margin(layout: Layout) -> usize {
    layout.align().max(16)
}

fn with_margin(layout: Layout, size: usize) -> Layout {
    Layout::from_size_align(size + margin(layout), margin(layout))
        .expect("the guest asks for less than there can be")
}

/// Where the header of a block is.
fn header(address: *mut u8) -> *mut Header {
    address.wrapping_sub(size_of::<Header>()).cast()
}

/// Makes a block nobody's, so that its free changes nothing on the ledger.
pub(crate) unsafe fn disown(address: *mut u8) {
    unsafe { header(address).write(None) };
}

/// Writes the header of what an allocator returned, and counts.
unsafe fn took(block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
    if block.is_null() {
        return ptr::null_mut();
    }
    let site = CURRENT.get();
    if let Some(site) = site {
        count(&site.alloc, size + margin(layout));
    }
    let address = block.wrapping_add(margin(layout));
    unsafe { header(address).write(site) };
    address
}

fn gave(site: Header, layout: Layout) {
    if let Some(site) = site {
        count(&site.freed, layout.size() + margin(layout));
    }
}

unsafe impl<A: GlobalAlloc> GlobalAlloc for Counting<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        unsafe { took(self.0.alloc(with_margin(layout, layout.size())), layout, layout.size()) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        unsafe { took(self.0.alloc_zeroed(with_margin(layout, layout.size())), layout, layout.size()) }
    }

    unsafe fn dealloc(&self, address: *mut u8, layout: Layout) {
        unsafe {
            gave(header(address).read(), layout);
            self.0.dealloc(address.wrapping_sub(margin(layout)), with_margin(layout, layout.size()));
        }
    }

    unsafe fn realloc(&self, address: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        unsafe {
            let site = header(address).read();
            let block = address.wrapping_sub(margin(layout));
            let resized = took(
                self.0.realloc(block, with_margin(layout, layout.size()), size + margin(layout)),
                layout,
                size,
            );
            // Otherwise the old block stays.
            if !resized.is_null() {
                gave(site, layout);
            }
            resized
        }
    }
}
