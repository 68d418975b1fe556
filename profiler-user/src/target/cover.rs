//! What a jump into a gate takes the place of: the first instructions of a function, which have to be such that they can be carried
//! out elsewhere.

use std::{fmt, ops::Range};

use iced_x86::{Code as Opcode, Decoder, DecoderError, DecoderOptions, FlowControl, Instruction, OpKind};

use super::{
    elf::Code,
    kept::{self, Kept},
    site::{Targets, text},
};

/// Length of the jump: `jmp rel32`.
pub const JUMP_BYTES: usize = 5;

const PAGE_BYTES: u64 = 4096;

/// The longest instruction has 15 bytes, and the last covered one begins in the first five, behind an `endbr64` or not.
const LONGEST_COVER_BYTES: usize = 4 + JUMP_BYTES - 1 + 15;

/// What a jump covers of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cover {
    /// Where the jump goes: its offset in the file. Behind the function's first instruction: an `endbr64`, for it may be called through a
    /// pointer, or another one; unless that is all that is covered.
    pub offset: u64,
    /// What stays in front of it.
    pub kept: Kept,
    /// The instructions that it covers, whole.
    pub bytes: Vec<u8>,
}

impl Cover {
    /// Where the function goes on behind them: an offset in the file.
    pub fn end(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }

    /// The instructions, for people.
    pub fn text(&self) -> String {
        let instructions = self.instructions_at(self.offset);
        instructions.iter().map(text).collect::<Vec<_>>().join("; ")
    }

    /// What stays in front of them, where they are at `address`.
    pub fn kept_at(&self, address: u64) -> Option<Instruction> {
        let start = address.checked_sub(self.kept.bytes.len() as u64)?;
        let mut decoder = Decoder::with_ip(64, &self.kept.bytes, start, DecoderOptions::NONE);
        decoder.can_decode().then(|| decoder.decode())
    }

    /// The instructions, decoded as those at `address`.
    pub fn instructions_at(&self, address: u64) -> Vec<Instruction> {
        Decoder::with_ip(64, &self.bytes, address, DecoderOptions::NONE).into_iter().collect()
    }
}

/// Why a function cannot be gated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no code, or none that can be decoded.
    NoCode,
    /// It is not known where it ends.
    NoEnd,
    /// It ends before the jump would.
    TooShort,
    /// The jump would lie on two pages, which nothing writes at once.
    TwoPages,
    /// Something in the file jumps behind the jump's first byte.
    JumpedInto,
    /// Another function begins behind the jump's first byte.
    EnteredInside,
    /// It jumps back to its own beginning, which would be taken for another call.
    Loops,
    /// One of the instructions cannot be carried out elsewhere.
    Fixed(String),
    /// The first instruction cannot stay in front of the jump, where it is carried out before the gate is.
    First(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCode => out.write_str("has no code where its symbol points"),
            Self::NoEnd => out.write_str("does not say where it ends"),
            Self::TooShort => out.write_str("is shorter than the jump"),
            Self::TwoPages => out.write_str("has the end of a page where the jump would be"),
            Self::JumpedInto => out.write_str("is jumped into where the jump would be"),
            Self::EnteredInside => out.write_str("has another function begin where the jump would be"),
            Self::Loops => out.write_str("jumps back to its own beginning"),
            Self::Fixed(instruction) => {
                write!(out, "begins with what cannot be done elsewhere: {instruction}")
            }
            Self::First(instruction) => {
                write!(out, "begins with what cannot be done in front of the jump: {instruction}")
            }
        }
    }
}

/// What a jump covers of the function that begins at `offset` in its file.
///
/// `function` is its range, or that of the part of it that holds its beginning, by which it is known to be long enough; `targets` are
/// those of all direct jumps of the section `code`. The gate looks at this number of arguments.
pub fn find(
    code: &Code,
    offset: u64,
    function: Option<Range<u64>>,
    targets: &Targets,
    arguments: usize,
) -> Result<Cover, Refusal> {
    let function = function.filter(|range| range.contains(&offset)).ok_or(Refusal::NoEnd)?;
    let body = bytes_of(code, offset..function.end).ok_or(Refusal::NoCode)?;
    if body.starts_with(&ENDBR64) {
        return behind(body, offset, ENDBR64.len(), Kept::default(), targets);
    }
    let found = kept(body, offset, arguments).and_then(|kept| {
        let skipped = kept.bytes.len();
        behind(body, offset, skipped, kept, targets)
    });
    found.or_else(|refusal| {
        // Of one instruction that is as long as the jump, the kernel goes on behind the jump as well: past the gate, and right.
        let only = behind(body, offset, 0, Kept::default(), targets).ok();
        only.filter(|cover| cover.instructions_at(offset).len() == 1).ok_or(refusal)
    })
}

