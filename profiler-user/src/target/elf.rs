//! What heaptap asks of an ELF file: functions by name, build id, code.
//!
//! The file belongs to the target and is read by a root process: every read is bounded and checked, and the file
//! is read, not mapped, because a mapped file that is cut short while it is read kills the reader.

use std::{fs::File, io, os::unix::fs::FileExt};

use object::{
    Endianness, Object, ObjectSection, ObjectSymbol, ObjectSymbolTable, ReadCache, SectionKind, SymbolKind,
    read::elf::ElfFile64,
};

use super::segments::Segments;

/// Why a file tells nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ElfError {
    /// It is no ELF file, or a broken one.
    #[error("broken ELF file")]
    Broken(#[source] object::Error),
    /// A part is larger than any real one, and too large to read.
    #[error("section `{name}` of {size_bytes} bytes is larger than the {limit_bytes} that are read")]
    TooLarge {
        /// The section's name.
        name: &'static str,
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

/// Chromium's symbol table has 50 MiB; nothing real comes near this.
const SYMBOLS_LIMIT_BYTES: u64 = 512 << 20;

/// The section that holds an allocator. Chromium's has 180 MiB, but an allocator in there is not glibc.
const CODE_LIMIT_BYTES: u64 = 256 << 20;

type Reader<'data> = ElfFile64<'data, Endianness, &'data ReadCache<&'data File>>;

/// The build id that the linker left in the file.
pub fn build_id(file: &File) -> Result<Option<Vec<u8>>, ElfError> {
    let cache = ReadCache::new(file);
    let elf: Reader<'_> = ElfFile64::parse(&cache).map_err(ElfError::Broken)?;
    Ok(elf.build_id().map_err(ElfError::Broken)?.map(<[u8]>::to_vec))
}

/// The functions with the given names that the file defines for others to use, in the order of the names.
pub fn exported(file: &File, names: &[&str]) -> Result<Vec<Function>, ElfError> {
    let cache = ReadCache::new(file);
    let elf = parse_with_symbols(&cache)?;
    let Some(table) = elf.dynamic_symbol_table() else {
        return Ok(Vec::new());
    };
    let segments = segments(&elf);
    let mut found: Vec<(usize, Function)> = Vec::new();
    for symbol in table.symbols() {
        if !symbol.is_definition() || symbol.kind() != SymbolKind::Text {
            continue;
        }
        let Ok(name) = symbol.name() else { continue };
        let Some(place) = names.iter().position(|wanted| *wanted == name) else { continue };
        let Some((offset, _)) = segments.rest_from(symbol.address()) else { continue };
        found.push((place, Function { name: name.to_owned(), offset, size_bytes: symbol.size() }));
    }
    found.sort_by_key(|(place, _)| *place);
    Ok(found.into_iter().map(|(_, function)| function).collect())
}

/// The address, as the file states it, of a function or variable that it defines for others to use.
pub fn exported_address(file: &File, name: &str) -> Result<Option<u64>, ElfError> {
    let cache = ReadCache::new(file);
    let elf = parse_with_symbols(&cache)?;
    let mut symbols = elf.dynamic_symbol_table().into_iter().flat_map(|table| table.symbols());
    let symbol =
        symbols.find(|symbol| symbol.is_definition() && symbol.name().is_ok_and(|found| found == name));
    Ok(symbol.map(|symbol| symbol.address()))
}

/// The address, as the file states it, of what lies at an offset in the file; `None` where that is not loaded.
pub fn address_at(file: &File, offset: u64) -> Result<Option<u64>, ElfError> {
    let cache = ReadCache::new(file);
    let elf: Reader<'_> = ElfFile64::parse(&cache).map_err(ElfError::Broken)?;
    Ok(segments(&elf).address_at(offset))
}

fn segments(elf: &Reader<'_>) -> Segments {
    Segments::of(elf.elf_program_headers(), elf.endian())
}

fn parse_with_symbols<'data>(cache: &'data ReadCache<&'data File>) -> Result<Reader<'data>, ElfError> {
    let elf: Reader<'_> = ElfFile64::parse(cache).map_err(ElfError::Broken)?;
    for name in [".dynsym", ".dynstr"] {
        let size_bytes = elf.section_by_name(name).map_or(0, |section| section.size());
        if size_bytes > SYMBOLS_LIMIT_BYTES {
            return Err(ElfError::TooLarge { name, size_bytes, limit_bytes: SYMBOLS_LIMIT_BYTES });
        }
    }
    Ok(elf)
}

/// The code section that holds `offset`, as far as it goes from there backwards and forwards.
pub fn code_around(file: &File, offset: u64) -> Result<Option<Code>, ElfError> {
    let cache = ReadCache::new(file);
    let elf: Reader<'_> = ElfFile64::parse(&cache).map_err(ElfError::Broken)?;
    let holds = |section: &object::read::elf::ElfSection64<'_, '_, Endianness, _>| {
        let (start, size_bytes) = section.file_range()?;
        (section.kind() == SectionKind::Text && offset.checked_sub(start)? < size_bytes)
            .then_some((start, size_bytes))
    };
    let Some((start, size_bytes)) = elf.sections().find_map(|section| holds(&section)) else {
        return Ok(None);
    };
    if size_bytes > CODE_LIMIT_BYTES {
        return Err(ElfError::TooLarge { name: ".text", size_bytes, limit_bytes: CODE_LIMIT_BYTES });
    }
    let count = usize::try_from(size_bytes).unwrap_or(usize::MAX);
    Ok(Some(Code { offset: start, bytes: read_at(file, start, count)? }))
}

/// `count` bytes of the file from `offset` on.
pub fn read_at(file: &File, offset: u64, count: usize) -> Result<Vec<u8>, ElfError> {
    let length = file.metadata().map_or(0, |metadata| metadata.len());
    let fits = offset.checked_add(count as u64).is_some_and(|end| end <= length);
    let read = |source| ElfError::Read { offset, count, source };
    if !fits {
        return Err(read(io::ErrorKind::UnexpectedEof.into()));
    }
    let mut bytes = vec![0; count];
    file.read_exact_at(&mut bytes, offset).map_err(read)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn a_file_cut_anywhere_is_an_error_or_tells_less_but_never_panics() {
        let whole = read_at(&libc(), 0, 4096).unwrap();
        for length in (0..whole.len()).step_by(7) {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&whole[..length], 0).unwrap();
            let _ = exported(&file, &["malloc"]);
            let _ = build_id(&file);
            let _ = code_around(&file, 0x1000);
        }
    }
}
