//! Counting bytes, and deciding by that which calls are in the sample.

use iced_x86::{
    IcedError,
    code_asm::{
        AsmRegister64, CodeLabel, byte_ptr, cl, dword_ptr, eax, ecx, qword_ptr, r10, r10d, r11, rax, rcx,
    },
};
use profiler_common::heap::class_limit_bytes;

use super::{Arguments, Budget, Writer, here};
use crate::gate::{
    gaps::GAPS,
    layout::{BUDGET_BYTES, BUDGETS, CHARGE_BYTES, HASH_FACTOR, NEXT_GAP},
};

const _: () = assert!(BUDGETS == 1 << u8::BITS);

/// What a call is charged at most, also one whose size is no 64-bit number: it fails, and whatever is charged, is no block. Were it charged
/// what it asks for, another call that comes before the budget is filled up again could make it wrap, and nothing would be sampled.
const TOO_MUCH: u64 = 1 << 46;

/// Of a charge with one of these bits set it is looked closer whether it is too much: an immediate operand has 32 bits, of which the
/// highest stands for all above.
const LARGE: i32 = i32::MIN;

/// The largest size of the first size class, in bytes.
const SMALL: i32 = class_limit_bytes(0) as i32;

impl Writer<'_> {
    /// Takes a call's bytes off the budget; goes to `sampled` where that was not enough, with rax and r11, which together are the
    /// address of the budget, and r10, which [`Writer::refill`] wants.
    pub(super) fn draw(&mut self, arguments: &Arguments, sampled: CodeLabel) -> Result<(), IcedError> {
        let budgets = self.data(self.setting.layout.budgets());
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
        asm.mov(r11, budgets)?;
        match self.setting.budget {
            Budget::OfCpu { offset } => {
                // Its lowest byte: there are as many budgets.
                asm.movzx(eax, byte_ptr(i64::from(offset)).fs())?;
                asm.shl(eax, BUDGET_BYTES.ilog2())?;
                // One instruction: what else this processor does comes before or after it.
                asm.sub(qword_ptr(r11 + rax), r10)?;
            }
            Budget::OfThread => {
                let shift = u64::BITS - BUDGETS.ilog2();
                // The thread's control block begins with its own address (System V psABI, Thread-Local Storage, variant II).
                asm.mov(rax, qword_ptr(0_i64).fs())?;
                asm.push(rcx)?;
                asm.mov(rcx, HASH_FACTOR)?;
                asm.imul_2(rax, rcx)?;
                asm.pop(rcx)?;
                asm.shr(rax, shift)?;
                asm.shl(eax, BUDGET_BYTES.ilog2())?;
                asm.neg(r10)?;
                asm.lock().xadd(qword_ptr(r11 + rax), r10)?;
            }
        }
        asm.js(sampled)
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
        let asm = &mut self.asm;
        let mut is_whole = asm.create_label();
        asm.add(rax, r11)?;
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
