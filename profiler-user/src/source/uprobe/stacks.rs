//! The stacks seen so far: the kernel knows them by hash only.

use std::{collections::HashMap, sync::Arc};

use profiler_common::unwind::WalkEnd;

use super::{
    mappings::{MappingChange, Mappings},
    own_code::OwnCode,
};
use crate::{
    source::{RawFrame, RawStack},
    target::maps::AddressSpace,
};

/// Stacks by hash, with what was mapped at their frames when they were first seen.
#[derive(Debug, Default)]
pub(super) struct StackTable {
    pub(super) space: AddressSpace,
    /// What the program has mapped itself.
    pub(super) mappings: Mappings,
    /// What the allocators' code is, whose mappings are not the program's.
    pub(super) own_code: OwnCode,
    /// What code that was made at run time is called, by return address, where who made it has said so.
    pub(super) made: HashMap<u64, Arc<str>>,
    /// What has changed since it was looked at.
    change: Change,
    stacks: Vec<RawStack>,
    by_hash: HashMap<u64, usize>,
    by_content: HashMap<RawStack, usize>,
}

/// What may have changed of what is mapped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Change {
    /// Nothing is known to have changed.
    #[default]
    Nothing,
    /// Code was unmapped.
    Code,
    /// The program may be another.
    Program,
}

impl StackTable {
    pub(super) fn new(space: AddressSpace, own_code: OwnCode) -> Self {
        Self { space, own_code, ..Self::default() }
    }

    /// What a child process knows at its beginning, which has replaced its program as often as `image` says; where it
    /// `is_empty`, it has done so since it was made.
    pub(super) fn inherited(&self, image: u32, is_empty: bool) -> Self {
        let (space, own_code) = (self.space.clone(), self.own_code.clone());
        if is_empty {
            let mappings = Mappings::default().inherited(image);
            return Self { space, own_code, mappings, change: Change::Program, ..Self::default() };
        }
        Self {
            space,
            own_code,
            mappings: self.mappings.inherited(image),
            made: self.made.clone(),
            // The kernel's page of hijacked return addresses is not inherited.
            change: self.change.max(Change::Code),
            stacks: self.stacks.clone(),
            by_hash: self.by_hash.clone(),
            by_content: self.by_content.clone(),
        }
    }

    /// Has the mappings looked at before the next stack is filed: code was unmapped, or is about to be.
    pub(super) fn code_has_gone(&mut self) {
        self.change = self.change.max(Change::Code);
    }

    /// Has the mappings looked at before the next stack is filed, which may be of another program.
    pub(super) fn program_has_gone(&mut self) {
        self.change = Change::Program;
    }

    /// Looks at the mappings of the process `pid` where something has changed since.
    pub(super) fn bring_up_to_date(&mut self, pid: u32) {
        match std::mem::take(&mut self.change) {
            Change::Nothing => {}
            Change::Code => self.space.look_again(pid),
            Change::Program => {
                if let Err(error) = self.space.refresh(pid) {
                    tracing::debug!(pid, %error, "mappings not read again");
                }
            }
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

    /// Takes in a change of mappings; those that an allocator makes are not counted.
    pub(super) fn change_mappings(&mut self, change: MappingChange) {
        let stack = self.find(change.site.stack).and_then(|place| self.stacks.get(place));
        let is_own = stack.is_some_and(|stack| self.own_code.is_in(stack, &self.space));
        self.mappings.apply(change, !is_own);
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
