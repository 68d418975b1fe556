//! One step up a stack.

use super::{FpRule, Kind, ReadMemory, Regs, Row, WalkEnd};

/// The caller's registers, or how the walk ends here.
///
/// The caller's pc is its return address; behind a signal frame, where the program was interrupted, it is one more
/// than the pc, so that the byte before a pc always belongs to the code that it stands for.
#[inline(always)]
pub fn step(row: Row, regs: &Regs, memory: &impl ReadMemory) -> Result<Regs, WalkEnd> {
    const FRAME_POINTER: u8 = Kind::FramePointer as u8;
    const SP: u8 = Kind::Sp as u8;
    const FP: u8 = Kind::Fp as u8;
    const PLT: u8 = Kind::Plt as u8;
    const SIGNAL: u8 = Kind::Signal as u8;
    const DEREF_SP: u8 = Kind::DerefSp as u8;
    const DEREF_FP: u8 = Kind::DerefFp as u8;
    const END: u8 = Kind::End as u8;
    const STOP: u8 = Kind::Stop as u8;
    let cfa = match row.kind() {
        SP => regs.sp.wrapping_add(row.cfa_offset()),
        FP => regs.fp.wrapping_add(row.cfa_offset()),
        FRAME_POINTER => return step_frame_pointer(regs, memory),
        PLT => {
            // The pc is that of the instruction that comes next: stubs are not returned to but interrupted.
            let more = if regs.pc.wrapping_sub(1) & 15 >= row.small() { 16 } else { 8 };
            regs.sp.wrapping_add(more)
        }
        SIGNAL => return step_signal(regs, memory),
        DEREF_SP => memory.read_word(regs.sp.wrapping_add(row.cfa_offset())).ok_or(WalkEnd::Unreadable)?,
        DEREF_FP => memory.read_word(regs.fp.wrapping_add(row.cfa_offset())).ok_or(WalkEnd::Unreadable)?,
        END => return Err(WalkEnd::Whole),
        STOP => return Err(WalkEnd::from_raw(row.small() as u32).unwrap_or(WalkEnd::UnknownRow)),
        _ => return Err(WalkEnd::UnknownRow),
    };
    step_to_cfa(row, regs, cfa, memory)
}

/// The caller's registers once the CFA is known.
#[inline(always)]
fn step_to_cfa(row: Row, regs: &Regs, cfa: u64, memory: &impl ReadMemory) -> Result<Regs, WalkEnd> {
    const AT_CFA: u8 = FpRule::AtCfa as u8;
    const AT_FP: u8 = FpRule::AtFp as u8;
    /// rbp is saved right below the return address: both are read at once.
    const BESIDE: u64 = (-16_i64).cast_unsigned();
    if cfa <= regs.sp {
        return Err(WalkEnd::NotAscending);
    }
    let slot = cfa.wrapping_sub(8);
    let (pc, fp) = if row.fp_rule() == AT_CFA && row.fp_offset() == BESIDE {
        let [fp, pc] = memory.read_pair(cfa.wrapping_sub(16)).ok_or(WalkEnd::Unreadable)?;
        (pc, fp)
    } else {
        let pc = memory.read_word(slot).ok_or(WalkEnd::Unreadable)?;
        let fp = match row.fp_rule() {
            AT_CFA => memory.read_word(cfa.wrapping_add(row.fp_offset())).ok_or(WalkEnd::Unreadable)?,
            AT_FP => memory.read_word(regs.fp.wrapping_add(row.fp_offset())).ok_or(WalkEnd::Unreadable)?,
            _ => regs.fp,
        };
        (pc, fp)
    };
    if pc == 0 {
        return Err(WalkEnd::Whole);
    }
    Ok(Regs { pc, sp: cfa, fp })
}

#[inline(always)]
fn step_frame_pointer(regs: &Regs, memory: &impl ReadMemory) -> Result<Regs, WalkEnd> {
    // The psABI asks the first frame of a thread to have a zero rbp (System V x86-64, section 3.4.1).
    if regs.fp == 0 {
        return Err(WalkEnd::Whole);
    }
    if regs.fp < regs.sp || !regs.fp.is_multiple_of(8) {
        return Err(WalkEnd::NotAscending);
    }
    let Some([fp, pc]) = memory.read_pair(regs.fp) else {
        return Err(WalkEnd::Unreadable);
    };
    if pc == 0 {
        return Err(WalkEnd::Whole);
    }
    Ok(Regs { pc, sp: regs.fp.wrapping_add(16), fp })
}

