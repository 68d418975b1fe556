//! Where in a function the probe goes, which decides what it costs.
//!
//! The kernel does some instructions itself when a probe on them fires; all others it copies elsewhere and
//! single-steps, which is a second trap and several times the cost. So the probe goes on the first instruction
//! of the first kind that every call reaches with its arguments still in place, where there is one.

use std::ops::RangeInclusive;

use iced_x86::{
    Code as Opcode, Decoder, DecoderOptions, FlowControl, Formatter, Instruction, InstructionInfoFactory,
    IntelFormatter, OpAccess, OpKind, Register,
};

use profiler_common::call::Shape;

use super::elf::Code;

/// A probe site in a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Offset of the probed instruction in the file, in bytes.
    pub offset: u64,
    /// How far that is into the function, in bytes.
    pub into_function_bytes: u64,
    /// The instruction, for people.
    pub instruction: String,
    /// Why it was chosen.
    pub choice: Choice,
}

/// Why a site was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The function's first instruction is one that the kernel does itself.
    EntryEmulated,
    /// The first such instruction that every call reaches unchanged.
    LaterEmulated,
    /// The function's first instruction, single-stepped, because there is no such instruction.
    EntryStepped,
}

impl Choice {
    /// The reason in words.
    pub const fn text(self) -> &'static str {
        match self {
            Self::EntryEmulated => "entry; the kernel emulates it",
            Self::LaterEmulated => "first emulated instruction, arguments still in place",
            Self::EntryStepped => "entry; single-stepped, no emulated instruction is safe",
        }
    }
}

/// Prologues are looked at this far; a site further in would hardly be reached in a straight line.
const PROLOGUE_BYTES: usize = 32;

/// Where in a piece of code the direct jumps and calls in it lead.
#[derive(Clone, Debug)]
pub struct Targets {
    /// Offset of the code in its file.
    start: u64,
    /// A bit for every byte of the code: glibc's has 60,000 targets, which a set takes as long to take in as they take to find.
    bits: Vec<u64>,
}

impl Targets {
    /// Looks through `code`.
    ///
    /// Decoding runs straight through; data between functions can yield targets that no real jump has, which
    /// makes the choice of a site more careful, never less.
    pub fn of(code: &Code) -> Self {
        let mut decoder = Decoder::with_ip(64, &code.bytes, code.offset, DecoderOptions::NONE);
        let mut instruction = Instruction::default();
        let mut targets = Self { start: code.offset, bits: vec![0; code.bytes.len().div_ceil(64)] };
        while decoder.can_decode() {
            decoder.decode_out(&mut instruction);
            if matches!(instruction.op0_kind(), OpKind::NearBranch64) {
                targets.add(instruction.near_branch64());
            }
        }
        targets
    }

    fn place(&self, offset: u64) -> Option<(usize, u64)> {
        let inside = offset.checked_sub(self.start)?;
        Some((usize::try_from(inside / 64).ok()?, 1 << (inside % 64)))
    }

    fn add(&mut self, offset: u64) {
        if let Some((word, bit)) = self.place(offset)
            && let Some(word) = self.bits.get_mut(word)
        {
            *word |= bit;
        }
    }

    /// Whether one of them lies in a range of offsets, which is short.
    pub(super) fn any_in(&self, range: RangeInclusive<u64>) -> bool {
        let is_target = |offset| {
            let place = self.place(offset);
            place.is_some_and(|(word, bit)| self.bits.get(word).is_some_and(|bits| bits & bit != 0))
        };
        range.into_iter().any(is_target)
    }
}

/// Where the function of this shape that starts at `offset` jumps, if all that it does before is to set what nobody reads there,
/// as arguments that the shape does not have.
pub fn first_jump(code: &Code, offset: u64, shape: Shape) -> Option<u64> {
    let start = usize::try_from(offset.checked_sub(code.offset)?).ok()?;
    let rest = code.bytes.get(start..)?;
    let prologue = rest.get(..PROLOGUE_BYTES.min(rest.len()))?;
    let mut decoder = Decoder::with_ip(64, prologue, offset, DecoderOptions::NONE);
    let mut facts = InstructionInfoFactory::new();
    while decoder.can_decode() {
        let instruction = decoder.decode();
        if instruction.is_jmp_short_or_near() {
            return Some(instruction.near_branch64());
        }
        let goes_on = !instruction.is_invalid() && instruction.flow_control() == FlowControl::Next;
        if !goes_on || changes(&mut facts, &instruction, &read_by(shape)) {
            return None;
        }
    }
    None
}

