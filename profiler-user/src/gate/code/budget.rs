//! Counting bytes, and deciding by that which calls are in the sample.

use iced_x86::{
    IcedError,
    code_asm::{
        AsmMemoryOperand, AsmRegister64, CodeLabel, cl, dword_ptr, eax, ecx, qword_ptr, r10, r10d, r11, rax,
        rcx, word_ptr,
    },
};
use profiler_common::heap::class_limit_bytes;

use super::{
    Budget,
    function::Arguments,
    writer::{Writer, here},
};
use crate::gate::{
    gaps::GAPS,
    layout::{BUDGET_BYTES, BUDGETS, CHARGE_BYTES, HASH_FACTOR, NEXT_GAP},
};

/// Where a word begins, behind `struct rseq`, that has the lowest byte of its cpu_id as its higher byte: as far behind the first as that
/// processor's budget is. Its lower byte is the highest one of cpu_id_start, which is 0 of any processor; whatever it has, there is
/// a budget's room.
const BEFORE_CPU_ID: i32 = 3;

const _: () = assert!(BUDGETS == 1 << u8::BITS && BUDGET_BYTES == 1 << u8::BITS);

/// What a call is charged at most, also one whose size is no 64-bit number: it fails, and whatever is charged, is no block. Were it charged
/// what it asks for, another call that comes before the budget is filled up again could make it wrap, and nothing would be sampled.
const TOO_MUCH: u64 = 1 << 46;

/// Of a charge with one of these bits set it is looked closer whether it is too much: an immediate operand has 32 bits, of which the
/// highest stands for all above.
const LARGE: i32 = i32::MIN;

/// The largest size of the first size class, in bytes.
const SMALL: i32 = class_limit_bytes(0) as i32;

