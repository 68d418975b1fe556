//! The code of a file that is looked through: its sections, its functions' ends, and where its stubs lead.

use std::{cell::OnceCell, collections::HashMap, ops::Range};

use super::{
    bounded::BoundedFile,
    cfi::UnwindInfo,
    elf::{self, Code},
    functions::Functions,
    returns::{self, Part},
    site::Targets,
};

/// What a file says of its code.
pub(super) struct Text<'content, 'file> {
    content: &'content BoundedFile<'file>,
    /// The sections looked at so far, with where jumps in them lead.
    sections: Vec<(Code, Targets)>,
    /// Where its functions are, once that was asked for: most files have no allocator.
    unwind: OnceCell<Option<UnwindInfo>>,
    /// What the loader writes where, as addresses, once that was asked for.
    slots: Option<HashMap<u64, u64>>,
}

/// `endbr64; bnd jmp [rip+…]`
const STUB_BYTES: usize = 11;

impl<'content, 'file> Text<'content, 'file> {
    pub(super) const fn new(content: &'content BoundedFile<'file>) -> Self {
        Self { content, sections: Vec::new(), unwind: OnceCell::new(), slots: None }
    }

    /// Where a jump to an offset leads: to itself, or, where that is a stub for a function of this file, to that function.
    pub(super) fn behind_stub(&mut self, offset: u64, functions: &Functions) -> Option<u64> {
        let code = elf::copy_of(self.content, offset, STUB_BYTES).ok();
        let slot = code.and_then(|code| returns::stub_slot(&code, functions.address_at(offset)?));
        let Some(slot) = slot else { return Some(offset) };
        let slots = self.slots.get_or_insert_with(|| elf::imports_of_own(self.content).unwrap_or_default());
        functions.offset_of(*slots.get(&slot)?)
    }

    /// The function, or part of one, that holds an address, by the file's unwind information.
    pub(super) fn described(&self, address: u64) -> Option<Range<u64>> {
        self.unwind
            .get_or_init(|| UnwindInfo::load_from(self.content).ok().flatten())
            .as_ref()?
            .function_at(address)
    }

    /// The function, or part of one, that holds an offset, if it has no more than `most_bytes`.
    pub(super) fn part(&self, offset: u64, most_bytes: u64, functions: &Functions) -> Option<Part> {
        let address = functions.address_at(offset)?;
        let described = self.described(address);
        // musl has no unwind information.
        let described = described.or_else(|| functions.range_at(address))?;
        let start = functions.offset_of(described.start)?;
        let size_bytes = described.end.checked_sub(described.start).filter(|size| *size <= most_bytes)?;
        let bytes = elf::copy_of(self.content, start, usize::try_from(size_bytes).ok()?).ok()?;
        Some(Part { range: start..start.checked_add(size_bytes)?, bytes })
    }

    pub(super) fn section(&mut self, offset: u64) -> Option<&(Code, Targets)> {
        let holds = |code: &Code| {
            offset.checked_sub(code.offset).is_some_and(|inside| inside < code.bytes.len() as u64)
        };
        let place = match self.sections.iter().position(|(code, _)| holds(code)) {
            Some(place) => place,
            None => {
                let code = elf::code_in(self.content, offset).ok().flatten()?;
                let targets = Targets::of(&code);
                self.sections.push((code, targets));
                self.sections.len() - 1
            }
        };
        self.sections.get(place)
    }
}
