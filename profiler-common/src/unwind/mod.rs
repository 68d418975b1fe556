//! Walking up a stack, one step at a time, written once for the kernel and for user space.

mod row;

mod frame;

mod step;

mod nesting;

mod hash;

mod cache;

pub mod remembered;

pub use row::{FpRule, Kind, Row};

pub use frame::Frame;

pub use step::step;

pub use nesting::Nesting;

pub use cache::CachedRow;

pub use hash::StackHash;

/// The registers that a walk needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Regs {
    /// Program counter: a return address after the first step.
    pub pc: u64,
    /// Stack pointer.
    pub sp: u64,
    /// Frame pointer, rbp.
    pub fp: u64,
}

/// Where a walk reads the target's stack.
pub trait ReadMemory {
    /// The word at `address`, or `None` where it cannot be read.
    fn read_word(&self, address: u64) -> Option<u64>;

    /// The two words at `address`, or `None` where they cannot be read.
    fn read_pair(&self, address: u64) -> Option<[u64; 2]>;

    /// Hears that the rbp that the walk began with is asked for.
    #[inline(always)]
    fn note_first_fp(&self) {}
}

/// How a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum WalkEnd {
    /// At the outermost frame of the thread.
    Whole = 0,
    /// At the depth limit; the leaf side is kept.
    Cut = 1,
    /// At a word of the stack that cannot be read.
    Unreadable = 2,
    /// At a frame that does not lie above the one that it called.
    NotAscending = 3,
    /// At the return address of a pending uretprobe that is not ours to look behind.
    Trampoline = 4,
    /// At a row that this version does not know.
    UnknownRow = 5,
    /// At a pc of which it is not known yet how to go on.
    MissingRow = 6,
    /// At code whose rule for the caller is none of those that rows can express.
    Unsupported = 7,
    /// At code that its file says nothing about.
    NoUnwindInfo = 8,
    /// At an address where there is no code.
    NoCode = 9,
    /// Where the copy of the stack that was to be learned from ends.
    CopyEnds = 10,
}

impl WalkEnd {
    /// Every way in which a walk can end.
    pub const ALL: [Self; 11] = [
        Self::Whole,
        Self::Cut,
        Self::Unreadable,
        Self::NotAscending,
        Self::Trampoline,
        Self::UnknownRow,
        Self::MissingRow,
        Self::Unsupported,
        Self::NoUnwindInfo,
        Self::NoCode,
        Self::CopyEnds,
    ];

    /// The end that a record's number stands for.
    #[inline(always)]
    pub const fn from_raw(raw: u32) -> Option<Self> {
        Some(match raw {
            0 => Self::Whole,
            1 => Self::Cut,
            2 => Self::Unreadable,
            3 => Self::NotAscending,
            4 => Self::Trampoline,
            5 => Self::UnknownRow,
            6 => Self::MissingRow,
            7 => Self::Unsupported,
            8 => Self::NoUnwindInfo,
            9 => Self::NoCode,
            10 => Self::CopyEnds,
            _ => return None,
        })
    }

    /// The end in words, for people.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Cut => "cut at the depth limit",
            Self::Unreadable => "broken: unreadable stack",
            Self::NotAscending => "broken: frames do not ascend",
            Self::Trampoline => "broken: somebody else's return probe",
            Self::UnknownRow => "broken: unknown unwind row",
            Self::MissingRow => "broken: not learned yet",
            Self::Unsupported => "broken: unsupported unwind rule",
            Self::NoUnwindInfo => "broken: code without unwind information",
            Self::NoCode => "broken: return address outside all code",
            Self::CopyEnds => "cut where the copied part of the stack ends",
        }
    }
}

#[cfg(test)]
pub(crate) mod stack {
    use super::ReadMemory;

    /// A stack that begins at an address, as words.
    pub(crate) struct Stack<'a>(pub(crate) u64, pub(crate) &'a [u64]);

    impl ReadMemory for Stack<'_> {
        fn read_word(&self, address: u64) -> Option<u64> {
            let index = usize::try_from(address.checked_sub(self.0)? / 8).ok()?;
            self.1.get(index).copied()
        }

        fn read_pair(&self, address: u64) -> Option<[u64; 2]> {
            Some([self.read_word(address)?, self.read_word(address + 8)?])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_come_back_from_their_number() {
        for end in WalkEnd::ALL {
            assert_eq!(WalkEnd::from_raw(end as u32), Some(end));
        }
        assert_eq!(WalkEnd::from_raw(WalkEnd::ALL.len() as u32), None);
    }
}
