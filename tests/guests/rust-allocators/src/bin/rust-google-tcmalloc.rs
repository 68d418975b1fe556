//! With Google's tcmalloc, whose functions then begin with `TCMallocInternal`.

use rust_allocators::{Counting, serve};
use tcmalloc_better::TCMalloc;

#[global_allocator]
static ALLOCATOR: Counting<TCMalloc> = Counting(TCMalloc);

fn main() {
    serve();
}
