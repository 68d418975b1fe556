//! A file that is read where a parser asks for it, and only so much of it.
//!
//! The file belongs to a target, is as long as the target likes (a hole costs nothing) and says of its parts what the
//! target likes. It is not mapped: a mapped file that is cut short while it is read kills the reader.

use std::{cell::Cell, fs::File, io, ops::Range, os::unix::fs::FileExt};

use elsa::FrozenMap;
use object::ReadRef;

/// What one part may have. Chromium's symbol table has 50 MiB, its `.eh_frame` 20.
pub(crate) const PART_LIMIT_BYTES: u64 = 256 << 20;

/// What all parts that are read of one file may have together.
const WHOLE_LIMIT_BYTES: u64 = 512 << 20;

/// Names longer than this are none.
const STRING_LIMIT_BYTES: u64 = 16 << 10;

/// Small parts and strings are read by so much at a time, for others lie beside them: the names of sections and of functions.
const BLOCK_BYTES: u64 = 4096;

/// A file that is read where it is asked for. What was read stays as it was, and is not read again.
pub(crate) struct BoundedFile<'file> {
    file: &'file File,
    length_bytes: u64,
    /// By number; the last may be shorter.
    blocks: FrozenMap<u64, Box<[u8]>>,
    /// What lies in several blocks.
    parts: FrozenMap<(u64, u64), Box<[u8]>>,
    strings: FrozenMap<(u64, u8), Box<[u8]>>,
    /// What may still be read.
    left_bytes: Cell<u64>,
    /// The size of the last part that was too large.
    refused_bytes: Cell<Option<u64>>,
}

impl<'file> BoundedFile<'file> {
    /// The file, as long as it is now.
    ///
    /// Reads leave the descriptor's own position alone, so that several threads can read one file.
    pub(crate) fn new(file: &'file File) -> Self {
        Self {
            file,
            length_bytes: file.metadata().map_or(0, |metadata| metadata.len()),
            blocks: FrozenMap::new(),
            parts: FrozenMap::new(),
            strings: FrozenMap::new(),
            left_bytes: Cell::new(WHOLE_LIMIT_BYTES),
            refused_bytes: Cell::new(None),
        }
    }

