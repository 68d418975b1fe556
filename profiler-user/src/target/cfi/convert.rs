//! A rule of call frame information as a row.

use gimli::{
    CfaRule, Register,
    RegisterRule::{self, Expression, Offset, SameValue, Undefined, ValOffset},
    UnwindSection, UnwindTableRow, X86_64,
};
use profiler_common::unwind::{FpRule, Kind, Row, WalkEnd};

use super::{
    expression::{Cfa, cfa_of, fp_address_of},
    table::Slice,
};

/// The return address lies right below the CFA, which is where a call puts it.
const RETURN_ADDRESS_OFFSET: i64 = -8;

/// The row that says the same, or a stop where rows cannot say it.
pub(super) fn row_of<'data, S: UnwindSection<Slice<'data>>>(
    section: &S,
    rule: &UnwindTableRow<usize>,
) -> Row {
    convert(section, rule).unwrap_or(Row::stop(WalkEnd::Unsupported))
}

fn convert<'data, S: UnwindSection<Slice<'data>>>(section: &S, rule: &UnwindTableRow<usize>) -> Option<Row> {
    let return_address = match rule.register(X86_64::RA)? {
        Undefined => return Some(Row::END),
        Offset(offset) => offset,
        _ => return None,
    };
    if is_below_the_stack(rule.cfa(), return_address) {
        return Some(Row::END);
    }
    if return_address != RETURN_ADDRESS_OFFSET || !is_cfa(rule.register(X86_64::RSP)) {
        return None;
    }
    let (kind, offset) = match rule.cfa() {
        CfaRule::RegisterAndOffset { register, offset } => (base(*register)?, *offset),
        CfaRule::Expression(expression) => match cfa_of(expression.get(section).ok()?)? {
            // The stubs save nothing, and the field that would say where holds the threshold.
            Cfa::Plt { threshold } => {
                return is_kept(rule.register(X86_64::RBP)).then_some(Row::plt(threshold));
            }
            Cfa::DerefSp { offset } => (Kind::DerefSp, offset),
            Cfa::DerefFp { offset } => (Kind::DerefFp, offset),
        },
    };
    let (fp_rule, fp_offset) = match rule.register(X86_64::RBP) {
        kept if is_kept(kept.clone()) => (FpRule::Unchanged, 0),
        Some(Offset(offset)) => (FpRule::AtCfa, words(offset)?),
        Some(Expression(expression)) => (FpRule::AtFp, words(fp_address_of(expression.get(section).ok()?)?)?),
        _ => return None,
    };
    Some(Row::new(kind, fp_rule, fp_offset, i32::try_from(offset).ok()?))
}

/// musl's `clone` says in this way that nothing called the new thread: the return address would lie where no frame
/// has put anything yet.
fn is_below_the_stack(cfa: &CfaRule<usize>, return_address: i64) -> bool {
    matches!(cfa, CfaRule::RegisterAndOffset { register: X86_64::RSP, offset }
        if offset.checked_add(return_address).is_some_and(|slot| slot < 0))
}

/// Whether the caller's stack pointer is the CFA, as it is where nothing is said about it.
fn is_cfa(stack_pointer: Option<RegisterRule<usize>>) -> bool {
    matches!(stack_pointer, None | Some(ValOffset(0)))
}

/// Whether the caller's rbp is still in rbp. What a function says it has lost, its caller cannot have needed.
fn is_kept(fp: Option<RegisterRule<usize>>) -> bool {
    matches!(fp, None | Some(SameValue | Undefined))
}

fn base(register: Register) -> Option<Kind> {
    match register {
        X86_64::RSP => Some(Kind::Sp),
        X86_64::RBP => Some(Kind::Fp),
        _ => None,
    }
}

