//! The code of gates: from functions and addresses to bytes.
//!
//! A gate is entered by a jump from its function, behind its first instruction, and for a call in the sample makes that undone, so that
//! everything is as the caller left it. It uses only registers that a function
//! may destroy and that hold none of its arguments: rax, r10 and r11 (System V x86-64 psABI, section 3.2.1). Nothing is kept in
//! memory that another thread, or a handler of signals, could find half done.

mod budget;

mod table;

mod allocate;

mod release;

#[cfg(test)]
mod scratch;

#[cfg(test)]
mod bench;

#[cfg(test)]
mod model;

#[cfg(test)]
mod tests;

use iced_x86::{
    BlockEncoderOptions, Code, FlowControl, IcedError, Instruction,
    code_asm::{
        AsmMemoryOperand, AsmRegister64, CodeAssembler, CodeAssemblerResult, CodeLabel, qword_ptr, r8, r9,
        rcx, rdi, rdx, rsi, rsp,
    },
};
use profiler_common::call::{Convention, Outcome, Shape};

use super::layout::Layout;
use crate::target::{
    cover::Cover,
    kept::{CHANGED, Undo},
};

/// Why no code was made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CodeError {
    /// An instruction cannot be encoded where it would be: what it refers to is too far away.
    #[error("the gate's code cannot be encoded at {address:#x}")]
    Encode {
        /// Where it would be.
        address: u64,
        /// What the encoder says.
        #[source]
        source: IcedError,
    },
    /// A function may throw, and none was named that does the same and does not.
    #[error("the function at {address:#x} may throw, and has no counterpart that does not")]
    Throws {
        /// Where it is.
        address: u64,
    },
    /// There is no gate for functions of this shape.
    #[error("there is no gate for functions of the shape {shape:?}")]
    Shape {
        /// The shape.
        shape: Shape,
    },
}

/// Which budget is a thread's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    /// That of the processor that it runs on, by its `struct rseq` (include/uapi/linux/rseq.h): nearly always its own for a while.
    OfCpu {
        /// How far behind the thread pointer that is, in bytes.
        offset: i32,
    },
    /// One that it may share with others that run at the same time.
    OfThread,
}

/// Whether a function may throw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Throws {
    /// It does not.
    Never,
    /// It does where there is no memory; another one, by its place among the functions, is called with one more argument, gives null
    /// instead, and takes this number of arguments before that one.
    Unless {
        /// The place of the other one.
        counterpart: usize,
        /// The number of arguments before the one more: 1 to 3.
        arguments: u8,
        /// Whether the function gives the block's size as well, which its counterpart does not: what was asked for is right.
        gives_size: bool,
    },
}

/// A function to be gated.
#[derive(Clone, Debug)]
pub struct Function {
    /// How it takes its arguments.
    pub shape: Shape,
    /// Where in the process what is covered of it begins, behind the instruction that stays.
    pub address: u64,
    /// What the jump covers.
    pub cover: Cover,
    /// Whether it may jump to another function that is gated, whose call must be seen to be part of this one.
    pub jumps: bool,
    /// Whether it may throw.
    pub throws: Throws,
}

/// What a gate is made for.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Where the code will be.
    pub code_address: u64,
    /// Where the data will be. Below 2 GiB, operands have room for it, which is faster.
    pub data_address: u64,
    /// What lies where in the data.
    pub layout: Layout,
    /// Which budget is a thread's.
    pub budget: Budget,
}

/// What a program is to run at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// A call in the sample that resizes nothing, when it has come back: the stack pointer and the arguments that say what is asked for are
    /// as the caller left them, rax has the result, and r11 what the budget had. One trap for each, where two would be half as much again.
    Whole,
    /// A call that resizes, and is in the sample or takes a block which is, before anything is done: the stack and the arguments are as
    /// the caller left them. r11 has what the budget had, or −1 for a call that is not in the sample.
    Call,
    /// The same call when it has come back: the stack pointer is as it was, rax has the result.
    Return,
    /// A free of a block that is in the sample, or may be.
    Free,
}