    /// The file itself.
    pub(crate) const fn file(&self) -> &'file File {
        self.file
    }

    /// The bytes from an offset on, of which nobody keeps more than the blocks that they lie in: for many small ones, and for
    /// large ones that are asked for once.
    pub(crate) fn copy(&self, offset: u64, count: usize) -> io::Result<Vec<u8>> {
        let size_bytes = count as u64;
        let end = offset.checked_add(size_bytes).filter(|end| *end <= self.length_bytes);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        if size_bytes > 0 && offset / BLOCK_BYTES == (end - 1) / BLOCK_BYTES {
            let part = self.part(offset, size_bytes).ok_or(io::ErrorKind::UnexpectedEof)?;
            return Ok(part.to_vec());
        }
        let mut bytes = vec![0; count];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// The size of a part that was asked for and too large to be read.
    pub(crate) fn refused_bytes(&self) -> Option<u64> {
        self.refused_bytes.get()
    }

    fn is_inside(&self, range: &Range<u64>) -> bool {
        range.start <= range.end && range.end <= self.length_bytes
    }

    fn spend(&self, count: u64) -> Option<()> {
        let left = self.left_bytes.get().checked_sub(count).filter(|_| count <= PART_LIMIT_BYTES);
        if left.is_none() {
            self.refused_bytes.set(Some(count));
        }
        self.left_bytes.set(left?);
        Some(())
    }

    fn block(&self, number: u64) -> Option<&[u8]> {
        if let Some(known) = self.blocks.get(&number) {
            return Some(known);
        }
        let start = number.checked_mul(BLOCK_BYTES)?;
        let count = self.length_bytes.checked_sub(start)?.min(BLOCK_BYTES);
        self.spend(count)?;
        let mut bytes = vec![0; usize::try_from(count).ok()?];
        self.file.read_exact_at(&mut bytes, start).ok()?;
        Some(self.blocks.insert(number, bytes.into_boxed_slice()))
    }

    /// What lies behind an offset in its block.
    fn rest_of_block(&self, offset: u64) -> Option<&[u8]> {
        self.block(offset / BLOCK_BYTES)?.get(usize::try_from(offset % BLOCK_BYTES).ok()?..)
    }

    fn part(&self, offset: u64, count: u64) -> Option<&[u8]> {
        if let Some(known) = self.parts.get(&(offset, count)) {
            return Some(known);
        }
        if !self.is_inside(&(offset..offset.checked_add(count)?)) {
            return None;
        }
        if offset % BLOCK_BYTES + count <= BLOCK_BYTES {
            return self.rest_of_block(offset)?.get(..usize::try_from(count).ok()?);
        }
        self.spend(count)?;
        let mut bytes = vec![0; usize::try_from(count).ok()?];
        self.file.read_exact_at(&mut bytes, offset).ok()?;
        Some(self.parts.insert((offset, count), bytes.into_boxed_slice()))
    }

    fn string(&self, range: Range<u64>, delimiter: u8) -> Option<&[u8]> {
        if !self.is_inside(&range) {
            return None;
        }
        let rest = self.rest_of_block(range.start)?;
        if let Some(length) = rest.iter().position(|byte| *byte == delimiter) {
            return rest.get(..length).filter(|_| (length as u64) < range.end - range.start);
        }
        let known = self.strings.get(&(range.start, delimiter));
        let known = known.or_else(|| {
            let found = self.read_until(range.clone(), delimiter)?;
            Some(self.strings.insert((range.start, delimiter), found.into_boxed_slice()))
        })?;
        // The same string may have been asked for with another end.
        (known.len() as u64 <= range.end - range.start).then_some(known)
    }

    fn read_until(&self, range: Range<u64>, delimiter: u8) -> Option<Vec<u8>> {
        let end = range.end.min(range.start.saturating_add(STRING_LIMIT_BYTES));
        let mut string = Vec::new();
        let mut at = range.start;
        while at < end {
            let rest = self.rest_of_block(at)?;
            let piece = rest.get(..usize::try_from(end - at).ok()?).unwrap_or(rest);
            if let Some(length) = piece.iter().position(|byte| *byte == delimiter) {
                string.extend_from_slice(piece.get(..length)?);
                self.spend(string.len() as u64)?;
                return Some(string);
            }
            string.extend_from_slice(piece);
            at += piece.len() as u64;
        }
        None
    }
}

impl<'data> ReadRef<'data> for &'data BoundedFile<'_> {
    fn len(self) -> Result<u64, ()> {
        Ok(self.length_bytes)
    }

