//! What the search for names and for debug files asks of an ELF file.
//!
//! The file may be made to confuse: see [`super::bounded`].

use std::{
    ffi::OsString,
    os::unix::ffi::OsStringExt,
    path::{Component, Path},
};

use object::{
    Endianness, Object, ObjectSection, ReadRef,
    elf::SHT_NOBITS,
    read::elf::{ElfFile64, SectionHeader},
};

use super::{bounded::BoundedFile, segments::Segments};

/// A file that is read where it is asked for.
pub(crate) type Cache<'file> = BoundedFile<'file>;

/// An ELF file.
pub(crate) struct Image<'data, R: ReadRef<'data>> {
    pub(crate) elf: ElfFile64<'data, Endianness, R>,
}

/// The separate debug file that a file names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DebugLink {
    /// Its name, which is one part of a path.
    pub(crate) name: OsString,
    /// What its content must come to.
    pub(crate) crc: u32,
}

/// Other files that debug information refers to, and that blazesym would open by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Links {
    /// `.gnu_debuglink`.
    pub(crate) debug_file: bool,
    /// `.gnu_debugaltlink` or `.debug_sup`, which `dwz` makes.
    pub(crate) common_file: bool,
}

impl<'data, R: ReadRef<'data>> Image<'data, R> {
    pub(crate) fn parse(data: R) -> object::Result<Self> {
        Ok(Self { elf: ElfFile64::parse(data)? })
    }

    /// Where the file is loaded.
    pub(crate) fn segments(&self) -> Segments {
        Segments::of(self.elf.elf_program_headers(), self.elf.endian())
    }

    /// The debug file that this file names, if it names one by a plain file name as it should.
    pub(crate) fn debug_link(&self) -> Option<DebugLink> {
        let (name, crc) = self.elf.gnu_debuglink().ok()??;
        let name = OsString::from_vec(name.to_vec());
        let mut parts = Path::new(&name).components();
        // Anything but one plain name would lead out of the directories that are searched.
        let is_plain =
            matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == name);
        is_plain.then_some(DebugLink { name, crc })
    }

    pub(crate) fn links(&self) -> Links {
        let has = |name| self.elf.section_by_name(name).is_some();
        Links {
            debug_file: has(".gnu_debuglink"),
            common_file: has(".gnu_debugaltlink") || has(".debug_sup"),
        }
    }

    /// Whether there is DWARF in the file itself.
    pub(crate) fn has_dwarf(&self) -> bool {
        [".debug_info", ".zdebug_info"].into_iter().any(|name| self.has_content(name))
    }

    /// Whether there is a symbol table in the file itself, besides that of the dynamic linker.
    pub(crate) fn has_symbols(&self) -> bool {
        self.has_content(".symtab")
    }

    /// Whether it has anything to name functions by, besides the symbols of the dynamic linker.
    pub(crate) fn tells(&self) -> bool {
        self.has_dwarf() || self.has_symbols()
    }

    pub(crate) fn build_id(&self) -> Option<Vec<u8>> {
        self.elf.build_id().ok().flatten().map(<[u8]>::to_vec)
    }

    fn has_content(&self, name: &str) -> bool {
        let endian = self.elf.endian();
        self.elf.section_by_name(name).is_some_and(|section| {
            section.size() > 0 && section.elf_section_header().sh_type(endian) != SHT_NOBITS
        })
    }
}
