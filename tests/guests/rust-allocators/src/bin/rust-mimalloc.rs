//! With mimalloc, which then replaces neither malloc nor free.

use mimalloc::MiMalloc;
use rust_allocators::{Counting, serve};

#[global_allocator]
static ALLOCATOR: Counting<MiMalloc> = Counting(MiMalloc);

fn main() {
    serve();
}
