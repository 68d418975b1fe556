//! Unwind rows from a file's call frame information (CFI).
//!
//! CFI says for every address of code how the caller's registers follow from those of the frame (DWARF 5, section
//! 6.4; for `.eh_frame` the Linux Standard Base, chapter "Exception Frames"). This module finds the rule for one
//! address and writes it as a [`Row`], so that the kernel can follow it.
//!
//! The files belong to the target: nothing in them makes a root process panic, hang or use memory without bound.

mod convert;

mod expression;

mod image;

mod index;

mod search_table;

mod table;

#[cfg(test)]
mod assemble;

#[cfg(test)]
mod compared_with_readelf;

#[cfg(test)]
mod hostile;

use std::{fs::File, io, ops::Range};

use profiler_common::unwind::{Row, WalkEnd};

use self::{image::Parts, table::Table};

use super::{bounded::BoundedFile, elf::ElfError, segments::Segments};

/// Why a file's unwind information cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CfiError {
    /// It is no ELF file, or a broken one.
    #[error("broken ELF file")]
    Broken(#[source] object::Error),
    /// Its code is for another machine.
    #[error("code for machine {machine}, not for x86-64")]
    Machine {
        /// The number of the machine (ELF's `e_machine`).
        machine: u16,
    },
    /// A part is larger than any real one, and too large to read.
    #[error("`{part}` of {size_bytes} bytes is larger than the {limit_bytes} that are read")]
    TooLarge {
        /// The part.
        part: &'static str,
        /// Its size.
        size_bytes: u64,
        /// What is read at most.
        limit_bytes: u64,
    },
    /// A part cannot be read.
    #[error("cannot read `{part}`")]
    Read {
        /// The part.
        part: &'static str,
        /// Why not.
        #[source]
        source: ElfError,
    },
    /// A part lies outside the image.
    #[error("`{part}` is not within the image's {size_bytes} bytes")]
    Outside {
        /// The part.
        part: &'static str,
        /// The size of the image.
        size_bytes: usize,
    },
    /// A compressed part cannot be unpacked.
    #[error("cannot decompress `{part}`")]
    Compressed {
        /// The part.
        part: &'static str,
        /// What the decompressor said.
        #[source]
        source: io::Error,
    },
    /// A part is compressed in a way that this version does not know.
    #[error("`{part}` is compressed by method {method}")]
    Method {
        /// The part.
        part: &'static str,
        /// The number of the method (ELF's `ch_type`).
        method: u32,
    },
}

/// What a file says about how to get from each of its functions to the caller.
#[derive(Debug)]
pub struct UnwindInfo {
    /// `.eh_frame` first: it is what exceptions are thrown by, so that somebody has noticed when it was wrong.
    tables: Vec<Table>,
    segments: Segments,
    entry: u64,
    is_go: bool,
}

/// Where there is no CFI, this much from the entry point on is taken for `_start`, which nothing called.
///
/// glibc's and musl's have between 20 and 50 bytes.
const START_BYTES: u64 = 64;

/// The code that musl and static programs return from a signal handler by: `mov $15, %rax; syscall`.
const SIGNAL_RETURN: [u8; 9] = [0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05];

/// Whether code that starts with these bytes is a signal trampoline: [`Row::SIGNAL`] where a file says nothing.
pub fn is_signal_return(code: &[u8]) -> bool {
    code.starts_with(&SIGNAL_RETURN)
}

impl UnwindInfo {
    /// Reads what a program or a library says; `None` where it says nothing.
    pub fn load(file: &File) -> Result<Option<Self>, CfiError> {
        Self::load_from(&BoundedFile::new(file))
    }

    /// The same of a file that is being read.
    pub(crate) fn load_from(content: &BoundedFile<'_>) -> Result<Option<Self>, CfiError> {
        Ok(Self::from_parts(Parts::of_file(content)?))
    }

    /// Reads an ELF image that is already in memory.
    pub fn from_image(bytes: Vec<u8>) -> Result<Option<Self>, CfiError> {
        Ok(Self::from_parts(Parts::of_image(&bytes)?))
    }

    /// Reads what was stripped from `file` into a file of its own. Offsets are those in `file`, addresses those that the
    /// separate file states.
    pub fn load_separate(separate: &File, file: &File) -> Result<Option<Self>, CfiError> {
        Self::load_separate_from(separate, &BoundedFile::new(file))
    }

    /// The same where `file` is being read.
    pub(crate) fn load_separate_from(
        separate: &File,
        file: &BoundedFile<'_>,
    ) -> Result<Option<Self>, CfiError> {
        Ok(Self::from_parts(Parts::of_separate(separate, file)?))
    }

    fn from_parts(parts: Parts) -> Option<Self> {
        let Parts { entry, segments, eh_frame, search_table, debug_frame, is_go } = parts;
        let eh_frame = eh_frame.map(|part| Table::eh_frame(part.address, part.bytes, search_table));
        let tables: Vec<Table> = eh_frame.into_iter().chain(debug_frame.map(Table::debug_frame)).collect();
        (is_go || !tables.is_empty()).then_some(Self { tables, segments, entry, is_go })
    }

    /// Whether code that the file says nothing about is Go's.
    pub const fn is_go(&self) -> bool {
        self.is_go
    }

    /// The address, as the file states it, of the byte at an offset in the file.
    pub fn svma_of(&self, file_offset: u64) -> Option<u64> {
        self.segments.address_at(file_offset)
    }

    /// How to get to the caller of the code at `svma`, an address as the file states it: for a return address, that
    /// of the byte before it.
    ///
    /// Code that the file says nothing about has [`WalkEnd::NoUnwindInfo`], what a row cannot express and what is
    /// broken has [`WalkEnd::Unsupported`].
    pub fn row(&self, svma: u64) -> Row {
        if let Some(row) = self.told(svma) {
            return row;
        }
        if self.is_in_start(svma) { Row::END } else { Row::stop(WalkEnd::NoUnwindInfo) }
    }

