//! Walks that are known again by what they read.
//!
//! A walk is a function of the registers that it begins with, of the rows, and of the words that it reads: it reads nothing else.
//! So a walk that begins with the same registers, by the same rows, and would find the same words in the same places,
//! comes to the same end. The first word that differed would be read at the same place as before, for
//! up to there all is the same, and it is among those that are compared.
//!
//! The rows of an epoch may become more, and some may be taken back. A row that is added was either not asked for, which makes no
//! difference, or missed, and a walk that missed one is not remembered. Taking one back raises a number, the
//! generation, that was read before the walk began: what was walked by the row, or by some that were there before and some after, is of an
//! earlier one than any that asks later.

use core::cell::Cell;

use super::{ReadMemory, Regs, StackHash, WalkEnd};

/// Bytes of a stack within which a walk must read for it to be remembered, counted from its leaf's return address on.
pub const WINDOW_BYTES: u64 = 4096;

/// Words within that.
pub const WINDOW_WORDS: usize = WINDOW_BYTES as usize / 8;

/// Most words that a walk may read for it to be remembered.
pub const MAX_WORDS: usize = 64;

/// Walks remembered of a thread, as a power of two.
pub const WALKS_LOG2: u32 = 5;

/// Walks remembered of a thread.
pub const WALKS: usize = 1 << WALKS_LOG2;

/// More words than are remembered.
const TOO_MANY: u32 = u32::MAX;

/// By which rows a walk goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Knowledge {
    /// [`crate::target::Target::epoch`].
    pub epoch: u32,
    /// [`crate::target::Target::image`].
    pub image: u32,
    /// How often rows were taken back.
    pub generation: u64,
}

/// What a walk has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Come {
    /// The hash of its frames.
    pub hash: StackHash,
    /// The stack pointer at the last of them.
    pub sp: u64,
    /// How many they are.
    pub depth: u32,
    /// The [`WalkEnd`].
    pub end: u16,
    /// 1 where it led through a function that allocates and is probed.
    pub is_of_allocator: u16,
}

/// The words that a walk has read.
#[repr(C)]
pub struct Words {
    /// How many; [`TOO_MANY`] where not all are here.
    count: Cell<u32>,
    /// How many words of the stack they lie in.
    length: Cell<u32>,
    /// 1 where the walk has asked for the rbp that it began with.
    asks_for_fp: Cell<u64>,
    places: [Cell<u16>; MAX_WORDS],
    words: [Cell<u64>; MAX_WORDS],
}

impl Words {
    /// Takes a word down that was read so far behind the beginning of the window.
    #[inline(always)]
    fn note(&self, offset: u64, word: u64) {
        let count = self.count.get();
        if offset >= WINDOW_BYTES || offset & 7 != 0 {
            return self.give_up();
        }
        let index = count as usize;
        let (Some(place), Some(kept)) = (self.places.get(index), self.words.get(index)) else {
            return self.give_up();
        };
        let at = (offset >> 3) as u32;
        place.set(at as u16);
        kept.set(word);
        self.count.set(count + 1);
        if at >= self.length.get() {
            self.length.set(at + 1);
        }
    }

    #[inline(always)]
    fn give_up(&self) {
        self.count.set(TOO_MANY);
    }
}

/// A walk, and what it takes to know it again.
#[repr(C)]
pub struct RememberedWalk {
    regs: Cell<Regs>,
    knowledge: Cell<Knowledge>,
    come: Cell<Come>,
    /// Under what it is known to user space, as a number that callers choose; 0 for nothing.
    announced: Cell<u64>,
    words: Words,
}

impl RememberedWalk {
    /// Forgets what was remembered and begins with another one, which takes down what it reads in [`Self::words`].
    #[inline(always)]
    pub fn begin(&self) {
        // No walk begins with this.
        self.regs.set(Regs { pc: 0, sp: 0, fp: 0 });
        self.announced.set(0);
        self.words.count.set(0);
        self.words.length.set(1);
        self.words.asks_for_fp.set(0);
    }

    /// Remembers the walk that was begun, if it can be known again; `knowledge` is from before it began.
    #[inline(always)]
    pub fn finish(&self, regs: Regs, knowledge: Knowledge, come: Come) -> bool {
        if self.words.count.get() == TOO_MANY || come.end == WalkEnd::MissingRow as u16 {
            return false;
        }
        self.come.set(come);
        self.knowledge.set(knowledge);
        self.regs.set(regs);
        true
    }

