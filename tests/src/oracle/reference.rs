//! framehop, which is asked.

use std::collections::{BTreeMap, BTreeSet};

use framehop::x86_64::{CacheX86_64, UnwindRegsX86_64, UnwinderX86_64};
use framehop::{ExplicitModuleSectionInfo, FrameAddress, Module, Unwinder as _};
use profiler_user::source::uprobe::capture::CapturedStack;

use super::captured::View;
use super::files::{Files, Parts};

/// framehop with the modules of a view.
pub(super) struct Reference {
    unwinder: UnwinderX86_64<Vec<u8>>,
    cache: CacheX86_64,
}

/// A walk.
pub(super) struct Walk<End> {
    /// The program counters, leaf first.
    pub(super) pcs: Vec<u64>,
    pub(super) end: End,
    /// The addresses that were read.
    pub(super) read: BTreeSet<u64>,
}

/// More frames than any stack here has.
const LIMIT: usize = 2000;

impl Reference {
    pub(super) fn new(view: &View, files: &Files) -> Self {
        let mut unwinder = UnwinderX86_64::new();
        let mut parts: BTreeMap<&str, Parts> = BTreeMap::new();
        for range in view.ranges.values().filter(|range| range.is_file) {
            let parts = parts.entry(&range.name).or_insert_with(|| files.parts(&range.name));
            let Some(base) = parts.bias(range) else { continue };
            let span = |(address, bytes): &(u64, Vec<u8>)| *address..*address + bytes.len() as u64;
            let bytes = |(_, bytes): &(u64, Vec<u8>)| bytes.clone();
            let sections = ExplicitModuleSectionInfo {
                eh_frame_svma: parts.eh_frame.as_ref().map(span),
                eh_frame: parts.eh_frame.as_ref().map(bytes),
                eh_frame_hdr_svma: parts.eh_frame_hdr.as_ref().map(span),
                eh_frame_hdr: parts.eh_frame_hdr.as_ref().map(bytes),
                ..ExplicitModuleSectionInfo::default()
            };
            unwinder.add_module(Module::new(range.name.clone(), range.start..range.end, base, sections));
        }
        Self { unwinder, cache: CacheX86_64::new() }
    }

    /// Walks a stack from where heaptap began.
    pub(super) fn walk(&mut self, stack: &CapturedStack) -> Walk<String> {
        let mut read = BTreeSet::new();
        let mut read_stack = |address: u64| {
            read.insert(address);
            word(stack, address).ok_or(())
        };
        let mut regs = UnwindRegsX86_64::new(stack.pc, stack.sp, stack.fp);
        let mut pcs = vec![stack.pc];
        let end = loop {
            let pc = *pcs.last().expect("there is the first");
            let Some(address) = FrameAddress::from_return_address(pc) else { break "nothing".to_owned() };
            match self.unwinder.unwind_frame(address, &mut regs, &mut self.cache, &mut read_stack) {
                Ok(Some(caller)) if pcs.len() < LIMIT => pcs.push(caller),
                Ok(Some(_)) => break "too many frames".to_owned(),
                Ok(None) => break "whole".to_owned(),
                Err(error) => break error.to_string(),
            }
        };
        Walk { pcs, end, read }
    }
}

/// A word of a stack that was kept.
pub(super) fn word(stack: &CapturedStack, address: u64) -> Option<u64> {
    let offset = address.checked_sub(stack.sp)?;
    if offset % 8 != 0 {
        return None;
    }
    *stack.memory.get(usize::try_from(offset / 8).ok()?)?
}
