//! The kernel's own walk by frame pointers in place of ours, for `cargo xtask bench unwind`: all else is the same.

use aya_ebpf::{
    bindings::{BPF_F_FAST_STACK_CMP, BPF_F_USER_STACK},
    macros::map,
    maps::StackTrace,
    programs::{ProbeContext, tracing::StackIdContext},
};

use crate::unwind::{Stack, Walked};

/// Stacks as the kernel keeps them, by a hash of 32 bits.
#[map]
static STACKS: StackTrace = StackTrace::with_max_entries(1 << 14, 0);

/// Has the kernel walk the stack. Stacks are taken for equal where their hashes are, as ours are.
#[inline(always)]
pub fn walk(ctx: &ProbeContext, stack: &mut Stack) -> Walked {
    let id = ctx.get_stackid(&STACKS, u64::from(BPF_F_USER_STACK | BPF_F_FAST_STACK_CMP));
    stack.walked = 1;
    Walked::known(stack, id.map_or(u64::MAX, |id| id as u64))
}
