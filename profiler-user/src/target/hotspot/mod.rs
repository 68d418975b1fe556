//! The code that the HotSpot JVM makes, and how to walk through it.
//!
//! What it compiles keeps no frame pointer unless it is told to (`-XX:+PreserveFramePointer`), but every function of it has
//! frames of one size, which the JVM notes beside its code for its own walks (`frame::sender_for_compiled_frame` in OpenJDK's
//! src/hotspot/cpu/x86/frame_x86.inline.hpp): the return address ends such a frame, and rbp is saved below that. The
//! interpreter keeps frame pointers, as do the stubs without a size of their own.

mod structs;

mod code;

mod names;

#[cfg(test)]
mod fixture;

use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    sync::Arc,
};

use profiler_common::unwind::{FpRule, Kind, Row};

pub(super) use self::structs::Variables;
use self::{
    code::{Block, INTERPRETER},
    structs::Structs,
};
use super::{
    elf,
    maps::{AddressSpace, Content},
    words::Words,
};

/// The file that is the JVM.
const NAME: &str = "/libjvm.so";

/// What leads to a JVM's own records, where a file under this path is one.
pub(super) fn variables(path: &str, file: &File) -> Option<Variables> {
    path.ends_with(NAME).then(|| Variables::of(file))?
}

/// A frame has the return address and the caller's rbp, and less than a stack.
const FRAME_WORDS: std::ops::RangeInclusive<u32> = 2..=1 << 20;

/// The JVM of a process.
#[derive(Debug)]
pub(super) struct HotSpot {
    words: Words,
    structs: Structs,
    /// Blocks of which rows were given, with the pcs.
    given: HashMap<Block, BTreeSet<u64>>,
    /// Names of pcs that were not asked for yet.
    names: Vec<(u64, Arc<str>)>,
}

impl HotSpot {
    /// Finds it, where `variables` knows those of a module; `None` where a process has none, or one that has just begun.
    pub(super) fn find<'file>(
        pid: u32,
        space: &AddressSpace,
        variables: impl Fn(usize) -> Option<&'file Variables>,
    ) -> Option<Self> {
        let (variables, bias) = space.current().find_map(|range| {
            let Content::Module(module) = range.content else { return None };
            let variables = variables(module)?;
            let file = space.modules().get(module)?.file.as_deref()?;
            let stated = elf::address_at(file, range.offset).ok().flatten()?;
            Some((variables, range.start.wrapping_sub(stated)))
        })?;
        let words = Words::of(pid).ok()?;
        let structs = Structs::read(variables, bias, &words)?;
        tracing::debug!(pid, ?structs, "a JVM");
        Some(Self { words, structs, given: HashMap::new(), names: Vec::new() })
    }

    /// The row at a return address; `None` where the JVM has no code.
    pub(super) fn row(&mut self, pc: u64) -> Option<Row> {
        let block = Block::find(pc.checked_sub(1)?, &self.structs, &self.words)?;
        self.given.entry(block).or_default().insert(pc);
        let kind = block.kind(&self.words);
        if let Some(name) =
            kind.as_ref().and_then(|kind| names::name(&block, kind, &self.structs, &self.words))
        {
            self.names.push((pc, name.into()));
        }
        if FRAME_WORDS.contains(&block.frame_words) {
            let cfa_offset_bytes = i32::try_from(8 * block.frame_words).ok()?;
            return Some(Row::new(Kind::Sp, FpRule::AtCfa, -2, cfa_offset_bytes));
        }
        let is_interpreter = kind.is_some_and(|kind| kind == INTERPRETER);
        Some(if is_interpreter { Row::INTERPRETER } else { Row::FRAME_POINTER })
    }

    /// What the code is called at the pcs of which rows were given since the last time.
    pub(super) fn take_names(&mut self) -> Vec<(u64, Arc<str>)> {
        std::mem::take(&mut self.names)
    }

    /// Takes back the rows of code that has gone; gives their pcs.
    pub(super) fn take_back(&mut self) -> Vec<u64> {
        let Self { words, structs, given, .. } = self;
        given.extract_if(|block, _| !block.is_there(structs, words)).flat_map(|(_, pcs)| pcs).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{
        fixture::{Image, LOW, STRUCTS},
        *,
    };

    fn at(segment: u64) -> u64 {
        LOW + 128 * segment + 100
    }

    #[test]
    fn rows_are_as_the_code_that_they_are_of() {
        let image = Image::with_heap();
        image.block(1, 2, false, 12);
        image.block(3, 2, true, 0);
        image.block(5, 1, false, 0);
        image.block(6, 1, false, u32::MAX.into());
        let mut hotspot =
            HotSpot { words: image.read(), structs: STRUCTS, given: HashMap::new(), names: Vec::new() };
        assert_eq!(hotspot.row(at(1)), Some(Row::new(Kind::Sp, FpRule::AtCfa, -2, 96)));
        assert_eq!(hotspot.row(at(3)), Some(Row::INTERPRETER));
        assert_eq!(hotspot.row(at(5)), Some(Row::FRAME_POINTER));
        assert_eq!(hotspot.row(at(6)), Some(Row::FRAME_POINTER), "no frame is that large");
        assert_eq!(hotspot.row(at(7)), None);
        assert_eq!(hotspot.row(0), None);
        let names: Vec<(u64, String)> =
            hotspot.take_names().into_iter().map(|(pc, name)| (pc, name.to_string())).collect();
        assert_eq!(names, [(at(3), "Interpreter".to_owned())], "the others have no method");
        assert!(hotspot.take_names().is_empty());
    }

    #[test]
    fn rows_of_code_that_has_gone_are_taken_back_once() {
        let image = Image::with_heap();
        image.block(1, 2, false, 12);
        image.block(3, 2, false, 14);
        let mut hotspot =
            HotSpot { words: image.read(), structs: STRUCTS, given: HashMap::new(), names: Vec::new() };
        for pc in [at(1), at(1) + 8, at(1), at(3)] {
            hotspot.row(pc).unwrap();
        }
        assert!(hotspot.take_back().is_empty());
        image.block(1, 1, false, 20);
        assert_eq!(hotspot.take_back(), [at(1), at(1) + 8]);
        assert!(hotspot.take_back().is_empty());
        assert_eq!(hotspot.row(at(1)), Some(Row::new(Kind::Sp, FpRule::AtCfa, -2, 160)));
    }
}