/// The registers that a signal interrupted.
///
/// At the trampoline the stack pointer is at `struct ucontext`, whose general registers begin at offset 40 (struct
/// rt_sigframe and struct sigcontext of arch/x86/include/uapi/asm/sigcontext.h): rbp is the tenth of them, counted
/// from 0, rsp the fifteenth, rip the sixteenth.
#[inline(always)]
fn step_signal(regs: &Regs, memory: &impl ReadMemory) -> Result<Regs, WalkEnd> {
    let registers = regs.sp.wrapping_add(40);
    let fp = memory.read_word(registers.wrapping_add(10 * 8)).ok_or(WalkEnd::Unreadable)?;
    let [sp, pc] = memory.read_pair(registers.wrapping_add(15 * 8)).ok_or(WalkEnd::Unreadable)?;
    if pc == 0 {
        return Err(WalkEnd::Whole);
    }
    // A handler may run on a stack of its own, above or below the interrupted one: there is no order to check.
    Ok(Regs { pc: pc.wrapping_add(1), sp, fp })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unwind::stack::Stack;

    fn walk(mut regs: Regs, stack: &Stack<'_>) -> (Vec<u64>, WalkEnd) {
        let mut pcs = vec![regs.pc];
        loop {
            match step(Row::FRAME_POINTER, &regs, stack) {
                Ok(caller) => regs = caller,
                Err(end) => return (pcs, end),
            }
            pcs.push(regs.pc);
        }
    }

    #[test]
    fn frame_pointers_lead_to_the_first_frame() {
        let stack = Stack(0x1000, &[0x1020, 0xa, 0, 0, 0x1030, 0xb, 0, 0xc]);
        let start = Regs { pc: 9, sp: 0x1000, fp: 0x1000 };
        assert_eq!(walk(start, &stack), (vec![9, 0xa, 0xb, 0xc], WalkEnd::Whole));
    }

    #[test]
    fn a_null_return_address_ends_the_stack() {
        let stack = Stack(0x1000, &[0x1010, 0]);
        let start = Regs { pc: 9, sp: 0x1000, fp: 0x1000 };
        assert_eq!(walk(start, &stack), (vec![9], WalkEnd::Whole));
    }

    #[test]
    fn a_frame_pointer_below_the_frame_or_off_the_stack_breaks_the_walk() {
        let stack = Stack(0x1000, &[0x1000, 0xa]);
        let start = Regs { pc: 9, sp: 0x1000, fp: 0x1000 };
        assert_eq!(walk(start, &stack), (vec![9, 0xa], WalkEnd::NotAscending));
        let odd = Regs { fp: 0x1004, ..start };
        assert_eq!(walk(odd, &stack), (vec![9], WalkEnd::NotAscending));
        let away = Regs { fp: 0x2000, ..start };
        assert_eq!(walk(away, &stack), (vec![9], WalkEnd::Unreadable));
    }

    #[test]
    fn frames_that_lead_to_themselves_or_back_down_end_the_walk() {
        let start = Regs { pc: 9, sp: 0x1000, fp: 0x1010 };
        // Two records that lead to each other, at 0x1010 and 0x1020.
        let each_other = Stack(0x1000, &[0, 0, 0x1020, 0xa, 0x1010, 0xb]);
        assert_eq!(walk(start, &each_other), (vec![9, 0xa, 0xb], WalkEnd::NotAscending));
        // A word that says that the caller's frame lies where this one does, or below.
        for kept in [0x1000, 0xff8, 0, 1] {
            let words = [kept, 0xa, kept, 0xb];
            let stack = Stack(0x1000, &words);
            for kind in [Kind::DerefSp, Kind::DerefFp] {
                let row = Row::new(kind, FpRule::Unchanged, 0, 0);
                assert_eq!(step(row, &start, &stack), Err(WalkEnd::NotAscending), "{kind:?} {kept:#x}");
            }
        }
        for kind in [Kind::Sp, Kind::Fp] {
            let row = Row::new(kind, FpRule::Unchanged, 0, -0x800);
            assert_eq!(step(row, &start, &Stack(0, &[0; 0x300])), Err(WalkEnd::NotAscending), "{kind:?}");
        }
    }

    #[test]
    fn every_step_but_that_over_a_signal_leads_up_whatever_is_in_memory() {
        // xorshift (Marsaglia 2003): the same numbers in every run.
        let mut seed = 0x2545_f491_4f6c_dd1d_u64;
        let mut number = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        const BASE: u64 = 0x7000;
        let mut longest = 0;
        for _ in 0..20_000 {
            // Most words lead somewhere into the stack.
            let words: Vec<u64> = (0..64).map(|_| BASE + number() % 600 / 8 * 8).collect();
            let stack = Stack(BASE, &words);
            let mut regs = Regs { pc: number(), sp: BASE, fp: BASE + number() % 64 * 8 };
            let mut steps = 0;
            loop {
                let kind = [Kind::FramePointer, Kind::Sp, Kind::Fp, Kind::Plt, Kind::DerefSp, Kind::DerefFp]
                    [number() as usize % 6];
                let rule = [FpRule::Unchanged, FpRule::AtCfa, FpRule::AtFp][number() as usize % 3];
                let row = Row::new(kind, rule, number() as i16 % 8, number() as i32 % 64 / 8 * 8);
                let Ok(caller) = step(row, &regs, &stack) else { break };
                assert!(caller.sp > regs.sp, "{row:?} {regs:x?} {caller:x?}");
                regs = caller;
                steps += 1;
            }
            longest = longest.max(steps);
        }
        assert!(longest > 8, "some go on for a while: {longest}");
    }

    #[test]
    fn a_signal_frame_that_leads_to_itself_is_left_to_the_limit_of_frames() {
        // `ucontext` at 0x1000: rsp is its own address, rip that of the trampoline.
        let mut words = [0; 32];
        words[5 + 15] = 0x1000;
        words[5 + 16] = 0x40_0000;
        let stack = Stack(0x1000, &words);
        let regs = Regs { pc: 0x40_0001, sp: 0x1000, fp: 0 };
        assert_eq!(step(Row::SIGNAL, &regs, &stack), Ok(regs));
    }

    #[test]
    fn each_kind_of_row_leads_to_the_caller() {
        // Words at 0x1000, 0x1008, …: each holds its own address, plus one so that none is 0.
        let words: Vec<u64> = (0..64).map(|index| 0x1000 + 8 * index + 1).collect();
        let stack = Stack(0x1000, &words);
        let regs = Regs { pc: 0x40_0001, sp: 0x1000, fp: 0x1020 };
        let at = |address: u64| address + 1;
        let step = |row| step(row, &regs, &stack);
        let caller = |pc, sp, fp| Ok(Regs { pc, sp, fp });
        assert_eq!(step(Row::new(Kind::Sp, FpRule::Unchanged, 0, 16)), caller(at(0x1008), 0x1010, 0x1020));
        assert_eq!(step(Row::new(Kind::Sp, FpRule::AtCfa, -2, 32)), caller(at(0x1018), 0x1020, at(0x1010)));
        assert_eq!(step(Row::new(Kind::Fp, FpRule::AtCfa, -3, 16)), caller(at(0x1028), 0x1030, at(0x1018)));
        assert_eq!(step(Row::plt(11)), caller(at(0x1000), 0x1008, 0x1020));
        assert_eq!(
            step(Row::SIGNAL),
            caller(at(0x1028 + 16 * 8) + 1, at(0x1028 + 15 * 8), at(0x1028 + 10 * 8))
        );
        assert_eq!(step(Row::END), Err(WalkEnd::Whole));
        assert_eq!(step(Row::stop(WalkEnd::NoCode)), Err(WalkEnd::NoCode));
        assert_eq!(step(Row::from_raw(0)), Err(WalkEnd::UnknownRow));
        assert_eq!(step(Row::new(Kind::Sp, FpRule::Unchanged, 0, 0)), Err(WalkEnd::NotAscending));
        assert_eq!(step(Row::new(Kind::Sp, FpRule::Unchanged, 0, 0x10000)), Err(WalkEnd::Unreadable));
    }

    #[test]
    fn a_stub_behind_its_push_has_one_word_more() {
        let stack = Stack(0x1000, &[1, 2, 3]);
        let at =
            |pc: u64| step(Row::plt(11), &Regs { pc: pc + 1, sp: 0x1000, fp: 0 }, &stack).map(|regs| regs.pc);
        assert_eq!(at(0x40_000a), Ok(1));
        assert_eq!(at(0x40_000b), Ok(2));
    }

    #[test]
    fn a_realigned_frame_finds_its_caller_through_the_word_that_it_kept() {
        // The CFA is kept at rbp − 8, the caller's rbp at rbp.
        let stack = Stack(0x1000, &[0x1030, 0x7777, 0, 0, 0, 0x9999, 0]);
        let regs = Regs { pc: 0x40_0001, sp: 0x1000, fp: 0x1008 };
        let row = Row::new(Kind::DerefFp, FpRule::AtFp, 0, -8);
        assert_eq!(step(row, &regs, &stack), Ok(Regs { pc: 0x9999, sp: 0x1030, fp: 0x7777 }));
    }
}