/// A place at which a program is to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    /// The function, by its place.
    pub function: usize,
    /// What happens there.
    pub stop: Stop,
    /// Where: a `nop` of one byte.
    pub address: u64,
}

/// A call in the gate, as those see it who walk the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Where it returns to.
    pub return_address: u64,
    /// How far above the stack pointer, after the return, the word behind the return address of the gate's caller is.
    pub cfa_offset: i32,
    /// Whether the thread is counted among those that are inside, for as long as it has yet to return there.
    pub is_counted: bool,
}

/// The gates of some functions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gates {
    /// Their code.
    pub bytes: Vec<u8>,
    /// Where each function's begins, in their order.
    pub entries: Vec<u64>,
    /// Where programs are to run.
    pub sites: Vec<Site>,
    /// The calls in them.
    pub frames: Vec<Frame>,
    /// Where the copy is of each instruction that a jump covers but for the first one: its address, and the copy's. A thread that stands
    /// at the one may as well stand at the other.
    pub copies: Vec<(u64, u64)>,
}

/// Makes the gates of all functions of an allocator. Blocks that one of them gives another one takes, so that one alone is of no use.
pub fn assemble(functions: &[Function], setting: &Setting) -> Result<Gates, CodeError> {
    let failed = |source| CodeError::Encode { address: setting.code_address, source };
    for function in functions {
        check(function, functions)?;
    }
    let mut writer = Writer::new(setting, functions.len()).map_err(failed)?;
    for (place, function) in functions.iter().enumerate() {
        writer.function(place, function).map_err(failed)?;
    }
    writer.finish().map_err(failed)
}

fn check(function: &Function, functions: &[Function]) -> Result<(), CodeError> {
    if matches!(function.shape, Shape::Free) {
        return Ok(());
    }
    let convention =
        function.shape.convention().filter(|convention| !Outcome::is_mapping(convention.outcome()));
    let Some(convention) = convention else { return Err(CodeError::Shape { shape: function.shape }) };
    let Throws::Unless { counterpart, arguments, gives_size } = function.throws else { return Ok(()) };
    let is_there = functions
        .get(counterpart)
        .is_some_and(|other| other.throws == Throws::Never && other.shape == function.shape);
    // Of what is resized, null has to say that it has failed and left the block as it was; the fourth argument is not kept, nor is a size given.
    let resizes = convention.old_argument() != 0;
    let last = convention.size_argument().max(convention.count_argument());
    let is_told = !resizes || (convention.outcome() == Outcome::Returned as u64 && last < 4 && !gives_size);
    if is_there && is_told && (1..=3).contains(&arguments) {
        return Ok(());
    }
    Err(CodeError::Throws { address: function.address })
}

/// What is written of gates.
struct Writer<'setting> {
    asm: CodeAssembler,
    setting: &'setting Setting,
    /// Where each function's gate begins, and what was moved out of it.
    entries: Vec<CodeLabel>,
    moved: Vec<CodeLabel>,
    sites: Vec<(usize, Stop, CodeLabel)>,
    frames: Vec<(CodeLabel, i32, bool)>,
    copies: Vec<(u64, CodeLabel)>,
    /// Words that the code reads, which lie behind it.
    words: Vec<(CodeLabel, u64)>,
    /// Where large charges go, and come back to.
    large: Vec<(CodeLabel, CodeLabel)>,
}

impl<'setting> Writer<'setting> {
    fn new(setting: &'setting Setting, functions: usize) -> Result<Self, IcedError> {
        let mut asm = CodeAssembler::new(64)?;
        let entries = (0..functions).map(|_| asm.create_label()).collect();
        let moved = (0..functions).map(|_| asm.create_label()).collect();
        Ok(Self {
            asm,
            setting,
            entries,
            moved,
            sites: Vec::new(),
            frames: Vec::new(),
            copies: Vec::new(),
            words: Vec::new(),
            large: Vec::new(),
        })
    }

