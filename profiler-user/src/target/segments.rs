//! Where the bytes of a file are loaded: offsets in it become addresses, as the file states them, and back.

use object::{
    Endianness,
    elf::{PF_X, PT_LOAD},
    read::elf::ProgramHeader,
};

/// A stretch of the file that is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) offset: u64,
    pub(crate) address: u64,
    pub(crate) size_bytes: u64,
    pub(crate) is_executable: bool,
}

/// The kernel runs no program with more headers than fit 64 KiB (`load_elf_phdrs` in fs/binfmt_elf.c).
const LIMIT: usize = (64 << 10) / 56;

/// The stretches of a file that are loaded (ELF gABI, chapter 5: address = offset − p_offset + p_vaddr).
#[derive(Clone, Debug, Default)]
pub(crate) struct Segments(Vec<Segment>);

impl Segment {
    fn address_at(&self, offset: u64) -> Option<u64> {
        let inside = offset.checked_sub(self.offset)?;
        (inside < self.size_bytes).then(|| self.address.checked_add(inside)).flatten()
    }

    fn rest_from(&self, address: u64) -> Option<(u64, u64)> {
        let inside = address.checked_sub(self.address)?;
        let rest = self.size_bytes.checked_sub(inside).filter(|rest| *rest > 0)?;
        Some((self.offset.checked_add(inside)?, rest))
    }
}

impl Segments {
    /// What the program headers say.
    pub(crate) fn of<H: ProgramHeader<Endian = Endianness, Word = u64>>(
        headers: &[H],
        endian: Endianness,
    ) -> Self {
        let loaded = headers.iter().filter(|header| header.p_type(endian) == PT_LOAD);
        let segment = |header: &H| Segment {
            offset: header.p_offset(endian),
            address: header.p_vaddr(endian),
            size_bytes: header.p_filesz(endian),
            is_executable: header.p_flags(endian).contains(PF_X),
        };
        Self(loaded.take(LIMIT).map(segment).collect())
    }

    /// The address of the byte at an offset in the file; `None` where that is not loaded.
    ///
    /// Where two segments share a page the code's counts: what is asked about are program counters.
    pub(crate) fn address_at(&self, offset: u64) -> Option<u64> {
        let executable = self.0.iter().filter(|segment| segment.is_executable);
        let other = self.0.iter().filter(|segment| !segment.is_executable);
        executable.chain(other).find_map(|segment| segment.address_at(offset))
    }

    /// The offset in the file of the byte at an address, and how many bytes of its segment there are from there on.
    pub(crate) fn rest_from(&self, address: u64) -> Option<(u64, u64)> {
        self.0.iter().find_map(|segment| segment.rest_from(address))
    }

    /// The address from which the file wants to be loaded.
    pub(crate) fn base(&self) -> Option<u64> {
        self.0.iter().map(|segment| segment.address).min()
    }

    /// The same where the file wants to be loaded from another address on; as it is where either has no address.
    pub(crate) fn moved_to(mut self, base: Option<u64>) -> Self {
        if let Some((from, to)) = self.base().zip(base) {
            for segment in &mut self.0 {
                segment.address = segment.address.wrapping_sub(from).wrapping_add(to);
            }
        }
        self
    }

    /// What is loaded, in the order of the file's headers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Segment> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(offset: u64, address: u64, size_bytes: u64, is_executable: bool) -> Segment {
        Segment { offset, address, size_bytes, is_executable }
    }

    #[test]
    fn offsets_become_addresses_and_back() {
        let segments =
            Segments(vec![segment(0, 0x40_0000, 0x800, false), segment(0x1000, 0x40_2000, 0x500, true)]);
        assert_eq!(segments.address_at(0x7ff), Some(0x40_07ff));
        assert_eq!(segments.address_at(0x800), None);
        assert_eq!(segments.address_at(0x1010), Some(0x40_2010));
        assert_eq!(segments.rest_from(0x40_2010), Some((0x1010, 0x4f0)));
        assert_eq!(segments.rest_from(0x40_2500), None);
        assert_eq!(segments.base(), Some(0x40_0000));
    }

    #[test]
    fn bytes_that_are_loaded_twice_are_code() {
        let segments = Segments(vec![segment(0, 0, 0x1100, false), segment(0x1000, 0x2000, 0x500, true)]);
        assert_eq!(segments.address_at(0x1050), Some(0x2050));
        assert_eq!(segments.address_at(0xfff), Some(0xfff));
    }

    #[test]
    fn a_file_that_was_moved_has_its_segments_elsewhere() {
        let segments =
            || Segments(vec![segment(0, 0x1000, 0x500, true), segment(0x500, 0x3000, 0x500, false)]);
        assert_eq!(segments().moved_to(Some(0x40_0000)).address_at(0x510), Some(0x40_2010));
        assert_eq!(segments().moved_to(Some(0)).address_at(0x10), Some(0x10));
        assert_eq!(segments().moved_to(None).address_at(0x10), Some(0x1010));
        assert_eq!(Segments::default().moved_to(Some(1)).base(), None);
    }

    #[test]
    fn numbers_that_overflow_lead_nowhere() {
        let segments = Segments(vec![segment(u64::MAX - 4, u64::MAX - 2, u64::MAX, true)]);
        assert_eq!(segments.address_at(u64::MAX), None);
        assert_eq!(segments.address_at(u64::MAX - 4), Some(u64::MAX - 2));
        assert_eq!(segments.rest_from(u64::MAX), Some((u64::MAX - 2, u64::MAX - 2)));
        assert_eq!(Segments::default().base(), None);
    }
}
