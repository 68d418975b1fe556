//! What heaptap asks of an ELF file: functions by name, build id, code.
//!
//! The file belongs to the target and is read by a root process: every read is bounded and checked.

use std::{collections::HashMap, fs::File, io, os::unix::fs::FileExt};

use object::{
    Endianness, Object, ObjectSection, ObjectSymbol, ObjectSymbolTable, RelocationTarget, SectionKind,
    SymbolKind,
    elf::{ELF_NOTE_GNU, FileHeader64, NT_GNU_BUILD_ID},
    read::elf::{ElfFile64, FileHeader as _, NoteIterator, ProgramHeader as _, SectionHeader as _},
};

use super::{
    bounded::{BoundedFile, PART_LIMIT_BYTES},
    image::Image,
    segments::Segments,
};

/// Why a file tells nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ElfError {
    /// It is no ELF file, or a broken one.
    #[error("broken ELF file")]
    Broken(#[source] object::Error),
    /// A part is larger than any real one, and too large to read.
    #[error("a part of {size_bytes} bytes is larger than the {limit_bytes} that are read")]
    TooLarge {
        /// Its size.
        size_bytes: u64,
        /// What is read at most.
        limit_bytes: u64,
    },
    /// It cannot be read.
    #[error("cannot read {count} bytes at offset {offset:#x}")]
    Read {
        /// Where.
        offset: u64,
        /// How many.
        count: usize,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// A function that the file defines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its name, without a version.
    pub name: String,
    /// Offset of its first instruction in the file, in bytes.
    pub offset: u64,
    /// Its size in bytes; 0 where the file does not say.
    pub size_bytes: u64,
}

/// Code of a file that lies together.
#[derive(Clone, Debug)]
pub struct Code {
    /// Offset in the file, in bytes.
    pub offset: u64,
    /// The instructions.
    pub bytes: Vec<u8>,
}

/// A name may stand in a table several times, in different versions, but not so often.
const SAME_NAME_LIMIT: usize = 16;

/// Relocations that are looked at. Chromium has a million.
const RELOCATIONS_LIMIT: usize = 4 << 20;

type Reader<'data> = ElfFile64<'data, Endianness, &'data BoundedFile<'data>>;

/// Whether a file says that it is one.
pub fn is_elf(file: &File) -> bool {
    let mut magic = [0; 4];
    file.read_exact_at(&mut magic, 0).is_ok() && magic == object::elf::ELFMAG
}

/// The build id that the linker left in the file.
pub fn build_id(file: &File) -> Result<Option<Vec<u8>>, ElfError> {
    build_id_in(&BoundedFile::new(file))
}

/// The same of a file that is being read. Of the symbols, which are most of what [`parse`] reads, nothing is.
pub(super) fn build_id_in(file: &BoundedFile<'_>) -> Result<Option<Vec<u8>>, ElfError> {
    let find = || {
        let header: &FileHeader64<Endianness> = FileHeader64::parse(file)?;
        let endian = header.endian()?;
        let sections = header.sections(endian, file)?;
        // Where there are no section headers, program headers have to do.
        if sections.is_empty() {
            let mut segments = header.program_headers(endian, file)?.iter();
            first_some(&mut segments, |segment| id_among(segment.notes(endian, file)?, endian))
        } else {
            let mut sections = sections.iter();
            first_some(&mut sections, |section| id_among(section.notes(endian, file)?, endian))
        }
    };
    find().map_err(|error| why(file, error))
}

fn first_some<T>(
    items: &mut impl Iterator<Item = T>,
    find: impl Fn(T) -> object::Result<Option<Vec<u8>>>,
) -> object::Result<Option<Vec<u8>>> {
    items.find_map(|item| find(item).transpose()).transpose()
}

fn id_among(
    notes: Option<NoteIterator<'_, FileHeader64<Endianness>>>,
    endian: Endianness,
) -> object::Result<Option<Vec<u8>>> {
    let Some(mut notes) = notes else { return Ok(None) };
    while let Some(note) = notes.next()? {
        if note.name() == ELF_NOTE_GNU && note.n_type(endian) == NT_GNU_BUILD_ID {
            return Ok(Some(note.desc().to_vec()));
        }
    }
    Ok(None)
}

/// The functions with the given names that the file defines for others to use, in the order of the names.
pub fn exported(file: &File, names: &[&str]) -> Result<Vec<Function>, ElfError> {
    let file = BoundedFile::new(file);
    let elf = parse(&file)?;
    let Some(table) = elf.dynamic_symbol_table() else {
        return Ok(Vec::new());
    };
    let segments = segments(&elf);
    let mut found: Vec<(usize, Function)> = Vec::new();
    let mut seen = vec![0; names.len()];
    for symbol in table.symbols() {
        if !symbol.is_definition() || symbol.kind() != SymbolKind::Text {
            continue;
        }
        let Ok(name) = symbol.name() else { continue };
        let Some(place) = names.iter().position(|wanted| *wanted == name) else { continue };
        let Some(seen) = seen.get_mut(place).filter(|seen| **seen < SAME_NAME_LIMIT) else { continue };
        *seen += 1;
        let Some((offset, _)) = segments.rest_from(symbol.address()) else { continue };
        found.push((place, Function { name: name.to_owned(), offset, size_bytes: symbol.size() }));
    }
    found.sort_by_key(|(place, _)| *place);
    Ok(found.into_iter().map(|(_, function)| function).collect())
}

/// The address, as the file states it, of a function or variable that it defines for others to use.
pub fn exported_address(file: &File, name: &str) -> Result<Option<u64>, ElfError> {
    let file = BoundedFile::new(file);
    let elf = parse(&file)?;
    let mut symbols = elf.dynamic_symbol_table().into_iter().flat_map(|table| table.symbols());
    let symbol =
        symbols.find(|symbol| symbol.is_definition() && symbol.name().is_ok_and(|found| found == name));
    Ok(symbol.map(|symbol| symbol.address()))
}

/// The addresses, as the file states them, of all functions and variables that it defines for others to use under names that begin
/// so, by name.
pub fn exported_addresses(file: &File, beginning: &str) -> Result<HashMap<String, u64>, ElfError> {
    let file = BoundedFile::new(file);
    let elf = parse(&file)?;
    let symbols = elf.dynamic_symbol_table().into_iter().flat_map(|table| table.symbols());
    let named = symbols.filter(ObjectSymbol::is_definition).filter_map(|symbol| {
        let name = symbol.name().ok().filter(|name| name.starts_with(beginning))?;
        Some((name.to_owned(), symbol.address()))
    });
    Ok(named.collect())
}

/// The address, as the file states it, of what lies at an offset in the file; `None` where that is not loaded.
pub fn address_at(file: &File, offset: u64) -> Result<Option<u64>, ElfError> {
    let file = BoundedFile::new(file);
    let elf = parse(&file)?;
    Ok(segments(&elf).address_at(offset))
}

/// Where the loader writes the addresses of functions that the file itself defines for others to use, with those: addresses
/// as the file states them. Another file may have been given the preference.
pub(super) fn imports_of_own(file: &BoundedFile<'_>) -> Result<HashMap<u64, u64>, ElfError> {
    let elf = parse(file)?;
    let symbols = elf.dynamic_symbol_table();
    let relocations = elf.dynamic_relocations().into_iter().flatten().take(RELOCATIONS_LIMIT);
    let own = |target| {
        let RelocationTarget::Symbol(index) = target else { return None };
        let symbol = symbols.as_ref()?.symbol_by_index(index).ok()?;
        (symbol.is_definition() && symbol.kind() == SymbolKind::Text).then(|| symbol.address())
    };
    Ok(relocations.filter_map(|(slot, relocation)| Some((slot, own(relocation.target())?))).collect())
}

/// The file as an ELF image.
pub(super) fn image<'data>(
    file: &'data BoundedFile<'data>,
) -> Result<Image<'data, &'data BoundedFile<'data>>, ElfError> {
    Image::parse(file).map_err(|error| why(file, error))
}

