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
    /// Forgets what was remembered and begins with another one: gives where to take down what it reads.
    #[inline(always)]
    pub fn begin(&self) -> &Words {
        // No walk begins with this.
        self.regs.set(Regs { pc: 0, sp: 0, fp: 0 });
        self.announced.set(0);
        self.words.count.set(0);
        self.words.length.set(1);
        self.words.asks_for_fp.set(0);
        &self.words
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
    /// How many words of the stack the last one was known by: as many will be read for the next.
    pub length: u64,
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
