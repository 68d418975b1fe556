//! What a process is recorded by: what it has mapped, the allocators in there, and what its files say about unwinding.

use super::recording::RecordError;
use crate::target::{
    Process,
    allocator::{self, Findings},
    given::Given,
    maps::AddressSpace,
    process::ProcessError,
    rows::RowSource,
    separate::Places,
};

/// What was found in a process before it is recorded.
pub(super) struct Survey {
    pub(super) space: AddressSpace,
    pub(super) places: Places,
    /// At least one allocator.
    pub(super) findings: Findings,
    /// With the unwind information of everything that is mapped.
    pub(super) source: RowSource,
}

impl Survey {
    /// Looks through all files of a process, taking at most `unwind_bytes` for unwind information.
    pub(super) fn of(
        process: &Process,
        given: Given,
        with_mappings: bool,
        unwind_bytes: u64,
    ) -> Result<Self, RecordError> {
        let pid = process.pid();
        let mut space = AddressSpace::default();
        space.refresh(pid)?;
        let places = Places::of(pid, given);
        let mut findings = Findings { with_mappings, ..Findings::default() };
        let mut source = RowSource::new(pid, places.clone()).within(unwind_bytes);
        allocator::find_beside(&space, &places, &mut findings, |index, specimen| {
            source.prepare_file(index, specimen);
        });
        if findings.allocators.is_empty() {
            if process.has_ended() {
                return Err(ProcessError::Gone { pid }.into());
            }
            let looked_at = looked_at(&findings, &space);
            return Err(RecordError::NoAllocator { pid, comm: process.comm().to_owned(), looked_at });
        }
        // What is mapped of no file.
        source.prepare(&space);
        Ok(Self { space, places, findings, source })
    }
}

fn looked_at(findings: &Findings, space: &AddressSpace) -> String {
    let file = |passed: &allocator::Passed| {
        let path = space.modules().get(passed.module).map_or("?", |module| module.path.as_str());
        format!("{path} ({})", passed.verdict.text())
    };
    let files: Vec<_> = findings.passed.iter().map(file).collect();
    if files.is_empty() { "no file: nothing is mapped executable".to_owned() } else { files.join(", ") }
}