/// The registers of the arguments that a shape has, and those that tell where the caller is.
fn read_by(shape: Shape) -> Vec<Register> {
    let numbers = shape.convention().map_or([1, 2, 0, 0], |convention| {
        [
            convention.size_argument(),
            convention.count_argument(),
            convention.old_argument(),
            convention.out_argument(),
        ]
    });
    let arguments = (1..).zip(ARGUMENTS).filter(|(number, _)| numbers.contains(number));
    arguments.map(|(_, register)| register).chain(FRAME).collect()
}

/// The best site in the function that starts at `offset`; `None` where there is no code.
///
/// A site behind the entry is safe when it is reached in a straight line, when nothing before it changes an
/// argument register, rsp or rbp, and when no jump in the object leads behind the entry up to the site.
pub fn choose(code: &Code, offset: u64, targets: &Targets) -> Option<Site> {
    let start = usize::try_from(offset.checked_sub(code.offset)?).ok()?;
    let rest = code.bytes.get(start..)?;
    let prologue = rest.get(..PROLOGUE_BYTES.min(rest.len()))?;
    let mut decoder = Decoder::with_ip(64, prologue, offset, DecoderOptions::NONE);
    let mut facts = InstructionInfoFactory::new();
    let kept: Vec<Register> = ARGUMENTS.into_iter().chain(FRAME).collect();
    let mut first = None;
    while decoder.can_decode() {
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            break;
        }
        let site = |choice| Site {
            offset: instruction.ip(),
            into_function_bytes: instruction.ip() - offset,
            instruction: text(&instruction),
            choice,
        };
        let is_entry = instruction.ip() == offset;
        // Also a jump into the middle of an instruction leads on to here.
        if !is_entry && targets.any_in(offset + 1..=instruction.ip()) {
            break;
        }
        if is_emulated(&instruction) {
            return Some(site(if is_entry { Choice::EntryEmulated } else { Choice::LaterEmulated }));
        }
        if is_entry {
            first = Some(site(Choice::EntryStepped));
        }
        if instruction.flow_control() != FlowControl::Next || changes(&mut facts, &instruction, &kept) {
            break;
        }
    }
    first
}

/// Whether the kernel does the instruction itself: relative jumps and calls, `push` of a 64-bit register and the
/// one-byte `nop` (`branch_setup_xol_ops`, `push_setup_xol_ops` in arch/x86/kernel/uprobes.c, since v4.17).
fn is_emulated(instruction: &Instruction) -> bool {
    match instruction.code() {
        Opcode::Push_r64 | Opcode::Nopd => instruction.len() <= 2,
        Opcode::Jmp_rel8_64 | Opcode::Jmp_rel32_64 | Opcode::Call_rel32_64 => true,
        _ => instruction.is_jcc_short_or_near(),
    }
}

/// The first four arguments, and the stack and frame pointers: what the programs read at a probe.
const ARGUMENTS: [Register; 4] = [Register::RDI, Register::RSI, Register::RDX, Register::RCX];
const FRAME: [Register; 2] = [Register::RSP, Register::RBP];

/// Whether the instruction changes one of the registers `kept`, or memory.
fn changes(facts: &mut InstructionInfoFactory, instruction: &Instruction, kept: &[Register]) -> bool {
    let writes = |access| {
        matches!(
            access,
            OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
        )
    };
    let info = facts.info(instruction);
    let changes_register = info
        .used_registers()
        .iter()
        .any(|used| writes(used.access()) && kept.contains(&used.register().full_register()));
    changes_register || info.used_memory().iter().any(|used| writes(used.access()))
}

