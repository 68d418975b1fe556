//! What user space teaches the kernel side of walking stacks.

use std::sync::{Arc, Mutex};

use aya::{
    maps::{Array, HashMap, MapData},
    programs::RawTracePoint,
};
use profiler_common::{
    heap::RowKey,
    unwind::{CachedRow, Row, WalkEnd},
};

use super::kernel::{KernelError, run};

/// The maps through which user space teaches the kernel side to walk.
pub(super) struct Teaching {
    pub(super) rows: HashMap<MapData, RowKey, u64>,
    pub(super) cache: Array<MapData, CachedRow>,
    pub(super) generation: Array<MapData, u64>,
    /// How often rows were taken back that stacks may have been walked by.
    pub(super) generations: u64,
    pub(super) trampolines: HashMap<MapData, u32, u64>,
    pub(super) code_gone: RawTracePoint,
}

/// The same, for all who teach.
pub(super) type SharedTeaching = Arc<Mutex<Teaching>>;

impl Teaching {
    /// Teaches a row. One that cannot be kept is missed and taught again.
    pub(super) fn insert_row(&mut self, pid: u32, epoch: u32, pc: u64, row: Row) {
        let key = RowKey { pc, tgid: pid, epoch };
        if let Err(error) = self.rows.insert(key, row.to_raw(), 0) {
            tracing::debug!(%error, "a row was not taken");
        }
        if let Err(error) = self.cache.set(CachedRow::slot(key), CachedRow::new(key, row), 0) {
            tracing::debug!(%error, "a row will take longer to be found");
        }
    }

    /// Has the kernel side ask for a row again, in an epoch that goes on. What was walked by it is no longer taken for known.
    pub(super) fn unlearn_row(&mut self, pid: u32, epoch: u32, pc: u64) {
        // In the place of the row that may be kept in a second place.
        self.insert_row(pid, epoch, pc, Row::stop(WalkEnd::MissingRow));
        // Behind that: a walk that was told the row has begun before, and is of an earlier generation.
        self.generations += 1;
        if let Err(error) = self.generation.set(0, self.generations, 0) {
            tracing::warn!(%error, "stacks may be taken for those of before");
        }
    }

    /// Takes a row back, of an epoch that is over.
    pub(super) fn remove_row(&mut self, pid: u32, epoch: u32, pc: u64) {
        // Failing means that it was never taken.
        let _ = self.rows.remove(&RowKey { pc, tgid: pid, epoch });
    }

    /// Forgets where hijacked return addresses point: the process has ended.
    pub(super) fn remove_trampoline(&mut self, pid: u32) {
        // Failing means that it was never known.
        let _ = self.trampolines.remove(&pid);
    }

    /// Begins a new epoch: code has gone.
    pub(super) fn raise_epoch(&mut self, pid: u32) -> Result<(), KernelError> {
        run(&self.code_gone, "code_gone", pid)
    }

    /// Tells where the page of hijacked return addresses is.
    pub(super) fn set_trampoline(&mut self, pid: u32, trampoline: u64) {
        if let Err(error) = self.trampolines.insert(pid, trampoline, 0) {
            tracing::warn!(%error, "the kernel side goes on guessing where hijacked return addresses point");
        }
    }
}
