//! What a jump into a gate takes the place of: first instructions of a function, which have to be such that they can be carried out
//! elsewhere.
//!
//! The very first one stays where it is: other tools put their breakpoints on it, and the kernel carries out in its place what the file
//! has there, goes on behind it, and puts back what the file has when the tool has ended. Were it the jump's, the process would go on
//! in the middle of that. See [`kept`](super::kept) for how a gate makes it undone.

use std::{fmt, ops::Range};

use iced_x86::{
    Code as Opcode, Decoder, DecoderError, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind,
};
use profiler_common::call::Shape;

use super::{
    elf::Code,
    kept::Undo,
    site::{Targets, text},
};

/// Length of the jump: `jmp rel32`.
pub const JUMP_BYTES: usize = 5;

const PAGE_BYTES: u64 = 4096;

/// The longest instruction.
const LONGEST_BYTES: usize = 15;

/// The last covered instruction begins in the first five bytes, behind one that stays.
const LONGEST_COVER_BYTES: usize = LONGEST_BYTES + JUMP_BYTES - 1 + LONGEST_BYTES;

/// What a jump covers of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cover {
    /// Where the jump goes: its offset in the file.
    pub offset: u64,
    /// The instructions that it covers, whole.
    pub bytes: Vec<u8>,
    /// How many of the bytes, at their end, lie behind the function's last instruction, in what fills the space to the next one.
    pub padding_bytes: usize,
    /// The instruction before it, which stays: none behind an `endbr64`, which a function has that may be called through a pointer,
    /// and none where the first one is such a jump itself.
    pub kept: Vec<u8>,
    /// What undoes that.
    pub undo: Undo,
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

    /// The instructions, decoded as those at `address`.
    pub fn instructions_at(&self, address: u64) -> Vec<Instruction> {
        let bytes = self.bytes.len().saturating_sub(self.padding_bytes);
        let bytes = self.bytes.get(..bytes).unwrap_or_default();
        Decoder::with_ip(64, bytes, address, DecoderOptions::NONE).into_iter().collect()
    }

    /// Whether the last of the instructions is a call, so that the gate has to put its return address on the stack.
    pub fn has_call(&self) -> bool {
        let last = self.instructions_at(self.offset).pop();
        last.is_some_and(|instruction| instruction.flow_control() == FlowControl::Call)
    }

    /// The instruction that stays, decoded as the one before `address`.
    pub fn kept_before(&self, address: u64) -> Option<Instruction> {
        let start = address.checked_sub(self.kept.len() as u64)?;
        Decoder::with_ip(64, &self.kept, start, DecoderOptions::NONE).into_iter().next()
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
    /// Something in the file jumps to the jump, or into it.
    JumpedInto,
    /// Its first instruction can neither be undone nor carried out twice.
    Lasting(String),
    /// Another function begins behind the jump's first byte.
    EnteredInside,
    /// It jumps back to its own beginning, which would be taken for another call.
    Loops,
    /// One of the instructions cannot be carried out elsewhere.
    Fixed(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCode => out.write_str("has no code where its symbol points"),
            Self::NoEnd => out.write_str("does not say where it ends"),
            Self::TooShort => out.write_str("is shorter than the jump"),
            Self::TwoPages => out.write_str("has the end of a page where the jump would be"),
            Self::JumpedInto => out.write_str("is jumped into where the jump would be"),
            Self::Lasting(instruction) => {
                write!(out, "begins with what cannot be undone: {instruction}")
            }
            Self::EnteredInside => out.write_str("has another function begin where the jump would be"),
            Self::Loops => out.write_str("jumps back to its own beginning"),
            Self::Fixed(instruction) => {
                write!(out, "begins with what cannot be done elsewhere: {instruction}")
            }
        }
    }
}

