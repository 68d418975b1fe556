//! Names for the frames of a heap, looked up in the files that were mapped.

use std::{
    collections::{BTreeSet, HashMap},
    path::Path,
};

use super::{
    Options,
    debuginfod::Debuginfod,
    jit::Jit,
    line::Line,
    module::{Found, Sources},
};
use crate::{
    source::{RawFrame, RawHeap},
    target::{
        debug_file::{DebugFile, Finder},
        elf::is_elf,
        image::{Cache, Image},
        maps::{Content, Module, Range},
        root::Root,
    },
};

/// The names found so far. Kept from one look at a heap to the next, so that each address is looked up once.
#[derive(Debug, Default)]
pub struct Names {
    options: Options,
    /// By the file, as a place in `AddressSpace::modules`, and the offset in it.
    lines: HashMap<(usize, u64), Vec<Line>>,
    /// The debug files of the mapped files, by the same places; `None` where there is none.
    debug_files: HashMap<usize, Option<DebugFile>>,
    /// The target's root directory, kept for when it has ended.
    root: Option<Root>,
    jit: Jit,
    debuginfod: Option<Debuginfod>,
    remarks: BTreeSet<String>,
}

impl Names {
    /// No names yet, for a process that is alive: what leads to its files is noted while it is.
    pub fn new(pid: u32, options: Options) -> Self {
        let mut names = Self { options, debuginfod: Debuginfod::from_environment(), ..Self::default() };
        names.meet(pid);
        names
    }

    /// Looks up every frame of a heap that was not looked up before.
    pub fn resolve(&mut self, heap: &RawHeap) {
        self.meet(heap.pid);
        let mut wanted: HashMap<usize, BTreeSet<u64>> = HashMap::new();
        for frame in heap.stacks.iter().flat_map(|stack| stack.frames.iter()) {
            let Some((module, offset)) = place(frame, heap.space.ranges()) else { continue };
            if !self.lines.contains_key(&(module, offset)) {
                wanted.entry(module).or_default().insert(offset);
            }
        }
        for (index, offsets) in wanted {
            let offsets: Vec<u64> = offsets.into_iter().collect();
            let found = heap.space.modules().get(index).map(|module| self.look_up(index, module, &offsets));
            let mut found = found.unwrap_or_default().into_iter();
            for offset in offsets {
                self.lines.insert((index, offset), found.next().unwrap_or_default());
            }
        }
        let made = heap.stacks.iter().flat_map(|stack| stack.frames.iter());
        let made: BTreeSet<u64> = made
            .filter(|frame| may_be_made(frame, heap))
            .filter_map(|frame| frame.address.checked_sub(1))
            .collect();
        let told = heap.made.iter().filter_map(|(pc, name)| Some((pc.checked_sub(1)?, &**name)));
        self.jit.take(told);
        self.jit.resolve(self.root.as_ref(), made);
    }

    /// Why names are missing that there should be.
    pub fn remarks(&self) -> impl Iterator<Item = &str> {
        self.remarks.iter().map(String::as_str)
    }

    /// The lines at a frame, innermost inlined function first; empty where it has no name.
    pub fn lines(&self, frame: &RawFrame, ranges: &[Range]) -> &[Line] {
        let known =
            place(frame, ranges).and_then(|place| self.lines.get(&place)).map_or(&[][..], Vec::as_slice);
        match frame.address.checked_sub(1) {
            Some(call) if known.is_empty() => self.jit.lines(call),
            _ => known,
        }
    }

    fn meet(&mut self, pid: u32) {
        // A process may change its root, and it may be gone.
        if let Ok(root) = Root::of(pid) {
            self.root = Some(root);
        }
        self.jit.meet(pid);
    }

