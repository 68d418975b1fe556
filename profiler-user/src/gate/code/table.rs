//! The table of the blocks in the sample: a filter that says of most blocks that they are not in it, and buckets.

use iced_x86::{
    Code, IcedError, Instruction, Register,
    code_asm::{AsmRegister64, CodeLabel, byte_ptr, eax, qword_ptr, r8, r9, r9d, r10, r11, rax, rcx},
};

use super::writer::{Writer, here};
use crate::gate::layout::{BUCKET_BYTES, HAS_OVERFLOWED, HASH_FACTOR, LONG_HASH_FACTOR, SLOTS};

impl Writer<'_> {
    /// Goes to `maybe` where a block may be in the table, with its bucket in r10.
    pub(super) fn filter(&mut self, block: AsmRegister64, maybe: CodeLabel) -> Result<(), IcedError> {
        self.hash(block, r10)?;
        let entries = self.indexed(r11, r10, self.setting.layout.filter())?;
        self.asm.cmp(byte_ptr(entries), 0)?;
        self.asm.jne(maybe)
    }

    /// Puts a block's bucket into a register.
    fn hash(&mut self, block: AsmRegister64, bucket: AsmRegister64) -> Result<(), IcedError> {
        let layout = self.setting.layout;
        if layout.has_short_hash() {
            let lower_half = |register: AsmRegister64| Register::from(register).full_register32();
            let (product, factor) = (lower_half(bucket), HASH_FACTOR.cast_signed());
            let shift = (u32::BITS - layout.bucket_bits()).cast_signed();
            let multiply = Instruction::with3(Code::Imul_r32_rm32_imm32, product, lower_half(block), factor)?;
            self.asm.add_instruction(multiply)?;
            return self.asm.add_instruction(Instruction::with2(Code::Shr_rm32_imm8, product, shift)?);
        }
        self.asm.mov(bucket, LONG_HASH_FACTOR)?;
        self.asm.imul_2(bucket, block)?;
        self.asm.shr(bucket, u64::BITS - layout.bucket_bits())
    }

    /// Takes a block out of the table, whose bucket is in r10, and goes on behind; goes to `absent` where it is not in there, or to
    /// `unknown` where it may have had no room.
    pub(super) fn remove(
        &mut self,
        block: AsmRegister64,
        absent: CodeLabel,
        unknown: CodeLabel,
    ) -> Result<(), IcedError> {
        let layout = self.setting.layout;
        let (filter, table) = (self.data(layout.filter()), self.data(layout.table()));
        let asm = &mut self.asm;
        let (mut next, mut found) = (asm.create_label(), asm.create_label());
        // Null is what an empty slot has.
        asm.test(block, block)?;
        asm.je(absent)?;
        asm.mov(r11, table)?;
        asm.shl(r10, BUCKET_BYTES.ilog2())?;
        asm.add(r11, r10)?;
        asm.shr(r10, BUCKET_BYTES.ilog2())?;
        asm.mov(eax, SLOTS as i32)?;
        here(asm, &mut next)?;
        asm.cmp(qword_ptr(r11), block)?;
        asm.je(found)?;
        asm.add(r11, 8)?;
        asm.dec(eax)?;
        asm.jne(next)?;
        asm.mov(r11, filter)?;
        asm.test(byte_ptr(r11 + r10), i32::from(HAS_OVERFLOWED))?;
        asm.jne(unknown)?;
        asm.jmp(absent)?;
        here(asm, &mut found)?;
        // Nobody else has this block, and others only fill slots that are empty.
        asm.mov(qword_ptr(r11), 0)?;
        asm.mov(r11, filter)?;
        asm.lock().dec(byte_ptr(r11 + r10))
    }

    /// Puts the block in r8 into the table. Destroys rcx and r8 to r11, and leaves rax and rdx.
    pub(super) fn insert(&mut self) -> Result<(), IcedError> {
        let layout = self.setting.layout;
        let (filter, table) = (self.data(layout.filter()), self.data(layout.table()));
        let overflows = self.data(layout.overflows());
        self.hash(r8, rcx)?;
        let asm = &mut self.asm;
        let (mut next, mut inside) = (asm.create_label(), asm.create_label());
        let mut done = asm.create_label();
        asm.mov(r10, rax)?;
        asm.mov(r11, rcx)?;
        asm.shl(r11, BUCKET_BYTES.ilog2())?;
        asm.mov(r9, table)?;
        asm.add(r11, r9)?;
        asm.mov(r9d, SLOTS as i32)?;
        here(asm, &mut next)?;
        asm.xor(eax, eax)?;
        asm.lock().cmpxchg(qword_ptr(r11), r8)?;
        asm.je(inside)?;
        // A call that is part of this one has put it there.
        asm.cmp(rax, r8)?;
        asm.je(done)?;
        asm.add(r11, 8)?;
        asm.dec(r9d)?;
        asm.jne(next)?;
        asm.mov(r11, filter)?;
        asm.lock().or(byte_ptr(r11 + rcx), i32::from(HAS_OVERFLOWED))?;
        asm.mov(r11, overflows)?;
        asm.lock().inc(qword_ptr(r11))?;
        asm.jmp(done)?;
        here(asm, &mut inside)?;
        asm.mov(r11, filter)?;
        asm.lock().inc(byte_ptr(r11 + rcx))?;
        here(asm, &mut done)?;
        asm.mov(rax, r10)
    }
}
