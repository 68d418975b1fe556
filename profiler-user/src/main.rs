//! The `heaptap` command.

fn main() {}
