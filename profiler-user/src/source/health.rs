//! How whole the stacks of a heap are: by allocations, by reason, and by where they ended.

use std::collections::BTreeMap;

use profiler_common::unwind::WalkEnd;

use super::{RawHeap, RawStack, StackRef};
use crate::target::maps::Content;

/// How whole the stacks of a heap are. Counts are of allocations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// By how their stacks ended.
    pub by_end: BTreeMap<WalkEnd, u64>,
    /// Those whose stacks broke, by the reason and the file in which they did.
    pub broken: BTreeMap<(WalkEnd, String), u64>,
    /// Those whose stack is not known at all.
    pub unknown: u64,
}

impl Health {
    /// The health of a heap.
    pub fn of(heap: &RawHeap) -> Self {
        let mut health = Self::default();
        for entry in heap.entries.iter().filter(|entry| !entry.is_inherited) {
            let allocations = entry.totals.alloc_objects;
            let stack = match entry.stack {
                StackRef::Known(index) => heap.stacks.get(index),
                StackRef::Overflow | StackRef::Unsent => None,
            };
            let Some(stack) = stack else {
                health.unknown += allocations;
                continue;
            };
            *health.by_end.entry(stack.end).or_default() += allocations;
            if !matches!(stack.end, WalkEnd::Whole | WalkEnd::Cut) {
                *health.broken.entry((stack.end, last_file(heap, stack))).or_default() += allocations;
            }
        }
        health
    }

    /// Allocations whose stack is whole, and all of them.
    pub fn whole_of_all(&self) -> (u64, u64) {
        let whole = self.by_end.get(&WalkEnd::Whole).copied().unwrap_or_default();
        (whole, self.by_end.values().sum::<u64>() + self.unknown)
    }
}

/// The file that a stack's last frame lies in.
fn last_file(heap: &RawHeap, stack: &RawStack) -> String {
    let range = stack.frames.last().and_then(|frame| heap.space.ranges().get(frame.range()?));
    match range.map(|range| &range.content) {
        Some(Content::Module(index)) => {
            heap.space.modules().get(*index).map_or_else(String::new, |module| module.path.clone())
        }
        Some(Content::Unnamed(name)) if name.is_empty() => "code made at run time".to_owned(),
        Some(Content::Unnamed(name)) => name.clone(),
        None => "no mapping".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use profiler_common::heap::Totals;

    use super::*;
    use crate::source::{RawEntry, RawFrame};

    #[test]
    fn allocations_are_counted_by_the_end_of_their_stacks() {
        let stack = |end| RawStack { frames: [RawFrame::new(1, None)].into(), end };
        let entry = |stack, alloc_objects| RawEntry {
            is_inherited: false,
            stack,
            allocator: 1,
            totals: Totals { alloc_objects, ..Totals::default() },
        };
        let heap = RawHeap {
            stacks: vec![stack(WalkEnd::Whole), stack(WalkEnd::NoCode), stack(WalkEnd::Cut)],
            entries: vec![
                entry(StackRef::Known(0), 90),
                entry(StackRef::Known(1), 5),
                entry(StackRef::Known(2), 3),
                entry(StackRef::Known(0), 1),
                entry(StackRef::Unsent, 1),
            ],
            ..RawHeap::empty()
        };
        let health = Health::of(&heap);
        assert_eq!(health.whole_of_all(), (91, 100));
        assert_eq!(health.by_end[&WalkEnd::Cut], 3);
        assert_eq!(health.broken, BTreeMap::from([((WalkEnd::NoCode, "no mapping".to_owned()), 5)]));
    }
}
