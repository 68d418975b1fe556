//! The gate of a function that frees.

use iced_x86::{IcedError, code_asm::rdi};

use super::{
    Stop,
    function::Function,
    writer::{Writer, here},
};

impl Writer<'_> {
    /// Most blocks are in no sample, and go straight through. One that is has left the table before it is freed, and so before its address
    /// can be given to anybody else.
    pub(super) fn release(&mut self, place: usize, function: &Function) -> Result<(), IcedError> {
        let (mut maybe, mut ask) = (self.asm.create_label(), self.asm.create_label());
        let moved = self.moved_of(place);
        self.filter(rdi, maybe)?;
        self.moved(place, function)?;
        here(&mut self.asm, &mut maybe)?;
        self.undo_late(function)?;
        self.remove(rdi, moved, ask)?;
        here(&mut self.asm, &mut ask)?;
        self.stop(place, Stop::Free)?;
        self.asm.jmp(moved)
    }
}
