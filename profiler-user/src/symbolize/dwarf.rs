//! Functions, inlined functions and lines from DWARF, by way of blazesym.
//!
//! Only for files that have DWARF: where there is none, blazesym would name by symbol tables, which
//! [`super::symbols`] does by stricter rules.

use std::{
    ffi::OsStr,
    fs::File,
    os::fd::AsRawFd,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use blazesym::symbolize::{CodeInfo, Input, Sym, Symbolized, Symbolizer, source};

use super::{
    error::SymbolizeError,
    line::{Line, Place},
};

/// What DWARF says of an address.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// The functions there, innermost inlined first; empty where it has no name for the address.
    pub(super) lines: Vec<Line>,
    /// The place in source code, which may be known without the function.
    pub(super) place: Place,
}

/// A file with DWARF, of which blazesym keeps what it has read.
///
/// blazesym maps the file and believes the sizes in it: should it be cut short meanwhile, or claim what is not so, it may
/// kill the process. [`super::reader`] has another process do it.
pub(super) struct Dwarf {
    symbolizer: Symbolizer,
    path: PathBuf,
}

impl Dwarf {
    /// The file behind a descriptor of this process. The files that its debug information shares with others are looked
    /// for in `debug_dirs`.
    pub(super) fn of(file: &impl AsRawFd, debug_dirs: &[PathBuf]) -> Self {
        let symbolizer = Symbolizer::builder()
            .enable_auto_reload(false)
            .enable_code_info(true)
            .enable_inlined_fns(true)
            .enable_demangling(false)
            .set_debug_dirs(Some(debug_dirs))
            .build();
        Self { symbolizer, path: PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())) }
    }

    /// What is said of each of `addresses`, which are the file's own, in the same order.
    pub(super) fn look_up(&self, addresses: &[u64]) -> Result<Vec<Answer>, SymbolizeError> {
        let elf = source::Source::Elf(source::Elf::new(&self.path));
        let symbols =
            self.symbolizer.symbolize(&elf, Input::VirtOffset(addresses)).map_err(SymbolizeError::Dwarf)?;
        Ok(symbols.iter().map(answer).collect())
    }
}

/// What the DWARF in `file` says of each of `addresses`, looked up in this process: see [`Dwarf`] for what that risks.
pub(super) fn look_up(
    file: &File,
    addresses: &[u64],
    debug_dirs: &[PathBuf],
) -> Result<Vec<Answer>, SymbolizeError> {
    // The file may be made to confuse. What that does to the library mostly stays here.
    catch_unwind(AssertUnwindSafe(|| Dwarf::of(file, debug_dirs).look_up(addresses)))
        .unwrap_or(Err(SymbolizeError::Broken))
}

fn answer(symbolized: &Symbolized<'_>) -> Answer {
    let Symbolized::Sym(symbol) = symbolized else { return Answer::default() };
    let Sym { name, code_info, inlined, .. } = symbol;
    let own = place(code_info.as_deref());
    if !is_true(symbol) {
        return Answer { lines: Vec::new(), place: own };
    }
    // The library lists inlined functions from the outside in.
    let inlined =
        inlined.iter().rev().map(|inlined| Line::new(&inlined.name, place(inlined.code_info.as_ref())));
    let lines = inlined.chain([Line::new(name, own.clone())]).collect();
    Answer { lines, place: own }
}

/// Whether the name is that of the function which the address lies in.
///
/// Where DWARF knows no function, blazesym falls back to the symbol table and lets a symbol without a size name
/// everything up to the next one. A function in several pieces has no size either, and then no address, but it
/// was found by its pieces.
fn is_true(symbol: &Sym<'_>) -> bool {
    let is_inside = match symbol.size {
        Some(size) => symbol.offset < size,
        None => symbol.addr == 0 && symbol.code_info.is_some(),
    };
    is_inside && !symbol.name.is_empty()
}

fn place(code: Option<&CodeInfo<'_>>) -> Place {
    let Some(code) = code else { return Place::default() };
    Place { file: file_name(code.dir.as_deref(), &code.file), number: code.line.unwrap_or_default() }
}

fn file_name(directory: Option<&Path>, file: &OsStr) -> String {
    let path = directory.map_or_else(|| Path::new(file).to_owned(), |directory| directory.join(file));
    path.to_string_lossy().into_owned()
}
