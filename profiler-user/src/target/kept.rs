//! The first instruction of a function that is gated, which is carried out before the jump: undone in the gate, and done again
//! where the function goes on.

use iced_x86::{Code, Instruction, InstructionInfoFactory, OpAccess, OpKind, Register};

/// What undoes it, so that all is as the caller left it but for what a function may destroy and takes no arguments in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undo {
    /// Nothing: it can be carried out twice, and nobody notices.
    Nothing,
    /// The register that it has pushed is popped.
    Pop(Register),
    /// The stack pointer is raised by as much as it was lowered.
    Raise(i32),
}

/// Registers that a gate changes itself, so that what comes behind it must not need what they had.
pub const CHANGED: [Register; 3] = [Register::RAX, Register::R10, Register::R11];

/// Those that it may find changed whatever the function is, for in them is no argument that it looks at.
const FREE: [Register; 5] = [Register::RAX, Register::R8, Register::R9, Register::R10, Register::R11];

/// The arguments that it may look at, in their order.
const ARGUMENTS: [Register; 4] = [Register::RDI, Register::RSI, Register::RDX, Register::RCX];

impl Undo {
    /// What undoes an instruction that goes on to the next, of a function with so many arguments that are looked at; `None` where
    /// nothing is known to.
    pub fn of(instruction: &Instruction, arguments: usize) -> Option<Self> {
        match instruction.code() {
            Code::Push_r64 if instruction.op0_register() != Register::RSP => {
                Some(Self::Pop(instruction.op0_register()))
            }
            Code::Sub_rm64_imm8 | Code::Sub_rm64_imm32
                if instruction.op0_kind() == OpKind::Register
                    && instruction.op0_register() == Register::RSP =>
            {
                let bytes = i32::try_from(instruction.immediate(1).cast_signed()).ok();
                bytes.filter(|bytes| *bytes > 0).map(Self::Raise)
            }
            _ => can_be_done_twice(instruction, arguments).then_some(Self::Nothing),
        }
    }
}

/// Whether it reads nothing that it writes, or a gate does, and writes nothing that matters.
fn can_be_done_twice(instruction: &Instruction, arguments: usize) -> bool {
    let others = ARGUMENTS.get(arguments..).unwrap_or_default();
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(instruction);
    if info.used_memory().iter().any(|memory| writes(memory.access())) {
        return false;
    }
    let by = |access: fn(OpAccess) -> bool| {
        let used = info.used_registers().iter().filter(move |used| access(used.access()));
        used.map(|used| used.register().full_register())
    };
    by(writes).all(|register| FREE.contains(&register) || others.contains(&register))
        && by(reads).all(|read| !CHANGED.contains(&read) && by(writes).all(|written| written != read))
}

fn writes(access: OpAccess) -> bool {
    matches!(access, OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
}

fn reads(access: OpAccess) -> bool {
    matches!(access, OpAccess::Read | OpAccess::CondRead | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions};

    use super::*;

    /// Of a function with all of the arguments.
    #[track_caller]
    fn undo(bytes: &[u8]) -> Option<Undo> {
        undo_with(bytes, ARGUMENTS.len())
    }

    #[track_caller]
    fn undo_with(bytes: &[u8], arguments: usize) -> Option<Undo> {
        let mut decoder = Decoder::with_ip(64, bytes, 0x1000, DecoderOptions::NONE);
        let instruction = decoder.decode();
        assert_eq!(instruction.len(), bytes.len());
        Undo::of(&instruction, arguments)
    }

    #[test]
    fn what_functions_begin_with_is_undone() {
        for (bytes, expected) in [
            (&[0x41, 0x54][..], Undo::Pop(Register::R12)),
            (&[0x55], Undo::Pop(Register::RBP)),
            (&[0x48, 0x83, 0xec, 0x18], Undo::Raise(0x18)),
            (&[0x48, 0x81, 0xec, 0x18, 1, 0, 0], Undo::Raise(0x118)),
            // test rdi, rdi; cmp rdi, 0x1000; cmp byte [rip], 0; mov rax, [rip]; mov rax, rdi; mov r8, rdi; xor eax, eax
            (&[0x48, 0x85, 0xff], Undo::Nothing),
            (&[0x48, 0x81, 0xff, 0, 0x10, 0, 0], Undo::Nothing),
            (&[0x80, 0x3d, 1, 2, 3, 0, 0], Undo::Nothing),
            (&[0x48, 0x8b, 5, 1, 2, 3, 0], Undo::Nothing),
            (&[0x48, 0x89, 0xf8], Undo::Nothing),
            (&[0x49, 0x89, 0xf8], Undo::Nothing),
            (&[0x31, 0xc0], Undo::Nothing),
            // mov rax, fs:[0]; lea rax, [rdi - 1]; nop
            (&[0x64, 0x48, 0x8b, 4, 0x25, 0, 0, 0, 0], Undo::Nothing),
            (&[0x48, 0x8d, 0x47, 0xff], Undo::Nothing),
            (&[0x90], Undo::Nothing),
        ] {
            assert_eq!(undo(bytes), Some(expected), "{bytes:02x?}");
        }
    }

    #[test]
    fn arguments_that_a_function_has_not_may_be_changed() {
        // mov rcx, [rip]; mov rcx, rdi; xor edx, edx
        for (bytes, most) in
            [(&[0x48, 0x8b, 0x0d, 1, 2, 3, 0][..], 3), (&[0x48, 0x89, 0xf9], 3), (&[0x31, 0xd2], 2)]
        {
            assert_eq!(undo_with(bytes, most), Some(Undo::Nothing), "{bytes:02x?}");
            assert_eq!(undo_with(bytes, most + 1), None, "{bytes:02x?}");
        }
    }

    #[test]
    fn what_lasts_is_not() {
        for bytes in [
            // add rdi, 1; mov rdi, rsi; mov rdx, rdi; mov rbx, rdi; push rsp; inc eax; lea rax, [rax + 1]; mov r8, rax
            &[0x48, 0x83, 0xc7, 1][..],
            &[0x48, 0x89, 0xf7],
            &[0x48, 0x89, 0xfa],
            &[0x48, 0x89, 0xfb],
            &[0x54],
            &[0xff, 0xc0],
            &[0x48, 0x8d, 0x40, 1],
            &[0x49, 0x89, 0xc0],
            // mov [rsp - 8], rbx; sub rsp, -0x80; sub esp, 8; push 1; inc dword [rip]
            &[0x48, 0x89, 0x5c, 0x24, 0xf8],
            &[0x48, 0x83, 0xec, 0x80],
            &[0x83, 0xec, 8],
            &[0x6a, 1],
            &[0xff, 5, 0, 0, 0, 0],
        ] {
            assert_eq!(undo(bytes), None, "{bytes:02x?}");
        }
    }
}