fn segments(elf: &Reader<'_>) -> Segments {
    Segments::of(elf.elf_program_headers(), elf.endian())
}

fn parse<'data>(file: &'data BoundedFile<'data>) -> Result<Reader<'data>, ElfError> {
    ElfFile64::parse(file).map_err(|error| why(file, error))
}

fn why(file: &BoundedFile<'_>, error: object::Error) -> ElfError {
    match file.refused_bytes() {
        Some(size_bytes) => ElfError::TooLarge { size_bytes, limit_bytes: PART_LIMIT_BYTES },
        None => ElfError::Broken(error),
    }
}

/// The code section that holds `offset`, as far as it goes from there backwards and forwards.
pub fn code_around(file: &File, offset: u64) -> Result<Option<Code>, ElfError> {
    code_in(&BoundedFile::new(file), offset)
}

/// The same of a file that is being read.
pub(super) fn code_in(file: &BoundedFile<'_>, offset: u64) -> Result<Option<Code>, ElfError> {
    let elf = parse(file)?;
    let holds = |section: &object::read::elf::ElfSection64<'_, '_, Endianness, _>| {
        let (start, size_bytes) = section.file_range()?;
        (section.kind() == SectionKind::Text && offset.checked_sub(start)? < size_bytes)
            .then_some((start, size_bytes))
    };
    let Some((start, size_bytes)) = elf.sections().find_map(|section| holds(&section)) else {
        return Ok(None);
    };
    // Chromium's has 180 MiB.
    if size_bytes > PART_LIMIT_BYTES {
        return Err(ElfError::TooLarge { size_bytes, limit_bytes: PART_LIMIT_BYTES });
    }
    let count = usize::try_from(size_bytes).unwrap_or(usize::MAX);
    Ok(Some(Code { offset: start, bytes: copy_of(file, start, count)? }))
}