/// What a jump covers of the function behind its first bytes, which are skipped.
fn behind(body: &[u8], offset: u64, skipped: usize, kept: Kept, targets: &Targets) -> Result<Cover, Refusal> {
    let start = offset + skipped as u64;
    let rest = body.get(skipped..).ok_or(Refusal::TooShort)?;
    let first = rest.get(..LONGEST_COVER_BYTES.min(rest.len())).ok_or(Refusal::NoCode)?;
    let mut decoder = Decoder::with_ip(64, first, start, DecoderOptions::NONE);
    let mut covered = 0;
    while covered < JUMP_BYTES {
        if !decoder.can_decode() {
            return Err(Refusal::TooShort);
        }
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            // It may only be cut off by the function's end.
            let is_cut =
                first.len() < LONGEST_COVER_BYTES && decoder.last_error() == DecoderError::NoMoreBytes;
            return Err(if is_cut { Refusal::TooShort } else { Refusal::NoCode });
        }
        covered += instruction.len();
        if !can_be_moved(&instruction, covered >= JUMP_BYTES) {
            return Err(Refusal::Fixed(text(&instruction)));
        }
    }
    if start % PAGE_BYTES > PAGE_BYTES - JUMP_BYTES as u64 {
        return Err(Refusal::TwoPages);
    }
    // Whoever jumps to the jump itself has not carried out what is kept; an `endbr64` makes no difference.
    let first_inside = if kept.bytes.is_empty() { start + 1 } else { start };
    if targets.any_in(first_inside..=start + covered as u64 - 1) {
        return Err(Refusal::JumpedInto);
    }
    if loops(body, offset, start) {
        return Err(Refusal::Loops);
    }
    let bytes = first.get(..covered).ok_or(Refusal::TooShort)?.to_vec();
    Ok(Cover { offset: start, kept, bytes })
}

/// A function's first instruction, which stays.
fn kept(body: &[u8], offset: u64, arguments: usize) -> Result<Kept, Refusal> {
    let instruction = Decoder::with_ip(64, body, offset, DecoderOptions::NONE).decode();
    if instruction.is_invalid() {
        let is_cut = body.len() < LONGEST_COVER_BYTES;
        return Err(if is_cut { Refusal::TooShort } else { Refusal::NoCode });
    }
    let lowers_bytes =
        kept::lowers(&instruction, arguments).ok_or_else(|| Refusal::First(text(&instruction)))?;
    let bytes = body.get(..instruction.len()).ok_or(Refusal::TooShort)?.to_vec();
    Ok(Kept { bytes, lowers_bytes })
}

const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];

/// The bytes of a range of offsets.
fn bytes_of(code: &Code, range: Range<u64>) -> Option<&[u8]> {
    let start = usize::try_from(range.start.checked_sub(code.offset)?).ok()?;
    let end = usize::try_from(range.end.checked_sub(code.offset)?).ok()?;
    code.bytes.get(start..end.min(code.bytes.len())).filter(|bytes| !bytes.is_empty())
}

/// Whether an instruction does the same at another place, which is followed by a jump back unless it is the last and does not go on.
fn can_be_moved(instruction: &Instruction, is_last: bool) -> bool {
    // What another debugger or patcher has put there.
    if matches!(instruction.code(), Opcode::Int3 | Opcode::INVALID) {
        return false;
    }
    match instruction.flow_control() {
        FlowControl::Next => true,
        // `jrcxz` and its like reach 127 bytes only, and have no longer form.
        FlowControl::ConditionalBranch => instruction.is_jcc_short_or_near(),
        FlowControl::UnconditionalBranch => is_last && matches!(instruction.op0_kind(), OpKind::NearBranch64),
        _ => false,
    }
}

