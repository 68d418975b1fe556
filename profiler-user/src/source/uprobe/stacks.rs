//! The stacks seen so far: the kernel knows them by hash only.

use std::{collections::HashMap, sync::Arc};

use profiler_common::{
    counters::{Counter, Counters},
    unwind::WalkEnd,
};

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
    /// How much memory may still be taken for stacks, in bytes.
    left_bytes: u64,
    /// Stacks that were not kept, since there was none left; one that comes again is counted again.
    given_up: u64,
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
    /// None as yet; they are to take no more than `limit_bytes`.
    pub(super) fn new(space: AddressSpace, own_code: OwnCode, limit_bytes: u64) -> Self {
        Self { space, own_code, left_bytes: limit_bytes, ..Self::default() }
    }

    /// What a child process knows at its beginning, which has replaced its program as often as `image` says; where it
    /// `is_empty`, it has done so since it was made.
    pub(super) fn inherited(&self, image: u32, is_empty: bool) -> Self {
        let (space, own_code) = (self.space.clone(), self.own_code.clone());
        if is_empty {
            let mappings = Mappings::default().inherited(image);
            let left_bytes = self.left_bytes;
            return Self {
                space,
                own_code,
                mappings,
                change: Change::Program,
                left_bytes,
                ..Self::default()
            };
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
            left_bytes: self.left_bytes,
            given_up: 0,
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
        let frames = pcs.map(|address| RawFrame::new(address, self.space.find(lookup(address)))).collect();
        let stack = RawStack { frames, end };
        // One stack may come under several ids before the kernel has learned to walk it.
        let known = self.by_content.get(&stack).copied();
        let taken_bytes = ID_BYTES + if known.is_some() { 0 } else { size_bytes(&stack) };
        let Some(left_bytes) = self.left_bytes.checked_sub(taken_bytes) else {
            self.given_up += 1;
            return;
        };
        self.left_bytes = left_bytes;
        let index = known.unwrap_or_else(|| {
            self.stacks.push(stack.clone());
            self.by_content.insert(stack, self.stacks.len() - 1);
            self.stacks.len() - 1
        });
        self.by_hash.insert(hash, index);
    }

    /// What user space has counted.
    pub(super) fn counters(&self) -> Counters {
        let mut counters = *self.mappings.counters();
        counters.add(Counter::UnkeptStacks, self.given_up);
        counters
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

/// What an id takes: its entry in a hash table that may have grown to twice of what it needs.
const ID_BYTES: u64 = 2 * size_of::<(u64, usize)>() as u64;

/// What a stack takes: its frames with their reference counts, its place in the list and in a hash table, which may have
/// grown to twice of what they need.
fn size_bytes(stack: &RawStack) -> u64 {
    let counts = 2 * size_of::<usize>();
    let places = 2 * (size_of::<RawStack>() + size_of::<(RawStack, usize)>());
    (size_of_val(&*stack.frames) + counts + places) as u64
}

/// The address to look a return address up by: it may already belong to the next function, or to nothing.
pub(super) const fn lookup(return_address: u64) -> u64 {
    return_address.saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(limit_bytes: u64) -> StackTable {
        StackTable::new(AddressSpace::default(), OwnCode::default(), limit_bytes)
    }

    #[test]
    fn no_more_stacks_are_kept_than_there_is_room_for_and_those_that_are_not_are_counted() {
        let pid = std::process::id();
        let mut table =
            table(ID_BYTES + size_bytes(&RawStack { frames: [].into(), end: WalkEnd::Whole }) + 100);
        table.insert(pid, 7, [1, 2].into_iter(), WalkEnd::Whole);
        table.insert(pid, 8, [1, 2].into_iter(), WalkEnd::Whole);
        table.insert(pid, 9, [1, 3].into_iter(), WalkEnd::Whole);
        assert_eq!((table.find(7), table.find(8), table.find(9)), (Some(0), Some(0), None));
        assert_eq!(table.counters().get(Counter::UnkeptStacks), 1);
    }

    #[test]
    fn the_mappings_are_looked_at_once_after_code_has_gone() {
        let mut table = table(1 << 20);
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
        let mut table = table(1 << 20);
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
