//! How often programs run at probes, and for how long, by what the kernel counts where it is asked to.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Mutex, OnceLock, PoisonError},
};

use aya::maps::{MapData, PerCpuArray};

use super::{
    bpf_call,
    loading::{RETURNS, STEPPED},
};
use crate::source::cost::Hits;

/// The programs that run at probes. More are added when they are loaded.
#[derive(Default)]
pub(super) struct RunCounts {
    programs: Mutex<Vec<(&'static str, OwnedFd)>>,
    /// The returns of programs that see both entries and returns.
    returns: OnceLock<PerCpuArray<MapData, u64>>,
}

impl RunCounts {
    /// Adds a program that runs at probes.
    pub(super) fn add(&self, name: &'static str, program: BorrowedFd<'_>) {
        match program.try_clone_to_owned() {
            Ok(program) => self.programs.lock().unwrap_or_else(PoisonError::into_inner).push((name, program)),
            Err(error) => tracing::warn!(%error, name, "what this program costs will not be in the cost"),
        }
    }

    /// Tells where the returns are counted of programs that see both entries and returns.
    pub(super) fn set_returns(&self, returns: PerCpuArray<MapData, u64>) {
        // Failing means that it was told before.
        let _ = self.returns.set(returns);
    }

    /// What was hit while the kernel counted.
    pub(super) fn hits(&self) -> io::Result<Hits> {
        let mut hits = Hits::default();
        for (name, program) in &*self.programs.lock().unwrap_or_else(PoisonError::into_inner) {
            let runs = bpf_call::runs(program.as_fd())?;
            let count = match *name {
                RETURNS => &mut hits.returns,
                STEPPED => &mut hits.stepped,
                _ => &mut hits.entries,
            };
            *count += runs.count;
            hits.run_ns += runs.time_ns;
        }
        Ok(hits)
    }

    /// Of the entries of [`RunCounts::hits`], those that were returns; always counted.
    pub(super) fn returns(&self) -> u64 {
        let returns = self.returns.get().and_then(|returns| returns.get(&0, 0).ok());
        returns.map_or(0, |returns| returns.iter().sum())
    }
}
