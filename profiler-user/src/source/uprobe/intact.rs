//! Whether functions that are to be probed are still what their file has.
//!
//! The kernel carries out a probed instruction as the file has it, and goes on behind it. Where somebody has written a jump over that, as a
//! gate does and other tools that hook functions, it would go on in the middle of it.

use std::{collections::BTreeSet, ops::Range, os::unix::fs::FileExt};

use super::{recording::RecordError, sites::Part};
use crate::target::{
    Process,
    allocator::Allocator,
    hooks::{Back, Hook},
    maps::{self, AddressSpace, Content},
    words::Words,
};

/// The longest instruction.
const INSTRUCTION_BYTES: u64 = 15;

/// A breakpoint: also that of another probe, with which the kernel gets along.
const INT3: u8 = 0xcc;

/// Fails where one of the functions in these parts of allocators has been changed in the process.
///
/// What cannot be read is not there, and gets no probe.
pub(super) fn check(
    process: &Process,
    allocators: &[(u8, &Allocator, Part)],
    space: &AddressSpace,
) -> Result<(), RecordError> {
    let pid = process.pid();
    let Ok(words) = Words::of(pid) else { return Ok(()) };
    for (_, allocator, part) in allocators {
        let file = space.modules().get(allocator.module).and_then(|module| module.file.as_ref());
        let Some(file) = file else { continue };
        let mapped = || space.current().filter(|range| range.content == Content::Module(allocator.module));
        for hook in allocator.hooks.iter().filter(|hook| part.has(hook.shape)) {
            for place in places(hook) {
                let holds = |range: &&maps::Range| {
                    (range.offset..range.offset + (range.end - range.start)).contains(&place.start)
                };
                let range = mapped().find(holds);
                let Some(range) = range else { continue };
                let address = range.start + (place.start - range.offset);
                let length = (place.end - place.start).min(range.end - address);
                let mut was = vec![0; usize::try_from(length).unwrap_or_default()];
                let mut is = was.clone();
                if file.read_exact_at(&mut was, place.start).is_err()
                    || words.read(address, &mut is).is_none()
                {
                    continue;
                }
                if is.iter().zip(&was).any(|(is, was)| is != was && *is != INT3) {
                    return Err(RecordError::Changed { pid, function: hook.names.join(", "), address, is });
                }
            }
        }
    }
    Ok(())
}

/// What of a function has to be what it was: from its beginning to behind the probed instruction, and where it returns.
fn places(hook: &Hook) -> Vec<Range<u64>> {
    let entry = hook.site.offset.saturating_sub(hook.site.into_function_bytes);
    let rets = match &hook.back {
        Back::Rets(offsets) => offsets.clone(),
        Back::ReturnProbe | Back::Unseen => BTreeSet::new(),
    };
    let rets = rets.into_iter().map(|offset| offset..offset.saturating_add(1));
    std::iter::once(entry..hook.site.offset.saturating_add(INSTRUCTION_BYTES)).chain(rets).collect()
}