/// `count` bytes of the file from `offset` on.
pub fn read_at(file: &File, offset: u64, count: usize) -> Result<Vec<u8>, ElfError> {
    copy_of(&BoundedFile::new(file), offset, count)
}

/// The same of a file that is being read.
pub(super) fn copy_of(file: &BoundedFile<'_>, offset: u64, count: usize) -> Result<Vec<u8>, ElfError> {
    file.copy(offset, count).map_err(|source| ElfError::Read { offset, count, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{allocations::largest, target::hostile};

    fn libc() -> File {
        File::open("/lib/x86_64-linux-gnu/libc.so.6").expect("Debian's libc")
    }

    #[test]
    fn libc_exports_its_allocator_and_has_code_there() {
        let functions = exported(&libc(), &["malloc", "free", "no_such_function"]).unwrap();
        let names: Vec<_> = functions.iter().map(|function| function.name.as_str()).collect();
        assert_eq!(names, ["malloc", "free"]);
        let code = code_around(&libc(), functions[0].offset).unwrap().expect("malloc lies in a code section");
        assert!(code.bytes.len() > 4096);
        assert!(build_id(&libc()).unwrap().is_some());
    }

    /// Asks everything there is to ask.
    fn ask(file: &File) -> (Vec<Function>, Option<Vec<u8>>) {
        let functions = exported(file, &["malloc", "free"]).unwrap_or_default();
        for function in &functions {
            let _ = code_around(file, function.offset);
            let _ = address_at(file, function.offset);
        }
        let _ = exported_address(file, "malloc");
        (functions, build_id(file).ok().flatten())
    }

    #[test]
    fn a_file_cut_anywhere_is_an_error_or_tells_less() {
        let whole = std::fs::read("/lib/x86_64-linux-gnu/libc.so.6").unwrap();
        let (functions, id) = ask(&libc());
        let file = libc_copy(&whole);
        for cut in hostile::cuts(&whole).into_iter().rev() {
            file.set_len(cut as u64).unwrap();
            let ((found, found_id), largest_bytes) = largest(|| ask(&file));
            assert!(found.iter().all(|function| functions.contains(function)), "{cut}: {found:?}");
            assert!(found_id.is_none() || found_id == id, "{cut}");
            assert!(largest_bytes <= whole.len(), "{cut}: {largest_bytes}");
        }
        assert_eq!(ask(&file), (Vec::new(), None), "nothing is left");
    }

    fn libc_copy(whole: &[u8]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(whole, 0).unwrap();
        file
    }

    #[test]
    fn a_file_that_claims_what_is_not_so_takes_no_memory() {
        let whole = std::fs::read("/lib/x86_64-linux-gnu/libdl.so.2").expect("a small library of glibc's");
        hostile::claims(&whole, |claim, file| {
            let (_, largest_bytes) = largest(|| ask(file));
            assert!(largest_bytes < 8 << 20, "{claim}: {largest_bytes}");
        });
    }

    #[test]
    fn what_is_too_large_is_said_to_be() {
        let whole = std::fs::read("/lib/x86_64-linux-gnu/libdl.so.2").unwrap();
        let mut refused = 0;
        hostile::claims(&whole, |_, file| {
            if let Err(error @ ElfError::TooLarge { .. }) = exported(file, &["malloc"]) {
                assert!(error.to_string().contains("larger than the 268435456 that are read"), "{error}");
                refused += 1;
            }
        });
        assert!(refused > 0);
    }
}
