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

/// What is known of a frame's rbp. Not an `enum`, for which a number would have to be looked at before it is one of its variants:
/// see [`Frame::new_unless`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(super) struct FramePointer {
    /// [`FIRST`] or [`SAVED_AT`]; anything else is [`IS`].
    how: u64,
    /// The value, or the address.
    word: u64,
}

/// Its value, which is that of the frame that the walk began with.
const FIRST: u64 = 0;

/// Where it was saved.
const SAVED_AT: u64 = 1;

/// Its value.
const IS: u64 = 2;

impl FramePointer {
    /// Its value.
    #[inline(always)]
    pub(super) const fn is(word: u64) -> Self {
        Self { how: IS, word }
    }

    /// Where it was saved.
    #[inline(always)]
    pub(super) const fn saved_at(word: u64) -> Self {
        Self { how: SAVED_AT, word }
    }
}

impl Frame {
    /// The frame that has these registers.
    #[inline(always)]
    pub const fn new(regs: Regs) -> Self {
        Self::new_unless(0, regs)
    }

    /// The same, for a verifier that must not know what is known of rbp: kernels before 6.7 look at a loop's body once, take for
    /// constant what is constant where the loop begins, and take out what is never run with that. `never` is 0, of which it must
    /// not know more than that it may be 1 or 2.
    ///
    /// The number is kept as it is, rather than one of three constants chosen by it. Then there would be three ways to the loop,
    /// each with another constant on the stack, and kernels before 6.8 do not notice that the body, which reads it through a
    /// pointer, goes by it: they take the three for the same and look at the body for the first only.
    #[inline(always)]
    pub const fn new_unless(never: u32, regs: Regs) -> Self {
        let Regs { pc, sp, fp } = regs;
        Self { pc, sp, fp: FramePointer { how: never as u64, word: fp } }
    }

    /// The frame's rbp.
    #[inline(always)]
    pub fn fp(&self, memory: &impl ReadMemory) -> Result<u64, WalkEnd> {
        let FramePointer { how, word } = self.fp;
        match how {
            FIRST => {
                memory.note_first_fp();
                Ok(word)
            }
            SAVED_AT => memory.read_word(word).ok_or(WalkEnd::Unreadable),
            _ => Ok(word),
        }
    }

    /// The frame's registers, all of them.
    #[inline(always)]
    pub fn regs(&self, memory: &impl ReadMemory) -> Result<Regs, WalkEnd> {
        Ok(Regs { pc: self.pc, sp: self.sp, fp: self.fp(memory)? })
    }
}