/// Whether the function jumps to its own beginning. A call of itself is one like any other.
fn loops(body: &[u8], offset: u64, start: u64) -> bool {
    Decoder::with_ip(64, body, offset, DecoderOptions::NONE).into_iter().any(|instruction| {
        matches!(
            instruction.flow_control(),
            FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch
        ) && matches!(instruction.op0_kind(), OpKind::NearBranch64)
            && [offset, start].contains(&instruction.near_branch64())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: u64 = 0x1000;

    fn found(bytes: &[u8]) -> Result<Cover, Refusal> {
        let code = Code { offset: AT, bytes: bytes.to_vec() };
        find(&code, AT, Some(AT..AT + bytes.len() as u64), &Targets::of(&code), 6)
    }

    #[test]
    fn whole_instructions_are_covered_as_far_as_the_jump_goes() {
        // push r12; push rbp; push rbx; sub rsp, 16; ret
        let cover = found(&[0x41, 0x54, 0x55, 0x53, 0x48, 0x83, 0xec, 0x10, 0xc3]).unwrap();
        assert_eq!((cover.offset, cover.bytes.len(), cover.end()), (AT + 2, 6, AT + 8));
        assert_eq!(
            cover.instructions_at(0x5000).iter().map(Instruction::ip).collect::<Vec<_>>(),
            [0x5000, 0x5001, 0x5002]
        );
        assert_eq!(cover.kept, Kept { bytes: vec![0x41, 0x54], lowers_bytes: 8 });
        assert_eq!(cover.kept_at(0x5000).unwrap().ip(), 0x4ffe);
    }

    #[test]
    fn an_endbr64_stays_where_it_is() {
        let mut bytes = ENDBR64.to_vec();
        bytes.extend([0x41, 0x54, 0x48, 0x83, 0xec, 0x10, 0xc3]);
        let cover = found(&bytes).unwrap();
        assert_eq!((cover.offset, cover.bytes.len()), (AT + 4, 6));
        assert_eq!(cover.kept_at(AT + 4), None);
    }

    #[test]
    fn a_branch_out_is_moved_and_one_in_is_refused() {
        // test rdi, rdi; je +5; push rbx; … ; the target is behind what is covered
        assert!(found(&[0x48, 0x85, 0xff, 0x74, 0x05, 0x53, 0x90, 0x90, 0x90, 0x90, 0xc3]).is_ok());
        // push rbx; xor eax, eax; inc eax; nop; jne to the inc, which the jump would cover
        let into = [0x53, 0x31, 0xc0, 0xff, 0xc0, 0x90, 0x75, 0xfb, 0xc3];
        assert_eq!(found(&into), Err(Refusal::JumpedInto));
        // The same to the xor, where the jump would be, by who has not carried out the push.
        let to = [0x53, 0x31, 0xc0, 0xff, 0xc0, 0x90, 0x75, 0xf9, 0xc3];
        assert_eq!(found(&to), Err(Refusal::JumpedInto));
        // xor eax, eax; inc eax; nop; nop; nop; jne to the beginning
        let back = [0x31, 0xc0, 0xff, 0xc0, 0x90, 0x90, 0x90, 0x75, 0xf7, 0xc3];
        assert_eq!(found(&back), Err(Refusal::Loops));
    }

    #[test]
    fn what_cannot_be_done_elsewhere_is_refused() {
        for (bytes, what) in [
            (&[0x53, 0xe8, 0, 0, 0, 0, 0xc3][..], "call"),
            (&[0x53, 0xc3, 0x90, 0x90, 0x90, 0x90], "ret"),
            (&[0x53, 0x90, 0xff, 0xe0, 0x90, 0x90], "jmp"),
            (&[0x53, 0xcc, 0x90, 0x90, 0x90, 0x90, 0xc3], "int3"),
            (&[0x53, 0xe3, 0x04, 0x90, 0x90, 0x90, 0x90, 0x90, 0xc3], "jrcxz"),
            (&[0x53, 0xeb, 0x02, 0x90, 0x90, 0x90, 0x90, 0xc3], "jmp"),
        ] {
            match found(bytes) {
                Err(Refusal::Fixed(said)) => assert!(said.contains(what), "{said}"),
                other => panic!("{what}: {other:?}"),
            }
        }
    }

    #[test]
    fn the_first_instruction_has_to_stay_where_it_is() {
        // jmp +0x100, and an instruction of seven bytes before a call: each is as long as the jump.
        for bytes in [&[0xe9, 0, 1, 0, 0, 0xcc][..], &[0x48, 0xc7, 0xc7, 1, 0, 0, 0, 0xe8, 0, 0, 0, 0, 0xc3]]
        {
            let cover = found(bytes).unwrap();
            assert_eq!((cover.offset, cover.kept.bytes.len()), (AT, 0));
            assert_eq!(cover.instructions_at(AT).len(), 1);
        }
        for (bytes, what) in [
            (&[0x48, 0x89, 0xf7, 0x90, 0x90, 0x90, 0x90, 0x90, 0xc3][..], "mov rdi,rsi"),
            (&[0xe8, 0, 0, 0, 0, 0x90, 0x90, 0x90, 0x90, 0x90, 0xc3], "call"),
        ] {
            match found(bytes) {
                Err(Refusal::First(said)) => assert!(said.contains(what), "{said}"),
                other => panic!("{what}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_function_that_ends_before_the_jump_does_is_refused() {
        assert_eq!(found(&[0x53, 0x90, 0x90, 0x90]), Err(Refusal::TooShort));
        // The last instruction does not end in the function.
        assert_eq!(found(&[0x53, 0x48, 0x83, 0xec]), Err(Refusal::TooShort));
        let code = Code { offset: AT, bytes: vec![0x90; 16] };
        let targets = Targets::of(&code);
        assert_eq!(find(&code, AT, None, &targets, 6), Err(Refusal::NoEnd));
        assert_eq!(find(&code, AT, Some(AT + 8..AT + 16), &targets, 6), Err(Refusal::NoEnd));
        // A function that says it is longer than its section.
        assert!(find(&code, AT, Some(AT..u64::MAX), &targets, 6).is_ok());
        assert_eq!(find(&code, AT + 20, Some(AT..u64::MAX), &targets, 6), Err(Refusal::NoCode));
    }

    #[test]
    fn the_last_covered_instruction_may_leave_for_good() {
        // push rbx; jmp +0x100
        assert_eq!(found(&[0x53, 0xe9, 0, 1, 0, 0, 0xcc]).unwrap().bytes.len(), 5);
    }
}