    fn function(&mut self, place: usize, function: &Function) -> Result<(), IcedError> {
        set(&mut self.asm, &mut self.entries, place)?;
        if !is_undone_late(function) {
            self.undo(function)?;
        }
        match function.shape.convention() {
            Some(convention) => self.allocate(place, function, convention)?,
            None => self.release(place, function)?,
        }
        self.limit_charges()
    }

    /// Undoes what the function has done before the jump, where that has yet to be done.
    fn undo_late(&mut self, function: &Function) -> Result<(), IcedError> {
        if is_undone_late(function) { self.undo(function) } else { Ok(()) }
    }

    fn undo(&mut self, function: &Function) -> Result<(), IcedError> {
        match function.cover.undo {
            Undo::Nothing => Ok(()),
            Undo::Pop(register) => self.asm.add_instruction(Instruction::with1(Code::Pop_r64, register)?),
            Undo::Raise(bytes) => self.asm.lea(rsp, qword_ptr(rsp + bytes)),
        }
    }

    /// What the jump covers, and the way back behind it; in front of it, at the function's label, what it does before the jump and was
    /// undone.
    fn moved(&mut self, place: usize, function: &Function) -> Result<(), IcedError> {
        let mut on = self.asm.create_label();
        if !is_undone_late(function) {
            set(&mut self.asm, &mut self.moved, place)?;
            self.add(function.cover.kept_before(function.address))?;
        }
        here(&mut self.asm, &mut on)?;
        for instruction in function.cover.instructions_at(function.address) {
            if instruction.ip() != function.address {
                let mut label = self.asm.create_label();
                here(&mut self.asm, &mut label)?;
                self.copies.push((instruction.ip(), label));
            }
            if instruction.flow_control() == FlowControl::Call {
                self.called(&instruction)?;
            } else {
                self.asm.add_instruction(instruction)?;
            }
        }
        self.asm.jmp(function.address + function.cover.bytes.len() as u64)?;
        if is_undone_late(function) {
            set(&mut self.asm, &mut self.moved, place)?;
            self.add(function.cover.kept_before(function.address))?;
            self.asm.jmp(on)?;
        }
        Ok(())
    }

    /// A call that was moved: it returns to where it would have, so that nobody finds the gate on the stack, and the processor is left to
    /// guess where.
    fn called(&mut self, instruction: &Instruction) -> Result<(), IcedError> {
        let word = self.asm.create_label();
        self.words.push((word, instruction.next_ip()));
        self.asm.push(qword_ptr(word))?;
        self.asm.jmp(instruction.near_branch64())
    }

    /// What the function does before the jump, where it was undone late.
    fn again(&mut self, function: &Function) -> Result<(), IcedError> {
        let kept = function.cover.kept_before(function.address).filter(|_| is_undone_late(function));
        self.add(kept.map(|mut kept| {
            // Nothing leads there: that is what has the address among what was moved.
            kept.set_ip(0);
            kept
        }))
    }

    fn add(&mut self, instruction: Option<Instruction>) -> Result<(), IcedError> {
        instruction.map_or(Ok(()), |instruction| self.asm.add_instruction(instruction))
    }

    /// The label of what was moved out of a function.
    fn moved_of(&self, place: usize) -> CodeLabel {
        self.moved.get(place).copied().unwrap_or_default()
    }

    /// A place at which a program is to run.
    fn stop(&mut self, function: usize, stop: Stop) -> Result<(), IcedError> {
        let mut label = self.asm.create_label();
        here(&mut self.asm, &mut label)?;
        self.sites.push((function, stop, label));
        self.asm.nop()
    }

    /// A call of what was moved out of a function, by a frame of so many bytes beside the return address, of a thread that is counted or is
    /// not.
    fn call(&mut self, place: usize, frame_bytes: i32, is_counted: bool) -> Result<(), IcedError> {
        let moved = self.moved_of(place);
        self.asm.call(moved)?;
        let mut label = self.asm.create_label();
        here(&mut self.asm, &mut label)?;
        self.frames.push((label, frame_bytes + 8, is_counted));
        Ok(())
    }

