//! Allocates as Rust does: Vec, Box, String, HashMap, a trait object, on the main thread and on others.
//!
//! It speaks the guests' protocol (ledger.h). A site is a function with a [`Scope`]; the global allocator puts a
//! header before each block that says which scope it was allocated in, so that whoever frees it knows whose it was.
//! The header counts.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::ptr;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

const ROUNDS: usize = 50;
const THREADS: usize = 4;

struct Site {
    name: &'static str,
    chain: &'static str,
    alloc: [AtomicI64; 2],
    freed: [AtomicI64; 2],
}

impl Site {
    const fn new(name: &'static str, chain: &'static str) -> Self {
        Self {
            name,
            chain,
            alloc: [AtomicI64::new(0), AtomicI64::new(0)],
            freed: [AtomicI64::new(0), AtomicI64::new(0)],
        }
    }
}

fn count(counters: &[AtomicI64; 2], size: usize) {
    counters[0].fetch_add(1, Relaxed);
    counters[1].fetch_add(size as i64, Relaxed);
}

static SITES: [Site; 5] = [
    Site::new("grow_vector", "fill_vector work"),
    Site::new("box_shape", "work"),
    Site::new("insert_names", "work"),
    Site::new("format_text", "describe work"),
    Site::new("collect_iterator", "work"),
];

thread_local! {
    static CURRENT: Cell<Option<&'static Site>> = const { Cell::new(None) };
}

/// What allocates while this lives does so for a site.
struct Scope(Option<&'static Site>);

impl Scope {
    fn of(index: usize) -> Self {
        Self(CURRENT.replace(Some(&SITES[index])))
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        CURRENT.set(self.0);
    }
}

#[repr(align(16))]
struct Header {
    site: Option<&'static Site>,
}

const HEADER: usize = size_of::<Header>();

struct Counting;

fn with_header(layout: Layout, size: usize) -> Layout {
    assert!(layout.align() <= HEADER, "nothing here wants more alignment");
    Layout::from_size_align(size + HEADER, HEADER).expect("a small layout")
}

/// Writes a header and counts.
unsafe fn took(block: *mut u8, size: usize) -> *mut u8 {
    if block.is_null() {
        return ptr::null_mut();
    }
    let site = CURRENT.get();
    if let Some(site) = site {
        count(&site.alloc, size + HEADER);
    }
    unsafe {
        block.cast::<Header>().write(Header { site });
        block.add(HEADER)
    }
}

/// Takes a block off the ledger and gives where it begins.
unsafe fn gave(address: *mut u8, size: usize) -> *mut u8 {
    let block = unsafe { address.sub(HEADER) };
    if let Some(site) = unsafe { &*block.cast::<Header>() }.site {
        count(&site.freed, size + HEADER);
    }
    block
}

unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        unsafe { took(System.alloc(with_header(layout, layout.size())), layout.size()) }
    }

    unsafe fn dealloc(&self, address: *mut u8, layout: Layout) {
        unsafe { System.dealloc(gave(address, layout.size()), with_header(layout, layout.size())) }
    }

    unsafe fn realloc(&self, address: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Off the ledger first: the call may give the block's address to another thread.
        unsafe {
            let block = gave(address, layout.size());
            took(System.realloc(block, with_header(layout, layout.size()), size + HEADER), size)
        }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// The names of sites and of their callers stay as they are, without the crate's.

#[unsafe(no_mangle)]
#[inline(never)]
fn grow_vector(values: &mut Vec<u64>, round: usize) {
    let _scope = Scope::of(0);
    for value in 0..50 + round as u64 {
        values.push(value);
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
fn fill_vector(round: usize) -> Vec<u64> {
    let mut values = Vec::new();
    grow_vector(&mut values, round);
    values.truncate(round + 1);
    values
}

trait Shape {
    fn area(&self) -> f64;
}

struct Circle(f64);

struct Rectangle {
    width: f64,
    height: f64,
}

impl Shape for Circle {
    fn area(&self) -> f64 {
        self.0 * self.0 * std::f64::consts::PI
    }
}

impl Shape for Rectangle {
    fn area(&self) -> f64 {
        self.width * self.height
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
fn box_shape(round: usize) -> Box<dyn Shape> {
    let _scope = Scope::of(1);
    if round % 2 == 0 { Box::new(Circle(1.0)) } else { Box::new(Rectangle { width: 2.0, height: 3.0 }) }
}

#[unsafe(no_mangle)]
#[inline(never)]
fn insert_names(names: &mut HashMap<String, usize>, round: usize) {
    let _scope = Scope::of(2);
    names.insert(format!("the name of number {round}"), round);
}

#[unsafe(no_mangle)]
#[inline(never)]
fn format_text(text: &mut String, area: f64) {
    let _scope = Scope::of(3);
    write!(text, "{area} square metres, and {area:>40}").expect("a string takes all");
}

#[unsafe(no_mangle)]
#[inline(never)]
fn describe(shape: &dyn Shape) -> usize {
    let mut text = String::new();
    format_text(&mut text, shape.area());
    text.len()
}

#[unsafe(no_mangle)]
#[inline(never)]
fn collect_iterator(values: &[u64]) -> Vec<String> {
    let _scope = Scope::of(4);
    values.iter().filter(|value| *value % 3 == 0).map(u64::to_string).collect()
}

#[unsafe(no_mangle)]
#[inline(never)]
fn work() -> usize {
    let mut names = HashMap::new();
    let mut sum = 0;
    for round in 0..ROUNDS {
        let values = fill_vector(round);
        insert_names(&mut names, round);
        sum += describe(box_shape(round).as_ref());
        sum += collect_iterator(&values).len();
    }
    sum + names.len()
}

fn run() {
    let threads: Vec<_> = (0..THREADS).map(|_| std::thread::spawn(work)).collect();
    let mine = work();
    for thread in threads {
        assert_eq!(thread.join().expect("no thread panics"), mine);
    }
}

fn say(line: &str) {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}").and_then(|()| stdout.flush()).expect("somebody listens");
}

fn print_ledger() {
    let load = |counter: &AtomicI64| counter.load(Relaxed);
    for Site { name, alloc: [objects, bytes], freed: [freed_objects, freed_bytes], .. } in &SITES {
        let (objects, bytes) = (load(objects), load(bytes));
        let (in_use, in_use_bytes) = (objects - load(freed_objects), bytes - load(freed_bytes));
        say(&format!("ledger {name} {objects} {bytes} {in_use} {in_use_bytes}"));
    }
}

fn print_chains() {
    for Site { name, chain, .. } in &SITES {
        say(&format!("chain {name} {chain}"));
    }
}

fn main() {
    say("ready");
    for line in std::io::stdin().lines() {
        match line.expect("commands are text").as_str() {
            "run" => run(),
            "chains" => print_chains(),
            "ledger" => {
                print_ledger();
                say("end");
                continue;
            }
            "exit" => break,
            other => panic!("unknown command `{other}`"),
        }
        say("done");
    }
    say("done");
}
