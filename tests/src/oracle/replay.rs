//! heaptap's own rows, outside of the kernel.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use profiler_common::unwind::{ReadMemory, Regs, Row, WalkEnd, step};
use profiler_user::source::uprobe::capture::CapturedStack;
use profiler_user::target::maps::{AddressSpace, Content, Module, Range};
use profiler_user::target::rows::RowSource;
use profiler_user::target::separate::Places;

use super::captured::View;
use super::files::Files;
use super::reference::{Walk, word};

/// The rows of the modules of a view.
pub(super) struct Replay {
    space: AddressSpace,
    rows: RowSource,
}

/// No process has this number.
const NOBODY: u32 = u32::MAX;

impl Replay {
    pub(super) fn new(view: &View, files: &Files) -> Self {
        let mut places: BTreeMap<&str, usize> = BTreeMap::new();
        let mut modules = Vec::new();
        let mut ranges = Vec::new();
        for range in view.ranges.values() {
            let content = if range.is_file {
                let module = *places.entry(&range.name).or_insert_with(|| {
                    modules.push(Module::held(range.name.clone(), files.open(&range.name)));
                    modules.len() - 1
                });
                Content::Module(module)
            } else {
                Content::Unnamed(range.name.clone())
            };
            ranges.push(Range { start: range.start, end: range.end, offset: range.offset, content });
        }
        Self { space: AddressSpace::of(modules, ranges), rows: RowSource::new(NOBODY, Places::default()) }
    }

    /// Walks a stack from where heaptap began, and no further than it came.
    pub(super) fn walk(&mut self, stack: &CapturedStack) -> Walk<WalkEnd> {
        let memory = Memory { stack, read: RefCell::default() };
        let mut regs = Regs { pc: stack.pc, sp: stack.sp, fp: stack.fp };
        let mut pcs = vec![stack.pc];
        let end = loop {
            let made = stack.rows.get(&regs.pc).map(|row| Row::from_raw(*row));
            let row = made.unwrap_or_else(|| self.rows.row(regs.pc, &mut self.space));
            match step(row, &regs, &memory) {
                Ok(_) if pcs.len() == stack.pcs.len() && stack.end != "whole" => break WalkEnd::Cut,
                Ok(caller) => regs = caller,
                Err(end) => break end,
            }
            pcs.push(regs.pc);
        };
        Walk { pcs, end, read: memory.read.into_inner() }
    }
}

struct Memory<'stack> {
    stack: &'stack CapturedStack,
    read: RefCell<BTreeSet<u64>>,
}

impl ReadMemory for Memory<'_> {
    fn read_word(&self, address: u64) -> Option<u64> {
        self.read.borrow_mut().insert(address);
        word(self.stack, address)
    }

    fn read_pair(&self, address: u64) -> Option<[u64; 2]> {
        Some([self.read_word(address)?, self.read_word(address.checked_add(8)?)?])
    }
}
