//! Where on the stacks of stopped threads an address of code stands.
//!
//! A signal's handler returns to where the thread was, by what the kernel has written on the stack. Of what else looks like an
//! address, nobody knows whether it is one: it counts.

use std::ops::Range;

use super::{StopError, extent::Extent, frame::RED_ZONE_BYTES, threads::Threads};

/// How much of a stack is looked at.
const LIMIT_BYTES: u64 = 1 << 20;

/// What is read at once: that many bytes, of so many stacks.
const BATCH_BYTES: u64 = 256 << 10;
const BATCH_STACKS: usize = 512;

const WORD_BYTES: usize = size_of::<u64>();

/// What was found on the stacks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StackWords {
    /// The words that lie within the ranges.
    pub found: Vec<StackWord>,
    /// Threads whose stack was not seen to its end: it is longer than what is looked at, 1 MiB, or cannot be read. Of what is
    /// there, nothing is known.
    pub unseen: Vec<i32>,
}

/// A word that may be an address within code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackWord {
    /// The thread.
    pub thread: i32,
    /// Where it is on the thread's stack; `None` for the instruction that the thread is about to execute.
    pub at: Option<u64>,
    /// The word.
    pub word: u64,
    /// Whether a thread will go on there: it is about to, or the words behind are such as the kernel writes for one that a signal has
    /// interrupted there. Otherwise it is where something returns to, or has returned to once.
    pub is_interrupted: bool,
}

impl StackWords {
    /// Whether some thread will go on there.
    pub fn has_interrupted(&self) -> bool {
        self.found.iter().any(|word| word.is_interrupted)
    }
}

/// The part of a thread's stack that is read.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stack {
    thread: i32,
    used: Range<u64>,
}

impl Threads {
    /// Looks for words that lie within one of the ranges, and not at its beginning.
    pub(super) fn find_words(&mut self, ranges: &[Range<u64>]) -> Result<StackWords, StopError> {
        let mut words = StackWords::default();
        let stacks = self.stacks(ranges, &mut words)?;
        let memory = self.memory()?;
        let mut bytes = Vec::new();
        let mut rest = stacks.as_slice();
        while !rest.is_empty() {
            let (batch, behind) = rest.split_at(batch_length(rest));
            rest = behind;
            let places: Vec<Range<u64>> = batch.iter().map(|stack| stack.used.clone()).collect();
            if memory.read_ranges(&places, &mut bytes).is_ok() {
                let mut left = bytes.as_slice();
                for stack in batch {
                    let length = usize::try_from(stack.used.end - stack.used.start).unwrap_or_default();
                    let (own, behind) = left.split_at_checked(length).unwrap_or_default();
                    left = behind;
                    look(stack, own, ranges, &mut words.found);
                }
                continue;
            }
            // One of them cannot be read.
            for stack in batch {
                match memory.read_ranges(std::slice::from_ref(&stack.used), &mut bytes) {
                    Ok(()) => look(stack, &bytes, ranges, &mut words.found),
                    Err(_) => words.unseen.push(stack.thread),
                }
            }
        }
        Ok(words)
    }

    /// Looks at where the threads are, and what of their stacks they use.
    fn stacks(&mut self, ranges: &[Range<u64>], words: &mut StackWords) -> Result<Vec<Stack>, StopError> {
        let threads: Vec<i32> = self.states.keys().copied().collect();
        let mut stacks = Vec::with_capacity(threads.len());
        for thread in threads {
            let registers = self.registers_of(thread)?;
            if is_inside(ranges, registers.rip) {
                let word = registers.rip;
                words.found.push(StackWord { thread, at: None, word, is_interrupted: true });
            }
            let at = registers.rsp;
            let Some(Extent { range: mapping, .. }) = self.extent_at(at)? else {
                words.unseen.push(thread);
                continue;
            };
            let start = at.saturating_sub(RED_ZONE_BYTES).max(mapping.start).next_multiple_of(8);
            let end = mapping.end.min(start.saturating_add(LIMIT_BYTES));
            if end < mapping.end {
                words.unseen.push(thread);
            }
            stacks.push(Stack { thread, used: start..end });
        }
        Ok(stacks)
    }
}

