//! Where C calls into Go: `runtime/cgo`'s `crosscall2`.
//!
//! It saves what C wants back, and leads the frame pointer to where rbp is saved once more and no return address beside it. So
//! how to get to its caller is read off its instructions, which follow each other straight up to its only call
//! (`PUSH_REGS_HOST_TO_ABI0` in Go's src/runtime/cgo/abi_amd64.h).

use std::{collections::HashSet, fs::File, ops::Range};

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, OpKind, Register};
use profiler_common::unwind::{FpRule, Kind, Row};

use super::{elf::read_at, functions::Functions};

/// The function's name.
const NAME: &str = "crosscall2";

/// It has 104 bytes in Go 1.26.
const BYTES_LIMIT: u64 = 1024;

/// The function, as it lies in a file.
#[derive(Debug)]
pub(super) struct GoEntry {
    /// Its first byte, and the first behind it, as offsets in the file.
    range: Range<u64>,
    code: Vec<u8>,
}

impl GoEntry {
    /// Finds it by its name; `None` where the file has none, or no names.
    pub(super) fn find(file: &File) -> Option<Self> {
        let functions = Functions::of_file(file, &HashSet::from([NAME.to_owned()]), &HashSet::new());
        let functions = functions.inspect_err(|error| tracing::debug!(%error, "no names of Go's")).ok()?;
        let function = functions.get(NAME).next()?;
        let size_bytes = function.size_bytes.min(BYTES_LIMIT);
        let offset = functions.offset_of(function.address)?;
        let code = read_at(file, offset, usize::try_from(size_bytes).ok()?).ok()?;
        Some(Self { range: offset..offset.checked_add(size_bytes)?, code })
    }

    /// The row at the byte before a return address, an offset in the file; `None` outside of the function.
    pub(super) fn row(&self, offset: u64) -> Option<Row> {
        let behind = self.range.contains(&offset).then(|| offset - self.range.start)? + 1;
        Prologue::before(&self.code, behind)?.row()
    }
}

/// What a function has done to the stack.
#[derive(Clone, Copy, Debug)]
struct Prologue {
    /// How far rsp lies below the CFA, in bytes.
    depth_bytes: i64,
    /// Where the caller's rbp was saved, from the CFA on.
    fp_offset_bytes: Option<i64>,
}

impl Prologue {
    /// Follows instructions up to the call that returns behind so many bytes; `None` where they do what is not known here.
    fn before(code: &[u8], behind: u64) -> Option<Self> {
        let mut prologue = Self { depth_bytes: 8, fp_offset_bytes: None };
        let mut decoder = Decoder::with_ip(64, code, 0, DecoderOptions::NONE);
        let mut instruction = Instruction::default();
        while decoder.can_decode() {
            decoder.decode_out(&mut instruction);
            if instruction.next_ip() >= behind {
                return Some(prologue);
            }
            prologue.follow(&instruction)?;
        }
        None
    }

    fn follow(&mut self, instruction: &Instruction) -> Option<()> {
        let saves_fp = |operand| {
            instruction.op_kind(operand) == OpKind::Register
                && instruction.op_register(operand) == Register::RBP
        };
        match instruction.code() {
            Code::Push_r64 => {
                self.depth_bytes += 8;
                if saves_fp(0) {
                    self.save_fp(0);
                }
            }
            Code::Pushfq => self.depth_bytes += 8,
            Code::Sub_rm64_imm8 | Code::Sub_rm64_imm32 if changes_sp(instruction) => {
                self.depth_bytes = self.depth_bytes.checked_add(immediate(instruction))?;
            }
            Code::Add_rm64_imm8 | Code::Add_rm64_imm32 if changes_sp(instruction) => {
                self.depth_bytes = self.depth_bytes.checked_sub(immediate(instruction))?;
            }
            Code::Lea_r64_m if changes_sp(instruction) => {
                self.depth_bytes = self.depth_bytes.checked_sub(displacement(instruction)?)?;
            }
            Code::Mov_rm64_r64 if instruction.op0_kind() == OpKind::Memory && saves_fp(1) => {
                self.save_fp(displacement(instruction)?);
            }
            _ => {
                let is_known = !changes_sp(instruction)
                    && !instruction.is_stack_instruction()
                    && instruction.flow_control() == FlowControl::Next;
                return is_known.then_some(());
            }
        }
        Some(())
    }

