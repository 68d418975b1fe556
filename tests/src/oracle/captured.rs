//! The file of stacks.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use profiler_user::source::uprobe::capture::{CapturedRange, CapturedStack, Line};

/// Stacks that were kept.
#[derive(Clone, Debug, Default)]
pub struct Captured {
    ranges: BTreeMap<usize, CapturedRange>,
    stacks: Vec<CapturedStack>,
}

/// Stacks and the ranges that they lead through, none of which overlap: at one time all of these may have been mapped.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The ranges by their numbers.
    pub ranges: BTreeMap<usize, CapturedRange>,
    /// The stacks.
    pub stacks: Vec<CapturedStack>,
}

/// What the file is called in a folder of kept stacks.
const NAME: &str = "stacks.jsonl.gz";

impl Captured {
    /// Reads the file that `heaptap record --capture-stacks` has written.
    #[track_caller]
    pub fn read(path: &Path) -> Self {
        let file = File::open(path).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
        let mut captured = Self::default();
        for line in BufReader::new(GzDecoder::new(file)).lines() {
            let line = line.unwrap_or_else(|err| panic!("{}: {err}", path.display()));
            match serde_json::from_str(&line).expect("a line of heaptap's is one") {
                Line::Range(range) => {
                    captured.ranges.insert(range.id, range);
                }
                Line::Stack(stack) => captured.stacks.push(stack),
            }
        }
        captured
    }

    /// Reads the stacks that are kept in a folder.
    #[track_caller]
    pub fn kept_in(folder: &Path) -> Self {
        Self::read(&folder.join(NAME))
    }

    /// Takes a stack of a view, with its ranges.
    pub(super) fn add(&mut self, view: &View, stack: CapturedStack) {
        let ranges = stack.ranges.iter().flatten().filter_map(|id| view.ranges.get(id));
        self.ranges.extend(ranges.map(|range| (range.id, range.clone())));
        self.stacks.push(stack);
    }

    /// Writes the stacks to a folder.
    #[track_caller]
    pub(super) fn write(&self, folder: &Path) {
        fs::create_dir_all(folder).unwrap_or_else(|err| panic!("{}: {err}", folder.display()));
        let file = File::create(folder.join(NAME)).expect("the folder is there");
        let mut out = GzEncoder::new(file, Compression::best());
        let ranges = self.ranges.values().cloned().map(Line::Range);
        for line in ranges.chain(self.stacks.iter().cloned().map(Line::Stack)) {
            let text = serde_json::to_string(&line).expect("a line can be written");
            writeln!(out, "{text}").expect("there is room");
        }
        out.finish().expect("there is room");
    }

    /// The stacks, taken apart where they lead through different things at the same address.
    pub fn views(&self) -> Vec<View> {
        let mut views: Vec<View> = Vec::new();
        for stack in &self.stacks {
            let ranges: Vec<&CapturedRange> =
                stack.ranges.iter().flatten().filter_map(|id| self.ranges.get(id)).collect();
            let fitting = views.iter().position(|view| ranges.iter().all(|range| view.takes(range)));
            let index = fitting.unwrap_or_else(|| {
                views.push(View::default());
                views.len() - 1
            });
            let view = &mut views[index];
            view.ranges.extend(ranges.into_iter().map(|range| (range.id, range.clone())));
            view.stacks.push(stack.clone());
        }
        views
    }
}

impl View {
    fn takes(&self, new: &CapturedRange) -> bool {
        let mut others = self.ranges.values().filter(|range| range.id != new.id);
        others.all(|range| range.end <= new.start || new.end <= range.start)
    }

    /// A stack for people.
    pub fn describe(&self, stack: &CapturedStack) -> String {
        let by = if stack.by_kernel { "the kernel" } else { "user space" };
        let (sp, fp) = (stack.sp, stack.fp);
        let mut text = format!("{} by {by}, sp {sp:#x}, fp {fp:#x}\n", stack.end);
        for (pc, range) in stack.pcs.iter().zip(&stack.ranges) {
            let place = range.and_then(|id| self.ranges.get(&id));
            let place = place.map(|range| format!("{} + {:#x}", range.name, pc - range.start + range.offset));
            writeln!(text, "  {pc:#x} {}", place.unwrap_or_default()).expect("a string takes text");
        }
        text
    }
}
