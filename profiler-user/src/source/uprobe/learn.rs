//! Learning to walk: stacks that the kernel could not walk are walked here, and every row on the way is handed to it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use profiler_common::unwind::{FpRule, Frame, Kind, Regs, Row, WalkEnd};

use super::{
    capture::{Capture, CaptureError, Walked},
    copy::StackCopy,
    records::{Copied, Miss},
    stacks::StackTable,
    targets::Targets,
    taught::Taught,
    teaching::{SharedTeaching, Teaching},
    watched::Forked,
};
use crate::gate::code::Frame as GateFrame;
use crate::target::{
    allocator::Calls,
    layout::{Layout, Place},
    maps::{AddressSpace, Content, Range},
    rows::RowSource,
};

/// What the kernel has been taught of one process.
pub(super) struct Learner {
    pid: u32,
    depth: usize,
    teaching: SharedTeaching,
    targets: Arc<Mutex<Targets>>,
    /// How often the process has replaced its program, as far as that was heard of.
    image: u32,
    source: RowSource,
    /// That of the rows; `None` where a new one has begun of which no stack has come yet.
    epoch: Option<u32>,
    taught: Taught,
    /// What its parent's code was taught by, which the process has at its beginning.
    inherited: Taught,
    /// What is taught ahead: return addresses in allocators, by their modules.
    ahead: Vec<(usize, Calls)>,
    /// Those of them that lie within functions that allocate and are probed, as addresses in this epoch.
    of_allocating: BTreeSet<u64>,
    /// The calls in gates, with how to go on from there.
    gates: BTreeMap<u64, Row>,
    /// What of that is yet to be taught in this epoch, as addresses.
    untaught: Vec<u64>,
    /// What is yet to be taken back of earlier epochs: the pcs, each with its epoch.
    stale: Vec<(u32, u64)>,
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
        teaching: SharedTeaching,
        targets: Arc<Mutex<Targets>>,
        source: RowSource,
        capture: Option<Capture>,
    ) -> Self {
        let depth = usize::try_from(depth).unwrap_or(usize::MAX);
        Self {
            pid,
            depth,
            teaching,
            targets,
            image: 0,
            source,
            epoch: Some(0),
            taught: Taught::default(),
            inherited: Taught::default(),
            ahead: Vec::new(),
            of_allocating: BTreeSet::new(),
            gates: BTreeMap::new(),
            untaught: Vec::new(),
            stale: Vec::new(),
            unfinished: HashMap::new(),
            capture,
        }
    }

    /// The learner of a child process.
    pub(super) fn inherited(&self, child: &Forked) -> Self {
        let Forked { pid, image, epoch, is_empty, .. } = *child;
        let inherited = if is_empty { Taught::default() } else { self.taught.clone() };
        Self {
            pid,
            depth: self.depth,
            teaching: Arc::clone(&self.teaching),
            targets: Arc::clone(&self.targets),
            image,
            source: self.source.of_another(pid),
            epoch: Some(epoch),
            taught: Taught::default(),
            // What it walks like its parent need not be learned again.
            untaught: inherited.pcs().collect(),
            inherited,
            ahead: self.ahead.clone(),
            of_allocating: if is_empty { BTreeSet::new() } else { self.of_allocating.clone() },
            gates: if is_empty { BTreeMap::new() } else { self.gates.clone() },
            stale: Vec::new(),
            unfinished: HashMap::new(),
            capture: None,
        }
    }

    /// Takes everything back for good: the process has ended.
    pub(super) fn leave(&mut self, stacks: &mut StackTable) {
        self.forget(stacks);
        while self.tidy(&mut stacks.space) {}
        self.teaching().remove_trampoline(self.pid);
    }

    fn teaching(&self) -> MutexGuard<'_, Teaching> {
        self.teaching.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Teaches the rows of return addresses in an allocator, now and after everything was forgotten.
    pub(super) fn teach_ahead(&mut self, module: usize, calls: Calls, space: &mut AddressSpace) {
        self.of_allocating.extend(addresses(module, &calls.of_allocating, space));
        for pc in addresses(module, &calls.all, space) {
            self.row(pc, space);
        }
        self.ahead.push((module, calls));
    }

    /// Teaches the rows of calls in a gate, now and after everything was forgotten: they are an allocator's, and call it.
    pub(super) fn teach_gate(&mut self, frames: &[GateFrame], space: &mut AddressSpace) {
        // It has been mapped since this was last looked at. Taught as lying nowhere, it would later be taken for code that has come in the
        // place of other code, and everything be learned anew.
        if frames.iter().any(|frame| space.find(frame.return_address).is_none()) {
            space.look_again(self.pid);
        }
        for frame in frames {
            let row = Row::new(Kind::Sp, FpRule::Unchanged, 0, frame.cfa_offset);
            self.gates.insert(frame.return_address, row.of_allocator());
            self.row(frame.return_address, space);
        }
    }

    /// Has nobody look any longer whether a gate's code is there, for another gate is to take its place. Its rows stay until
    /// [`Learner::forget_gate`], or where nothing comes of it.
    pub(super) fn gate_may_go(&mut self, code: &ops::Range<u64>) {
        for (pc, _) in self.gates.range(code.clone()) {
            self.taught.remove(*pc);
        }
        self.untaught.retain(|pc| !code.contains(pc));
    }

    /// Takes back the rows of calls in a gate whose code has gone, with all threads outside: nothing else is to be learned anew for that.
    pub(super) fn forget_gate(&mut self, code: &ops::Range<u64>) {
        self.gate_may_go(code);
        let calls: Vec<u64> = self.gates.range(code.clone()).map(|(pc, _)| *pc).collect();
        for pc in calls {
            self.gates.remove(&pc);
            if let Some(epoch) = self.epoch {
                self.teaching().unlearn_row(self.pid, epoch, pc);
            }
        }
    }

    /// Does a part of what can wait, and takes about a millisecond for it; false where there is nothing more to do.
    pub(super) fn tidy(&mut self, space: &mut AddressSpace) -> bool {
        for pc in self.untaught.split_off(self.untaught.len().saturating_sub(PART)) {
            self.row(pc, space);
        }
        for (epoch, pc) in self.stale.split_off(self.stale.len().saturating_sub(PART)) {
            self.teaching().remove_row(self.pid, epoch, pc);
        }
        !(self.untaught.is_empty() && self.stale.is_empty())
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

    /// Forgets a program that was replaced, and looks at what has come in its place.
    pub(super) fn start_over(&mut self, stacks: &mut StackTable) {
        self.image = self.image.wrapping_add(1);
        self.gates.clear();
        stacks.mappings.run_program(self.image);
        self.forget(stacks);
        self.source.program_has_gone();
        stacks.program_has_gone();
        self.look_around(stacks);
    }

    /// Whether the process has replaced its program without that having been heard of yet.
    pub(super) fn is_behind(&self) -> bool {
        let image = self.targets.lock().unwrap_or_else(PoisonError::into_inner).image(self.pid);
        image.is_some_and(|image| image != self.image)
    }

    /// Looks whether all code is there still that was learned from; if not, what was learned is forgotten.
    pub(super) fn review(&mut self, stacks: &mut StackTable) {
        // A process that has ended has none, and unmaps none.
        if let Ok(layout) = Layout::of(self.pid)
            && self.taught.is_outdated(|address| layout.at(address))
        {
            self.start_anew(stacks);
        }
        for pc in self.source.take_back() {
            self.unlearn(pc);
        }
    }

    /// Has the kernel side ask for a row again.
    fn unlearn(&mut self, pc: u64) {
        if self.taught.remove(pc)
            && let Some(epoch) = self.epoch
        {
            self.teaching().unlearn_row(self.pid, epoch, pc);
        }
    }

    fn start_anew(&mut self, stacks: &mut StackTable) {
        // What is to be read yet is of a program that is there no longer; then comes the notice of that.
        if self.is_behind() {
            return;
        }
        let raised = self.teaching().raise_epoch(self.pid);
        if let Err(error) = raised {
            tracing::warn!(%error, "code was unmapped; stacks may be taken for those of before");
        }
        self.forget(stacks);
    }

    fn file(&mut self, miss: &Unwalked, stacks: &mut StackTable) {
        if self.epoch != Some(miss.epoch) {
            // Where it was not forgotten already, the notice is lost or yet to come.
            if self.epoch.is_some() {
                self.forget(stacks);
                stacks.program_has_gone();
            }
            self.epoch = Some(miss.epoch);
            stacks.bring_up_to_date(self.pid);
            let space = &stacks.space;
            // That of a library that was unloaded goes with it.
            self.gates.retain(|pc, _| space.find(*pc).is_some());
            let of = |calls: fn(&Calls) -> &BTreeSet<u64>| {
                let ahead = self.ahead.iter();
                ahead.flat_map(move |(module, all)| addresses(*module, calls(all), space))
            };
            let of_allocating = of(|calls| &calls.of_allocating).collect();
            // The stack at hand is waited for more than these.
            self.untaught = of(|calls| &calls.all).chain(self.gates.keys().copied()).collect();
            self.of_allocating = of_allocating;
        }
        stacks.bring_up_to_date(self.pid);
        let (pcs, end) = match miss.walked {
            Some(end) => (miss.pcs.clone(), end),
            None => self.walk(&miss.pcs, &miss.copy, miss.regs, &mut stacks.space),
        };
        for (pc, name) in self.source.take_names() {
            // What is put there later is not what allocated.
            stacks.made.entry(pc).or_insert(name);
        }
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
        let pcs = pcs.get(from..).unwrap_or_default();
        let rows = pcs
            .iter()
            .filter(|pc| space.place(pc.saturating_sub(1)) == Place::Unnamed)
            .filter_map(|pc| Some((*pc, self.taught.row(*pc)?.to_raw())))
            .collect();
        let walked = Walked { by_kernel, regs: miss.regs, pcs, end, memory, rows };
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
            self.stale.extend(self.taught.clear().map(|pc| (epoch, pc)));
            self.untaught.clear();
            self.inherited = Taught::default();
        }
        stacks.code_has_gone();
    }

    /// Tells the kernel where hijacked return addresses point.
    pub(super) fn teach_trampoline(&mut self, trampoline: u64) {
        self.teaching().set_trampoline(self.pid, trampoline);
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
        let known = self.gates.get(&pc).copied().or_else(|| self.inherited.row(pc));
        let mut row = known.unwrap_or_else(|| self.source.row(pc, space));
        if self.of_allocating.contains(&pc) {
            row = row.of_allocator();
        }
        self.taught.insert(pc, row, space.place(pc.saturating_sub(1)));
        if let Some(epoch) = self.epoch {
            self.teaching().insert_row(self.pid, epoch, pc, row);
        }
        row
    }
}

/// Rows to teach or to take back at a time while others may be waiting.
const PART: usize = 256;

/// Where offsets in a module's file lie in memory.
fn addresses(module: usize, offsets: &BTreeSet<u64>, space: &AddressSpace) -> Vec<u64> {
    let of_module = space.current().filter(|range| range.content == Content::Module(module));
    let in_range = |range: &Range| {
        let Range { start, end, offset: begin, .. } = *range;
        let behind = begin.saturating_add(end.saturating_sub(start));
        let inside = offsets.range(begin..behind.max(begin));
        inside.map(move |offset| start.wrapping_add(offset - begin)).collect::<Vec<_>>()
    };
    of_module.flat_map(in_range).collect()
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