    /// The lines at each offset of a file, in the same order; short where the file could not be read.
    fn look_up(&mut self, index: usize, module: &Module, offsets: &[u64]) -> Vec<Vec<Line>> {
        let Some(file) = module.file.as_deref().filter(|file| is_elf(file)) else { return Vec::new() };
        let ours = Root::at(Path::new("/")).ok();
        let finder = Finder::new(&self.options.given, ours.as_ref(), self.root.as_ref());
        let debug = self.debug_files.entry(index).or_insert_with(|| {
            let cache = Cache::new(file);
            let image = Image::parse(&cache).ok()?;
            finder.find(module, &image).or_else(|| {
                // What is in the file itself is as good, and here.
                let wanted = image.build_id().filter(|_| !image.has_dwarf())?;
                self.debuginfod.as_mut()?.fetch(&wanted)
            })
        });
        if module.has_changed() {
            self.remark(format!("{}: none, for it was written to after it was mapped", module.path));
            return Vec::new();
        }
        let has_changed = debug.as_ref().is_some_and(DebugFile::has_changed);
        let sources = Sources {
            module,
            debug: debug.as_ref().filter(|_| !has_changed),
            debug_dirs: &finder.directories(),
            reader: self.options.reader.as_deref(),
        };
        let found = sources.look_up(offsets);
        if has_changed {
            self.remark(format!(
                "{}: its debug file is not used, for it was written to meanwhile",
                module.path
            ));
        }
        match found {
            Ok(Found { lines, remark }) => {
                remark.into_iter().for_each(|remark| self.remark(remark));
                lines
            }
            Err(error) => {
                self.remark(format!("{}: none: {error}", module.path));
                Vec::new()
            }
        }
    }

    fn remark(&mut self, remark: String) {
        if !self.remarks.contains(&remark) {
            tracing::warn!("names may be missing of {remark}");
            self.remarks.insert(remark);
        }
    }
}

/// The file and the offset in it of the call that a frame returns to.
fn place(frame: &RawFrame, ranges: &[Range]) -> Option<(usize, u64)> {
    let range = ranges.get(frame.range()?)?;
    let Content::Module(module) = range.content else { return None };
    let call = frame.address.checked_sub(1)?;
    Some((module, call.checked_sub(range.start)?.checked_add(range.offset)?))
}

/// Whether a frame's code may have been made while the program ran: it lies in no ELF file, but in memory without
/// a file, in a file that is only memory (`memfd_create`), or in what is not mapped any more.
fn may_be_made(frame: &RawFrame, heap: &RawHeap) -> bool {
    let Some(range) = frame.range().and_then(|index| heap.space.ranges().get(index)) else { return true };
    match &range.content {
        Content::Unnamed(name) => !matches!(name.as_str(), "[vdso]" | "[vsyscall]" | "[uprobes]"),
        Content::Module(module) => heap
            .space
            .modules()
            .get(*module)
            .and_then(|module| module.file.as_deref())
            .is_some_and(|file| !is_elf(file)),
    }
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
        let known = RawFrame::new(address, space.find(address));
        let outside = RawFrame::new(1, None);
        let stack = RawStack { frames: [known, outside].into(), end: WalkEnd::Whole };
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

    #[test]
    fn a_function_of_the_vdso_has_its_name() {
        let mut space = AddressSpace::default();
        space.refresh(std::process::id()).unwrap();
        let vdso = space.modules().iter().position(|module| module.path == "[vdso]").expect("it is mapped");
        let start = space.current().find(|range| range.content == Content::Module(vdso)).unwrap().start;
        let file = space.modules()[vdso].file.as_deref().unwrap();
        let inside = crate::target::elf::exported_address(file, "__vdso_clock_gettime").unwrap().unwrap();
        let address = start + inside + 2;
        let frame = RawFrame::new(address, space.find(address));
        let stack = RawStack { frames: vec![frame].into(), end: WalkEnd::Whole };
        let heap = RawHeap { stacks: vec![stack], space, ..RawHeap::empty() };
        let mut names = Names::default();
        names.resolve(&heap);
        let name = &names.lines(&frame, heap.space.ranges())[0].function.name;
        assert!(name.ends_with("clock_gettime"), "{name}");
    }

    #[test]
    fn code_without_a_file_is_named_by_the_perf_map_after_the_process_has_ended() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("tmp")).unwrap();
        let map = directory.path().join(format!("tmp/perf-{}.map", std::process::id()));
        std::fs::write(map, "1000 10 made\n").unwrap();
        let mut names = Names::new(std::process::id(), Options::default());
        names.root = Some(Root::at(directory.path()).unwrap());
        let frame = RawFrame::new(0x1009, None);
        let stack = RawStack { frames: [frame].into(), end: WalkEnd::Whole };
        let heap = RawHeap { pid: u32::MAX, stacks: vec![stack], ..RawHeap::empty() };
        names.resolve(&heap);
        assert_eq!(names.lines(&frame, &[])[0].function.name, "made");
    }
}
