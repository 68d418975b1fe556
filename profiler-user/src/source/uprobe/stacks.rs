//! The stacks seen so far: the kernel knows them by hash only.

use std::collections::HashMap;

use profiler_common::unwind::WalkEnd;

use crate::{
    source::{RawFrame, RawStack},
    target::maps::AddressSpace,
};

/// Stacks by hash, with what was mapped at their frames when they were first seen.
#[derive(Debug, Default)]
pub(super) struct StackTable {
    pub(super) space: AddressSpace,
    /// Whether code was unmapped since it was looked at.
    is_outdated: bool,
    stacks: Vec<RawStack>,
    by_hash: HashMap<u64, usize>,
    by_content: HashMap<RawStack, usize>,
}

impl StackTable {
    pub(super) fn new(space: AddressSpace) -> Self {
        Self { space, ..Self::default() }
    }

    /// Has the mappings looked at before the next stack is filed: code was unmapped, or is about to be.
    pub(super) fn code_has_gone(&mut self) {
        self.is_outdated = true;
    }

    /// Looks at the mappings of the process `pid` where code was unmapped since.
    pub(super) fn bring_up_to_date(&mut self, pid: u32) {
        if std::mem::take(&mut self.is_outdated) {
            self.space.look_again(pid);
        }
    }

    /// Files a stack of the process `pid`. Known ones come again, once for each size class.
    ///
    /// Looks at the process's mappings where a frame lies in none that is known.
    pub(super) fn insert(
        &mut self,
        pid: u32,
        hash: u64,
        pcs: impl Iterator<Item = u64> + Clone,
        end: WalkEnd,
    ) {
        if self.is_known(hash) {
            return;
        }
        self.bring_up_to_date(pid);
        let is_unknown = |address| self.space.find(lookup(address)).is_none();
        if pcs.clone().any(is_unknown) {
            self.space.look_again(pid);
        }
        let frames =
            pcs.map(|address| RawFrame { address, range: self.space.find(lookup(address)) }).collect();
        let stack = RawStack { frames, end };
        // One stack may come under several ids before the kernel has learned to walk it.
        let next = self.stacks.len();
        let index = *self.by_content.entry(stack).or_insert_with_key(|stack| {
            self.stacks.push(stack.clone());
            next
        });
        self.by_hash.insert(hash, index);
    }

    /// Whether a stack was filed under this hash.
    pub(super) fn is_known(&self, hash: u64) -> bool {
        self.by_hash.contains_key(&hash)
    }

    /// The place of the stack with this hash in [`StackTable::stacks`].
    pub(super) fn find(&self, hash: u64) -> Option<usize> {
        self.by_hash.get(&hash).copied()
    }

    pub(super) fn stacks(&self) -> &[RawStack] {
        &self.stacks
    }
}

/// The address to look a return address up by: it may already belong to the next function, or to nothing.
pub(super) const fn lookup(return_address: u64) -> u64 {
    return_address.saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mappings_are_looked_at_once_after_code_has_gone() {
        let mut table = StackTable::default();
        let pid = std::process::id();
        table.insert(pid, 7, [].into_iter(), WalkEnd::Whole);
        assert!(table.space.ranges().is_empty(), "there was nothing to look for");
        table.code_has_gone();
        table.code_has_gone();
        table.insert(pid, 8, [].into_iter(), WalkEnd::Cut);
        assert!(table.space.ranges().len() > 1);
        table.space = AddressSpace::default();
        table.insert(pid, 9, [].into_iter(), WalkEnd::Cut);
        assert!(table.space.ranges().is_empty(), "once is enough");
    }

    #[test]
    fn a_stack_is_filed_once_and_found_by_its_hash() {
        let mut table = StackTable::default();
        let pid = std::process::id();
        table.insert(pid, 7, [1, 2].into_iter(), WalkEnd::Whole);
        table.insert(pid, 7, [3].into_iter(), WalkEnd::Cut);
        table.insert(pid, 8, [3].into_iter(), WalkEnd::Cut);
        assert_eq!(table.find(7), Some(0));
        assert_eq!(table.find(8), Some(1));
        assert_eq!(table.find(9), None);
        assert_eq!(table.stacks()[0].frames.len(), 2);
        assert!(table.space.ranges().len() > 1, "our own mappings were looked at");
    }
}