impl Writer<'_> {
    /// Takes a call's bytes off the budget; goes to `sampled` where that was not enough, with how far behind the first the budget is in rax,
    /// and r10, both of which [`Writer::refill`] wants.
    pub(super) fn draw(&mut self, arguments: &Arguments, sampled: CodeLabel) -> Result<(), IcedError> {
        match arguments.count {
            None => self.asm.lea(r10, qword_ptr(arguments.size + CHARGE_BYTES))?,
            Some(count) => {
                self.multiply(arguments.size, count)?;
                self.asm.add(r10, CHARGE_BYTES)?;
            }
        }
        let asm = &mut self.asm;
        let (large, mut fits) = (asm.create_label(), asm.create_label());
        asm.test(r10, LARGE)?;
        asm.jne(large)?;
        here(asm, &mut fits)?;
        self.large.push((large, fits));
        match self.setting.budget {
            Budget::OfCpu { offset } => {
                asm.movzx(eax, word_ptr(i64::from(offset + BEFORE_CPU_ID)).fs())?;
                let budget = self.budget()?;
                // One instruction: what else this processor does comes before or after it.
                self.asm.sub(qword_ptr(budget), r10)?;
            }
            Budget::OfThread => {
                // The thread's control block begins with its own address (System V psABI, Thread-Local Storage, variant II).
                asm.mov(eax, dword_ptr(0_i64).fs())?;
                asm.imul_3(eax, eax, HASH_FACTOR.cast_signed())?;
                asm.shr(eax, u32::BITS - BUDGETS.ilog2())?;
                asm.shl(eax, BUDGET_BYTES.ilog2())?;
                asm.neg(r10)?;
                let budget = self.budget()?;
                self.asm.lock().xadd(qword_ptr(budget), r10)?;
            }
        }
        self.asm.js(sampled)
    }

    /// The budget that is as far behind the first as rax has; r11 is made to help where it has to.
    fn budget(&mut self) -> Result<AsmMemoryOperand, IcedError> {
        self.indexed(r11, rax, self.setting.layout.budgets())
    }

    /// Where large charges are looked at closer: apart, for hardly any is.
    pub(super) fn limit_charges(&mut self) -> Result<(), IcedError> {
        for (mut large, fits) in std::mem::take(&mut self.large) {
            let asm = &mut self.asm;
            here(asm, &mut large)?;
            asm.mov(r11, TOO_MUCH)?;
            asm.cmp(r10, r11)?;
            asm.jbe(fits)?;
            asm.mov(r10, r11)?;
            asm.jmp(fits)?;
        }
        Ok(())
    }

    /// Fills the budget up with the next gap. r11 then has what it had before the call, or −1 where the call is in no sample: another one comes
    /// in between, and is in it, or the byte is not among those that every block of the size class has
    /// ([`profiler_common::sampling::is_kept_behind_gate`]). rax and r10 have nothing. The flags are those of r11.
    pub(super) fn refill(&mut self, arguments: &Arguments) -> Result<(), IcedError> {
        let gaps = self.data(self.setting.layout.gaps());
        let budget = self.budget()?;
        let asm = &mut self.asm;
        let mut is_whole = asm.create_label();
        asm.lea(rax, qword_ptr(budget))?;
        match self.setting.budget {
            Budget::OfCpu { .. } => {
                asm.mov(r11, qword_ptr(rax))?;
                asm.add(r11, r10)?;
                // Less than nothing had another call left, and as much as was charged it would not have been used up by this one: somebody
                // has filled it up since.
                asm.cmp(r11, r10)?;
                asm.jb(is_whole)?;
            }
            Budget::OfThread => {
                asm.mov(r11, r10)?;
                asm.test(r11, r11)?;
                asm.jns(is_whole)?;
            }
        }
        asm.mov(r11, -1_i64)?;
        self.lose_sample()?;
        here(&mut self.asm, &mut is_whole)?;
        self.keep_by_class(arguments)?;
        let asm = &mut self.asm;
        asm.push(rcx)?;
        asm.mov(ecx, dword_ptr(rax + NEXT_GAP as i32))?;
        asm.inc(dword_ptr(rax + NEXT_GAP as i32))?;
        asm.and(ecx, GAPS as i32 - 1)?;
        asm.mov(r10, gaps)?;
        asm.mov(r10, qword_ptr(r10 + rcx * 8))?;
        asm.mov(qword_ptr(rax), r10)?;
        asm.pop(rcx)?;
        asm.test(r11, r11)
    }

    /// Makes r11 −1 unless it is less than what the smallest block of the size class is charged. There are four classes to every doubling, each
    /// from one more than three bits and zeros on, and one of all blocks up to 16 bytes. Destroys r10.
    fn keep_by_class(&mut self, arguments: &Arguments) -> Result<(), IcedError> {
        match arguments.count {
            None => self.asm.mov(r10, arguments.size)?,
            Some(count) => self.multiply(arguments.size, count)?,
        }
        let asm = &mut self.asm;
        let (mut is_small, mut charged, mut is_kept) =
            (asm.create_label(), asm.create_label(), asm.create_label());
        // One less, but of 0.
        asm.sub(r10, 1)?;
        asm.adc(r10, 0)?;
        asm.cmp(r10, SMALL)?;
        asm.jb(is_small)?;
        asm.push(rcx)?;
        asm.bsr(rcx, r10)?;
        asm.sub(ecx, 2)?;
        asm.shr(r10, cl)?;
        asm.shl(r10, cl)?;
        asm.pop(rcx)?;
        asm.add(r10, 1 + CHARGE_BYTES)?;
        asm.jmp(charged)?;
        here(asm, &mut is_small)?;
        asm.mov(r10d, CHARGE_BYTES)?;
        here(asm, &mut charged)?;
        asm.cmp(r11, r10)?;
        asm.jb(is_kept)?;
        asm.mov(r11, -1_i64)?;
        here(asm, &mut is_kept)
    }

    /// Leaves in r10 what so many of a size take, or [`TOO_MUCH`] where that is no number.
    fn multiply(&mut self, size: AsmRegister64, count: AsmRegister64) -> Result<(), IcedError> {
        let mut is_product = self.asm.create_label();
        self.asm.mov(r10, count)?;
        self.asm.imul_2(r10, size)?;
        self.asm.jno(is_product)?;
        self.asm.mov(r10, TOO_MUCH)?;
        here(&mut self.asm, &mut is_product)
    }

    /// Counts a sample that is lost. Destroys r10.
    pub(super) fn lose_sample(&mut self) -> Result<(), IcedError> {
        self.asm.mov(r10, self.data(self.setting.layout.lost_budgets()))?;
        self.asm.lock().inc(qword_ptr(r10))
    }
}