    /// Whether it began with these registers, as far as it asked for them, and by the same rows.
    #[inline(always)]
    pub fn began_with(&self, regs: Regs, knowledge: Knowledge) -> bool {
        let (began, by) = (self.regs.get(), self.knowledge.get());
        let Knowledge { epoch, image, generation } = knowledge;
        let is_by_same = by.epoch == epoch && by.image == image && by.generation == generation;
        let has_same_fp = began.fp == regs.fp || self.words.asks_for_fp.get() == 0;
        began.pc == regs.pc && began.sp == regs.sp && has_same_fp && is_by_same && regs.pc != 0
    }

    /// Whether it would find the same words. All of them lie within the first [`Self::length`] of the window.
    #[inline(always)]
    pub fn finds_the_same_in(&self, window: &[u64; WINDOW_WORDS]) -> bool {
        let count = self.words.count.get() as usize;
        for (index, (place, kept)) in self.words.places.iter().zip(&self.words.words).enumerate() {
            if index >= count {
                break;
            }
            match window.get(usize::from(place.get())) {
                Some(word) if *word == kept.get() => {}
                _ => return false,
            }
        }
        true
    }

    /// Where it takes down what it reads.
    #[inline(always)]
    pub const fn words(&self) -> &Words {
        &self.words
    }

    /// How many words of the window it is known again by.
    #[inline(always)]
    pub const fn length(&self) -> u32 {
        self.words.length.get()
    }

    /// What it came to.
    #[inline(always)]
    pub const fn come(&self) -> Come {
        self.come.get()
    }

    /// Under what it is known to user space; 0 for nothing.
    #[inline(always)]
    pub const fn announced(&self) -> u64 {
        self.announced.get()
    }

    /// Takes note that user space knows it.
    #[inline(always)]
    pub fn announce(&self, as_what: u64) {
        self.announced.set(as_what);
    }
}

/// The place of a walk among those that are remembered, by the leaf's pc and stack pointer. The constants are odd, the
/// second is 2⁶⁴ divided by the golden ratio.
#[inline(always)]
pub const fn place(regs: Regs) -> u32 {
    let mixed = regs.pc ^ regs.sp.wrapping_mul(0xd6e8_feb8_6659_fd93);
    (mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - WALKS_LOG2)) as u32
}

/// The walks that are remembered of a thread, the value of the `WALKS` map; the key is its pid_tgid. All zeros remember
/// nothing.
///
/// Only the thread's own programs write it, one after the other.
#[repr(C)]
pub struct Walks {
    /// How many words the window holds, or will the next time: about as many as the last walks were known by.
    pub length: u64,
    /// Where on the stack the window begins, for a walk that reads words of it.
    pub begin: u64,
    /// The words from the return address of an allocator function on.
    pub window: [u64; WINDOW_WORDS],
    /// The walks, by [`place`].
    pub walks: [RememberedWalk; WALKS],
}

/// Memory that takes down what is read of it.
pub struct Noting<'words, M> {
    /// What is read.
    pub memory: M,
    /// Where the window begins.
    pub begin: u64,
    /// What was read.
    pub words: &'words Words,
}

impl<M: ReadMemory> ReadMemory for Noting<'_, M> {
    #[inline(always)]
    fn read_word(&self, address: u64) -> Option<u64> {
        let read = self.memory.read_word(address);
        match read {
            Some(word) => self.words.note(address.wrapping_sub(self.begin), word),
            // It may be there the next time.
            None => self.words.give_up(),
        }
        read
    }

    #[inline(always)]
    fn read_pair(&self, address: u64) -> Option<[u64; 2]> {
        let read = self.memory.read_pair(address);
        match read {
            Some([first, second]) => {
                let offset = address.wrapping_sub(self.begin);
                self.words.note(offset, first);
                self.words.note(offset.wrapping_add(8), second);
            }
            None => self.words.give_up(),
        }
        read
    }

    #[inline(always)]
    fn note_first_fp(&self) {
        self.words.asks_for_fp.set(1);
    }
}

