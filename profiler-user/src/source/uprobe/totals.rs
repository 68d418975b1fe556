//! What was counted, as it is read of the kernel side's map.

use profiler_common::heap::{Totals, TotalsKey};

use super::{
    kernel::{Kernel, KernelError, map_refused},
    recording::{Recording, lock},
};

/// What was read of `TOTALS`.
#[derive(Default)]
pub(super) struct Read {
    pub(super) entries: Vec<(TotalsKey, Totals)>,
    /// Blocks that were in use in programs that were replaced.
    pub(super) gone_objects: u64,
}

impl Recording {
    /// Reads `TOTALS` and `OVERFLOWS` through, for what the process has, and scales it where not all was kept. Entries are deleted by nobody but who has the `kernel`, so that none is met
    /// twice or passed over. What replaced programs had is no longer in use.
    pub(super) fn totals(&self, kernel: &Kernel) -> Result<Read, KernelError> {
        let pid = self.process.pid();
        let watched = lock(&self.common.targets).image(pid);
        let image = watched.unwrap_or_else(|| *lock(&self.last_image));
        let mut read = Read::default();
        let totals = kernel.totals.iter().map(|entry| entry.map_err(map_refused("TOTALS")));
        let overflows = kernel.overflows.iter().map(|entry| entry.map_err(map_refused("OVERFLOWS")));
        for entry in totals.chain(overflows) {
            let (key, totals) = entry?;
            if key.tgid() != pid {
                continue;
            }
            let mut totals = kernel.sampling.scaled(&key, totals);
            if key.is_gone(image) {
                read.gone_objects += totals.alloc_objects.saturating_sub(totals.freed_objects);
                (totals.freed_objects, totals.freed_bytes) = (totals.alloc_objects, totals.alloc_bytes);
            }
            read.entries.push((key, totals));
        }
        Ok(read)
    }
}
