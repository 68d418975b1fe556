//! What was counted, as it is read of the kernel side's map.

use profiler_common::heap::{Totals, TotalsKey};

use super::{
    kernel::{Kernel, KernelError},
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
        let unread = |map| move |source| KernelError::Read { map, source };
        let totals = kernel.totals.read().map_err(unread("TOTALS"))?;
        let overflows = kernel.overflows.read().map_err(unread("OVERFLOWS"))?;
        for (key, totals) in totals.into_iter().chain(overflows) {
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