    /// What the file itself says about the code at `svma`; `None` where it says nothing.
    pub fn told(&self, svma: u64) -> Option<Row> {
        self.tables.iter().find_map(|table| table.row(svma))
    }

    /// The function, or the part of one, that holds the code at `svma`, as the file describes it: its first address, and the
    /// first behind it.
    pub fn function_at(&self, svma: u64) -> Option<Range<u64>> {
        self.tables.iter().find_map(|table| table.function_at(svma))
    }

    /// How much memory it takes, in bytes.
    pub fn size_bytes(&self) -> usize {
        self.tables.iter().map(Table::size_bytes).sum()
    }

    fn is_in_start(&self, svma: u64) -> bool {
        // The byte before the first instruction stands for it where `_start` was interrupted there.
        let first = self.entry.saturating_sub(1);
        self.entry != 0 && svma.checked_sub(first).is_some_and(|distance| distance <= START_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use profiler_common::unwind::{FpRule, Kind};

    use super::*;
    use crate::target::elf::exported_address;

    #[test]
    fn an_offset_becomes_the_address_of_its_segment() {
        let file = File::open("/usr/bin/env").expect("a program");
        let info = UnwindInfo::load(&file).unwrap().expect("it has unwind information");
        let code = info.segments.iter().find(|segment| segment.is_executable).expect("code");
        assert_eq!(info.svma_of(code.offset + 5), Some(code.address + 5));
        assert_eq!(info.svma_of(u64::MAX), None);
    }

    #[test]
    fn an_image_without_section_headers_tells_the_same() {
        let path = "/lib/x86_64-linux-gnu/libc.so.6";
        let file = File::open(path).expect("Debian's libc");
        let malloc = exported_address(&file, "malloc").unwrap().expect("malloc");
        let mut image = std::fs::read(path).unwrap();
        let whole = UnwindInfo::load(&file).unwrap().expect("unwind information");
        // e_shoff, then e_shentsize, e_shnum and e_shstrndx.
        image[40..48].fill(0);
        image[58..64].fill(0);
        let stripped = UnwindInfo::from_image(image).unwrap().expect("unwind information");
        for svma in malloc..malloc + 4096 {
            assert_eq!(stripped.row(svma), whole.row(svma), "{svma:#x}");
        }
    }

    #[test]
    fn code_at_the_entry_point_that_nothing_describes_is_the_outermost() {
        let info =
            UnwindInfo { tables: Vec::new(), segments: Segments::default(), entry: 0x1000, is_go: false };
        assert_eq!(info.row(0xfff), Row::END);
        assert_eq!(info.row(0x1000), Row::END);
        assert_eq!(info.row(0x103f), Row::END);
        assert_eq!(info.row(0x1040), Row::stop(WalkEnd::NoUnwindInfo));
        assert_eq!(info.row(0xffe), Row::stop(WalkEnd::NoUnwindInfo));
    }

    #[test]
    fn a_library_without_an_entry_point_has_no_outermost_code() {
        let info = UnwindInfo { tables: Vec::new(), segments: Segments::default(), entry: 0, is_go: false };
        assert_eq!(info.row(0), Row::stop(WalkEnd::NoUnwindInfo));
    }
    #[test]
    fn the_vdso_tells_from_memory() {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let Some(line) = maps.lines().find(|line| line.ends_with("[vdso]")) else { return };
        let (start, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        let [start, end] = [start, end].map(|digits| u64::from_str_radix(digits, 16).unwrap());
        let mut image = vec![0; usize::try_from(end - start).unwrap()];
        File::open("/proc/self/mem").unwrap().read_exact_at(&mut image, start).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&image, 0).unwrap();
        let function = exported_address(&file, "__vdso_clock_gettime").unwrap().expect("the vDSO's function");
        let info = UnwindInfo::from_image(image).unwrap().expect("the vDSO has unwind information");
        assert_eq!(info.row(function), Row::new(Kind::Sp, FpRule::Unchanged, 0, 8));
    }

    #[test]
    fn a_separate_file_tells_by_what_was_stripped_from_the_other() {
        let mut frames = assemble::EhFrame::new().function(0x1000, 16, &[]).finish();
        // As `.debug_frame` writes it: the CIE's id is −1, and offsets of CIEs count from the section's start.
        let fde = 4 + usize::from(frames[0]);
        frames[4..8].fill(0xff);
        frames[fde + 4..fde + 8].fill(0);
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&assemble::elf_with_section(".debug_frame", 0, &frames), 0).unwrap();
        let info = UnwindInfo::load_separate(&file, &file).unwrap().expect("a section");
        assert_eq!(info.row(0x1000), Row::new(Kind::Sp, FpRule::Unchanged, 0, 8));
        let nothing = tempfile::tempfile().unwrap();
        nothing.write_all_at(&assemble::elf_with_section(".text", 0, b"code"), 0).unwrap();
        assert!(UnwindInfo::load(&nothing).unwrap().is_none());
    }

    #[test]
    fn libc_returns_from_signal_handlers_through_its_trampoline() {
        let path = "/lib/x86_64-linux-gnu/libc.so.6";
        let image = std::fs::read(path).expect("Debian's libc");
        let offset = image.windows(9).position(is_signal_return).expect("the trampoline");
        let info = UnwindInfo::from_image(image).unwrap().expect("unwind information");
        let svma = info.svma_of(u64::try_from(offset).unwrap()).expect("it is loaded");
        assert_eq!(info.row(svma - 1), Row::SIGNAL);
        assert_eq!(info.row(svma), Row::SIGNAL);
    }
}
