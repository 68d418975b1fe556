//! The gate of a function that allocates.

use iced_x86::{
    IcedError,
    code_asm::{
        AsmRegister64, CodeLabel, eax, qword_ptr, r8, r9, r10, r10d, r11, rax, rcx, rdi, rdx, rsi, rsp,
    },
};
use profiler_common::call::{Convention, Outcome};

use super::{
    Stop,
    function::{Arguments, Function, Throws, argument},
    writer::{Writer, here},
};

const RETURNED: u64 = Outcome::Returned as u64;
const STORED: u64 = Outcome::Stored as u64;
const SIZE: u64 = Outcome::Size as u64;
const RETURNED_OR_FREED: u64 = Outcome::ReturnedOrFreed as u64;

/// Beside a return address, the bytes that leave the stack as a call wants it: at a multiple of 16.
const PADDING: i32 = 8;

impl Writer<'_> {
    /// Most calls are in no sample, and go straight through.
    pub(super) fn allocate(
        &mut self,
        place: usize,
        function: &Function,
        convention: Convention,
    ) -> Result<(), IcedError> {
        let arguments = Arguments::of(convention);
        let mut sampled = self.asm.create_label();
        let mut draw = self.asm.create_label();
        let mut maybe = self.asm.create_label();
        if let Some(old) = arguments.old {
            self.filter(old, maybe)?;
        }
        here(&mut self.asm, &mut draw)?;
        self.draw(&arguments, sampled)?;
        let mut on = self.moved_of(place);
        if function.jumps {
            on = self.asm.create_label();
            here(&mut self.asm, &mut on)?;
            // What it jumps to has to find a return address in here, and not the caller's.
            self.count_inside(true)?;
            self.call_by(place, function.throws, 0)?;
            self.unless_given(place, &arguments, function.throws, false)?;
            self.count_inside(false)?;
            self.asm.ret()?;
        }
        self.moved(place, function)?;
        here(&mut self.asm, &mut sampled)?;
        self.undo_late(function)?;
        self.refill(&arguments)?;
        self.asm.js(on)?;
        match (arguments.old, function.throws) {
            (Some(_), _) => {
                let mut call = self.asm.create_label();
                self.asm.xor(r10d, r10d)?;
                self.asm.jmp(call)?;
                let mut absent = self.asm.create_label();
                here(&mut self.asm, &mut absent)?;
                self.again(function)?;
                self.asm.jmp(draw)?;
                here(&mut self.asm, &mut maybe)?;
                self.undo_late(function)?;
                self.resized(&arguments, absent, call)?;
                here(&mut self.asm, &mut call)?;
                self.resize(place, &arguments, convention, function.throws)
            }
            (None, Throws::Never) => self.give(place, &arguments),
            (None, throws @ Throws::Unless { .. }) => self.give_or_throw(place, &arguments, throws),
        }
    }

    /// Calls what was moved out of a function, or, where that may throw, its counterpart, behind which all arguments are as they were. So
    /// many bytes are kept on the stack already, a multiple of 16.
    fn call_by(&mut self, place: usize, throws: Throws, kept_bytes: i32) -> Result<(), IcedError> {
        let Throws::Unless { counterpart, arguments, .. } = throws else {
            self.asm.sub(rsp, PADDING)?;
            self.call(place, kept_bytes + PADDING, true)?;
            return self.asm.add(rsp, PADDING);
        };
        let saved = [rdi, rsi, rdx, rcx];
        for register in saved {
            self.asm.push(register)?;
        }
        self.asm.sub(rsp, PADDING)?;
        // Any address will do: what is there has no content (std::nothrow_t).
        let nothrow = argument(u64::from(arguments) + 1);
        self.asm.mov(nothrow, self.setting.data_address)?;
        self.call(counterpart, kept_bytes + 4 * 8 + PADDING, true)?;
        self.asm.add(rsp, PADDING)?;
        for register in saved.into_iter().rev() {
            self.asm.pop(register)?;
        }
        Ok(())
    }

    /// Goes on with the function itself, as if nothing had been, where that may throw and its counterpart has given null for want of memory.
    /// Should it then find some after all, a sample is lost by that, and told.
    fn unless_given(
        &mut self,
        place: usize,
        arguments: &Arguments,
        throws: Throws,
        loses_sample: bool,
    ) -> Result<(), IcedError> {
        let Throws::Unless { gives_size, .. } = throws else { return Ok(()) };
        let mut given = self.asm.create_label();
        self.asm.test(rax, rax)?;
        self.asm.jne(given)?;
        if arguments.old.is_some() {
            // To no size it is freed, and null.
            for number in [Some(arguments.size), arguments.count].into_iter().flatten() {
                self.asm.test(number, number)?;
                self.asm.je(given)?;
            }
        }
        self.count_inside(false)?;
        if loses_sample {
            self.lose_sample()?;
        }
        let moved = self.moved_of(place);
        self.asm.jmp(moved)?;
        here(&mut self.asm, &mut given)?;
        // The second half of what is given (System V psABI, 3.2.3).
        if gives_size { self.asm.mov(rdx, arguments.size) } else { Ok(()) }
    }

    /// Counts a thread that goes into a call, or comes out of it.
    fn count_inside(&mut self, goes_in: bool) -> Result<(), IcedError> {
        let inside = self.data(self.setting.layout.inside());
        // Behind a call only rax and rdx may have something, and before it all but these three.
        self.asm.mov(r10, inside)?;
        if goes_in { self.asm.lock().inc(qword_ptr(r10)) } else { self.asm.lock().dec(qword_ptr(r10)) }
    }

    /// A call in the sample that resizes nothing.
    fn give(&mut self, place: usize, arguments: &Arguments) -> Result<(), IcedError> {
        let mut done = self.asm.create_label();
        self.count_inside(true)?;
        let kept: Vec<AsmRegister64> =
            [Some(r11), Some(arguments.size), arguments.count, arguments.out].into_iter().flatten().collect();
        for register in &kept {
            self.asm.push(*register)?;
        }
        // Beside the return address an odd number of words leaves the stack as a call wants it.
        let padding = if kept.len().is_multiple_of(2) { PADDING } else { 0 };
        if padding != 0 {
            self.asm.sub(rsp, padding)?;
        }
        self.call(place, kept.len() as i32 * 8 + padding, true)?;
        if padding != 0 {
            self.asm.add(rsp, padding)?;
        }
        for register in kept.iter().rev() {
            self.asm.pop(*register)?;
        }
        self.stop(place, Stop::Whole)?;
        if let Some(out) = arguments.out {
            self.asm.test(eax, eax)?;
            self.asm.jne(done)?;
            self.asm.mov(r8, qword_ptr(out))?;
        } else {
            self.asm.mov(r8, rax)?;
        }
        self.asm.test(r8, r8)?;
        self.asm.je(done)?;
        self.insert()?;
        here(&mut self.asm, &mut done)?;
        self.count_inside(false)?;
        self.asm.ret()
    }

    /// A call in the sample of a function that throws where there is no memory. While it does, nothing of the gate may be on the stack, for
    /// which nobody knows how to unwind it: one that does not throw is asked, and where that has none, the function itself is gone on with as
    /// if nothing had been.
    fn give_or_throw(
        &mut self,
        place: usize,
        arguments: &Arguments,
        throws: Throws,
    ) -> Result<(), IcedError> {
        self.count_inside(true)?;
        self.asm.push(r11)?;
        self.asm.sub(rsp, PADDING)?;
        self.call_by(place, throws, 8 + PADDING)?;
        self.asm.add(rsp, PADDING)?;
        self.asm.pop(r11)?;
        self.unless_given(place, arguments, throws, true)?;
        self.stop(place, Stop::Whole)?;
        self.asm.mov(r8, rax)?;
        self.insert()?;
        self.count_inside(false)?;
        self.asm.ret()
    }

    /// The old block may be in the sample, and its bucket is in r10: takes it out of the table, and goes to `call` with 1 in r10 if it was in
    /// there, or 0 where only the kernel side knows, and in r11 what the budget had, or −1 where the new block is not in the sample. Goes
    /// to `absent` where the old one is in no sample.
    fn resized(
        &mut self,
        arguments: &Arguments,
        absent: CodeLabel,
        call: CodeLabel,
    ) -> Result<(), IcedError> {
        let Some(old) = arguments.old else { return Ok(()) };
        let mut unknown = self.asm.create_label();
        self.remove(old, absent, unknown)?;
        for is_found in [1, 0] {
            let (mut sampled, mut drawn) = (self.asm.create_label(), self.asm.create_label());
            if is_found == 0 {
                here(&mut self.asm, &mut unknown)?;
            }
            self.draw(arguments, sampled)?;
            self.asm.mov(r11, -1_i64)?;
            self.asm.jmp(drawn)?;
            here(&mut self.asm, &mut sampled)?;
            self.refill(arguments)?;
            self.asm.jns(drawn)?;
            self.asm.mov(r11, -1_i64)?;
            here(&mut self.asm, &mut drawn)?;
            self.asm.mov(r10d, is_found)?;
            self.asm.jmp(call)?;
        }
        Ok(())
    }

    /// A call that resizes, which is in the sample, or takes a block that is. r10 says whether the block was in the table, and r11 is not
    /// negative where the call is in the sample.
    fn resize(
        &mut self,
        place: usize,
        arguments: &Arguments,
        convention: Convention,
        throws: Throws,
    ) -> Result<(), IcedError> {
        let Some(old) = arguments.old else { return Ok(()) };
        let inside = self.data(self.setting.layout.inside());
        self.asm.mov(rax, inside)?;
        self.asm.lock().inc(qword_ptr(rax))?;
        self.stop(place, Stop::Call)?;
        self.asm.mov(rax, arguments.size)?;
        if let Some(count) = arguments.count {
            let mut fits = self.asm.create_label();
            self.asm.imul_2(rax, count)?;
            self.asm.jno(fits)?;
            self.asm.mov(rax, -1_i64)?;
            here(&mut self.asm, &mut fits)?;
        }
        for register in [rax, old, r10, r11] {
            self.asm.push(register)?;
        }
        self.call_by(place, throws, 4 * 8)?;
        for register in [r11, r10, rcx, r9] {
            self.asm.pop(register)?;
        }
        self.stop(place, Stop::Return)?;
        self.settle(convention)?;
        self.unless_given(place, arguments, throws, false)?;
        self.count_inside(false)?;
        self.asm.ret()
    }

    /// Puts into the table what a call that resizes has left: the new block where that is in the sample, or the old one where it has failed
    /// and that was in the table. rax has the result, r9 the size, rcx the old block, r10 and r11 as before the call.
    fn settle(&mut self, convention: Convention) -> Result<(), IcedError> {
        let mut done = self.asm.create_label();
        let (mut failed, mut insert) = (self.asm.create_label(), self.asm.create_label());
        let outcome = convention.outcome();
        if outcome == SIZE {
            self.asm.mov(r8, rcx)?;
            self.asm.cmp(rax, r9)?;
            self.asm.jb(failed)?;
            // Nobody may ask for that, and it is no block.
            self.asm.test(rcx, rcx)?;
            self.asm.je(done)?;
        } else {
            self.asm.mov(r8, rax)?;
            self.asm.test(rax, rax)?;
            self.asm.je(failed)?;
        }
        self.asm.test(r11, r11)?;
        self.asm.js(done)?;
        self.asm.jmp(insert)?;
        here(&mut self.asm, &mut failed)?;
        match outcome {
            // What fails frees the old block.
            RETURNED_OR_FREED => self.asm.jmp(done)?,
            // To no size it frees, and fails as far as can be seen.
            RETURNED => {
                self.asm.test(r9, r9)?;
                self.asm.je(done)?;
            }
            _ => {}
        }
        self.asm.test(r10, r10)?;
        self.asm.je(done)?;
        self.asm.mov(r8, rcx)?;
        here(&mut self.asm, &mut insert)?;
        self.insert()?;
        here(&mut self.asm, &mut done)
    }
}

const _: () = assert!(STORED != SIZE);
