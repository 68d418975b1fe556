//! Counting bytes, and deciding by that which calls are in the sample.

use iced_x86::{
    IcedError,
    code_asm::{CodeLabel, byte_ptr, dword_ptr, eax, ecx, qword_ptr, r10, r11, rax, rcx},
};

use super::{Arguments, Budget, Writer, here};
use crate::gate::{
    gaps::GAPS,
    layout::{BUDGET_BYTES, BUDGETS, CHARGE_BYTES, HASH_FACTOR, NEXT_GAP},
};

const _: () = assert!(BUDGETS == 1 << u8::BITS);

/// What a call is charged whose size is no 64-bit number: it fails, and whatever is charged, is no block.
const TOO_MUCH: u64 = 1 << 46;

impl Writer<'_> {
    /// Takes a call's bytes off the budget; goes to `sampled` where that was not enough, with rax and r11, which together are the
    /// address of the budget, and r10, which [`Writer::refill`] wants.
    pub(super) fn draw(&mut self, arguments: &Arguments, sampled: CodeLabel) -> Result<(), IcedError> {
        let budgets = self.data(self.setting.layout.budgets());
        let asm = &mut self.asm;
        match arguments.count {
            None => asm.lea(r10, qword_ptr(arguments.size + CHARGE_BYTES))?,
            Some(count) => {
                let mut fits = asm.create_label();
                asm.mov(r10, count)?;
                asm.imul_2(r10, arguments.size)?;
                asm.jno(fits)?;
                asm.mov(r10, TOO_MUCH)?;
                here(asm, &mut fits)?;
                asm.add(r10, CHARGE_BYTES)?;
            }
        }
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

    /// Fills the budget up with the next gap. r11 then has what it had before the call, which is negative where another call has
    /// emptied it before, and has it in its sample or will have; rax and r10 have nothing.
    pub(super) fn refill(&mut self) -> Result<(), IcedError> {
        let gaps = self.data(self.setting.layout.gaps());
        let lost = self.data(self.setting.layout.lost_budgets());
        let asm = &mut self.asm;
        let mut is_whole = asm.create_label();
        asm.add(rax, r11)?;
        match self.setting.budget {
            Budget::OfCpu { .. } => {
                asm.mov(r11, qword_ptr(rax))?;
                asm.add(r11, r10)?;
            }
            Budget::OfThread => asm.mov(r11, r10)?,
        }
        asm.test(r11, r11)?;
        asm.jns(is_whole)?;
        asm.mov(r10, lost)?;
        asm.lock().inc(qword_ptr(r10))?;
        here(asm, &mut is_whole)?;
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
}
