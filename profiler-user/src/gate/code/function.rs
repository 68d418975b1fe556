//! The functions that are gated: what of them decides over their gates.

use iced_x86::code_asm::{AsmRegister64, r8, r9, rcx, rdi, rdx, rsi};
use profiler_common::call::{Convention, Outcome, Shape};

use super::CodeError;
use crate::target::{
    cover::Cover,
    kept::{CHANGED, Undo},
};

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

impl Function {
    /// That there can be a gate for it, which is one of these functions.
    pub(super) fn check(&self, functions: &[Self]) -> Result<(), CodeError> {
        if matches!(self.shape, Shape::Free) {
            return Ok(());
        }
        let convention =
            self.shape.convention().filter(|convention| !Outcome::is_mapping(convention.outcome()));
        let Some(convention) = convention else { return Err(CodeError::Shape { shape: self.shape }) };
        let Throws::Unless { counterpart, arguments, gives_size } = self.throws else { return Ok(()) };
        let is_there = functions
            .get(counterpart)
            .is_some_and(|other| other.throws == Throws::Never && other.shape == self.shape);
        // Of what is resized, null has to say that it has failed and left the block as it was; the fourth argument is not kept, nor is a
        // size given.
        let resizes = convention.old_argument() != 0;
        let last = convention.size_argument().max(convention.count_argument());
        let is_told =
            !resizes || (convention.outcome() == Outcome::Returned as u64 && last < 4 && !gives_size);
        if is_there && is_told && (1..=3).contains(&arguments) {
            return Ok(());
        }
        Err(CodeError::Throws { address: self.address })
    }

    /// Whether what the function does before the jump is left as it is for calls in no sample, for which nothing of it is in the way; of a
    /// register that was pushed, to undo it and do it again would have the caller wait for what it has there.
    pub(super) fn is_undone_late(&self) -> bool {
        let is_apart = match self.cover.undo {
            Undo::Nothing => false,
            Undo::Pop(register) => !CHANGED.contains(&register),
            Undo::Raise(_) => true,
        };
        is_apart && !self.jumps
    }
}

/// The register of an argument, counted from 1; the caller has none that is not there.
pub(super) fn argument(number: u64) -> AsmRegister64 {
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
pub(super) struct Arguments {
    pub(super) size: AsmRegister64,
    /// What the size is multiplied by.
    pub(super) count: Option<AsmRegister64>,
    /// The block that is resized.
    pub(super) old: Option<AsmRegister64>,
    /// Where the block's address is stored.
    pub(super) out: Option<AsmRegister64>,
}

impl Arguments {
    pub(super) fn of(convention: Convention) -> Self {
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
