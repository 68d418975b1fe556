//! What keeps a file from giving names.

use std::{io, process::ExitStatus};

/// Why a file gives no names.
#[derive(Debug, thiserror::Error)]
pub(super) enum SymbolizeError {
    /// It is no ELF file, or a broken one.
    #[error("broken ELF file")]
    Elf(#[from] object::Error),
    /// Its debug information cannot be made sense of.
    #[error("unreadable debug information: {0:#}")]
    Dwarf(#[source] blazesym::Error),
    /// Its debug information cannot be made sense of, by another process.
    #[error("{error}")]
    Unreadable {
        /// Why not.
        error: String,
    },
    /// Its debug information made the reader fall over.
    #[error("broken debug information")]
    Broken,
    /// It became shorter while it was read.
    #[error("the file was cut short while it was read")]
    CutShort,
    /// Its debug information takes more time or memory to read than any real one.
    #[error("it takes too much time or memory to read")]
    Costly,
    /// The process that read its debug information ended.
    #[error("broken debug information: reading it ended with {status}")]
    ReaderEnded {
        /// How.
        status: ExitStatus,
    },
    /// The process that reads debug information cannot be started.
    #[error("cannot start another heaptap to read it: {0}")]
    Start(#[source] io::Error),
    /// Its debug information refers to another file that is not to be trusted.
    #[error("debug information that refers to other files")]
    RefersElsewhere,
}
