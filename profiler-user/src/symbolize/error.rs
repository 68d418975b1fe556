//! What keeps a file from giving names.

use std::io;

/// Why a file gives no names.
#[derive(Debug, thiserror::Error)]
pub(super) enum SymbolizeError {
    /// It is no ELF file, or a broken one.
    #[error("broken ELF file")]
    Elf(#[from] object::Error),
    /// Its debug information cannot be made sense of.
    #[error("unreadable debug information: {0:#}")]
    Dwarf(#[source] blazesym::Error),
    /// Its debug information made the reader fall over.
    #[error("broken debug information")]
    Broken,
    /// Its debug information refers to another file that is not to be trusted.
    #[error("debug information that refers to other files")]
    RefersElsewhere,
    /// Its compressed symbol table cannot be unpacked.
    #[error("unreadable mini debug information")]
    Unpack(#[source] io::Error),
    /// A part is larger than what is read.
    #[error("`{name}` is larger than the {limit_bytes} bytes that are read")]
    TooLarge {
        /// The part.
        name: &'static str,
        /// What is read at most.
        limit_bytes: u64,
    },
}
