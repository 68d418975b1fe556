//! Names: addresses become functions, files and lines.
//!
//! An address without a name is no error: the frame keeps its address and its mapping.

mod demangle;

mod names;

pub use names::{Function, Line, Names};
