//! With jemalloc, whose functions then begin with `_rjem_`.

use rust_allocators::{Counting, serve};
use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Counting<Jemalloc> = Counting(Jemalloc);

fn main() {
    serve();
}
