//! Names: addresses become functions, files and lines.
//!
//! An address without a name is no error: the frame keeps its address and its mapping. No name is better than a
//! wrong one.

mod debuginfod;

mod demangle;

mod dwarf;

mod error;

pub mod message;

pub mod reader;

#[cfg(test)]
pub(crate) mod fixture;

#[cfg(test)]
mod hostile;

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;

mod jit;

mod line;

mod module;

mod names;

mod perf_map;

mod symbols;

use std::path::PathBuf;

pub use line::{Function, Line};
pub use names::Names;

use crate::target::given::Given;

/// Where to look for names, besides in the mapped files themselves.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Separate debug files, and directories of them, at which to look before `/usr/lib/debug`.
    pub given: Given,
    /// The program that reads debug information in a process of its own, which is heaptap: see [`reader`]. Without one this
    /// process reads it, and a file that is cut short meanwhile ends it.
    pub reader: Option<PathBuf>,
}
