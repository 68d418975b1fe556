//! Where a function comes back: its `ret` instructions, for functions that may throw.
//!
//! A return probe replaces the return address, which ends the unwinding of an exception. A probe on a `ret` changes nothing
//! that anybody could see.

use std::{
    collections::{BTreeSet, VecDeque},
    ops::Range,
};

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind};

/// Where a function comes back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Returns {
    /// Offsets in the file of the `ret` instructions.
    pub offsets: BTreeSet<u64>,
    /// Jumps that leave the function for code whose end is not known, so that a return may be missed: offsets in the file.
    pub unfollowed: BTreeSet<u64>,
    /// Whether it jumps to another function that is probed.
    pub leads_to_probed: bool,
}

/// Parts of functions that are followed from one function on: its cold part, and those that it ends by jumping to.
const PARTS_LIMIT: usize = 64;

/// What all of them may have. Real ones have a few KiB.
const BYTES_LIMIT: u64 = 256 << 10;

/// A function, or a part of one.
#[derive(Clone, Debug)]
pub struct Part {
    /// Where it is: offsets in the file.
    pub range: Range<u64>,
    /// Its code.
    pub bytes: Vec<u8>,
}

/// Where a jump leads in the end.
#[derive(Clone, Debug)]
pub enum Destination {
    /// Into this part.
    Part(Part),
    /// To another function that is probed, which is seen where that comes back.
    Probed,
}

/// The ways back out of the function that begins at `entry`, an offset in the file.
///
/// `destination` tells what is at an offset, or `None` where that is not known or is longer than it was told.
pub fn find(entry: u64, mut destination: impl FnMut(u64, u64) -> Option<Destination>) -> Returns {
    let mut returns = Returns::default();
    let mut seen = BTreeSet::new();
    let mut waiting = VecDeque::from([(entry, entry)]);
    let mut left_bytes = BYTES_LIMIT;
    while let Some((from, to)) = waiting.pop_front() {
        let part = match destination(to, left_bytes) {
            Some(Destination::Part(part)) if seen.len() < PARTS_LIMIT => part,
            Some(Destination::Probed) if from != to => {
                returns.leads_to_probed = true;
                continue;
            }
            _ => {
                returns.unfollowed.insert(from);
                continue;
            }
        };
        if !seen.insert(part.range.start) {
            continue;
        }
        left_bytes = left_bytes.saturating_sub(part.bytes.len() as u64);
        let mut decoder = Decoder::with_ip(64, &part.bytes, part.range.start, DecoderOptions::NONE);
        let mut instruction = Instruction::default();
        while decoder.can_decode() {
            decoder.decode_out(&mut instruction);
            match instruction.flow_control() {
                FlowControl::Return => {
                    returns.offsets.insert(instruction.ip());
                }
                FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch
                    if matches!(instruction.op0_kind(), OpKind::NearBranch64) =>
                {
                    let target = instruction.near_branch64();
                    if !part.range.contains(&target) {
                        waiting.push_back((instruction.ip(), target));
                    }
                }
                _ => {}
            }
        }
    }
    returns
}

/// The address of the word through which a stub of the procedure linkage table jumps, where the code at an address is one.
pub fn stub_slot(bytes: &[u8], address: u64) -> Option<u64> {
    let mut decoder = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE);
    let mut first = decoder.decode();
    if first.mnemonic() == Mnemonic::Endbr64 {
        first = decoder.decode();
    }
    (first.is_jmp_near_indirect() && first.is_ip_rel_memory_operand()).then(|| first.ip_rel_memory_address())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: u64 = 0x1000;

    fn returns(bytes: &[u8], functions: &[(u64, u64)], probed: &[u64]) -> Returns {
        find(ENTRY, |offset, most_bytes| {
            if offset != ENTRY && probed.contains(&offset) {
                return Some(Destination::Probed);
            }
            let range =
                functions.iter().map(|(start, end)| *start..*end).find(|part| part.contains(&offset))?;
            let inside = |offset: u64| usize::try_from(offset - ENTRY).unwrap();
            let bytes = bytes.get(inside(range.start)..inside(range.end))?.to_vec();
            (bytes.len() as u64 <= most_bytes).then_some(Destination::Part(Part { range, bytes }))
        })
    }

    #[test]
    fn a_stub_tells_the_word_that_it_jumps_through() {
        // endbr64; jmp [rip+0x10]
        assert_eq!(stub_slot(&[0xf3, 0x0f, 0x1e, 0xfa, 0xff, 0x25, 0x10, 0, 0, 0], 0x1000), Some(0x101a));
        assert_eq!(stub_slot(&[0xff, 0x25, 0x10, 0, 0, 0], 0x1000), Some(0x1016));
        assert_eq!(stub_slot(&[0xff, 0xe0], 0x1000), None, "jmp rax");
        assert_eq!(stub_slot(&[], 0x1000), None);
    }

    #[test]
    fn every_return_of_the_function_itself_is_found() {
        // test rdi, rdi; je +1; ret; ret 8
        let found = returns(&[0x48, 0x85, 0xff, 0x74, 0x01, 0xc3, 0xc2, 8, 0], &[(ENTRY, ENTRY + 9)], &[]);
        assert_eq!(found.offsets, [ENTRY + 5, ENTRY + 6].into());
        assert_eq!(found.unfollowed, [].into());
    }

    #[test]
    fn jumps_out_are_followed_but_for_those_to_functions_that_are_probed() {
        // ja +3 (cold); jmp +2 (probed); cold: ret; nop; probed: ret
        let bytes = [0x77, 0x02, 0xeb, 0x02, 0xc3, 0x90, 0xc3];
        let functions = [(ENTRY, ENTRY + 4), (ENTRY + 4, ENTRY + 6), (ENTRY + 6, ENTRY + 7)];
        let found = returns(&bytes, &functions, &[ENTRY + 6]);
        assert_eq!(found.offsets, [ENTRY + 4].into());
        assert!(found.leads_to_probed);
        let found = returns(&bytes, &functions, &[]);
        assert_eq!(found.offsets, [ENTRY + 4, ENTRY + 6].into());
        assert!(!found.leads_to_probed);
    }

    #[test]
    fn two_functions_that_jump_to_each_other_end() {
        // jmp +0; jmp -4
        let found = returns(&[0xeb, 0x00, 0xeb, 0xfc], &[(ENTRY, ENTRY + 2), (ENTRY + 2, ENTRY + 4)], &[]);
        assert_eq!(found, Returns::default());
    }

    #[test]
    fn what_leads_to_nowhere_is_said() {
        // jmp out of the code
        let found = returns(&[0xeb, 0x70], &[(ENTRY, ENTRY + 2)], &[]);
        assert_eq!(found.unfollowed, [ENTRY].into());
        assert_eq!(returns(&[0xc3], &[], &[]).unfollowed, [ENTRY].into(), "a function without an end");
        let found = returns(&[0xc3], &[(ENTRY, u64::MAX)], &[]);
        assert_eq!(found.unfollowed, [ENTRY].into(), "a function that is longer than its file");
    }
}
