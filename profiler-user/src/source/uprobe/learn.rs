//! Learning to walk: stacks that the kernel could not walk are walked here, and every row on the way is handed to it.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use profiler_common::unwind::{Frame, Regs, Row, WalkEnd};

use super::{
    capture::{Capture, CaptureError, Walked},
    copy::StackCopy,
    kernel::Teaching,
    records::{Copied, Miss},
    stacks::StackTable,
    taught::Taught,
};
use crate::target::{
    layout::Layout,
    maps::{AddressSpace, Content, Range},
    rows::RowSource,
};

/// What the kernel has been taught of one process.
pub(super) struct Learner {
    pid: u32,
    depth: usize,
    teaching: Teaching,
    source: RowSource,
    /// That of the rows; `None` where a new one has begun of which no stack has come yet.
    epoch: Option<u32>,
    taught: Taught,
    /// What is taught ahead: return addresses, as modules with offsets in their files.
    ahead: Vec<(usize, BTreeSet<u64>)>,
    /// Stacks of which more is to come, since when.
    unfinished: HashMap<u64, (Instant, Unwalked)>,
    capture: Option<Capture>,
}

impl Learner {
    /// `depth` is the most frames to keep of a stack; `source` has the rows of the same process. Every stack that comes by
    /// with its memory is kept in `capture`.
    pub(super) fn new(
        pid: u32,
        depth: u32,
        teaching: Teaching,
        source: RowSource,
        capture: Option<Capture>,
    ) -> Self {
        let depth = usize::try_from(depth).unwrap_or(usize::MAX);
        Self {
            pid,
            depth,
            teaching,
            source,
            epoch: Some(0),
            taught: Taught::default(),
            ahead: Vec::new(),
            unfinished: HashMap::new(),
            capture,
        }
    }

    /// Reads what the files say that are mapped now, so that the first stacks need not wait for it.
    pub(super) fn prepare(&mut self, space: &AddressSpace) {
        self.source.prepare(space);
    }

    /// Teaches the rows of return addresses in a module, offsets in its file, now and after everything was forgotten.
    pub(super) fn teach_ahead(&mut self, module: usize, offsets: BTreeSet<u64>, space: &mut AddressSpace) {
        self.teach_offsets(module, &offsets, space);
        self.ahead.push((module, offsets));
    }

    fn teach_offsets(&mut self, module: usize, offsets: &BTreeSet<u64>, space: &mut AddressSpace) {
        let of_module = |range: &&Range| range.content == Content::Module(module);
        let ranges: Vec<Range> = space.current().filter(of_module).cloned().collect();
        for range in ranges {
            let end = range.offset.saturating_add(range.end.saturating_sub(range.start));
            for offset in offsets.range(range.offset..end.max(range.offset)) {
                self.row(range.start.wrapping_add(offset - range.offset), space);
            }
        }
    }

    /// Walks a stack to its end, files it, and teaches every row on the way; later, where more of it follows.
    pub(super) fn learn(&mut self, miss: &Miss<'_>, stacks: &mut StackTable) {
        let Miss { stack, epoch, regs, pcs, copy, continues, walked } = miss;
        let miss = Unwalked {
            stack: *stack,
            epoch: *epoch,
            regs: *regs,
            pcs: pcs.clone().collect(),
            copy: StackCopy::new(regs.sp, *copy),
            walked: *walked,
        };
        if *continues {
            self.unfinished.insert(miss.stack, (Instant::now(), miss));
        } else {
            self.file(&miss, stacks);
        }
    }

    /// Takes more of a stack.
    pub(super) fn extend(&mut self, stack: u64, copy: Copied<'_>, is_last: bool, stacks: &mut StackTable) {
        let Some((_, miss)) = self.unfinished.get_mut(&stack) else { return };
        miss.copy.extend(copy);
        if is_last && let Some((_, miss)) = self.unfinished.remove(&stack) {
            self.file(&miss, stacks);
        }
    }

    /// Walks those stacks as far as they came of which no more has come for `patience`: the ring buffer was full.
    pub(super) fn give_up(&mut self, patience: Duration, stacks: &mut StackTable) {
        let stale: Vec<u64> = self
            .unfinished
            .iter()
            .filter(|(_, (since, _))| since.elapsed() >= patience)
            .map(|(stack, _)| *stack)
            .collect();
        for stack in stale {
            if let Some((_, miss)) = self.unfinished.remove(&stack) {
                self.file(&miss, stacks);
            }
        }
    }

    /// Whether more of some stack is waited for.
    pub(super) fn is_waiting(&self) -> bool {
        !self.unfinished.is_empty()
    }

    /// Looks at code that was added, while it is there.
    pub(super) fn look_around(&mut self, stacks: &mut StackTable) {
        stacks.code_has_gone();
        stacks.bring_up_to_date(self.pid);
        self.source.prepare(&stacks.space);
        if self.taught.is_outdated(|address| stacks.space.place(address)) {
            self.start_anew(stacks);
        }
    }