fn words(offset_bytes: i64) -> Option<i16> {
    (offset_bytes % 8 == 0).then(|| i16::try_from(offset_bytes / 8).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::super::{
        assemble::{
            BREG, DEF_CFA, DEF_CFA_EXPRESSION, DEF_CFA_OFFSET, DEF_CFA_SIGNED, DEREF, EXPRESSION, EhFrame,
            OFFSET, OFFSET_SIGNED, RA, RBP, REGISTER, RSP, SAME_VALUE, UNDEFINED, VAL_EXPRESSION, VAL_OFFSET,
        },
        table::Table,
    };
    use super::*;

    const UNSUPPORTED: Row = Row::stop(WalkEnd::Unsupported);

    fn row(program: &[u8]) -> Row {
        let bytes = EhFrame::new().function(0x1000, 16, program).finish();
        Table::eh_frame(0x9000, bytes, None).row(0x1008).expect("the function is described")
    }

    fn sp(fp_rule: FpRule, fp_offset: i16, cfa_offset: i32) -> Row {
        Row::new(Kind::Sp, fp_rule, fp_offset, cfa_offset)
    }

    #[test]
    fn a_cfa_relative_to_a_stack_register_is_taken_over() {
        assert_eq!(row(&[]), sp(FpRule::Unchanged, 0, 8));
        assert_eq!(row(&[DEF_CFA_OFFSET, 0xc0, 1]), sp(FpRule::Unchanged, 0, 192));
        assert_eq!(row(&[DEF_CFA, RBP, 16]), Row::new(Kind::Fp, FpRule::Unchanged, 0, 16));
        assert_eq!(row(&[DEF_CFA_SIGNED, RBP, 0x7e]), Row::new(Kind::Fp, FpRule::Unchanged, 0, 16));
        assert_eq!(row(&[DEF_CFA, 10, 0]), UNSUPPORTED);
        assert_eq!(row(&[DEF_CFA_OFFSET, 0x80, 0x80, 0x80, 0x80, 8]), UNSUPPORTED);
    }

    #[test]
    fn the_callers_rbp_is_found_where_it_was_saved() {
        assert_eq!(row(&[OFFSET | RBP, 2]), sp(FpRule::AtCfa, -2, 8));
        assert_eq!(row(&[UNDEFINED, RBP]), sp(FpRule::Unchanged, 0, 8));
        assert_eq!(row(&[SAME_VALUE, RBP]), sp(FpRule::Unchanged, 0, 8));
        assert_eq!(row(&[EXPRESSION, RBP, 2, BREG + RBP, 0x78]), sp(FpRule::AtFp, -1, 8));
        // Not at a whole word, and relative to another register.
        assert_eq!(row(&[EXPRESSION, RBP, 2, BREG + RBP, 0x79]), UNSUPPORTED);
        assert_eq!(row(&[EXPRESSION, RBP, 2, BREG + RSP, 0x78]), UNSUPPORTED);
        assert_eq!(row(&[EXPRESSION, RBP, 3, BREG + RBP, 0x78, DEREF]), UNSUPPORTED);
        assert_eq!(row(&[REGISTER, RBP, 3]), UNSUPPORTED);
        assert_eq!(row(&[VAL_OFFSET, RBP, 2]), UNSUPPORTED);
        assert_eq!(row(&[VAL_EXPRESSION, RBP, 2, BREG + RBP, 0]), UNSUPPORTED);
        assert_eq!(row(&[OFFSET_SIGNED, RBP, 0x80, 0x80, 4]), UNSUPPORTED, "too many words away");
    }

    #[test]
    fn without_a_return_address_the_frame_is_the_outermost() {
        assert_eq!(row(&[UNDEFINED, RA]), Row::END);
        assert_eq!(row(&[DEF_CFA_OFFSET, 0]), Row::END, "musl's clone");
        assert_eq!(row(&[REGISTER, RA, 3]), UNSUPPORTED);
        assert_eq!(row(&[SAME_VALUE, RA]), UNSUPPORTED);
        assert_eq!(row(&[DEF_CFA_OFFSET, 32, OFFSET | RA, 2]), UNSUPPORTED);
    }

    #[test]
    fn a_stack_pointer_that_is_not_the_cfa_is_not_supported() {
        assert_eq!(row(&[VAL_OFFSET, RSP, 0]), sp(FpRule::Unchanged, 0, 8));
        assert_eq!(row(&[VAL_OFFSET, RSP, 1]), UNSUPPORTED);
        assert_eq!(row(&[OFFSET | RSP, 3]), UNSUPPORTED);
    }

    #[test]
    fn the_linkers_stubs_have_a_row_of_their_own() {
        let stub = |threshold: u8| {
            let breg = |register: u8, offset| [BREG + register, offset];
            let [rsp, eight] = breg(RSP, 8);
            let [rip, zero] = breg(RA, 0);
            // lit15, and, lit<threshold>, ge, lit3, shl, plus
            let tail = [0x3f, 0x1a, 0x30 + threshold, 0x2a, 0x33, 0x24, 0x22];
            let mut program = vec![DEF_CFA_EXPRESSION, 11, rsp, eight, rip, zero];
            program.extend(tail);
            program
        };
        assert_eq!(row(&stub(11)), Row::plt(11));
        assert_eq!(row(&stub(10)), Row::plt(10));
        assert_eq!(row(&stub(17)), UNSUPPORTED);
        let mut saves_rbp = stub(11);
        saves_rbp.extend([OFFSET | RBP, 2]);
        assert_eq!(row(&saves_rbp), UNSUPPORTED);
    }

    #[test]
    fn a_realigned_stack_keeps_its_cfa_in_a_word() {
        let realigned = [DEF_CFA_EXPRESSION, 3, BREG + RBP, 0x78, DEREF, EXPRESSION, RBP, 2, BREG + RBP, 0];
        assert_eq!(row(&realigned), Row::new(Kind::DerefFp, FpRule::AtFp, 0, -8));
        let by_rsp = [DEF_CFA_EXPRESSION, 3, BREG + RSP, 16, DEREF];
        assert_eq!(row(&by_rsp), Row::new(Kind::DerefSp, FpRule::Unchanged, 0, 16));
        let plus_nothing = [DEF_CFA_EXPRESSION, 5, BREG + RBP, 0x70, DEREF, 0x23, 0];
        assert_eq!(row(&plus_nothing), Row::new(Kind::DerefFp, FpRule::Unchanged, 0, -16));
        assert_eq!(row(&[DEF_CFA_EXPRESSION, 5, BREG + RBP, 0x70, DEREF, 0x23, 8]), UNSUPPORTED);
        assert_eq!(row(&[DEF_CFA_EXPRESSION, 3, BREG + 10, 0, DEREF]), UNSUPPORTED);
        assert_eq!(row(&[DEF_CFA_EXPRESSION, 2, BREG + RSP, 8]), UNSUPPORTED);
        assert_eq!(row(&[DEF_CFA_EXPRESSION, 12, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6]), UNSUPPORTED);
    }
}
