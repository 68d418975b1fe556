//! Where a file's functions are, by name, from every symbol table that belongs to it.
//!
//! The tables are the target's: a name may stand in them any number of times, and lead anywhere.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs::File,
    ops::Range,
};

use object::{
    Endianness, ReadRef,
    elf::{SHN_UNDEF, STB_GLOBAL, STB_WEAK, STT_FUNC, STT_GNU_IFUNC, STT_NOTYPE, STT_OBJECT},
    read::{
        StringTable,
        elf::{SectionHeader, Sym, SymbolTable},
    },
};

use super::{bounded::BoundedFile, elf::ElfError, image::Image, segments::Segments};

type Header = object::elf::FileHeader64<Endianness>;

/// A function, or a place that is said to be one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Function {
    /// Its address, as the file states it.
    pub address: u64,
    /// Its size in bytes; 0 where that is not said.
    pub size_bytes: u64,
    /// Whether the name is the file's own business.
    pub is_local: bool,
    /// Whether the address is that of a function which chooses one when the file is loaded.
    pub is_chosen_at_load: bool,
}

/// What was found of the names that were looked for.
#[derive(Clone, Debug, Default)]
pub struct Functions {
    by_name: HashMap<String, BTreeSet<Function>>,
    marks: HashSet<String>,
    segments: Segments,
    /// Functions that begin in front of one that was found and end behind its first byte.
    overlapping: HashMap<u64, String>,
    /// How far behind the beginning of one that was found the next symbol of code is, where that is near.
    next: HashMap<u64, u64>,
}

/// A symbol that is further behind is not near: more than a jump takes the place of.
const NEAR_BYTES: u64 = 32;

/// A name may stand in a table several times, in different versions, but not so often.
const SAME_NAME_LIMIT: usize = 16;

/// Symbols looked at in one table. Chromium's has 1.5 million.
const SYMBOLS_LIMIT: usize = 8 << 20;

impl Functions {
    /// Looks in the file's own tables for functions called `wanted`, and for anything called like a mark.
    pub fn of_file(file: &File, wanted: &HashSet<String>, marks: &HashSet<&str>) -> Result<Self, ElfError> {
        Self::of_content(&BoundedFile::new(file), wanted, marks)
    }

    /// The same of a file that is being read.
    pub(crate) fn of_content(
        content: &BoundedFile<'_>,
        wanted: &HashSet<String>,
        marks: &HashSet<&str>,
    ) -> Result<Self, ElfError> {
        let image = super::elf::image(content)?;
        let mut found = Self { segments: image.segments(), ..Self::default() };
        found.look_through(&image, wanted, marks);
        Ok(found)
    }

    /// Looks also in the tables of `image`, which was split off from the file.
    pub(crate) fn look_through<'data, R: ReadRef<'data>>(
        &mut self,
        image: &Image<'data, R>,
        wanted: &HashSet<String>,
        marks: &HashSet<&str>,
    ) {
        // A file that was moved after its symbols were split off states other addresses.
        let base = image.segments().base();
        let bias = self.segments.base().zip(base).map_or(0, |(own, other)| own.wrapping_sub(other));
        let tables = [image.elf.elf_dynamic_symbol_table(), image.elf.elf_symbol_table()];
        let tables = tables.map(|symbols| Table {
            symbols,
            names: names_of(image, symbols),
            endian: image.elf.endian(),
            bias,
        });
        for table in &tables {
            self.collect(table, wanted, marks);
        }
        let mut found: BTreeSet<u64> =
            self.by_name.values().flatten().map(|function| function.address).collect();
        for table in &tables {
            self.find_next(table, &found);
        }
        for table in &tables {
            self.find_overlaps(table, &mut found);
        }
    }

    /// Functions of this name, the file's own business last.
    pub fn get(&self, name: &str) -> impl Iterator<Item = &Function> {
        self.by_name.get(name).into_iter().flatten()
    }