/// What a jump covers of the function that begins at `offset` in its file.
///
/// `function` is its range, or that of the part of it that holds its beginning, by which it is known to be long enough; `targets` are
/// those of all direct jumps of the section `code`. By its `shape` it is known which arguments the gate looks at.
pub fn find(
    code: &Code,
    offset: u64,
    shape: Shape,
    function: Option<Range<u64>>,
    targets: &Targets,
) -> Result<Cover, Refusal> {
    let function = function.filter(|range| range.contains(&offset)).ok_or(Refusal::NoEnd)?;
    let body = bytes_of(code, offset..function.end).ok_or(Refusal::NoCode)?;
    let (kept, undo) = kept(body, offset, shape)?;
    let has_mark = body.starts_with(&ENDBR64);
    let skipped = if has_mark { ENDBR64.len() } else { kept.len() };
    let start = offset + skipped as u64;
    let rest = body.get(skipped..).ok_or(Refusal::TooShort)?;
    let first = rest.get(..LONGEST_COVER_BYTES.min(rest.len())).ok_or(Refusal::NoCode)?;
    let mut decoder = Decoder::with_ip(64, first, start, DecoderOptions::NONE);
    let (mut covered, mut padding_bytes) = (0, 0);
    while covered < JUMP_BYTES {
        if !decoder.can_decode() {
            return Err(Refusal::TooShort);
        }
        let instruction = decode(&mut decoder, first.len())?;
        covered += instruction.len();
        let ends = function.end == start + covered as u64 && leaves(&instruction);
        if !can_be_moved(&instruction, ends || covered >= JUMP_BYTES) {
            return Err(Refusal::Fixed(text(&instruction)));
        }
        if ends && covered < JUMP_BYTES {
            padding_bytes = JUMP_BYTES - covered;
            covered = JUMP_BYTES;
            if !is_padding(code, function.end, padding_bytes as u64) {
                return Err(Refusal::TooShort);
            }
        }
    }
    if start % PAGE_BYTES > PAGE_BYTES - JUMP_BYTES as u64 {
        return Err(Refusal::TwoPages);
    }
    // Who jumps to the function's second instruction has not just carried out the first.
    let from = if has_mark { start } else { offset };
    if targets.any_in(from + 1..=start + covered as u64 - 1) {
        return Err(Refusal::JumpedInto);
    }
    if loops(body, offset, start) {
        return Err(Refusal::Loops);
    }
    let bytes = bytes_of(code, start..start + covered as u64).filter(|bytes| bytes.len() == covered);
    let bytes = bytes.ok_or(Refusal::TooShort)?.to_vec();
    Ok(Cover { offset: start, bytes, padding_bytes, kept, undo })
}

/// Whether what lies at an offset, for so many bytes, is of the instructions that nobody carries out and that compilers and linkers fill
/// the space between functions with.
fn is_padding(code: &Code, offset: u64, bytes: u64) -> bool {
    let Some(filled) = bytes_of(code, offset..offset + LONGEST_BYTES as u64) else { return false };
    let mut decoder = Decoder::with_ip(64, filled, offset, DecoderOptions::NONE);
    while decoder.ip() < offset + bytes {
        if !decoder.can_decode() || !matches!(decoder.decode().mnemonic(), Mnemonic::Nop | Mnemonic::Int3) {
            return false;
        }
    }
    true
}

/// Whether what is behind an instruction is not carried out next.
fn leaves(instruction: &Instruction) -> bool {
    instruction.flow_control() == FlowControl::UnconditionalBranch
}

/// What stays of a function that begins so, and what undoes it.
fn kept(body: &[u8], offset: u64, shape: Shape) -> Result<(Vec<u8>, Undo), Refusal> {
    let first = body.get(..LONGEST_BYTES.min(body.len())).ok_or(Refusal::NoCode)?;
    // Whatever is put on a jump of the same length, and whenever it is taken away, it is a jump before and after.
    if body.starts_with(&ENDBR64) || first.first() == Some(&JUMP) {
        return Ok((Vec::new(), Undo::Nothing));
    }
    let instruction = decode(&mut Decoder::with_ip(64, first, offset, DecoderOptions::NONE), first.len())?;
    if !can_be_moved(&instruction, false) {
        return Err(Refusal::Fixed(text(&instruction)));
    }
    let undo =
        Undo::of(&instruction, arguments(shape)).ok_or_else(|| Refusal::Lasting(text(&instruction)))?;
    Ok((first.get(..instruction.len()).ok_or(Refusal::TooShort)?.to_vec(), undo))
}

/// How many arguments of functions of a shape are looked at, from the first on.
fn arguments(shape: Shape) -> usize {
    // That of what frees is the block.
    shape.convention().map_or(1, |convention| {
        let numbers = [
            convention.size_argument(),
            convention.count_argument(),
            convention.old_argument(),
            convention.out_argument(),
        ];
        numbers.into_iter().max().and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX)
    })
}

