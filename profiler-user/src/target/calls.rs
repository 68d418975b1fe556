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

/// Offsets in the file to which calls return that the functions at `entries` make, themselves or through others.
///
/// `part` gives the function that holds an offset, or `None` where that is not known or is longer than it was told.
pub fn returned_to(
    entries: impl IntoIterator<Item = u64>,
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
            if matches!(instruction.op0_kind(), OpKind::NearBranch64) {
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
        let offsets = returned_to([0x1000], |offset, most_bytes| {
            asked += 1;
            let inside = usize::try_from(offset - 0x1000).unwrap();
            let function = functions.iter().find(|function| function.contains(&inside))?.clone();
            let bytes = code[function.clone()].to_vec();
            let range = 0x1000 + function.start as u64..0x1000 + function.end as u64;
            (bytes.len() as u64 <= most_bytes).then_some(Part { range, bytes })
        });
        assert_eq!(offsets, [0x1005, 0x100e, 0x1016].into());
        assert_eq!(asked, 4, "each function once, and the first by the last");
    }
}