    /// rbp goes to where rsp and this much lead; the first time, it is the caller's.
    fn save_fp(&mut self, displacement: i64) {
        self.fp_offset_bytes.get_or_insert(displacement.wrapping_sub(self.depth_bytes));
    }

    fn row(self) -> Option<Row> {
        let cfa_offset = i32::try_from(self.depth_bytes).ok()?;
        let Some(fp_offset) = self.fp_offset_bytes else {
            return Some(Row::new(Kind::Sp, FpRule::Unchanged, 0, cfa_offset));
        };
        let words = i16::try_from(fp_offset / 8).ok().filter(|_| fp_offset % 8 == 0)?;
        Some(Row::new(Kind::Sp, FpRule::AtCfa, words, cfa_offset))
    }
}

fn changes_sp(instruction: &Instruction) -> bool {
    instruction.op0_kind() == OpKind::Register && instruction.op0_register() == Register::RSP
}

fn immediate(instruction: &Instruction) -> i64 {
    instruction.immediate(1).cast_signed()
}

/// How far from rsp an operand lies; `None` where it is found by something else.
fn displacement(instruction: &Instruction) -> Option<i64> {
    let is_by_sp = instruction.memory_base() == Register::RSP && instruction.memory_index() == Register::None;
    is_by_sp.then(|| instruction.memory_displacement64().cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// push rbp; mov rbp, rsp; sub rsp, 48; mov [rsp+40], rbp; lea rbp, [rsp+40]; mov [rsp], rbx; sub rsp, 24; call
    const WITH_FRAME: [u8; 33] = [
        0x55, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xec, 0x30, 0x48, 0x89, 0x6c, 0x24, 0x28, 0x48, 0x8d, 0x6c, 0x24,
        0x28, 0x48, 0x89, 0x1c, 0x24, 0x48, 0x83, 0xec, 0x18, 0xe8, 0, 0, 0, 0, 0x90, 0xc3,
    ];

    fn row(code: &[u8], behind: u64) -> Option<Row> {
        let range = 0x1000..0x1000 + code.len() as u64;
        GoEntry { range, code: code.to_vec() }.row(0x1000 + behind - 1)
    }

    #[test]
    fn the_caller_s_rbp_is_where_it_was_saved_first() {
        assert_eq!(row(&WITH_FRAME, 31), Some(Row::new(Kind::Sp, FpRule::AtCfa, -2, 88)));
    }

    #[test]
    fn a_function_without_a_frame_saves_rbp_somewhere() {
        // pushfq; cld; lea rsp, [rsp-48]; mov [rsp+40], rbp; call
        let code =
            [0x9c, 0xfc, 0x48, 0x8d, 0x64, 0x24, 0xd0, 0x48, 0x89, 0x6c, 0x24, 0x28, 0xe8, 0, 0, 0, 0, 0xc3];
        assert_eq!(row(&code, 17), Some(Row::new(Kind::Sp, FpRule::AtCfa, -3, 64)));
    }

    #[test]
    fn what_is_not_straight_has_no_row() {
        // and rsp, -16; call
        assert_eq!(row(&[0x48, 0x83, 0xe4, 0xf0, 0xe8, 0, 0, 0, 0, 0xc3], 9), None);
        // je over; call
        assert_eq!(row(&[0x74, 5, 0xe8, 0, 0, 0, 0, 0xc3], 7), None);
        assert_eq!(row(&WITH_FRAME[..20], 31), None, "cut");
        let entry = GoEntry { range: 0x1000..0x1021, code: WITH_FRAME.to_vec() };
        assert_eq!((entry.row(0xfff), entry.row(0x1021), entry.row(u64::MAX)), (None, None, None));
    }
}