/// The next instruction, of so many bytes.
fn decode(decoder: &mut Decoder<'_>, length: usize) -> Result<Instruction, Refusal> {
    let instruction = decoder.decode();
    if !instruction.is_invalid() {
        return Ok(instruction);
    }
    // It may only be cut off by the function's end.
    let is_cut = length < LONGEST_COVER_BYTES && decoder.last_error() == DecoderError::NoMoreBytes;
    Err(if is_cut { Refusal::TooShort } else { Refusal::NoCode })
}

/// `jmp rel32`
const JUMP: u8 = 0xe9;

const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];

/// The bytes of a range of offsets.
fn bytes_of(code: &Code, range: Range<u64>) -> Option<&[u8]> {
    let start = usize::try_from(range.start.checked_sub(code.offset)?).ok()?;
    let end = usize::try_from(range.end.checked_sub(code.offset)?).ok()?;
    code.bytes.get(start..end.min(code.bytes.len())).filter(|bytes| !bytes.is_empty())
}

/// Whether an instruction does the same at another place, which is followed by a jump back unless it is the last and does not go on.
/// Of a call, that the gate gives it the return address that it has here.
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
        // It returns to what is behind it, which stays where it is.
        FlowControl::Call => is_last && instruction.code() == Opcode::Call_rel32_64,
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
    use iced_x86::Register;

    use super::*;

    const AT: u64 = 0x1000;

    fn found(bytes: &[u8]) -> Result<Cover, Refusal> {
        let code = Code { offset: AT, bytes: bytes.to_vec() };
        find(&code, AT, Shape::Size, Some(AT..AT + bytes.len() as u64), &Targets::of(&code))
    }

    #[test]
    fn whole_instructions_are_covered_as_far_as_the_jump_goes() {
        // push r12; push rbp; push rbx; sub rsp, 16; ret
        let cover = found(&[0x41, 0x54, 0x55, 0x53, 0x48, 0x83, 0xec, 0x10, 0xc3]).unwrap();
        assert_eq!((cover.offset, cover.bytes.len(), cover.end()), (AT + 2, 6, AT + 8));
        assert_eq!((cover.kept.as_slice(), cover.undo), (&[0x41, 0x54][..], Undo::Pop(Register::R12)));
        assert_eq!(cover.kept_before(0x5002).map(|first| (first.ip(), first.len())), Some((0x5000, 2)));
        assert_eq!(
            cover.instructions_at(0x5002).iter().map(Instruction::ip).collect::<Vec<_>>(),
            [0x5002, 0x5003, 0x5004]
        );
    }

    #[test]
    fn a_jump_is_covered_by_a_jump() {
        let cover = found(&[0xe9, 0, 1, 0, 0, 0xcc]).unwrap();
        assert_eq!((cover.offset, cover.bytes.len(), cover.undo), (AT, 5, Undo::Nothing));
        assert!(cover.kept.is_empty());
    }

    #[test]
    fn who_jumps_behind_the_first_instruction_is_in_the_way() {
        // push rbx; nop; …; jmp to the first nop
        let bytes = [0x53, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0xeb, 0xf8];
        assert_eq!(found(&bytes), Err(Refusal::JumpedInto));
    }

    #[test]
    fn what_cannot_be_undone_is_refused() {
        // inc edi; nop; …
        let found = found(&[0xff, 0xc7, 0x90, 0x90, 0x90, 0x90, 0x90, 0xc3]);
        assert!(matches!(found, Err(Refusal::Lasting(_))), "{found:?}");
    }

    #[test]
    fn an_endbr64_stays_where_it_is() {
        let mut bytes = ENDBR64.to_vec();
        bytes.extend([0x41, 0x54, 0x48, 0x83, 0xec, 0x10, 0xc3]);
        let cover = found(&bytes).unwrap();
        assert_eq!((cover.offset, cover.bytes.len()), (AT + 4, 6));
        assert!(cover.kept.is_empty());
    }

    #[test]
    fn a_branch_out_is_moved_and_one_in_is_refused() {
        // test rdi, rdi; je +5; push rbx; … ; the target is behind what is covered
        assert!(found(&[0x48, 0x85, 0xff, 0x74, 0x05, 0x53, 0x90, 0x90, 0x90, 0x90, 0xc3]).is_ok());
        // push rbx; xor eax, eax; inc eax; jne to the inc, which the jump would cover
        let into = [0x53, 0x31, 0xc0, 0xff, 0xc0, 0x75, 0xfc, 0xc3];
        assert_eq!(found(&into), Err(Refusal::JumpedInto));
        // xor eax, eax; inc eax; nop; jne to the beginning
        let back = [0x31, 0xc0, 0xff, 0xc0, 0x90, 0x75, 0xf9, 0xc3];
        assert_eq!(found(&back), Err(Refusal::Loops));
    }

    #[test]
    fn what_cannot_be_done_elsewhere_is_refused() {
        for (bytes, what) in [
            (&[0xe8, 0, 0, 0, 0, 0xc3][..], "call"),
            (&[0x53, 0x90, 0xff, 0xd0, 0x90, 0x90, 0xc3], "call"),
            (&[0x53, 0xc3, 0x90, 0x90, 0x90, 0x90], "ret"),
            (&[0x53, 0x90, 0xff, 0xe0, 0x90, 0x90], "jmp"),
            (&[0xcc, 0x90, 0x90, 0x90, 0x90, 0xc3], "int3"),
            (&[0x53, 0xe3, 0x04, 0x90, 0x90, 0x90, 0x90, 0x90, 0xc3], "jrcxz"),
            (&[0xeb, 0x02, 0x90, 0x90, 0x90, 0x90, 0xc3], "jmp"),
        ] {
            match found(bytes) {
                Err(Refusal::Fixed(said)) => assert!(said.contains(what), "{said}"),
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
        assert_eq!(find(&code, AT, Shape::Size, None, &targets), Err(Refusal::NoEnd));
        assert_eq!(find(&code, AT, Shape::Size, Some(AT + 8..AT + 16), &targets), Err(Refusal::NoEnd));
        // A function that says it is longer than its section.
        assert!(find(&code, AT, Shape::Size, Some(AT..u64::MAX), &targets).is_ok());
        assert_eq!(find(&code, AT + 20, Shape::Size, Some(AT..u64::MAX), &targets), Err(Refusal::NoCode));
    }

    #[test]
    fn the_last_covered_instruction_may_be_a_call() {
        // push rbx; call +0x100; ret
        let cover = found(&[0x53, 0xe8, 0, 1, 0, 0, 0xc3]).unwrap();
        assert_eq!((cover.kept.len(), cover.bytes.len(), cover.end()), (1, 5, AT + 6));
        assert!(cover.has_call());
        // push rbx; nop; call +0x100; ret
        assert!(found(&[0x53, 0x90, 0xe8, 0, 1, 0, 0, 0xc3]).unwrap().has_call());
        assert!(!found(&[0x53, 0x90, 0x90, 0x90, 0x90, 0x90, 0xc3]).unwrap().has_call());
    }

    #[test]
    fn behind_a_short_function_its_padding_is_covered() {
        let found = |behind: &[u8]| {
            // xor r8d, r8d; jmp to the function before
            let function = [0x45, 0x31, 0xc0, 0xeb, 0x8b];
            let code = Code { offset: AT, bytes: [&function, behind].concat() };
            find(&code, AT, Shape::Size, Some(AT..AT + function.len() as u64), &Targets::of(&code))
        };
        // data16 cs nop word [rax+rax]
        let nops = [0x66, 0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0];
        for behind in [&nops[..], &[0xcc, 0xcc, 0xcc], &[0x90, 0x66, 0x90, 0x55]] {
            let cover = found(behind).unwrap();
            assert_eq!((cover.offset, cover.bytes.len(), cover.padding_bytes), (AT + 3, 5, 3));
            assert_eq!(cover.bytes[2..], behind[..3]);
            assert_eq!(cover.instructions_at(AT).len(), 1);
        }
        // Too little of it, none, what a function may begin with, and the end of a nop that is not one.
        for behind in [&[0x90, 0x90][..], &[], &[0x90, 0x90, 0x55], &[0x66, 0x66, 0x2e]] {
            assert_eq!(found(behind), Err(Refusal::TooShort), "{behind:x?}");
        }
        // Who jumps there is in the way: jmp back to the first nop.
        assert_eq!(found(&[0x90, 0x90, 0x90, 0xeb, 0xfb]), Err(Refusal::JumpedInto));
    }

    #[test]
    fn the_last_covered_instruction_may_leave_for_good() {
        // push rbx; jmp +0x100
        let cover = found(&[0x53, 0xe9, 0, 1, 0, 0, 0xcc]).unwrap();
        assert_eq!((cover.kept.len(), cover.bytes.len()), (1, 5));
    }
}
