//! The code of gates: from functions and addresses to bytes.
//!
//! A gate is entered by a jump from its function, behind its first instruction, and for a call in the sample makes that undone, so that
//! everything is as the caller left it. It uses only registers that a function may destroy and that hold none of its arguments: rax, r10
//! and r11 (System V x86-64 psABI, section 3.2.1). Nothing is kept in memory that another thread, or a handler of signals, could find
//! half done.

mod function;

mod writer;

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

use iced_x86::IcedError;
use profiler_common::call::Shape;

pub use self::function::{Function, Throws};
use self::writer::Writer;
use super::layout::Layout;

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
        function.check(functions)?;
    }
    let mut writer = Writer::new(setting, functions.len()).map_err(failed)?;
    for (place, function) in functions.iter().enumerate() {
        writer.function(place, function).map_err(failed)?;
    }
    writer.finish().map_err(failed)
}
