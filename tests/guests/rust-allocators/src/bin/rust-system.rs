//! With the C library's, as every Rust program that names no other.

use std::alloc::System;

use rust_allocators::{Counting, serve};

#[global_allocator]
static ALLOCATOR: Counting<System> = Counting(System);

fn main() {
    serve();
}
