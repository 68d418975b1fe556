//! One step up a stack.

use super::{FpRule, Frame, Kind, ReadMemory, Regs, Row, WalkEnd, frame::FramePointer};

/// The caller's registers, or how the walk ends here.
///
/// The caller's pc is its return address; behind a signal frame, where the program was interrupted, it is one more
/// than the pc, so that the byte before a pc always belongs to the code that it stands for.
#[inline(always)]
pub fn step(row: Row, regs: &Regs, memory: &impl ReadMemory) -> Result<Regs, WalkEnd> {
    Frame::new(*regs).caller(row, memory)?.regs(memory)
}

impl Frame {
    /// The caller's frame, or how the walk ends here: [`step`], but for rbp, which is read when it is needed.
    #[inline(always)]
    pub fn caller(&self, row: Row, memory: &impl ReadMemory) -> Result<Self, WalkEnd> {
        const FRAME_POINTER: u8 = Kind::FramePointer as u8;
        const SP: u8 = Kind::Sp as u8;
        const FP: u8 = Kind::Fp as u8;
        const PLT: u8 = Kind::Plt as u8;
        const SIGNAL: u8 = Kind::Signal as u8;
        const DEREF_SP: u8 = Kind::DerefSp as u8;
        const DEREF_FP: u8 = Kind::DerefFp as u8;
        const END: u8 = Kind::End as u8;
        const STOP: u8 = Kind::Stop as u8;
        const GO_FRAME_POINTER: u8 = Kind::GoFramePointer as u8;
        const INTERPRETER: u8 = Kind::Interpreter as u8;
        let cfa = match row.kind() {
            SP => self.sp.wrapping_add(row.cfa_offset()),
            FP => return self.caller_by_fp(row, memory),
            kind @ (FRAME_POINTER | GO_FRAME_POINTER) => {
                return self.caller_by_frame_record(kind == GO_FRAME_POINTER, memory);
            }
            PLT => {
                // The pc is that of the instruction that comes next: stubs are not returned to but interrupted.
                let more = if self.pc.wrapping_sub(1) & 15 >= row.small() { 16 } else { 8 };
                self.sp.wrapping_add(more)
            }
            SIGNAL => return self.interrupted(memory),
            DEREF_SP => read(memory, self.sp.wrapping_add(row.cfa_offset()))?,
            DEREF_FP | INTERPRETER => read(memory, self.fp(memory)?.wrapping_add(row.cfa_offset()))?,
            END => return Err(WalkEnd::Whole),
            STOP => return Err(WalkEnd::from_raw(row.small() as u32).unwrap_or(WalkEnd::UnknownRow)),
            _ => return Err(WalkEnd::UnknownRow),
        };
        self.caller_at(row, cfa, memory)
    }

    /// The caller once the CFA is known.
    #[inline(always)]
    fn caller_at(&self, row: Row, cfa: u64, memory: &impl ReadMemory) -> Result<Self, WalkEnd> {
        const AT_CFA: u8 = FpRule::AtCfa as u8;
        const AT_FP: u8 = FpRule::AtFp as u8;
        if cfa <= self.sp {
            return Err(WalkEnd::NotAscending);
        }
        let mut return_address = cfa.wrapping_sub(8);
        let fp = match row.fp_rule() {
            rule @ (AT_CFA | AT_FP) => {
                let base = if rule == AT_CFA { cfa } else { self.fp(memory)? };
                let place = base.wrapping_add(row.fp_offset());
                if row.kind() == Kind::Interpreter as u8 {
                    return_address = place.wrapping_add(8);
                }
                FramePointer::saved_at(place)
            }
            // Where a frame further down saved it is no place of this one's.
            _ => self.fp,
        };
        called_from(read(memory, return_address)?, cfa, fp)
    }

