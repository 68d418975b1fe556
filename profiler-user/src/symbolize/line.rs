//! A name for an address, as the profile wants it.

use std::sync::Arc;

use super::demangle::demangle;

/// A function.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Function {
    /// Its readable name.
    pub name: String,
    /// Its name as the linker knows it.
    pub system_name: String,
    /// Its source file; empty where that is not known.
    pub file: String,
}

/// A line of a function; several stand at one address where functions were inlined.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Line {
    /// The function.
    pub function: Arc<Function>,
    /// The line's number; 0 where that is not known.
    pub number: u32,
}

/// A place in source code.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// The source file; empty where that is not known.
    pub(super) file: String,
    /// The line's number; 0 where that is not known.
    pub(super) number: u32,
}

impl Line {
    /// The line of a function that the linker knows as `name`.
    pub(super) fn new(name: &str, place: Place) -> Self {
        let readable = demangle(name).unwrap_or_else(|| name.to_owned());
        let function = Function { name: readable, system_name: name.to_owned(), file: place.file };
        Self { function: Arc::new(function), number: place.number }
    }
}
