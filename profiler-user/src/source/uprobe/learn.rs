//! Learning to walk: stacks that the kernel could not walk are walked here, and every row on the way is handed to it.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use profiler_common::{
    limits::{COPY_BYTES, SMALL_COPY_BYTES},
    unwind::{ReadMemory, Regs, Row, WalkEnd, step},
};

use super::{kernel::Teaching, records::Miss, stacks::StackTable};
use crate::target::{maps::AddressSpace, rows::RowSource};

/// What the kernel has been taught of one process.
pub(super) struct Learner {
    pid: u32,
    depth: usize,
    teaching: Teaching,
    source: RowSource,
    epoch: u32,
    /// The rows of this epoch.
    rows: HashMap<u64, Row>,
    /// Stacks of which more is to come, since when.
    unfinished: HashMap<u64, (Instant, Unwalked)>,
}

impl Learner {
    /// `depth` is the most frames to keep of a stack.
    pub(super) fn new(pid: u32, depth: u32, teaching: Teaching) -> Self {
        let depth = usize::try_from(depth).unwrap_or(usize::MAX);
        Self {
            pid,
            depth,
            teaching,
            source: RowSource::new(pid),
            epoch: 0,
            rows: HashMap::new(),
            unfinished: HashMap::new(),
        }
    }

    /// Reads what the files say that are mapped now, so that the first stacks need not wait for it.
    pub(super) fn prepare(&mut self, space: &AddressSpace) {
        self.source.prepare(space);
    }

    /// Walks a stack to its end, files it, and teaches every row on the way; later, where more of it follows.
    pub(super) fn learn(&mut self, miss: &Miss<'_>, stacks: &mut StackTable) {
        let Miss { stack, epoch, regs, pcs, bytes, continues } = miss;
        let miss = Unwalked {
            stack: *stack,
            epoch: *epoch,
            regs: *regs,
            pcs: pcs.clone().collect(),
            bytes: bytes.to_vec(),
        };
        if *continues {
            self.unfinished.insert(miss.stack, (Instant::now(), miss));
        } else {
            self.file(&miss, stacks);
        }
    }

    /// Takes more of a stack.
    pub(super) fn extend(&mut self, stack: u64, bytes: &[u8], is_last: bool, stacks: &mut StackTable) {
        let Some((_, miss)) = self.unfinished.get_mut(&stack) else { return };
        miss.bytes.extend_from_slice(bytes);
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
    pub(super) fn look_around(&mut self, space: &mut AddressSpace) {
        space.look_again(self.pid);
        self.source.prepare(space);
    }

    fn file(&mut self, miss: &Unwalked, stacks: &mut StackTable) {
        if miss.epoch != self.epoch {
            self.forget(&mut stacks.space);
            self.epoch = miss.epoch;
        }
        let (pcs, end) = self.walk(miss, &mut stacks.space);
        // Where only the rows are wanted there is no allocation to file the stack for.
        if miss.stack != 0 {
            stacks.insert(self.pid, miss.stack, pcs.into_iter(), end);
        }
    }

    /// Takes back everything that was taught: addresses have changed their meaning.
    pub(super) fn forget(&mut self, space: &mut AddressSpace) {
        for pc in std::mem::take(&mut self.rows).into_keys() {
            self.teaching.remove_row(self.pid, self.epoch, pc);
        }
        space.look_again(self.pid);
    }

    /// Tells the kernel where hijacked return addresses point.
    pub(super) fn teach_trampoline(&mut self, trampoline: u64) {
        self.teaching.set_trampoline(self.pid, trampoline);
    }

    fn walk(&mut self, miss: &Unwalked, space: &mut AddressSpace) -> (Vec<u64>, WalkEnd) {
        let copy = StackCopy { start: miss.regs.sp, bytes: &miss.bytes };
        let mut pcs = miss.pcs.clone();
        let mut regs = miss.regs;
        loop {
            let row = self.row(regs.pc, space);
            match step(row, &regs, &copy) {
                Ok(_) if pcs.len() >= self.depth => return (pcs, WalkEnd::Cut),
                Ok(caller) => regs = caller,
                Err(WalkEnd::Unreadable) if ends_early(&miss.bytes) => return (pcs, WalkEnd::CopyEnds),
                Err(end) => return (pcs, end),
            }
            pcs.push(regs.pc);
        }
    }

    /// The row at a pc; taught at the first time.
    fn row(&mut self, pc: u64, space: &mut AddressSpace) -> Row {
        if let Some(&row) = self.rows.get(&pc) {
            return row;
        }
        let row = self.source.row(pc, space);
        self.rows.insert(pc, row);
        self.teaching.insert_row(self.pid, self.epoch, pc, row);
        row
    }
}

/// A stack that the kernel could not walk to its end.
struct Unwalked {
    stack: u64,
    epoch: u32,
    regs: Regs,
    pcs: Vec<u64>,
    bytes: Vec<u8>,
}

/// Whether a copy has a size at which the kernel stops copying, whatever comes behind it.
fn ends_early(bytes: &[u8]) -> bool {
    bytes.len() == SMALL_COPY_BYTES || (!bytes.is_empty() && bytes.len().is_multiple_of(COPY_BYTES))
}

/// A copy of a part of a stack.
struct StackCopy<'bytes> {
    start: u64,
    bytes: &'bytes [u8],
}

impl StackCopy<'_> {
    fn read<const COUNT: usize>(&self, address: u64) -> Option<[u8; COUNT]> {
        let offset = usize::try_from(address.checked_sub(self.start)?).ok()?;
        self.bytes.get(offset..)?.first_chunk().copied()
    }
}

impl ReadMemory for StackCopy<'_> {
    fn read_word(&self, address: u64) -> Option<u64> {
        self.read(address).map(u64::from_ne_bytes)
    }

    fn read_pair(&self, address: u64) -> Option<[u64; 2]> {
        Some([self.read_word(address)?, self.read_word(address.checked_add(8)?)?])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_inside_the_copy_only() {
        let bytes: Vec<u8> = (0..24).collect();
        let copy = StackCopy { start: 0x1000, bytes: &bytes };
        assert_eq!(copy.read_word(0x1000), Some(0x0706_0504_0302_0100));
        assert_eq!(copy.read_pair(0x1008).map(|pair| pair[1]), copy.read_word(0x1010));
        assert_eq!(copy.read_word(0xfff), None);
        assert_eq!(copy.read_word(0x1011), None);
        assert_eq!(copy.read_pair(0x1010), None);
        assert_eq!(copy.read_pair(u64::MAX), None);
    }
}
