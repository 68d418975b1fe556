//! A copy of a part of a stack, as the kernel side sends it: with pages missing, and perhaps cut.

use std::{cell::Cell, ops::Range};

use profiler_common::unwind::ReadMemory;

use super::records::Copied;

const PAGE_BYTES: u64 = 4096;

const WORD_BYTES: usize = size_of::<u64>();

/// The memory from an address on.
#[derive(Debug)]
pub(super) struct StackCopy {
    start: u64,
    bytes: Vec<u8>,
    /// What of `bytes` is not the target's, as offsets: pages that were not there.
    holes: Vec<Range<usize>>,
    /// Whether the stack goes on behind `bytes`.
    is_cut: bool,
    /// How much was read: up to here from the beginning.
    read_bytes: Cell<usize>,
    /// Whether something behind the copy was wanted.
    was_missed: Cell<bool>,
}

impl StackCopy {
    /// The first piece, which begins at `start`.
    pub(super) fn new(start: u64, first: Copied<'_>) -> Self {
        let mut copy = Self {
            start,
            bytes: Vec::new(),
            holes: Vec::new(),
            is_cut: false,
            read_bytes: Cell::default(),
            was_missed: Cell::default(),
        };
        copy.extend(first);
        copy
    }

    /// Takes the piece that follows.
    pub(super) fn extend(&mut self, next: Copied<'_>) {
        let offset = self.bytes.len();
        // Where a page begins, the first page is a whole one.
        let first = self.start.saturating_add(offset as u64);
        let in_page = usize::try_from(first % PAGE_BYTES).unwrap_or_default();
        let page_bytes = PAGE_BYTES as usize;
        for page in (0..32).filter(|page| next.missing & (1 << page) != 0) {
            let end = page_bytes * (page + 1) - in_page;
            let begin = if page == 0 { 0 } else { end - page_bytes };
            if begin < next.bytes.len() {
                self.holes.push(offset + begin..offset + end.min(next.bytes.len()));
            }
        }
        self.bytes.extend_from_slice(next.bytes);
        self.is_cut = next.is_cut;
    }

    /// Whether something was wanted that lies behind the copy and may be there.
    pub(super) fn was_missed(&self) -> bool {
        self.was_missed.get()
    }

    /// Forgets what was read so far, for [`StackCopy::words_read`].
    pub(super) fn forget_what_was_read(&self) {
        self.read_bytes.set(0);
    }

    /// The words up to the last that was read; `None` for each that is not there.
    pub(super) fn words_read(&self) -> Vec<Option<u64>> {
        self.words_to(self.read_bytes.get())
    }

    /// All words; `None` for each that is not there.
    pub(super) fn words(&self) -> Vec<Option<u64>> {
        self.words_to(self.bytes.len())
    }

    fn words_to(&self, end: usize) -> Vec<Option<u64>> {
        (0..end / WORD_BYTES).map(|word| self.get(word * WORD_BYTES)).collect()
    }

    fn get(&self, offset: usize) -> Option<u64> {
        let end = offset.checked_add(WORD_BYTES)?;
        let word = self.bytes.get(offset..)?.first_chunk()?;
        let is_missing = self.holes.iter().any(|hole| hole.start < end && offset < hole.end);
        (!is_missing).then(|| u64::from_ne_bytes(*word))
    }
}

impl ReadMemory for StackCopy {
    fn read_word(&self, address: u64) -> Option<u64> {
        let offset = usize::try_from(address.checked_sub(self.start)?).ok()?;
        let end = offset.checked_add(WORD_BYTES)?;
        if end > self.bytes.len() && self.is_cut {
            self.was_missed.set(true);
        }
        let word = self.get(offset)?;
        self.read_bytes.set(self.read_bytes.get().max(end));
        Some(word)
    }

    fn read_pair(&self, address: u64) -> Option<[u64; 2]> {
        Some([self.read_word(address)?, self.read_word(address.checked_add(8)?)?])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copied(bytes: &[u8], missing: u32) -> Copied<'_> {
        Copied { bytes, missing, is_cut: false }
    }

    #[test]
    fn words_are_read_inside_the_copy_only() {
        let bytes: Vec<u8> = (0..24).collect();
        let copy = StackCopy::new(0x1000, copied(&bytes, 0));
        assert_eq!(copy.read_word(0x1000), Some(0x0706_0504_0302_0100));
        assert_eq!(copy.words_read().len(), 1);
        assert_eq!(copy.read_pair(0x1008).map(|pair| pair[1]), copy.read_word(0x1010));
        assert_eq!(copy.read_word(0xfff), None);
        assert_eq!(copy.read_word(0x1011), None);
        assert_eq!(copy.read_pair(0x1010), None);
        assert_eq!(copy.read_pair(u64::MAX), None);
        assert_eq!(copy.words_read().len(), 3);
        assert!(!copy.was_missed(), "there is nothing behind it");
    }

    #[test]
    fn what_is_behind_a_cut_copy_is_missed() {
        let copy = StackCopy::new(0x1000, Copied { bytes: &[7; 24], missing: 0, is_cut: true });
        assert_eq!(copy.read_word(0xff8), None);
        assert!(!copy.was_missed());
        assert_eq!(copy.read_word(0x1018), None);
        assert!(copy.was_missed());
    }

    #[test]
    fn pages_that_were_not_there_cannot_be_read() {
        // The first piece begins in the middle of a page; its second page is missing, and the first of the next piece.
        let mut copy = StackCopy::new(0x1800, copied(&[1; 0x800 + 0x2000], 0b10));
        copy.extend(copied(&[2; 0x1000], 0b1));
        for (address, is_there) in [
            (0x1800, true),
            (0x1ff8, true),
            (0x1ffc, false),
            (0x2000, false),
            (0x2ff8, false),
            (0x3000, true),
            (0x3ff8, true),
            (0x4000, false),
            (0x4ff8, false),
        ] {
            assert_eq!(copy.read_word(address).is_some(), is_there, "{address:#x}");
        }
        assert_eq!(copy.words().iter().filter(|word| word.is_none()).count(), 0x2000 / 8);
        // A page that is missing behind the last byte is no page of the copy.
        let short = StackCopy::new(0x1800, copied(&[1; 0x800], 0b10));
        assert_eq!(short.words().len(), 0x100);
        assert!(short.words().iter().all(Option::is_some));
    }
}