    /// Whether there is something of this name.
    pub fn has_mark(&self, name: &str) -> bool {
        self.marks.contains(name)
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// Offset in the file of the byte at an address; `None` where that is not loaded.
    pub fn offset_of(&self, address: u64) -> Option<u64> {
        Some(self.segments.rest_from(address)?.0)
    }

    /// The address of the byte at an offset in the file.
    pub fn address_at(&self, offset: u64) -> Option<u64> {
        self.segments.address_at(offset)
    }

    /// From where to where the function goes that begins at an address, if it was found and its table says so.
    pub fn range_at(&self, address: u64) -> Option<Range<u64>> {
        let mut functions = self.by_name.values().flatten();
        let function = functions.find(|function| function.address == address && function.size_bytes > 0)?;
        Some(address..address.checked_add(function.size_bytes)?)
    }

    /// The function in whose middle an address lies, where a table says so.
    pub fn holder(&self, address: u64) -> Option<&str> {
        self.overlapping.get(&address).map(String::as_str)
    }

    /// Whether another symbol of code is less than so many bytes behind the beginning of a function that was found.
    pub(super) fn has_symbol_within(&self, address: u64, bytes: u64) -> bool {
        self.next.get(&address).is_some_and(|distance| *distance < bytes)
    }

    fn collect<'data, R: ReadRef<'data>>(
        &mut self,
        table: &Table<'_, 'data, R>,
        wanted: &HashSet<String>,
        marks: &HashSet<&str>,
    ) {
        let Table { symbols, names, endian, bias } = *table;
        if symbols.len() > SYMBOLS_LIMIT {
            let symbols = symbols.len();
            tracing::warn!(symbols, "allocators are looked for among the first {SYMBOLS_LIMIT} symbols only");
        }
        for symbol in symbols.iter().take(SYMBOLS_LIMIT) {
            let kind = symbol.st_type();
            if symbol.st_shndx(endian) == SHN_UNDEF
                || !matches!(kind, STT_FUNC | STT_GNU_IFUNC | STT_OBJECT | STT_NOTYPE)
            {
                continue;
            }
            let Some(name) = symbol.name(endian, names).ok().and_then(|name| str::from_utf8(name).ok())
            else {
                continue;
            };
            if marks.contains(name) {
                self.marks.insert(name.to_owned());
            }
            if !matches!(kind, STT_FUNC | STT_GNU_IFUNC) || !wanted.contains(name) {
                continue;
            }
            let functions = self.by_name.entry(name.to_owned()).or_default();
            if functions.len() < SAME_NAME_LIMIT {
                functions.insert(Function {
                    address: symbol.st_value(endian).wrapping_add(bias),
                    size_bytes: symbol.st_size(endian),
                    is_local: !matches!(symbol.st_bind(), STB_GLOBAL | STB_WEAK),
                    is_chosen_at_load: kind == STT_GNU_IFUNC,
                });
            }
        }
    }

    /// Notes how far behind the places `found` the next symbols are.
    fn find_next<'data, R: ReadRef<'data>>(&mut self, table: &Table<'_, 'data, R>, found: &BTreeSet<u64>) {
        let Table { symbols, endian, bias, .. } = *table;
        for symbol in symbols.iter().take(SYMBOLS_LIMIT) {
            let is_code = matches!(symbol.st_type(), STT_FUNC | STT_GNU_IFUNC | STT_NOTYPE);
            if !is_code || symbol.st_shndx(endian) == SHN_UNDEF {
                continue;
            }
            let at = symbol.st_value(endian).wrapping_add(bias);
            for address in found.range(at.saturating_sub(NEAR_BYTES)..at) {
                let next = self.next.entry(*address).or_insert(NEAR_BYTES);
                *next = (*next).min(at - address);
            }
        }
    }

    /// Notes in whose middle the places `found` lie, and takes those out: each symbol of millions may claim to hold all of them.
    fn find_overlaps<'data, R: ReadRef<'data>>(
        &mut self,
        table: &Table<'_, 'data, R>,
        found: &mut BTreeSet<u64>,
    ) {
        let Table { symbols, names, endian, bias } = *table;
        for symbol in symbols.iter().take(SYMBOLS_LIMIT) {
            let (start, size_bytes) = (symbol.st_value(endian).wrapping_add(bias), symbol.st_size(endian));
            if symbol.st_type() != STT_FUNC || symbol.st_shndx(endian) == SHN_UNDEF || size_bytes < 2 {
                continue;
            }
            let inside = start.saturating_add(1)..start.saturating_add(size_bytes);
            while let Some(&address) = found.range(inside.clone()).next() {
                found.remove(&address);
                let name = symbol.name(endian, names).unwrap_or(b"a function without a name");
                self.overlapping.insert(address, String::from_utf8_lossy(name).into_owned());
            }
        }
    }
}

/// A symbol table, with its names in memory: reading each by itself takes long where there are a million.
#[derive(Clone, Copy)]
struct Table<'table, 'data, R: ReadRef<'data>> {
    symbols: &'table SymbolTable<'data, Header, R>,
    names: StringTable<'data>,
    endian: Endianness,
    /// What to add to the addresses in it to get those that the file states.
    bias: u64,
}

fn names_of<'data, R: ReadRef<'data>>(
    image: &Image<'data, R>,
    symbols: &SymbolTable<'data, Header, R>,
) -> StringTable<'data> {
    let section = image.elf.elf_section_table().section(symbols.string_section());
    let bytes = section.and_then(|section| section.data(image.elf.endian(), image.elf.data()));
    bytes.map_or_else(|_| StringTable::default(), |bytes| StringTable::new(bytes, 0, bytes.len() as u64))
}
