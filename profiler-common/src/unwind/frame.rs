//! A frame on the way up a stack.

use super::{ReadMemory, Regs, WalkEnd};

/// A frame on the way up a stack, of which rbp may not have been read yet.
///
/// Most code keeps no frame pointer but saves rbp because it has another use for it, and then nothing further up may ever
/// be found by it. So a walk remembers where it was saved last and reads it when a row asks for it: one read for most
/// frames rather than two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Program counter: a return address after the first step.
    pub pc: u64,
    /// Stack pointer.
    pub sp: u64,
    pub(super) fp: FramePointer,
}

/// What is known of a frame's rbp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FramePointer {
    /// Its value, which is that of the frame that the walk began with.
    First(u64),
    /// Its value.
    Is(u64),
    /// Where it was saved.
    SavedAt(u64),
}

impl Frame {
    /// The frame that has these registers.
    #[inline(always)]
    pub const fn new(regs: Regs) -> Self {
        Self { pc: regs.pc, sp: regs.sp, fp: FramePointer::First(regs.fp) }
    }

    /// The same, for a verifier that must not know what is known of rbp: kernels before 6.7 look at a loop's body once, and take
    /// for constant what is constant where the loop begins. `never` is 0, of which it must not know more than that it may be
    /// 1 or 2.
    #[inline(always)]
    pub const fn new_unless(never: u32, regs: Regs) -> Self {
        let Regs { pc, sp, fp } = regs;
        let fp = match never {
            0 => FramePointer::First(fp),
            1 => FramePointer::SavedAt(fp),
            _ => FramePointer::Is(fp),
        };
        Self { pc, sp, fp }
    }

    /// The frame's rbp.
    #[inline(always)]
    pub fn fp(&self, memory: &impl ReadMemory) -> Result<u64, WalkEnd> {
        match self.fp {
            FramePointer::First(fp) => {
                memory.note_first_fp();
                Ok(fp)
            }
            FramePointer::Is(fp) => Ok(fp),
            FramePointer::SavedAt(address) => memory.read_word(address).ok_or(WalkEnd::Unreadable),
        }
    }

    /// The frame's registers, all of them.
    #[inline(always)]
    pub fn regs(&self, memory: &impl ReadMemory) -> Result<Regs, WalkEnd> {
        Ok(Regs { pc: self.pc, sp: self.sp, fp: self.fp(memory)? })
    }
}
