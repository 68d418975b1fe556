//! Walks by any rows, from any registers, over any memory.

use std::cell::Cell;

use profiler_common::{
    heap::NESTED_STACK,
    unwind::{FpRule, Frame, Kind, Nesting, ReadMemory, Regs, Row, StackHash, WalkEnd, step as go_up},
};

use super::Input;

/// Where the memory lies: low, so that the fuzzer makes pointers to it by changing two bytes.
const BASE: u64 = 0x1000;

/// Any one row is the rule for every so many pcs.
const ROWS_LIMIT: u8 = 16;

/// Memory that knows what was read.
struct Memory<'bytes> {
    bytes: &'bytes [u8],
    reads: Cell<u32>,
    refused: Cell<u32>,
}

impl Memory<'_> {
    fn read<const COUNT: usize>(&self, address: u64) -> Option<[u8; COUNT]> {
        self.reads.update(|count| count + 1);
        let offset = address.checked_sub(BASE).and_then(|offset| usize::try_from(offset).ok());
        let read = offset.and_then(|offset| self.bytes.get(offset..)?.first_chunk().copied());
        self.refused.update(|count| count + u32::from(read.is_none()));
        read
    }
}

impl ReadMemory for Memory<'_> {
    fn read_word(&self, address: u64) -> Option<u64> {
        self.read(address).map(u64::from_ne_bytes)
    }

    fn read_pair(&self, address: u64) -> Option<[u64; 2]> {
        let bytes: [u8; 16] = self.read(address)?;
        let (words, _) = bytes.as_chunks();
        let [first, second] = *words else { return None };
        Some([first, second].map(u64::from_ne_bytes))
    }
}

/// What is walked: the rows of all pcs, and the memory.
struct World<'bytes> {
    rows: Vec<Row>,
    memory: Memory<'bytes>,
}

/// The unwinder's step, whole walks, and the question whether one call is part of another.
pub fn step(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let depth = usize::from(input.byte());
    let regs = Regs { pc: input.word(), sp: BASE + u64::from(input.half()), fp: input.word() };
    let outer_sp = BASE + u64::from(input.half());
    let rows = (0..=input.byte() % ROWS_LIMIT).map(|_| Row::from_raw(input.word())).collect();
    let memory = Memory { bytes: input.rest(), reads: Cell::new(0), refused: Cell::new(0) };
    let world = World { rows, memory };
    let (frames, end) = world.walk(regs, depth);
    assert_eq!(world.walk(regs, depth), (frames.clone(), end), "the same walk ends in the same way");
    world.check_late_reads(regs, &frames, end, depth);
    assert!(frames.len() <= depth.max(1), "{} frames of {depth}", frames.len());
    let hash = frames.iter().fold(StackHash::new(0), |hash, frame| hash.push(frame.pc)).finish(end);
    assert!(hash > NESTED_STACK, "the hash of a stack stands for none: {hash:#x}");
    world.check_endless_walk(regs);
    world.check_nesting(regs, outer_sp, depth);
}