    /// Looks whether all code is there still that was learned from; if not, what was learned is forgotten.
    pub(super) fn review(&mut self, stacks: &mut StackTable) {
        // A process that has ended has none, and unmaps none.
        if let Ok(layout) = Layout::of(self.pid)
            && self.taught.is_outdated(|address| layout.at(address))
        {
            self.start_anew(stacks);
        }
    }

    fn start_anew(&mut self, stacks: &mut StackTable) {
        if let Err(error) = self.teaching.raise_epoch(self.pid) {
            tracing::warn!(%error, "code was unmapped; stacks may be taken for those of before");
        }
        self.forget(stacks);
    }

    fn file(&mut self, miss: &Unwalked, stacks: &mut StackTable) {
        if self.epoch != Some(miss.epoch) {
            // Where it was not forgotten already, the notice is lost or yet to come.
            if self.epoch.is_some() {
                self.forget(stacks);
            }
            self.epoch = Some(miss.epoch);
            stacks.bring_up_to_date(self.pid);
            let ahead = std::mem::take(&mut self.ahead);
            for (module, offsets) in &ahead {
                self.teach_offsets(*module, offsets, &mut stacks.space);
            }
            self.ahead = ahead;
        }
        stacks.bring_up_to_date(self.pid);
        let (pcs, end) = match miss.walked {
            Some(end) => (miss.pcs.clone(), end),
            None => self.walk(&miss.pcs, &miss.copy, miss.regs, &mut stacks.space),
        };
        // Where only the rows are wanted there is no allocation to file the stack for.
        if miss.stack != 0 && !stacks.is_known(miss.stack) {
            stacks.insert(self.pid, miss.stack, pcs.iter().copied(), end);
            self.keep(miss, &pcs, end, &mut stacks.space);
        }
    }

    /// Keeps a walk in the file for that, if there is one.
    fn keep(&mut self, miss: &Unwalked, pcs: &[u64], end: WalkEnd, space: &mut AddressSpace) {
        if self.capture.is_none() {
            return;
        }
        let by_kernel = miss.walked.is_some();
        let from = if by_kernel { 0 } else { miss.pcs.len().saturating_sub(1) };
        // Most of a copy lies above the outermost frame.
        miss.copy.forget_what_was_read();
        let (_, again) = self.walk(&[], &miss.copy, miss.regs, space);
        let memory = if again == WalkEnd::Whole { miss.copy.words_read() } else { miss.copy.words() };
        let walked =
            Walked { by_kernel, regs: miss.regs, pcs: pcs.get(from..).unwrap_or_default(), end, memory };
        if let Some(capture) = &mut self.capture {
            capture.keep(walked, space);
        }
    }

    /// Ends the file of stacks, if there is one.
    pub(super) fn finish_capture(&mut self) -> Result<(), CaptureError> {
        self.capture.take().map_or(Ok(()), Capture::finish)
    }

    /// Takes back everything that was taught: addresses have changed their meaning.
    pub(super) fn forget(&mut self, stacks: &mut StackTable) {
        if let Some(epoch) = self.epoch.take() {
            for pc in self.taught.clear() {
                self.teaching.remove_row(self.pid, epoch, pc);
            }
        }
        stacks.code_has_gone();
    }

    /// Tells the kernel where hijacked return addresses point.
    pub(super) fn teach_trampoline(&mut self, trampoline: u64) {
        self.teaching.set_trampoline(self.pid, trampoline);
    }

    /// Walks on behind `pcs`, the last of which is at `regs`.
    fn walk(
        &mut self,
        pcs: &[u64],
        copy: &StackCopy,
        regs: Regs,
        space: &mut AddressSpace,
    ) -> (Vec<u64>, WalkEnd) {
        let mut pcs = pcs.to_vec();
        let mut frame = Frame::new(regs);
        loop {
            let row = self.row(frame.pc, space);
            match frame.caller(row, copy) {
                Ok(_) if pcs.len() >= self.depth => return (pcs, WalkEnd::Cut),
                Ok(caller) => frame = caller,
                Err(WalkEnd::Unreadable) if copy.was_missed() => return (pcs, WalkEnd::CopyEnds),
                Err(end) => return (pcs, end),
            }
            pcs.push(frame.pc);
        }
    }

    /// The row at a pc; taught at the first time.
    fn row(&mut self, pc: u64, space: &mut AddressSpace) -> Row {
        if let Some(row) = self.taught.row(pc) {
            return row;
        }
        let row = self.source.row(pc, space);
        self.taught.insert(pc, row, space.place(pc.saturating_sub(1)));
        if let Some(epoch) = self.epoch {
            self.teaching.insert_row(self.pid, epoch, pc, row);
        }
        row
    }
}

/// A stack that the kernel could not walk to its end.
struct Unwalked {
    stack: u64,
    epoch: u32,
    regs: Regs,
    pcs: Vec<u64>,
    copy: StackCopy,
    walked: Option<WalkEnd>,
}
