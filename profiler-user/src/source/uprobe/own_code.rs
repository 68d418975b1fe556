//! The allocators' own code: what it maps is where blocks lie, which are counted by themselves.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    path::Path,
};

use super::stacks::lookup;
use crate::{
    source::RawStack,
    target::{
        allocator::Allocator,
        maps::{AddressSpace, Content, Module},
    },
};

/// The code of the allocators that are probed.
#[derive(Clone, Debug, Default)]
pub(super) struct OwnCode {
    /// To where calls return that allocators make, as offsets in the files of modules.
    calls: HashMap<usize, BTreeSet<u64>>,
    /// Modules that are an allocator and nothing else.
    whole: HashSet<usize>,
}

impl OwnCode {
    /// Adds an allocator's code; the process runs the program `exe`, which has other code as well.
    pub(super) fn add(&mut self, allocator: &Allocator, space: &AddressSpace, exe: &Path) {
        let module = allocator.module;
        // What sbrk calls for malloc it calls for the program as well. Within malloc it is known anyway whose call it is, and a
        // C library's free maps nothing.
        if allocator.family.is_in_c_library {
            return;
        }
        self.calls.entry(module).or_default().extend(&allocator.calls.all);
        let is_program = |module: &Module| Path::new(&module.path) == exe;
        if allocator.family.fills_libraries && !space.modules().get(module).is_none_or(is_program) {
            self.whole.insert(module);
        }
    }

    /// Whether a stack leads through such code, or its leaf is in a module that is nothing else.
    pub(super) fn is_in(&self, stack: &RawStack, space: &AddressSpace) -> bool {
        stack.frames.iter().enumerate().any(|(depth, frame)| {
            let Some(range) = frame.range().and_then(|range| space.ranges().get(range)) else { return false };
            let Content::Module(module) = range.content else { return false };
            // A return address may lie behind the range that its call is in.
            let call = lookup(frame.address).wrapping_sub(range.start).wrapping_add(range.offset);
            (depth == 0 && self.whole.contains(&module))
                || self.calls.get(&module).is_some_and(|calls| calls.contains(&call.wrapping_add(1)))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use profiler_common::unwind::WalkEnd;

    use super::*;
    use crate::{source::RawFrame, target::maps::Range};

    #[test]
    fn an_allocator_is_told_by_where_its_calls_return_to_and_a_library_of_one_by_its_leaf() {
        let range = |start, module| Range {
            start,
            end: start + 0x1000,
            offset: 0x2000,
            content: Content::Module(module),
        };
        let space = AddressSpace::of(Vec::new(), vec![range(0x10_000, 0), range(0x20_000, 1)]);
        let stack = |addresses: &[u64]| {
            let frame = |&address| RawFrame::new(address, space.find(lookup(address)));
            let frames: Arc<[RawFrame]> = addresses.iter().map(frame).collect();
            RawStack { frames, end: WalkEnd::Whole }
        };
        let calls = HashMap::from([(0, BTreeSet::from([0x2100, 0x3000]))]);
        let own = OwnCode { calls, whole: HashSet::from([1]) };
        for (addresses, is_own) in [
            (&[0x10_050, 0x10_100][..], true),
            (&[0x11_000], true),
            (&[0x10_101], false),
            (&[0x20_100, 0x10_050], true),
            (&[0x10_050, 0x20_100], false),
            (&[0x9000], false),
            (&[], false),
        ] {
            assert_eq!(own.is_in(&stack(addresses), &space), is_own, "{addresses:x?}");
        }
    }
}