impl World<'_> {
    fn row(&self, pc: u64) -> Row {
        let index = usize::try_from(pc).unwrap_or_default().checked_rem(self.rows.len());
        index.and_then(|index| self.rows.get(index)).copied().unwrap_or(Row::END)
    }

    /// One step, held against what it promises.
    fn step(&self, regs: &Regs) -> Result<Regs, WalkEnd> {
        let row = self.row(regs.pc);
        let (reads, refused) = (self.memory.reads.get(), self.memory.refused.get());
        let outcome = go_up(row, regs, &self.memory);
        let (reads, refused) = (self.memory.reads.get() - reads, self.memory.refused.get() - refused);
        assert!(reads <= 3, "{reads} reads for {row:?}");
        assert_eq!(refused > 0, outcome == Err(WalkEnd::Unreadable) && !is_stop(row), "{row:?}");
        match outcome {
            Ok(caller) if !may_change_stacks(row) => {
                assert!(caller.sp > regs.sp, "{row:?} leads from {regs:x?} to {caller:x?}");
                assert_ne!(caller.pc, 0, "{row:?}");
                let slot = return_slot(row, regs, &caller);
                assert_eq!(self.memory.read_word(slot), Some(caller.pc), "{row:?} from {regs:x?}");
            }
            Ok(_) | Err(WalkEnd::Whole | WalkEnd::Unreadable | WalkEnd::NotAscending) => {}
            Err(end) => assert!(is_stop(row) || end == WalkEnd::UnknownRow, "{row:?}: {end:?}"),
        }
        outcome
    }

    /// The frames, and how the walk ended. The leaf is a frame whatever the limit.
    fn walk(&self, mut regs: Regs, depth: usize) -> (Vec<Regs>, WalkEnd) {
        let mut frames = vec![regs];
        loop {
            match self.step(&regs) {
                Ok(_) if frames.len() >= depth => return (frames, WalkEnd::Cut),
                Ok(caller) => regs = caller,
                Err(end) => return (frames, end),
            }
            frames.push(regs);
        }
    }

    /// A walk that reads rbp when it is asked for finds the same, and more only where a word that nothing asks for cannot
    /// be read.
    fn check_late_reads(&self, regs: Regs, frames: &[Regs], end: WalkEnd, depth: usize) {
        let mut frame = Frame::new(regs);
        let mut pcs = vec![frame.pc];
        let late_end = loop {
            match frame.caller(self.row(frame.pc), &self.memory) {
                Ok(_) if pcs.len() >= depth => break WalkEnd::Cut,
                Ok(caller) => frame = caller,
                Err(end) => break end,
            }
            pcs.push(frame.pc);
        };
        assert!(frames.iter().zip(&pcs).all(|(regs, pc)| regs.pc == *pc), "{frames:x?} and {pcs:x?}");
        assert!(pcs.len() >= frames.len(), "{frames:x?} and {pcs:x?}");
        if end != WalkEnd::Unreadable {
            assert_eq!((pcs.len(), late_end), (frames.len(), end));
        }
    }

    /// Where nothing leads back down, a walk ends without any limit: every frame needs memory above the last one.
    fn check_endless_walk(&self, mut regs: Regs) {
        let mut frames = 0;
        while !may_change_stacks(self.row(regs.pc))
            && let Ok(caller) = self.step(&regs)
        {
            regs = caller;
            frames += 1;
            assert!(frames <= self.memory.bytes.len(), "more frames than bytes");
        }
    }

    fn check_nesting(&self, regs: Regs, outer_sp: u64, depth: usize) {
        let mut nesting = Nesting::new(regs, outer_sp);
        let mut caller = regs;
        let mut is_below = false;
        for _ in 0..depth {
            assert_eq!(nesting.pc(), caller.pc);
            let went_up = self.step(&caller);
            let goes_on = nesting.advance(self.row(caller.pc), &self.memory);
            let Ok(next) = went_up else {
                assert!(!goes_on, "beyond the end of the walk");
                break;
            };
            caller = next;
            let slot = caller.sp.wrapping_sub(8);
            assert_eq!(goes_on, slot < outer_sp, "slot {slot:#x}, outer call at {outer_sp:#x}");
            assert_eq!(nesting.has_arrived(), slot == outer_sp);
            is_below |= goes_on;
            if !goes_on {
                break;
            }
        }
        assert_eq!(nesting.is_inside(), nesting.has_arrived() || !is_below);
    }
}

/// Whether the kind is `Kind::Signal` or `Kind::GoFramePointer`: the stack may go on anywhere.
fn may_change_stacks(row: Row) -> bool {
    row.is_kind(Kind::Signal) || row.is_kind(Kind::GoFramePointer)
}

/// Where the return address lies: right below the caller's stack pointer, or behind the caller's rbp where the kind is
/// `Kind::Interpreter`, whose rule for that is read of the row's second byte and the two that follow.
fn return_slot(row: Row, regs: &Regs, caller: &Regs) -> u64 {
    let raw = row.to_raw();
    let offset_bytes = (i64::from((raw >> 16) as u16 as i16) * 8).cast_unsigned();
    let base = match (raw >> 8) as u8 {
        rule if rule == FpRule::AtCfa as u8 => caller.sp,
        rule if rule == FpRule::AtFp as u8 => regs.fp,
        _ => return caller.sp.wrapping_sub(8),
    };
    if row.is_kind(Kind::Interpreter) {
        base.wrapping_add(offset_bytes).wrapping_add(8)
    } else {
        caller.sp.wrapping_sub(8)
    }
}

fn is_stop(row: Row) -> bool {
    row.is_kind(Kind::Stop)
}