    /// The caller of a frame whose CFA is found by rbp.
    #[inline(always)]
    fn caller_by_fp(&self, row: Row, memory: &impl ReadMemory) -> Result<Self, WalkEnd> {
        /// rbp is saved right below the return address.
        const BESIDE: u64 = (-16_i64).cast_unsigned();
        let fp = self.fp(memory)?;
        let cfa = fp.wrapping_add(row.cfa_offset());
        if row.fp_rule() != FpRule::AtCfa as u8 || row.fp_offset() != BESIDE {
            return Self { fp: FramePointer::is(fp), ..*self }.caller_at(row, cfa, memory);
        }
        if cfa <= self.sp {
            return Err(WalkEnd::NotAscending);
        }
        // Callers of code with frame pointers mostly have some too: both are read at once.
        let [fp, pc] = read_pair(memory, cfa.wrapping_sub(16))?;
        called_from(pc, cfa, FramePointer::is(fp))
    }

    /// The caller of a frame of which rbp is the frame pointer. Where it may be on another stack, there is no order to check.
    #[inline(always)]
    fn caller_by_frame_record(
        &self,
        may_change_stacks: bool,
        memory: &impl ReadMemory,
    ) -> Result<Self, WalkEnd> {
        let record = self.fp(memory)?;
        // The psABI asks the first frame of a thread to have a zero rbp (System V x86-64, section 3.4.1).
        if record == 0 {
            return Err(WalkEnd::Whole);
        }
        if (record < self.sp && !may_change_stacks) || !record.is_multiple_of(8) {
            return Err(WalkEnd::NotAscending);
        }
        let [fp, pc] = read_pair(memory, record)?;
        called_from(pc, record.wrapping_add(16), FramePointer::is(fp))
    }

    /// The frame that a signal interrupted.
    ///
    /// At the trampoline the stack pointer is at `struct ucontext`, whose general registers begin at offset 40 (struct
    /// rt_sigframe and struct sigcontext of arch/x86/include/uapi/asm/sigcontext.h): rbp is the tenth of them, counted
    /// from 0, rsp the fifteenth, rip the sixteenth.
    #[inline(always)]
    fn interrupted(&self, memory: &impl ReadMemory) -> Result<Self, WalkEnd> {
        let registers = self.sp.wrapping_add(40);
        let fp = FramePointer::saved_at(registers.wrapping_add(10 * 8));
        let [sp, pc] = read_pair(memory, registers.wrapping_add(15 * 8))?;
        // A handler may run on a stack of its own, above or below the interrupted one: there is no order to check.
        called_from(pc, sp, fp).map(|frame| Self { pc: pc.wrapping_add(1), ..frame })
    }
}

/// The frame with a return address; without one there is none.
#[inline(always)]
const fn called_from(pc: u64, sp: u64, fp: FramePointer) -> Result<Frame, WalkEnd> {
    if pc == 0 { Err(WalkEnd::Whole) } else { Ok(Frame { pc, sp, fp }) }
}

#[inline(always)]
fn read(memory: &impl ReadMemory, address: u64) -> Result<u64, WalkEnd> {
    memory.read_word(address).ok_or(WalkEnd::Unreadable)
}