pub(super) fn text(instruction: &Instruction) -> String {
    let mut formatter = IntelFormatter::new();
    let options = formatter.options_mut();
    options.set_branch_leading_zeros(false);
    options.set_show_branch_size(false);
    options.set_hex_prefix("0x");
    options.set_hex_suffix("");
    options.set_uppercase_hex(false);
    let mut out = String::new();
    formatter.format(instruction, &mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(bytes: &[u8]) -> Site {
        let code = Code { offset: 0x1000, bytes: bytes.to_vec() };
        choose(&code, 0x1000, &Targets::of(&code)).expect("there is code")
    }

    #[test]
    fn an_emulated_entry_stays_the_site() {
        assert_eq!(site(&[0x41, 0x54, 0xc3]).choice, Choice::EntryEmulated); // push r12; ret
    }

    #[test]
    fn glibcs_free_is_probed_on_the_jump_behind_its_test() {
        // test rdi, rdi; je +8; ret
        let site = site(&[0x48, 0x85, 0xff, 0x74, 0x08, 0xc3]);
        assert_eq!((site.choice, site.into_function_bytes), (Choice::LaterEmulated, 3));
    }

    #[test]
    fn a_changed_argument_stack_or_frame_pointer_keeps_the_probe_at_the_entry() {
        for before in [
            &[0x48, 0x89, 0xf7][..],       // mov rdi, rsi
            &[0x48, 0x83, 0xec, 0x08][..], // sub rsp, 8
            &[0x48, 0x89, 0xe5][..],       // mov rbp, rsp
            &[0x89, 0xd2][..],             // mov edx, edx
            &[0x48, 0x89, 0x3e][..],       // mov [rsi], rdi
        ] {
            let code = [before, &[0x53, 0xc3]].concat(); // push rbx; ret
            assert_eq!(site(&code).choice, Choice::EntryStepped, "{before:x?}");
        }
    }

    #[test]
    fn a_jump_to_the_site_keeps_the_probe_at_the_entry() {
        // test rdi, rdi; je +0; … jmp back to the je
        let bytes = [0x48, 0x85, 0xff, 0x74, 0x00, 0xeb, 0xfc];
        assert_eq!(site(&bytes).choice, Choice::EntryStepped);
        // The same, and a jump into the middle of the test
        let bytes = [0x48, 0x85, 0xff, 0x74, 0x00, 0xeb, 0xfa];
        assert_eq!(site(&bytes).choice, Choice::EntryStepped);
        // A jump to the entry itself is a call like any other.
        let bytes = [0x48, 0x85, 0xff, 0x74, 0x00, 0xeb, 0xf9];
        assert_eq!(site(&bytes).choice, Choice::LaterEmulated);
    }

    #[test]
    fn a_function_that_only_sets_other_arguments_leads_to_where_it_jumps() {
        let leads_to =
            |bytes: &[u8], shape| first_jump(&Code { offset: 0x1000, bytes: bytes.to_vec() }, 0x1000, shape);
        // endbr64; jmp +0
        assert_eq!(leads_to(&[0xf3, 0x0f, 0x1e, 0xfa, 0xeb, 0x00], Shape::ResizeCount), Some(0x1006));
        // mov rdx, [rip]; jmp +0
        let third = [0x48, 0x8b, 0x15, 0, 0, 0, 0, 0xeb, 0x00];
        assert_eq!(leads_to(&third, Shape::Size), Some(0x1009));
        assert_eq!(leads_to(&third, Shape::Free), Some(0x1009));
        assert_eq!(leads_to(&third, Shape::OutAlignSize), None);
        for before in [
            &[0x48, 0x89, 0xf7][..],       // mov rdi, rsi
            &[0x48, 0x83, 0xec, 0x08][..], // sub rsp, 8
            &[0x53][..],                   // push rbx
            &[0x48, 0x89, 0x3e][..],       // mov [rsi], rdi
            &[0x74, 0x00][..],             // je +0
            &[0xff, 0xd0][..],             // call rax
            &[0x06][..],                   // none
        ] {
            assert_eq!(leads_to(&[before, &[0xeb, 0x00]].concat(), Shape::Size), None, "{before:x?}");
        }
        assert_eq!(leads_to(&[0x90], Shape::Size), None);
    }

    #[test]
    fn there_is_no_site_behind_a_return_or_off_the_end() {
        assert_eq!(site(&[0xc3, 0x53]).choice, Choice::EntryStepped);
        let code = Code { offset: 0x1000, bytes: vec![0x53] };
        let targets = Targets::of(&code);
        assert_eq!(choose(&code, 0x2000, &targets), None);
        assert_eq!(choose(&code, 0xfff, &targets), None);
    }
}
