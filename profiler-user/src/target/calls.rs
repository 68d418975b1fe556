//! Where an allocator's functions call on: what an inner call returns to.
//!
//! Whether a call is part of another one is found out by walking from the one to the other, through code of the allocator
//! itself. The kernel side is taught that code ahead, so that not even the first of such calls is taken for one of its own.

use std::collections::{BTreeSet, VecDeque};

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, OpKind};

use super::returns::Part;

/// Functions that are looked through, nearest first. glibc's allocator has some 60.
const PARTS_LIMIT: usize = 400;

/// What all of them may have.
const BYTES_LIMIT: u64 = 1 << 20;

/// Calls that are told. glibc's allocator has some 400.
const CALLS_LIMIT: usize = 4096;

/// Whose calls are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// Those of the functions themselves, their cold parts included, and what they end by jumping to.
    Own,
    /// Those of all that they call as well.
    All,
}

/// Offsets in the file to which calls return that the functions at `entries` make.
///
/// `part` gives the function that holds an offset, or `None` where that is not known or is longer than it was told.
pub fn returned_to(
    entries: impl IntoIterator<Item = u64>,
    whose: Whose,
    mut part: impl FnMut(u64, u64) -> Option<Part>,
) -> BTreeSet<u64> {
    let mut offsets = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let mut waiting: VecDeque<u64> = entries.into_iter().collect();
    let mut left_bytes = BYTES_LIMIT;
    while let Some(entry) = waiting.pop_front() {
        if seen.len() == PARTS_LIMIT {
            break;
        }
        let Some(part) = part(entry, left_bytes) else { continue };
        if !seen.insert(part.range.start) {
            continue;
        }
        left_bytes = left_bytes.saturating_sub(part.bytes.len() as u64);
        let mut decoder = Decoder::with_ip(64, &part.bytes, part.range.start, DecoderOptions::NONE);
        let mut instruction = Instruction::default();
        while decoder.can_decode() {
            decoder.decode_out(&mut instruction);
            let is_call = matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall);
            if is_call && offsets.len() < CALLS_LIMIT {
                offsets.insert(instruction.next_ip());
            }
            let is_followed = whose == Whose::All || !is_call;
            if is_followed && matches!(instruction.op0_kind(), OpKind::NearBranch64) {
                let target = instruction.near_branch64();
                if !part.range.contains(&target) {
                    waiting.push_back(target);
                }
            }
        }
    }
    offsets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_found_in_functions_that_are_called_or_jumped_to() {
        // 0: call 8; ret; 6: nop; nop; 8: call [rip]; jmp 16; 15: nop; 16: call 0; ret
        let code = [
            0xe8, 3, 0, 0, 0, 0xc3, 0x90, 0x90, 0xff, 0x15, 0, 0, 0, 0, 0xeb, 0x01, 0x90, 0xe8, 0xea, 0xff,
            0xff, 0xff, 0xc3,
        ];
        let functions = [0..6, 8..16, 17..23];
        let mut asked = 0;
        let offsets = returned_to([0x1000], Whose::All, |offset, most_bytes| {
            asked += 1;
            let inside = usize::try_from(offset - 0x1000).unwrap();
            let function = functions.iter().find(|function| function.contains(&inside))?.clone();
            let bytes = code[function.clone()].to_vec();
            let range = 0x1000 + function.start as u64..0x1000 + function.end as u64;
            (bytes.len() as u64 <= most_bytes).then_some(Part { range, bytes })
        });
        assert_eq!(offsets, [0x1005, 0x100e, 0x1016].into());
        assert_eq!(asked, 4, "each function once, and the first by the last");
        let part = |range: std::ops::Range<usize>| {
            let bytes = code[range.clone()].to_vec();
            Some(Part { range: 0x1000 + range.start as u64..0x1000 + range.end as u64, bytes })
        };
        let own = |entry| {
            returned_to([entry], Whose::Own, |offset, _| {
                let inside = usize::try_from(offset - 0x1000).unwrap();
                part(functions.iter().find(|function| function.contains(&inside))?.clone())
            })
        };
        assert_eq!(own(0x1000), [0x1005].into(), "what it calls has calls of its own");
        assert_eq!(own(0x1008), [0x100e, 0x1016].into(), "what it jumps to is a part of it");
    }
}
