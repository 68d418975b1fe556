//! Every developer command of heaptap, as `cargo xtask …`.

fn main() {}