const _: () = assert!(size_of::<Words>() == 16 + 10 * MAX_WORDS, "no padding");
const _: () = assert!(size_of::<RememberedWalk>() == 72 + size_of::<Words>(), "no padding");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unwind::{FpRule, Frame, Kind, Row, stack::Stack};

    const BY: Knowledge = Knowledge { epoch: 1, image: 2, generation: 3 };
    const BEGIN: u64 = 0x1000;

    fn empty() -> RememberedWalk {
        let words = Words {
            count: Cell::new(0),
            length: Cell::new(0),
            asks_for_fp: Cell::new(0),
            places: [const { Cell::new(0) }; MAX_WORDS],
            words: [const { Cell::new(0) }; MAX_WORDS],
        };
        let come = Come { hash: StackHash::new(0), sp: 0, depth: 0, end: 0, is_of_allocator: 0 };
        RememberedWalk {
            regs: Cell::new(Regs::default()),
            knowledge: Cell::new(Knowledge { epoch: 0, image: 0, generation: 0 }),
            come: Cell::new(come),
            announced: Cell::new(0),
            words,
        }
    }

    /// Walks as the kernel does.
    fn walk(regs: Regs, rows: &[Row], memory: &impl ReadMemory) -> Come {
        let (mut frame, mut hash, mut is_of_allocator) = (Frame::new(regs), StackHash::new(0), 0);
        let mut depth = 0;
        let end = loop {
            hash = hash.push(frame.pc);
            depth += 1;
            let row = rows.get(frame.pc as usize).copied().unwrap_or(Row::stop(WalkEnd::MissingRow));
            is_of_allocator |= u16::from(row.is_of_allocator());
            match frame.caller(row, memory) {
                Ok(_) if depth == 32 => break WalkEnd::Cut,
                Ok(caller) => frame = caller,
                Err(end) => break end,
            }
        };
        Come { hash, sp: frame.sp, depth, end: end as u16, is_of_allocator }
    }

    fn remember(remembered: &RememberedWalk, regs: Regs, rows: &[Row], words: &[u64]) -> (bool, Come) {
        remembered.begin();
        let memory = Noting { memory: Stack(BEGIN, words), begin: BEGIN, words: remembered.words() };
        let come = walk(regs, rows, &memory);
        (remembered.finish(regs, BY, come), come)
    }

    fn window(words: &[u64]) -> [u64; WINDOW_WORDS] {
        let mut window = [0; WINDOW_WORDS];
        window.iter_mut().zip(words).for_each(|(to, from)| *to = *from);
        window
    }

    #[test]
    fn what_is_known_again_comes_to_what_a_walk_would() {
        let mut seed = 7_u64;
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            (seed >> 33) % below
        };
        let kinds = [Kind::Sp, Kind::Sp, Kind::Fp, Kind::FramePointer, Kind::GoFramePointer, Kind::DerefSp];
        let rules = [FpRule::Unchanged, FpRule::AtCfa, FpRule::AtFp];
        let (mut known, mut changed, mut refused, mut by_other_fp) = (0, 0, 0, 0);
        for _ in 0..20_000 {
            let rows: Vec<Row> = (0..8)
                .map(|pc| {
                    let kind = kinds[random(6) as usize];
                    let offset = random(6) as i16 - 4;
                    let row = Row::new(kind, rules[random(3) as usize], offset, 8 * (1 + random(5) as i32));
                    if pc == 0 {
                        Row::END
                    } else if random(9) == 0 {
                        row.of_allocator()
                    } else {
                        row
                    }
                })
                .collect();
            // Words are pcs or addresses within: walks lead far.
            let mut words: Vec<u64> = (0..48)
                .map(|_| if random(2) == 0 { 1 + random(7) } else { BEGIN + 8 * random(48) })
                .collect();
            let regs = Regs { pc: 1 + random(7), sp: BEGIN + 8, fp: BEGIN + 8 * random(48) };
            let remembered = empty();
            let (is_remembered, come) = remember(&remembered, regs, &rows, &words);
            let cannot_be = [WalkEnd::Unreadable, WalkEnd::MissingRow].map(|end| end as u16);
            assert!(!is_remembered || !cannot_be.contains(&come.end));
            for _ in 0..8 {
                let mut again = regs;
                if random(3) == 0 {
                    again.fp = BEGIN + 8 * random(48);
                }
                let place = random(48) as usize;
                let kept = words[place];
                words[place] = if random(2) == 0 { 1 + random(7) } else { BEGIN + 8 * random(48) };
                // Of the window no more is there than it says that it needs.
                let mut window = window(&words);
                window[remembered.length() as usize..].fill(u64::MAX);
                if remembered.began_with(again, BY) && remembered.finds_the_same_in(&window) {
                    assert_eq!(walk(again, &rows, &Stack(BEGIN, &words)), remembered.come());
                    known += 1;
                    by_other_fp += u32::from(again.fp != regs.fp);
                    changed += u32::from(words[place] != kept);
                } else {
                    refused += 1;
                }
                words[place] = kept;
            }
        }
        let counts = (known, changed, refused, by_other_fp);
        assert!(known > 10_000 && changed > 10_000 && refused > 10_000 && by_other_fp > 1_000, "{counts:?}");
    }

    #[test]
    fn a_walk_is_not_known_again_by_other_rows() {
        let words = [9, 0x1018, 1, 0];
        let regs = Regs { pc: 2, sp: BEGIN + 8, fp: BEGIN + 8 };
        let rows = [Row::END, Row::END, Row::FRAME_POINTER];
        let remembered = empty();
        assert!(!remembered.began_with(Regs::default(), BY), "nothing is remembered of nothing");
        let (is_remembered, come) = remember(&remembered, regs, &rows, &words);
        assert!(
            is_remembered
                && come.end == WalkEnd::Whole as u16
                && remembered.finds_the_same_in(&window(&words))
        );
        assert!(remembered.began_with(regs, BY));
        remembered.announce(5);
        assert_eq!(remembered.announced(), 5);
        for other in
            [Knowledge { epoch: 2, ..BY }, Knowledge { image: 3, ..BY }, Knowledge { generation: 4, ..BY }]
        {
            assert!(!remembered.began_with(regs, other), "{other:?}");
        }
        let others = [Regs { pc: 3, ..regs }, Regs { sp: regs.sp + 8, ..regs }, Regs { fp: 1, ..regs }];
        assert!(others.iter().all(|other| !remembered.began_with(*other, BY)), "it has asked for rbp");
        remembered.begin();
        assert!(!remembered.began_with(regs, BY) && remembered.announced() == 0, "another one has begun");
    }

    #[test]
    fn what_may_come_to_something_else_is_not_remembered() {
        let regs = Regs { pc: 1, sp: BEGIN + 8, fp: 0 };
        let by_sp = |offset| Row::new(Kind::Sp, FpRule::Unchanged, 0, offset);
        let remembered = empty();
        let remember = |rows: &[Row], words: &[u64]| remember(&remembered, regs, rows, words).0;
        let rows = [Row::END, by_sp(16)];
        // Word 2 is the caller's pc.
        assert!(remember(&rows, &[9, 0, 0]));
        assert!(!remember(&rows, &[9, 0, 5, 0]), "there is no row yet");
        assert!(!remember(&rows, &[9, 0]), "there is no word yet");
        let mut words = vec![0; WINDOW_WORDS + 8];
        let reaching = |words: usize| [Row::END, by_sp(8 * words as i32)];
        assert!(remember(&reaching(WINDOW_WORDS - 1), &words));
        assert!(!remember(&reaching(WINDOW_WORDS), &words), "it lies outside");
        // As many frames of one word each as there is room for, and one more.
        let rows = [Row::END, by_sp(8), Row::END];
        words[1..].fill(1);
        words[MAX_WORDS] = 2;
        let few = Come { depth: 0, ..walk(regs, &rows, &Stack(BEGIN, &words)) };
        assert_eq!(few.end, WalkEnd::Cut as u16);
        let long = |count: usize| {
            remembered.begin();
            let words = remembered.words();
            (0..count).for_each(|index| words.note(8 * index as u64, 1));
            remembered.finish(regs, BY, few)
        };
        assert!(long(MAX_WORDS) && !long(MAX_WORDS + 1) && !long(MAX_WORDS + 2));
    }

    #[test]
    fn places_differ() {
        let at = |pc, depth: u64| place(Regs { pc, sp: 0x7fff_0000 - 48 * depth, fp: 0 });
        let mut places: Vec<u32> = (0..WALKS as u64).map(|depth| at(0x40_1000, depth)).collect();
        assert!(places.iter().all(|&place| (place as usize) < WALKS));
        places.sort_unstable();
        places.dedup();
        assert!(places.len() > WALKS / 2, "{places:?}");
    }
}
