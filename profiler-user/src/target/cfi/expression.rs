//! The few shapes of DWARF expressions that compilers and linkers put into call frame information for x86-64.

use gimli::{
    Encoding, Expression, Format,
    Operation::{self, And, Deref, Ge, Plus, PlusConstant, RegisterOffset, Shl, UnsignedConstant},
    UnitOffset, X86_64,
};

use super::table::Slice;

/// An expression for the CFA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cfa {
    /// The linker's stubs: rsp + 8, and 8 more where the low four bits of the pc have reached the threshold.
    Plt { threshold: i16 },
    /// The word at rsp + offset.
    DerefSp { offset: i64 },
    /// The word at rbp + offset.
    DerefFp { offset: i64 },
}

const ENCODING: Encoding = Encoding { address_size: 8, format: Format::Dwarf32, version: 5 };

/// The stubs' expression is the longest that is known.
const OPERATIONS_LIMIT: usize = 9;

/// Values that are not converted to another type have this one.
const GENERIC: UnitOffset = UnitOffset(0);

/// The CFA that an expression computes, if it has a known shape.
pub(super) fn cfa_of(expression: Expression<Slice<'_>>) -> Option<Cfa> {
    let operations = operations(expression)?;
    match operations.as_slice() {
        [
            RegisterOffset { register: X86_64::RSP, offset: 8, base_type: GENERIC },
            RegisterOffset { register: X86_64::RA, offset: 0, base_type: GENERIC },
            UnsignedConstant { value: 15 },
            And,
            UnsignedConstant { value: threshold @ 0..=16 },
            Ge,
            UnsignedConstant { value: 3 },
            Shl,
            Plus,
        ] => Some(Cfa::Plt { threshold: i16::try_from(*threshold).ok()? }),
        [RegisterOffset { register, offset, base_type: GENERIC }, deref]
        | [RegisterOffset { register, offset, base_type: GENERIC }, deref, PlusConstant { value: 0 }] => {
            let Deref { base_type: GENERIC, size: 8, space: false } = *deref else { return None };
            match *register {
                X86_64::RSP => Some(Cfa::DerefSp { offset: *offset }),
                X86_64::RBP => Some(Cfa::DerefFp { offset: *offset }),
                _ => None,
            }
        }
        _ => None,
    }
}

/// The offset in an expression that computes rbp + offset: where a function that realigned its stack saves rbp.
pub(super) fn fp_address_of(expression: Expression<Slice<'_>>) -> Option<i64> {
    match operations(expression)?.as_slice() {
        [RegisterOffset { register: X86_64::RBP, offset, base_type: GENERIC }] => Some(*offset),
        _ => None,
    }
}

fn operations(expression: Expression<Slice<'_>>) -> Option<Vec<Operation<Slice<'_>>>> {
    let mut operations = Vec::with_capacity(OPERATIONS_LIMIT);
    let mut iter = expression.operations(ENCODING);
    while let Some(operation) = iter.next().ok()? {
        if operations.len() == OPERATIONS_LIMIT {
            return None;
        }
        operations.push(operation);
    }
    Some(operations)
}
