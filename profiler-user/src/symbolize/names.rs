//! Names for the frames of a heap, looked up in the files that were mapped.

use std::{
    collections::{BTreeSet, HashMap},
    ffi::OsStr,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::Arc,
};

use blazesym::symbolize::{CodeInfo, Input, Sym, Symbolized, Symbolizer, source};

use super::demangle::demangle;
use crate::{
    source::{RawFrame, RawHeap},
    target::maps::{Content, Module, Range},
};

/// A function.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Function {
    /// Its readable name.
    pub name: String,
    /// Its name as the linker knows it.
    pub system_name: String,
    /// Its source file; empty where that is not known.
    pub file: String,
}

/// A line of a function; several stand at one address where functions were inlined.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Line {
    /// The function.
    pub function: Arc<Function>,
    /// The line's number; 0 where that is not known.
    pub number: u32,
}

/// The names found so far. Kept from one look at a heap to the next, so that each address is looked up once.
#[derive(Debug, Default)]
pub struct Names {
    /// By the file, as a place in `AddressSpace::modules`, and the offset in it.
    lines: HashMap<(usize, u64), Vec<Line>>,
}

impl Names {
    /// Looks up every frame of a heap that was not looked up before.
    pub fn resolve(&mut self, heap: &RawHeap) {
        let mut wanted: HashMap<usize, BTreeSet<u64>> = HashMap::new();
        for frame in heap.stacks.iter().flat_map(|stack| &stack.frames) {
            let Some((module, offset)) = place(frame, heap.space.ranges()) else { continue };
            if !self.lines.contains_key(&(module, offset)) {
                wanted.entry(module).or_default().insert(offset);
            }
        }
        for (index, offsets) in wanted {
            let offsets: Vec<u64> = offsets.into_iter().collect();
            let found = heap.space.modules().get(index).map(|module| look_up(module, &offsets));
            let mut found = found.unwrap_or_default().into_iter();
            for offset in offsets {
                self.lines.insert((index, offset), found.next().unwrap_or_default());
            }
        }
    }

    /// The lines at a frame, innermost inlined function first; empty where it has no name.
    pub fn lines(&self, frame: &RawFrame, ranges: &[Range]) -> &[Line] {
        place(frame, ranges).and_then(|place| self.lines.get(&place)).map_or(&[], Vec::as_slice)
    }
}

/// The file and the offset in it of the call that a frame returns to.
fn place(frame: &RawFrame, ranges: &[Range]) -> Option<(usize, u64)> {
    let range = ranges.get(frame.range?)?;
    let Content::Module(module) = range.content else { return None };
    let call = frame.address.checked_sub(1)?;
    Some((module, call.checked_sub(range.start)?.checked_add(range.offset)?))
}

/// The lines at each offset of a file, in the same order; short where the file could not be read.
fn look_up(module: &Module, offsets: &[u64]) -> Vec<Vec<Line>> {
    let Some(path) = module.held_path() else { return Vec::new() };
    // The file is the target's and may be made to confuse. What that does to the library stays here.
    let found = catch_unwind(AssertUnwindSafe(|| {
        let symbolizer = Symbolizer::builder()
            .enable_code_info(true)
            .enable_inlined_fns(true)
            .enable_demangling(false)
            .build();
        let elf = source::Source::Elf(source::Elf::new(path));
        let symbols = symbolizer.symbolize(&elf, Input::FileOffset(offsets))?;
        Ok::<_, blazesym::Error>(symbols.iter().map(lines_of).collect())
    }));
    match found {
        Ok(Ok(lines)) => lines,
        Ok(Err(error)) => {
            tracing::warn!(file = module.path, "no names: {error:#}");
            Vec::new()
        }
        Err(_) => {
            tracing::warn!(file = module.path, "no names: its debug information is broken");
            Vec::new()
        }
    }
}

fn lines_of(symbolized: &Symbolized<'_>) -> Vec<Line> {
    let Symbolized::Sym(symbol) = symbolized else { return Vec::new() };
    let Sym { name, code_info, inlined, .. } = symbol;
    // The library lists inlined functions from the outside in.
    let inlined = inlined.iter().rev().map(|inlined| line(&inlined.name, inlined.code_info.as_ref()));
    inlined.chain([line(name, code_info.as_deref())]).collect()
}

fn line(name: &str, code: Option<&CodeInfo<'_>>) -> Line {
    let file = code.map(|code| file_name(code.dir.as_deref(), &code.file)).unwrap_or_default();
    let readable = demangle(name).unwrap_or_else(|| name.to_owned());
    let function = Function { name: readable, system_name: name.to_owned(), file };
    Line { function: Arc::new(function), number: code.and_then(|code| code.line).unwrap_or_default() }
}

fn file_name(directory: Option<&Path>, file: &OsStr) -> String {
    let path = directory.map_or_else(|| Path::new(file).to_owned(), |directory| directory.join(file));
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use profiler_common::unwind::WalkEnd;

    use super::*;
    use crate::{source::RawStack, target::maps::AddressSpace};

    #[inline(never)]
    fn a_function_of_ours() -> u64 {
        std::hint::black_box(1)
    }

    #[test]
    fn a_function_of_ours_has_its_name_and_file_and_an_address_outside_has_none() {
        let mut space = AddressSpace::default();
        space.refresh(std::process::id()).unwrap();
        let address = a_function_of_ours as fn() -> u64 as usize as u64 + 1;
        let known = RawFrame { address, range: space.find(address) };
        let outside = RawFrame { address: 1, range: None };
        let stack = RawStack { frames: vec![known, outside], end: WalkEnd::Whole };
        let heap = RawHeap { stacks: vec![stack], space, ..RawHeap::empty() };
        let mut names = Names::default();
        names.resolve(&heap);
        let lines = names.lines(&known, heap.space.ranges());
        let outermost = lines.last().expect("our own tests have debug information");
        assert!(outermost.function.name.ends_with("a_function_of_ours"), "{outermost:?}");
        assert!(outermost.function.file.ends_with("names.rs"), "{outermost:?}");
        assert!(outermost.number > 0, "{outermost:?}");
        assert_eq!(names.lines(&outside, heap.space.ranges()), []);
    }
}
