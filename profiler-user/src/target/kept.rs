//! A function's first instruction, which stays where it is, in front of a jump into a gate.
//!
//! Probes are put at functions' beginnings, also by others, and the kernel then carries out the instruction that the file has there and
//! goes on behind it. Whatever it finds there has to be right after that: a jump, and not its middle.

use iced_x86::{
    Code as Opcode, FlowControl, Instruction, InstructionInfoFactory, OpAccess, OpKind, Register,
};

/// What stays of a function in front of the jump. The gate undoes it, or does it once more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// The instruction; nothing where the function begins with an `endbr64`, which does nothing, or with the jump.
    pub bytes: Vec<u8>,
    /// By how many bytes it lowers the stack pointer, by which it is undone; 0 for one that is done once more.
    pub lowers_bytes: u32,
}

/// Registers that a function may destroy and that can hold arguments, by their numbers.
const ARGUMENTS: [Register; 6] =
    [Register::RDI, Register::RSI, Register::RDX, Register::RCX, Register::R8, Register::R9];

/// What a gate works with.
const SCRATCH: [Register; 3] = [Register::RAX, Register::R10, Register::R11];

/// By how many bytes an instruction lowers the stack pointer, if it may stay and be undone; 0 where it may be done once more. `None` for any
/// other. The gate looks at this number of arguments.
pub(super) fn lowers(instruction: &Instruction, arguments: usize) -> Option<u32> {
    match instruction.code() {
        Opcode::Push_r64 if instruction.op0_register() != Register::RSP => return Some(8),
        Opcode::Sub_rm64_imm8 | Opcode::Sub_rm64_imm32
            if instruction.op0_kind() == OpKind::Register && instruction.op0_register() == Register::RSP =>
        {
            let bytes = u32::try_from(instruction.immediate(1)).ok()?;
            return (1..1 << 30).contains(&bytes).then_some(bytes);
        }
        _ => {}
    }
    can_be_repeated(instruction, arguments).then_some(0)
}

/// Whether an instruction does the same once more, after the gate has worked, and nothing that the gate would miss.
fn can_be_repeated(instruction: &Instruction, arguments: usize) -> bool {
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(instruction);
    let writes = |access| {
        !matches!(access, OpAccess::None | OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess)
    };
    let reads = |access| {
        !matches!(access, OpAccess::None | OpAccess::Write | OpAccess::CondWrite | OpAccess::NoMemAccess)
    };
    let used = || info.used_registers().iter().map(|used| (used.register().full_register(), used.access()));
    let is_written = |register: Register| used().any(|(used, access)| used == register && writes(access));
    let free = ARGUMENTS.get(arguments..).unwrap_or_default();
    let may_be_written = |register: Register| {
        free.contains(&register) || SCRATCH.contains(&register) || register.is_vector_register()
    };
    instruction.flow_control() == FlowControl::Next
        && instruction.rflags_read() == 0
        && !info.used_memory().iter().any(|used| writes(used.access()))
        && used().all(|(register, access)| {
            let is_read = reads(access);
            (!writes(access) || may_be_written(register))
                && !(is_read
                    && (is_written(register) || SCRATCH.contains(&register) || register == Register::RSP))
        })
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions};

    use super::*;

    fn of(bytes: &[u8], arguments: usize) -> Option<u32> {
        let mut decoder = Decoder::with_ip(64, bytes, 0x1000, DecoderOptions::NONE);
        lowers(&decoder.decode(), arguments)
    }

    #[test]
    fn what_only_lowers_the_stack_pointer_is_undone() {
        assert_eq!(of(&[0x41, 0x54], 6), Some(8), "push r12");
        assert_eq!(of(&[0x48, 0x83, 0xec, 0x18], 6), Some(24), "sub rsp, 24");
        assert_eq!(of(&[0x48, 0x81, 0xec, 0, 1, 0, 0], 6), Some(256), "sub rsp, 256");
        assert_eq!(of(&[0x48, 0x83, 0xec, 0x80], 6), None, "sub rsp, -128");
        assert_eq!(of(&[0x48, 0x83, 0xeb, 0x18], 6), None, "sub rbx, 24");
        assert_eq!(of(&[0x54], 6), None, "push rsp");
        assert_eq!(of(&[0x6a, 0x01], 6), None, "push 1");
    }

    #[test]
    fn what_looks_or_takes_note_is_done_once_more() {
        for (bytes, name) in [
            (&[0x48, 0x85, 0xff][..], "test rdi, rdi"),
            (&[0x48, 0x81, 0xff, 0, 0x10, 0, 0], "cmp rdi, 4096"),
            (&[0x80, 0x3d, 1, 2, 3, 0, 0], "cmp byte ptr [rip+…], 0"),
            (&[0x48, 0x89, 0xf0], "mov rax, rsi"),
            (&[0x31, 0xc0], "xor eax, eax"),
            (&[0x64, 0x48, 0x8b, 0x04, 0x25, 8, 0, 0, 0], "mov rax, fs:[8]"),
            (&[0x48, 0x8d, 0x47, 0x10], "lea rax, [rdi+16]"),
            (&[0x66, 0x0f, 0xef, 0xc0], "pxor xmm0, xmm0"),
            (&[0x66, 0x90], "xchg ax, ax, which is a nop"),
        ] {
            assert_eq!(of(bytes, 6), Some(0), "{name}");
        }
    }

    #[test]
    fn what_the_gate_would_miss_or_cannot_do_again_may_not_stay() {
        for (bytes, name) in [
            (&[0x48, 0x83, 0xc7, 0x10][..], "add rdi, 16"),
            (&[0x48, 0x89, 0xfb], "mov rbx, rdi"),
            (&[0x48, 0x89, 0xf7], "mov rdi, rsi"),
            (&[0x48, 0x8b, 0x44, 0x24, 8], "mov rax, [rsp+8]"),
            (&[0xff, 0x05, 0, 0, 0, 0], "inc dword ptr [rip]"),
            (&[0x89, 0xc6], "mov esi, eax"),
            (&[0x48, 0xff, 0xc0], "inc rax"),
            (&[0x0f, 0x94, 0xc0], "sete al"),
            (&[0x74, 0x10], "je"),
            (&[0xcc], "int3"),
            (&[0xc3], "ret"),
        ] {
            assert_eq!(of(bytes, 6), None, "{name}");
        }
    }

    #[test]
    fn registers_are_free_that_hold_no_argument() {
        assert_eq!(of(&[0x31, 0xc9], 3), Some(0), "xor ecx, ecx");
        assert_eq!(of(&[0x31, 0xc9], 4), None);
        assert_eq!(of(&[0x49, 0x89, 0xf8], 2), Some(0), "mov r8, rdi");
        assert_eq!(of(&[0x31, 0xd2], 6), None, "xor edx, edx");
    }
}
