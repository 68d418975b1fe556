//! Names from symbol tables, by what the tables really say.
//!
//! A symbol names the addresses inside its size and no others: the function behind it may be one that the table
//! leaves out. A table that leaves none out also lets a symbol without a size, as hand-written assembly has them,
//! name what follows it, up to the next symbol and not far.

use std::sync::Arc;

use object::{
    Endianness, ReadRef, SymbolIndex,
    elf::{SHF_EXECINSTR, SHN_UNDEF, STB_GLOBAL, STB_WEAK, STT_FUNC, STT_GNU_IFUNC, STT_NOTYPE},
    read::{
        StringTable,
        elf::{SectionHeader, Sym, SymbolTable},
    },
};

use crate::target::image::Image;

type Header = object::elf::FileHeader64<Endianness>;

/// How far a symbol without a size reaches at most.
const SIZELESS_LIMIT_BYTES: u64 = 4 << 10;

/// How many times a symbol may be found to hold an address, over all of a file's tables: a table in which every
/// symbol holds every address would take very long.
const WORK_LIMIT: u64 = 32 << 20;

/// Names longer than this are cut: real ones stay below.
const NAME_LIMIT_BYTES: usize = 16 << 10;

/// Which of a file's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    /// `.symtab`, which has every function.
    Whole,
    /// `.dynsym`, which has only those that others may use.
    Dynamic,
}

/// The names found so far for a set of addresses.
#[derive(Debug)]
pub(super) struct Search<'wanted> {
    /// The addresses, rising.
    wanted: &'wanted [u64],
    found: Vec<Found>,
    work: u64,
}

#[derive(Clone, Debug, Default)]
struct Found {
    /// The best symbol that holds the address.
    sized: Option<Candidate>,
    /// The last symbol without a size from here up to the address.
    sizeless: Option<Candidate>,
    /// Where the last symbol that has a size begins.
    last_sized: Option<u64>,
    /// Where the last symbol of any kind begins.
    last: Option<u64>,
}

#[derive(Clone, Debug)]
struct Candidate {
    start: u64,
    /// First address behind what it names.
    end: u64,
    rank: u8,
    name: Arc<str>,
}

impl<'wanted> Search<'wanted> {
    /// Nothing is found yet for `wanted`, which must rise.
    pub(super) fn new(wanted: &'wanted [u64]) -> Self {
        Self { wanted, found: vec![Found::default(); wanted.len()], work: 0 }
    }

    /// Looks through a table. `bias` is what to add to the file's addresses to get those that are wanted.
    pub(super) fn look_through<'data, R: ReadRef<'data>>(
        &mut self,
        image: &Image<'data, R>,
        table: Table,
        bias: u64,
    ) {
        let symbols = match table {
            Table::Whole => image.elf.elf_symbol_table(),
            Table::Dynamic => image.elf.elf_dynamic_symbol_table(),
        };
        for (index, symbol) in symbols.enumerate() {
            if self.work > WORK_LIMIT {
                tracing::warn!("a symbol table is not read to its end: its symbols hold one another");
                return;
            }
            self.consider(image, symbols, (index, symbol), table, bias);
        }
    }