/// How many of the first stacks are read at once.
fn batch_length(stacks: &[Stack]) -> usize {
    let mut bytes: u64 = 0;
    let fits = stacks.iter().take(BATCH_STACKS).take_while(|stack| {
        bytes = bytes.saturating_add(stack.used.end - stack.used.start);
        bytes <= BATCH_BYTES
    });
    fits.count().max(1)
}

fn look(stack: &Stack, bytes: &[u8], ranges: &[Range<u64>], found: &mut Vec<StackWord>) {
    // Almost no word is anywhere near.
    let first = ranges.iter().map(|range| range.start).min().unwrap_or_default();
    let last = ranges.iter().map(|range| range.end).max().unwrap_or_default();
    let (words, _) = bytes.as_chunks::<WORD_BYTES>();
    let at = (stack.used.start..).step_by(WORD_BYTES);
    for (place, (word, at)) in words.iter().zip(at).enumerate() {
        let word = u64::from_ne_bytes(*word);
        if first < word && word < last && is_inside(ranges, word) {
            let behind = words.get(place + 1..).unwrap_or_default();
            let is_interrupted = may_be_context(behind);
            found.push(StackWord { thread: stack.thread, at: Some(at), word, is_interrupted });
        }
    }
}

/// Whether what stands behind a word may be what `struct sigcontext` has behind `rip` (arch/x86/include/uapi/asm/sigcontext.h, v6.18): the
/// flags, of which one is always set, and the segments, of which the first is that of 64-bit code.
fn may_be_context(behind: &[[u8; WORD_BYTES]]) -> bool {
    const ALWAYS: u64 = 1 << 1;
    const BEHIND_FLAGS: u64 = 1 << 22;
    let [flags, segments, ..] = behind else { return true };
    let (flags, segments) = (u64::from_ne_bytes(*flags), u64::from_ne_bytes(*segments));
    flags & ALWAYS != 0 && flags < BEHIND_FLAGS && segments & 0xffff == USER_CS
}

/// `__USER_CS` of arch/x86/include/asm/segment.h.
const USER_CS: u64 = 0x33;

/// At a range's first address nothing of it is executed yet.
fn is_inside(ranges: &[Range<u64>], address: u64) -> bool {
    ranges.iter().any(|range| range.start < address && address < range.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_begins_behind_its_first_address() {
        let ranges = [0x1000..0x1005, 0x2000..0x2005];
        for (address, expected) in
            [(0x1000, false), (0x1001, true), (0x1005, false), (0x2004, true), (0, false)]
        {
            assert_eq!(is_inside(&ranges, address), expected, "{address:#x}");
        }
    }

    #[test]
    fn words_are_found_with_their_addresses() {
        let words = [0_u64, 0x1003, 0x1000, 0x2001, 0x246, 0x2b_0000_0000_0033];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let stack = Stack { thread: 7, used: 0x100..0x130 };
        let mut found = Vec::new();
        look(&stack, &bytes, &[0x2000..0x2005, 0x1000..0x1005], &mut found);
        let expected = [(0x108, 0x1003, false), (0x118, 0x2001, true)];
        assert_eq!(
            found,
            expected.map(|(at, word, is_interrupted)| StackWord {
                thread: 7,
                at: Some(at),
                word,
                is_interrupted
            })
        );
    }

    #[test]
    fn batches_are_limited_and_never_empty() {
        let stack = |length: u64| Stack { thread: 1, used: 0..length };
        assert_eq!(batch_length(&[stack(BATCH_BYTES + 8), stack(8)]), 1);
        assert_eq!(batch_length(&[stack(BATCH_BYTES - 8), stack(8), stack(8)]), 2);
        assert_eq!(batch_length(&vec![stack(8); BATCH_STACKS + 1]), BATCH_STACKS);
    }
}
