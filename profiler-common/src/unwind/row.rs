//! The rule for one step, in eight bytes.

use super::WalkEnd;

/// How the caller's registers follow from those of a frame, in eight bytes.
///
/// The lowest byte is the [`Kind`], whose highest bit says that the pc lies within a function that allocates; then the [`FpRule`],
/// in a byte; then its offset, 16 bits in words of eight bytes
/// (for [`Kind::Plt`] the threshold, for [`Kind::Stop`] the [`WalkEnd`]); then the CFA's offset, 32 bits in bytes. The
/// CFA (canonical frame address) is the caller's stack pointer; the return address lies right below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Row(u64);

const OF_ALLOCATOR: u64 = 1 << 7;

/// Where a row finds the CFA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// The frame keeps rbp as its frame pointer: `[rbp]` is the caller's, `[rbp + 8]` the return address.
    FramePointer = 1,
    /// CFA = rsp + offset.
    Sp = 2,
    /// CFA = rbp + offset.
    Fp = 3,
    /// CFA = rsp + 8, and 8 more where the low four bits of the pc have reached a threshold: the linker's stubs.
    Plt = 4,
    /// The kernel's signal frame: the interrupted registers lie above the stack pointer.
    Signal = 5,
    /// CFA = the word at rsp + offset.
    DerefSp = 6,
    /// CFA = the word at rbp + offset: a function that realigned its stack.
    DerefFp = 7,
    /// The outermost frame: there is no return address.
    End = 8,
    /// The walk cannot go on, for a reason.
    Stop = 9,
    /// Go's code: as [`Kind::FramePointer`], but that frame may lie on another stack, above or below.
    GoFramePointer = 10,
    /// CFA = the word at rbp + offset, and the return address is the word behind the caller's rbp: an interpreter, whose frames lie
    /// above what they were called with.
    Interpreter = 11,
}

/// Where a row finds the caller's rbp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FpRule {
    /// It is still in rbp.
    Unchanged = 0,
    /// In the word at CFA + offset.
    AtCfa = 1,
    /// In the word at rbp + offset.
    AtFp = 2,
}

impl Row {
    /// The row of code that keeps a frame pointer.
    pub const FRAME_POINTER: Self = Self::new(Kind::FramePointer, FpRule::Unchanged, 0, 0);

    /// The row of Go's code, which keeps a frame pointer, and what it calls may run on the thread's stack instead of the
    /// goroutine's: C does (`runtime.asmcgocall`), and the runtime itself (`runtime.systemstack`).
    pub const GO: Self = Self::new(Kind::GoFramePointer, FpRule::Unchanged, 0, 0);

    /// The row of the HotSpot JVM's interpreter, which keeps frame pointers and right below its caller's stack pointer: between
    /// the two lie the method's locals (`frame::sender_for_interpreter_frame` in OpenJDK's
    /// src/hotspot/cpu/x86/frame_x86.inline.hpp; `interpreter_frame_sender_sp_offset` is −1).
    pub const INTERPRETER: Self = Self::new(Kind::Interpreter, FpRule::AtFp, 0, -8);

    /// The row of an outermost frame.
    pub const END: Self = Self::new(Kind::End, FpRule::Unchanged, 0, 0);

    /// The row of the kernel's signal trampoline.
    pub const SIGNAL: Self = Self::new(Kind::Signal, FpRule::Unchanged, 0, 0);

    /// A row from its parts; `fp_offset` is in words of eight bytes, `cfa_offset_bytes` in bytes.
    pub const fn new(kind: Kind, fp_rule: FpRule, fp_offset: i16, cfa_offset_bytes: i32) -> Self {
        let high = (cfa_offset_bytes.cast_unsigned() as u64) << 32;
        Self(high | (fp_offset.cast_unsigned() as u64) << 16 | (fp_rule as u64) << 8 | kind as u64)
    }

    /// The row of code that cannot be walked through.
    pub const fn stop(end: WalkEnd) -> Self {
        Self::new(Kind::Stop, FpRule::Unchanged, end as i16, 0)
    }

    /// The row of the linker's stubs; `threshold` is the low four bits of the pc from which on there is one word more.
    pub const fn plt(threshold: i16) -> Self {
        Self::new(Kind::Plt, FpRule::Unchanged, threshold, 0)
    }

    /// The same row, of a pc within a function that allocates and is probed.
    pub const fn of_allocator(self) -> Self {
        Self(self.0 | OF_ALLOCATOR)
    }

    /// Whether the pc lies within a function that allocates and is probed.
    #[inline(always)]
    pub const fn is_of_allocator(self) -> bool {
        self.0 & OF_ALLOCATOR != 0
    }

    /// The row as a number.
    pub const fn to_raw(self) -> u64 {
        self.0
    }

    /// The row that a number stands for; any number will do, and those of no row stop the walk.
    #[inline(always)]
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// Whether it is of a kind.
    pub const fn is_kind(self, kind: Kind) -> bool {
        self.kind() == kind as u8
    }

    #[inline(always)]
    pub(super) const fn kind(self) -> u8 {
        (self.0 & !OF_ALLOCATOR) as u8
    }

    #[inline(always)]
    pub(super) const fn fp_rule(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// The offset of the rbp rule, in bytes, as an addend.
    #[inline(always)]
    pub(super) const fn fp_offset(self) -> u64 {
        (((self.0 >> 16) as u16).cast_signed() as i64 * 8).cast_unsigned()
    }

    /// The field that holds the offset of the rbp rule, as it is.
    #[inline(always)]
    pub(super) const fn small(self) -> u64 {
        (self.0 >> 16) & 0xffff
    }

    /// The CFA's offset in bytes, as an addend.
    #[inline(always)]
    pub(super) const fn cfa_offset(self) -> u64 {
        (((self.0 >> 32) as u32).cast_signed() as i64).cast_unsigned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_keep_their_parts() {
        let row = Row::new(Kind::Sp, FpRule::AtCfa, -3, -40_000);
        assert_eq!((row.kind(), row.fp_rule()), (Kind::Sp as u8, FpRule::AtCfa as u8));
        assert_eq!((row.fp_offset().cast_signed(), row.cfa_offset().cast_signed()), (-24, -40_000));
        assert_eq!(Row::from_raw(row.to_raw()), row);
        assert!(!row.is_of_allocator() && row.of_allocator().is_of_allocator());
        assert_eq!(row.of_allocator().kind(), row.kind());
    }
}
