//! What all gates have in common: where they begin, what was moved into them, where they call and where programs run.

use iced_x86::{
    BlockEncoderOptions, Code, FlowControl, IcedError, Instruction,
    code_asm::{
        AsmMemoryOperand, AsmRegister64, CodeAssembler, CodeAssemblerResult, CodeLabel, qword_ptr, rsp,
    },
};

use super::{Frame, Gates, Setting, Site, Stop, function::Function};
use crate::target::kept::Undo;

/// What is written of gates.
pub(super) struct Writer<'setting> {
    pub(super) asm: CodeAssembler,
    pub(super) setting: &'setting Setting,
    /// Where each function's gate begins, and what was moved out of it.
    entries: Vec<CodeLabel>,
    moved: Vec<CodeLabel>,
    sites: Vec<(usize, Stop, CodeLabel)>,
    frames: Vec<(CodeLabel, i32, bool)>,
    copies: Vec<(u64, CodeLabel)>,
    /// Words that the code reads, which lie behind it.
    pub(super) words: Vec<(CodeLabel, u64)>,
    /// Where large charges go, and come back to.
    pub(super) large: Vec<(CodeLabel, CodeLabel)>,
}

impl<'setting> Writer<'setting> {
    pub(super) fn new(setting: &'setting Setting, functions: usize) -> Result<Self, IcedError> {
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

    pub(super) fn function(&mut self, place: usize, function: &Function) -> Result<(), IcedError> {
        set(&mut self.asm, &mut self.entries, place)?;
        if !function.is_undone_late() {
            self.undo(function)?;
        }
        match function.shape.convention() {
            Some(convention) => self.allocate(place, function, convention)?,
            None => self.release(place, function)?,
        }
        self.limit_charges()
    }

    /// Undoes what the function has done before the jump, where that has yet to be done.
    pub(super) fn undo_late(&mut self, function: &Function) -> Result<(), IcedError> {
        if function.is_undone_late() { self.undo(function) } else { Ok(()) }
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
    pub(super) fn moved(&mut self, place: usize, function: &Function) -> Result<(), IcedError> {
        let mut on = self.asm.create_label();
        if !function.is_undone_late() {
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
        if function.is_undone_late() {
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
    pub(super) fn again(&mut self, function: &Function) -> Result<(), IcedError> {
        let kept = function.cover.kept_before(function.address).filter(|_| function.is_undone_late());
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
    pub(super) fn moved_of(&self, place: usize) -> CodeLabel {
        self.moved.get(place).copied().unwrap_or_default()
    }

    /// A place at which a program is to run.
    pub(super) fn stop(&mut self, function: usize, stop: Stop) -> Result<(), IcedError> {
        let mut label = self.asm.create_label();
        here(&mut self.asm, &mut label)?;
        self.sites.push((function, stop, label));
        self.asm.nop()
    }

    /// A call of what was moved out of a function, by a frame of so many bytes beside the return address, of a thread that is counted or is
    /// not.
    pub(super) fn call(&mut self, place: usize, frame_bytes: i32, is_counted: bool) -> Result<(), IcedError> {
        let moved = self.moved_of(place);
        self.asm.call(moved)?;
        let mut label = self.asm.create_label();
        here(&mut self.asm, &mut label)?;
        self.frames.push((label, frame_bytes + 8, is_counted));
        Ok(())
    }

    /// What lies in the data as far behind an offset as a register has. Where an instruction has no room for that address, `base` is
    /// made to have it.
    pub(super) fn indexed(
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
    pub(super) const fn data(&self, offset: u64) -> u64 {
        self.setting.data_address + offset
    }

    pub(super) fn finish(mut self) -> Result<Gates, IcedError> {
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
pub(super) fn here(asm: &mut CodeAssembler, label: &mut CodeLabel) -> Result<(), IcedError> {
    asm.set_label(label)?;
    asm.zero_bytes()
}