    /// What lies in the data as far behind an offset as a register has. Where an instruction has no room for that address, `base` is
    /// made to have it.
    fn indexed(
        &mut self,
        base: AsmRegister64,
        index: AsmRegister64,
        offset: u64,
    ) -> Result<AsmMemoryOperand, IcedError> {
        let address = self.data(offset);
        if let Ok(low) = i32::try_from(address) {
            return Ok(index + low);
        }
        self.asm.mov(base, address)?;
        Ok(base + index)
    }

    /// The address of something in the data.
    const fn data(&self, offset: u64) -> u64 {
        self.setting.data_address + offset
    }

    fn finish(mut self) -> Result<Gates, IcedError> {
        for (mut label, word) in std::mem::take(&mut self.words) {
            self.asm.set_label(&mut label)?;
            self.asm.dq(&[word])?;
        }
        let address = self.setting.code_address;
        let made = self.asm.assemble_options(address, BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
        let at = |label: &CodeLabel| made.label_ip(label);
        Ok(Gates {
            entries: self.entries.iter().map(at).collect::<Result<_, _>>()?,
            sites: self
                .sites
                .iter()
                .map(|(function, stop, label)| {
                    Ok(Site { function: *function, stop: *stop, address: at(label)? })
                })
                .collect::<Result<_, IcedError>>()?,
            frames: self
                .frames
                .iter()
                .map(|(label, cfa_offset, is_counted)| {
                    let (cfa_offset, is_counted) = (*cfa_offset, *is_counted);
                    Ok(Frame { return_address: at(label)?, cfa_offset, is_counted })
                })
                .collect::<Result<_, IcedError>>()?,
            copies: self
                .copies
                .iter()
                .map(|(address, label)| Ok((*address, at(label)?)))
                .collect::<Result<_, IcedError>>()?,
            bytes: code_of(made),
        })
    }
}

/// Whether what the function does before the jump is left as it is for calls in no sample, for which nothing of it is in the way; of a
/// register that was pushed, to undo it and do it again would have the caller wait for what it has there.
fn is_undone_late(function: &Function) -> bool {
    let is_apart = match function.cover.undo {
        Undo::Nothing => false,
        Undo::Pop(register) => !CHANGED.contains(&register),
        Undo::Raise(_) => true,
    };
    is_apart && !function.jumps
}

fn code_of(made: CodeAssemblerResult) -> Vec<u8> {
    made.inner.code_buffer
}

/// Sets one of several labels here.
fn set(asm: &mut CodeAssembler, labels: &mut [CodeLabel], place: usize) -> Result<(), IcedError> {
    match labels.get_mut(place) {
        Some(label) => here(asm, label),
        None => Ok(()),
    }
}

/// Sets a label here. Others may be set at the same place, for which there has to be something in between: of no length.
fn here(asm: &mut CodeAssembler, label: &mut CodeLabel) -> Result<(), IcedError> {
    asm.set_label(label)?;
    asm.zero_bytes()
}

/// The register of an argument, counted from 1; the caller has none that is not there.
fn argument(number: u64) -> AsmRegister64 {
    match number {
        1 => rdi,
        2 => rsi,
        3 => rdx,
        4 => rcx,
        5 => r8,
        _ => r9,
    }
}

/// Which arguments a function of a shape has that a gate looks at.
struct Arguments {
    size: AsmRegister64,
    /// What the size is multiplied by.
    count: Option<AsmRegister64>,
    /// The block that is resized.
    old: Option<AsmRegister64>,
    /// Where the block's address is stored.
    out: Option<AsmRegister64>,
}

impl Arguments {
    fn of(convention: Convention) -> Self {
        let some = |number: u64| (number != 0).then(|| argument(number));
        let old = some(convention.old_argument());
        Self {
            size: argument(convention.size_argument()),
            count: some(convention.count_argument()),
            old,
            // Of a block that stays where it is, that is the same argument.
            out: some(convention.out_argument()).filter(|_| old.is_none()),
        }
    }
}
