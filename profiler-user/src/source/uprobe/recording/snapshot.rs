//! What a recording has counted, for a profile.

use std::time::Instant;

use profiler_common::{
    counters::Counter,
    heap::{OVERFLOW_STACK, UNLEARNED_STACK},
};

use super::{
    super::{kernel::map_refused, mappings::MappingSite, stacks::StackTable, totals::Read},
    Programs, RecordError, Recording, lock,
};
use crate::{
    source::{Inheritance, RawEntry, RawHeap, StackRef},
    target::process::Program,
};

impl Recording {
    /// What has been counted so far. Neither stops nor resets anything.
    pub fn snapshot(&self) -> Result<RawHeap, RecordError> {
        let ended = *lock(&self.ended);
        let duration = ended.unwrap_or_else(|| self.began.elapsed());
        let (entries, mut counters, intervals_bytes) = {
            let kernel = lock(&self.common.kernel);
            let mut counters =
                kernel.counters.get(&self.process.pid(), 0).map_err(map_refused("COUNTERS"))?;
            let Read { entries, gone_objects } = self.totals(&kernel)?;
            counters.add(Counter::GoneBlocks, gone_objects);
            if let Some(gates) = &*lock(&self.gates) {
                gates.count(&mut counters);
            }
            (entries, counters, kernel.sampling.intervals_bytes())
        };
        let memory = lock(&self.watch).as_ref().and_then(|watch| match ended {
            Some(duration) => watch.last(self.began + duration),
            None => watch.glance().or_else(|| watch.last(Instant::now())),
        });
        // Stacks are asked for after the counts were read, so that those of the entries have arrived.
        let resolve = move |table: &StackTable| {
            let blocks = entries.into_iter().map(|(key, totals)| {
                let (allocator, is_inherited) = (key.allocator(), key.is_inherited());
                (MappingSite { stack: key.stack, allocator, is_inherited }, totals)
            });
            let entries = blocks
                .chain(table.mappings.totals())
                .filter(|(_, totals)| totals.alloc_objects != 0)
                .map(|(site, totals)| {
                    let stack = match site.stack {
                        OVERFLOW_STACK => StackRef::Overflow,
                        UNLEARNED_STACK => StackRef::Unsent,
                        hash => table.find(hash).map_or(StackRef::Unsent, StackRef::Known),
                    };
                    RawEntry { stack, totals, allocator: site.allocator, is_inherited: site.is_inherited }
                })
                .collect();
            let (stacks, made) = (table.stacks().to_vec(), table.made.clone());
            (entries, stacks, made, table.space.clone(), table.counters())
        };
        let (entries, stacks, made, space, guessed): (Vec<RawEntry>, _, _, _, _) = self.ask(resolve)?;
        counters.add_all(&guessed);
        let gate = self.gating();
        let exe = |program: &Program| program.exe.to_string_lossy().trim_end_matches(" (deleted)").to_owned();
        let (comm, current, former) = {
            let Programs { current, former } = &*lock(&self.programs);
            (current.comm.clone(), exe(current), former.iter().map(exe).collect())
        };
        Ok(RawHeap {
            pid: self.process.pid(),
            comm,
            exe: current,
            former,
            inheritance: self.parent.map(|parent| Inheritance::of(parent, &entries)),
            container: self.container.clone(),
            started: self.started,
            duration,
            blind: *lock(&self.blind),
            stacks,
            made,
            entries,
            intervals_bytes,
            unprobed: lock(&self.findings).unprobed(&space),
            allocators: lock(&self.labels).clone(),
            space,
            counters,
            memory,
            cost: self.cost(),
            gate,
        })
    }
}