    fn read_bytes_at(self, offset: u64, size: u64) -> Result<&'data [u8], ()> {
        if size == 0 { Ok(&[]) } else { self.part(offset, size).ok_or(()) }
    }

    fn read_bytes_at_until(self, range: Range<u64>, delimiter: u8) -> Result<&'data [u8], ()> {
        self.string(range, delimiter).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allocations::largest;

    fn file(content: &[u8]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(content, 0).unwrap();
        file
    }

    #[test]
    fn parts_and_strings_are_read_inside_the_file_only() {
        let file = file(b"one\0two\0three");
        let bounded = &BoundedFile::new(&file);
        assert_eq!(bounded.read_bytes_at(4, 3), Ok(&b"two"[..]));
        assert_eq!(bounded.read_bytes_at(0, 13), Ok(&b"one\0two\0three"[..]));
        assert_eq!(bounded.read_bytes_at(0, 14), Err(()));
        assert_eq!(bounded.read_bytes_at(u64::MAX, 2), Err(()));
        assert_eq!(bounded.read_bytes_at(u64::MAX, 0), Ok(&[][..]));
        assert_eq!(bounded.read_bytes_at_until(4..13, 0), Ok(&b"two"[..]));
        assert_eq!(bounded.read_bytes_at_until(4..6, 0), Err(()), "its end lies outside");
        assert_eq!(bounded.read_bytes_at_until(8..13, 0), Err(()), "it has none");
        assert_eq!(bounded.read_bytes_at_until(8..14, 0), Err(()));
        assert_eq!(bounded.read_bytes_at_until(Range { start: 8, end: 4 }, 0), Err(()));
    }

    #[test]
    fn copies_are_as_the_file_is_and_lie_inside_it() {
        let content: Vec<u8> = (0..=u8::MAX).cycle().take(3 * BLOCK_BYTES as usize).collect();
        let file = file(&content);
        let bounded = &BoundedFile::new(&file);
        for (offset, count) in [(0, 1), (4090, 6), (4090, 7), (4096, 4096), (1, 12_287), (12_288, 0), (7, 0)]
        {
            let end = usize::try_from(offset).unwrap() + count;
            assert_eq!(bounded.copy(offset, count).unwrap(), content[end - count..end], "{offset} {count}");
        }
        for (offset, count) in [(12_288, 1), (0, 12_289), (u64::MAX, 1), (u64::MAX, 0), (1, usize::MAX)] {
            assert!(bounded.copy(offset, count).is_err(), "{offset} {count}");
        }
    }

    #[test]
    fn what_was_read_stays_though_the_file_changes_and_what_was_cut_off_is_an_error() {
        let mut content = vec![b' '; 2 * BLOCK_BYTES as usize];
        content[..6].copy_from_slice(b"before");
        content.extend(b"after");
        let file = file(&content);
        let bounded = &BoundedFile::new(&file);
        let behind = 2 * BLOCK_BYTES;
        assert_eq!(bounded.read_bytes_at(0, 6), Ok(&b"before"[..]));
        assert_eq!(bounded.read_bytes_at(0, BLOCK_BYTES + 1).map(<[u8]>::len), Ok(4097));
        file.set_len(3).unwrap();
        assert_eq!(bounded.read_bytes_at(0, 6), Ok(&b"before"[..]));
        assert_eq!(bounded.read_bytes_at(0, BLOCK_BYTES + 1).map(<[u8]>::len), Ok(4097));
        assert_eq!(bounded.read_bytes_at(behind, 5), Err(()));
        assert_eq!(bounded.read_bytes_at(behind - 1, 5), Err(()));
        assert_eq!(bounded.read_bytes_at_until(behind..behind + 5, b'r'), Err(()));
    }

    #[test]
    fn a_string_may_be_long_but_not_endless() {
        let mut content = vec![b'x'; 20 << 10];
        content[10_000] = 0;
        let file = file(&content);
        let bounded = &BoundedFile::new(&file);
        assert_eq!(bounded.read_bytes_at_until(0..20_000, 0).map(<[u8]>::len), Ok(10_000));
        assert_eq!(bounded.read_bytes_at_until(0..10_001, 0).map(<[u8]>::len), Ok(10_000));
        assert_eq!(bounded.read_bytes_at_until(0..9_999, 0), Err(()));
        // The same within a block.
        assert_eq!(bounded.read_bytes_at_until(9_000..10_001, 0).map(<[u8]>::len), Ok(1_000));
        assert_eq!(bounded.read_bytes_at_until(9_000..10_000, 0), Err(()));
        assert_eq!(bounded.read_bytes_at_until(10_000..10_001, 0), Ok(&[][..]));
        content[10_000] = b'x';
        file.write_all_at(&content, 0).unwrap();
        assert_eq!(BoundedFile::new(&file).read_until(0..20_000, 0), None);
    }

    #[test]
    fn a_part_that_only_a_hole_has_room_for_is_refused_before_memory_is_taken_for_it() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 42).unwrap();
        let bounded = &BoundedFile::new(&file);
        let (read, largest_bytes) = largest(|| bounded.read_bytes_at(0, 1 << 40).is_ok());
        assert!(!read);
        assert!(largest_bytes < 1 << 10, "{largest_bytes}");
        assert_eq!(bounded.refused_bytes(), Some(1 << 40));
        // Nor do many parts of a size that is fine come to more.
        let read = (0..1000_u64).take_while(|at| bounded.read_bytes_at(at << 32, 8 << 20).is_ok()).count();
        assert_eq!(read, 64);
    }
}
