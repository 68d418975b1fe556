//! The code of a file that is looked through: its sections, its functions' ends, and where its stubs lead.

use std::{
    cell::OnceCell,
    collections::{BTreeSet, HashMap},
    fs::File,
    ops::Range,
};

use super::{
    cfi::UnwindInfo,
    elf::{self, Code},
    functions::Functions,
    returns::{self, Part},
    site,
};

/// What a file says of its code.
pub(super) struct Text<'file> {
    file: &'file File,
    /// The sections looked at so far, with where jumps in them lead.
    sections: Vec<(Code, BTreeSet<u64>)>,
    /// Where its functions are, once that was asked for: most files have no allocator.
    unwind: OnceCell<Option<UnwindInfo>>,
    /// What the loader writes where, as addresses, once that was asked for.
    slots: Option<HashMap<u64, u64>>,
}

/// `endbr64; bnd jmp [rip+…]`
const STUB_BYTES: usize = 11;

impl<'file> Text<'file> {
    pub(super) fn new(file: &'file File) -> Self {
        Self { file, sections: Vec::new(), unwind: OnceCell::new(), slots: None }
    }

    /// Where a jump to an offset leads: to itself, or, where that is a stub for a function of this file, to that function.
    pub(super) fn behind_stub(&mut self, offset: u64, functions: &Functions) -> Option<u64> {
        let code = elf::read_at(self.file, offset, STUB_BYTES).ok();
        let slot = code.and_then(|code| returns::stub_slot(&code, functions.address_at(offset)?));
        let Some(slot) = slot else { return Some(offset) };
        let slots = self.slots.get_or_insert_with(|| elf::imports_of_own(self.file).unwrap_or_default());
        functions.offset_of(*slots.get(&slot)?)
    }

    /// The function, or part of one, that holds an address, by the file's unwind information.
    pub(super) fn described(&self, address: u64) -> Option<Range<u64>> {
        self.unwind.get_or_init(|| UnwindInfo::load(self.file).ok().flatten()).as_ref()?.function_at(address)
    }

    /// The function, or part of one, that holds an offset, if it has no more than `most_bytes`.
    pub(super) fn part(&self, offset: u64, most_bytes: u64, functions: &Functions) -> Option<Part> {
        let address = functions.address_at(offset)?;
        let described = self.described(address);
        // musl has no unwind information.
        let described = described.or_else(|| functions.range_at(address))?;
        let start = functions.offset_of(described.start)?;
        let size_bytes = described.end.checked_sub(described.start).filter(|size| *size <= most_bytes)?;
        let bytes = elf::read_at(self.file, start, usize::try_from(size_bytes).ok()?).ok()?;
        Some(Part { range: start..start.checked_add(size_bytes)?, bytes })
    }

    pub(super) fn section(&mut self, offset: u64) -> Option<&(Code, BTreeSet<u64>)> {
        let holds = |code: &Code| {
            offset.checked_sub(code.offset).is_some_and(|inside| inside < code.bytes.len() as u64)
        };
        let place = match self.sections.iter().position(|(code, _)| holds(code)) {
            Some(place) => place,
            None => {
                let code = elf::code_around(self.file, offset).ok().flatten()?;
                let targets = site::branch_targets(&code);
                self.sections.push((code, targets));
                self.sections.len() - 1
            }
        };
        self.sections.get(place)
    }
}