    fn consider<'data, R: ReadRef<'data>>(
        &mut self,
        image: &Image<'data, R>,
        symbols: &SymbolTable<'data, Header, R>,
        (index, symbol): (SymbolIndex, &object::elf::Sym64<Endianness>),
        table: Table,
        bias: u64,
    ) -> Option<()> {
        let endian = image.elf.endian();
        if !matches!(symbol.st_type(), STT_FUNC | STT_GNU_IFUNC | STT_NOTYPE) {
            return None;
        }
        if symbol.st_shndx(endian) == SHN_UNDEF {
            return None;
        }
        let start = symbol.st_value(endian).wrapping_add(bias);
        let size = symbol.st_size(endian);
        let from = self.wanted.partition_point(|address| *address < start);
        // Nothing is wanted behind it.
        self.wanted.get(from)?;
        let section = symbols.symbol_section(endian, symbol, index).ok()??;
        let section = image.elf.elf_section_table().section(section).ok()?;
        if !section.sh_flags(endian).contains(SHF_EXECINSTR) {
            return None;
        }
        if size > 0 {
            let end = start.checked_add(size)?;
            let to = self.wanted.partition_point(|address| *address < end);
            let name = (from < to).then(|| name(symbols.strings(), symbol)).flatten();
            if let Some(name) = name {
                let candidate = Candidate { start, end, rank: rank(symbol, &name), name };
                for found in self.found.get_mut(from..to)? {
                    self.work += 1;
                    if found.sized.as_ref().is_none_or(|known| candidate.is_better_than(known)) {
                        found.sized = Some(candidate.clone());
                    }
                }
            }
        }
        let first = self.found.get_mut(from)?;
        if size > 0 {
            first.last_sized = first.last_sized.max(Some(start));
        } else if table == Table::Whole && first.last.is_none_or(|last| start >= last) {
            let section_end =
                section.sh_addr(endian).wrapping_add(bias).saturating_add(section.sh_size(endian));
            let end = start.saturating_add(SIZELESS_LIMIT_BYTES).min(section_end);
            let name = name(symbols.strings(), symbol)?;
            let candidate = Candidate { start, end, rank: rank(symbol, &name), name };
            if first.sizeless.as_ref().is_none_or(|known| candidate.is_better_than(known)) {
                first.sizeless = Some(candidate);
            }
        }
        first.last = first.last.max(Some(start));
        Some(())
    }

    /// The name of each address, as the linker knows it, in their order.
    pub(super) fn finish(self) -> Vec<Option<Arc<str>>> {
        let (mut sizeless, mut last_sized, mut last) = (None::<Candidate>, None, None);
        let wanted = self.wanted.iter();
        wanted
            .zip(self.found)
            .map(|(address, found)| {
                // What was noted at the first address behind a symbol holds for the later ones as well.
                if found.sizeless.is_some() {
                    sizeless = found.sizeless;
                }
                last_sized = last_sized.max(found.last_sized);
                last = last.max(found.last);
                if let Some(sized) = found.sized {
                    return Some(sized.name);
                }
                let candidate = sizeless.as_ref()?;
                let is_last = last == Some(candidate.start) && last_sized < last;
                (is_last && *address < candidate.end).then(|| Arc::clone(&candidate.name))
            })
            .collect()
    }
}

impl Candidate {
    /// The inner one of two that hold an address, and of two names for the same function the public one.
    fn is_better_than(&self, other: &Self) -> bool {
        (self.start, self.rank, &other.name) > (other.start, other.rank, &self.name)
    }
}

/// How well a name stands for a function that has several: `malloc` rather than `__libc_malloc`.
fn rank(symbol: &object::elf::Sym64<Endianness>, name: &str) -> u8 {
    let binding = match symbol.st_bind() {
        STB_GLOBAL => 8,
        STB_WEAK => 4,
        _ => 0,
    };
    let underscores = name.bytes().take_while(|letter| *letter == b'_').take(3).count();
    binding + 3 - u8::try_from(underscores).unwrap_or_default()
}

fn name<'data, R: ReadRef<'data>>(
    strings: StringTable<'data, R>,
    symbol: &object::elf::Sym64<Endianness>,
) -> Option<Arc<str>> {
    let name = symbol.name(Endianness::Little, strings).ok()?;
    let name = String::from_utf8_lossy(name.get(..NAME_LIMIT_BYTES).unwrap_or(name));
    // A version is not part of the name: `malloc@@GLIBC_2.2.5`.
    let plain = match name.find('@') {
        Some(at) if at > 0 => name.get(..at)?,
        _ => &name,
    };
    // Marks that assemblers leave behind.
    (!plain.is_empty() && !plain.starts_with(".L") && !plain.starts_with('$')).then(|| Arc::from(plain))
}