#[inline(always)]
fn read_pair(memory: &impl ReadMemory, address: u64) -> Result<[u64; 2], WalkEnd> {
    memory.read_pair(address).ok_or(WalkEnd::Unreadable)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

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
                let kind = [
                    Kind::FramePointer,
                    Kind::Sp,
                    Kind::Fp,
                    Kind::Plt,
                    Kind::DerefSp,
                    Kind::DerefFp,
                    Kind::Interpreter,
                ][number() as usize % 7];
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

    /// A stack that counts how often it was read.
    struct Counted<'a>(Stack<'a>, Cell<u32>);

    impl ReadMemory for Counted<'_> {
        fn read_word(&self, address: u64) -> Option<u64> {
            self.1.update(|reads| reads + 1);
            self.0.read_word(address)
        }

        fn read_pair(&self, address: u64) -> Option<[u64; 2]> {
            self.1.update(|reads| reads + 1);
            self.0.read_pair(address)
        }
    }

    #[test]
    fn frames_that_save_rbp_take_one_read_each_until_it_is_asked_for() {
        // Three frames of 32 bytes save rbp 24 bytes below their CFA, then one is found by it.
        let words = [0, 7, 0, 0xa, 0, 7, 0, 0xb, 0, 0x1068, 0, 0xc, 0, 0x9999, 0xd, 0];
        let memory = Counted(Stack(0x1000, &words), Cell::new(0));
        let saves = Row::new(Kind::Sp, FpRule::AtCfa, -3, 32);
        let mut frame = Frame::new(Regs { pc: 9, sp: 0x1000, fp: 8 });
        for pc in [0xa, 0xb, 0xc] {
            frame = frame.caller(saves, &memory).unwrap();
            assert_eq!(frame.pc, pc);
        }
        assert_eq!(memory.1.get(), 3);
        frame = frame.caller(Row::new(Kind::Fp, FpRule::AtCfa, -2, 16), &memory).unwrap();
        assert_eq!(memory.1.get(), 5, "one for rbp, one for what lies beside each other");
        assert_eq!(frame.regs(&memory), Ok(Regs { pc: 0xd, sp: 0x1078, fp: 0x9999 }));
        assert_eq!(memory.1.get(), 5, "it is known already");
    }

    #[test]
    fn go_goes_on_at_a_stack_below() {
        // The goroutine's stack lies at 0x1000, the thread's at 0x1020.
        let stack = Stack(0x1000, &[0, 0xb, 0, 0, 0x1000, 0xa, 0, 0]);
        let on_thread = Regs { pc: 9, sp: 0x1020, fp: 0x1020 };
        let switched = step(Row::GO, &on_thread, &stack).unwrap();
        assert_eq!(switched, Regs { pc: 0xa, sp: 0x1030, fp: 0x1000 });
        assert_eq!(step(Row::FRAME_POINTER, &switched, &stack), Err(WalkEnd::NotAscending));
        let caller = step(Row::GO, &switched, &stack).unwrap();
        assert_eq!(caller, Regs { pc: 0xb, sp: 0x1010, fp: 0 });
        assert_eq!(step(Row::GO, &caller, &stack), Err(WalkEnd::Whole));
    }

    #[test]
    fn the_interpreter_keeps_its_caller_s_stack_pointer_below_its_frame() {
        // The frame is at 0x1008; its caller's stack pointer is two words further than behind the return address.
        let stack = |sp| [sp, 0x7777, 0xa, 0, 0, 0];
        let regs = Regs { pc: 9, sp: 0x1000, fp: 0x1008 };
        let step = |sp| step(Row::INTERPRETER, &regs, &Stack(0x1000, &stack(sp)));
        assert_eq!(step(0x1028), Ok(Regs { pc: 0xa, sp: 0x1028, fp: 0x7777 }));
        assert_eq!(step(0x1018), Ok(Regs { pc: 0xa, sp: 0x1018, fp: 0x7777 }), "it has no locals");
        assert_eq!(step(0x1000), Err(WalkEnd::NotAscending));
    }

    #[test]
    fn rbp_is_the_same_whenever_it_is_read() {
        // Any words, most of them addresses within: walks by any rows lead far.
        let mut seed = 1_u64;
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            (seed >> 33) % below
        };
        let mut steps = 0;
        for _ in 0..50_000 {
            let words: Vec<u64> =
                (0..64).map(|_| if random(4) == 0 { random(3) } else { 0x1000 + 8 * random(64) }).collect();
            let stack = Stack(0x1000, &words);
            let mut regs = Regs { pc: 9, sp: 0x1000, fp: 0x1000 + 8 * random(64) };
            let mut frame = Frame::new(regs);
            loop {
                let offset = i16::try_from(random(6)).unwrap() - 4;
                let cfa_offset = i32::try_from(8 * random(6)).unwrap();
                // Of rows that name no rule or kind, too.
                let row = Row::from_raw(
                    Row::new(Kind::Sp, FpRule::Unchanged, offset, cfa_offset).to_raw() - 2
                        + random(12)
                        + (random(4) << 8),
                );
                let lazy = frame.caller(row, &stack);
                match step(row, &regs, &stack) {
                    Ok(caller) => {
                        frame = lazy.expect("what can be read at once can be read later");
                        assert_eq!(frame.regs(&stack), Ok(caller), "{row:x?} from {regs:x?}");
                        regs = caller;
                        steps += 1;
                    }
                    Err(WalkEnd::Unreadable) => break,
                    Err(end) => {
                        assert_eq!(lazy, Err(end), "{row:x?} from {regs:x?}");
                        break;
                    }
                }
            }
        }
        assert!(steps > 10_000, "{steps} steps are too few to show anything");
    }
}
