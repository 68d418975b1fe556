//! Stacks that heaptap has walked, walked again by somebody else.
//!
//! `heaptap record --capture-stacks` keeps stacks with the registers and the memory that they were walked in. Here each is
//! walked once more from these: by framehop, an unwinder that shares nothing with heaptap's but the parser of the files'
//! unwind information, or where that cannot by gdb, and by heaptap's own rows outside of the kernel. All three have to agree.

mod captured;

mod files;

mod reference;

mod gdb;

mod replay;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use profiler_common::unwind::{Row, WalkEnd};

pub use self::captured::{Captured, View};
pub use self::files::Files;
use self::reference::Reference;
use self::replay::Replay;

/// How many stacks were compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// Walked by the kernel, by rows that it had learned.
    pub by_kernel: usize,
    /// Walked by user space, to teach them.
    pub by_user: usize,
    /// Distinct ones of both for which framehop's word was not enough.
    pub by_gdb: usize,
}

/// Panics unless framehop and heaptap's own rows walk every stack that `captured` has as heaptap has walked it.
#[track_caller]
pub fn assert_agree(captured: &Captured, files: &Files) -> Compared {
    let mut compared = Compared::default();
    for view in captured.views() {
        let mut reference = Reference::new(&view, files);
        let mut replay = Replay::new(&view, files);
        let mut asked = BTreeSet::new();
        for stack in &view.stacks {
            let theirs = reference.walk(stack);
            let again = replay.walk(stack);
            // A handler's stack is kept without the one that the signal interrupted.
            let is_kept = !(stack.by_kernel && again.end == WalkEnd::Unreadable);
            let known = if is_kept { &stack.pcs[..] } else { &stack.pcs[..again.pcs.len()] };
            assert_eq!(
                again.pcs,
                known,
                "heaptap walks this otherwise by the same rows outside of the kernel ({:?}): {}",
                again.end,
                view.describe(stack)
            );
            // Where a walk broke, the other unwinder may know better; until there they agree.
            let is_whole = is_kept && stack.end == "whole";
            let agrees = |pcs: &[u64]| {
                if is_whole { is_as_good(pcs, known, &stack.rows) } else { pcs.starts_with(known) }
            };
            // gdb takes its time: the same frames are asked for once.
            if !agrees(&theirs.pcs) && asked.insert(known.to_vec()) {
                let found = gdb::walk(&view, files, stack);
                assert!(
                    agrees(&found),
                    "framehop finds {:#x?} ({}), gdb {found:#x?} in: {}",
                    theirs.pcs,
                    theirs.end,
                    view.describe(stack)
                );
                compared.by_gdb += 1;
            }
            *if stack.by_kernel { &mut compared.by_kernel } else { &mut compared.by_user } += 1;
        }
    }
    compared
}

/// Whether others found all of `known`, but for frames of code made at run time that keep no frame pointer, by which the others go
/// there: what they find then is the next that does.
fn is_as_good(pcs: &[u64], known: &[u64], rows: &BTreeMap<u64, u64>) -> bool {
    let mut theirs = pcs.iter().peekable();
    let by_frame_pointer = [Row::FRAME_POINTER.to_raw(), Row::INTERPRETER.to_raw()];
    let is_found = |pc: &u64| {
        theirs.next_if_eq(&pc).is_some() || rows.get(pc).is_some_and(|row| !by_frame_pointer.contains(row))
    };
    known.iter().all(is_found) && theirs.next().is_none()
}

/// Writes those stacks to `folder` that are needed to have every return address once, with as much of the files that they
/// lead through as it takes to walk them.
pub fn keep(captured: &Captured, files: &Files, folder: &Path) {
    let mut kept = Captured::default();
    let mut wanted = BTreeSet::new();
    for view in captured.views() {
        let mut reference = Reference::new(&view, files);
        let mut replay = Replay::new(&view, files);
        let mut seen = BTreeSet::new();
        for stack in &view.stacks {
            let places = || stack.pcs.iter().copied().zip(stack.ranges.iter().copied());
            if places().all(|place| seen.contains(&place)) {
                continue;
            }
            seen.extend(places());
            let mut stack = stack.clone();
            let read: BTreeSet<u64> =
                reference.walk(&stack).read.union(&replay.walk(&stack).read).copied().collect();
            for (index, word) in stack.memory.iter_mut().enumerate() {
                if !read.contains(&(stack.sp + 8 * index as u64)) {
                    *word = None;
                }
            }
            for (pc, range) in stack.pcs.iter().zip(&stack.ranges) {
                if let Some(range) = range.and_then(|id| view.ranges.get(&id)) {
                    wanted.insert((range.name.clone(), pc - 1 - range.start + range.offset));
                }
            }
            kept.add(&view, stack);
        }
    }
    kept.write(folder);
    files.prune(&wanted, folder);
}
