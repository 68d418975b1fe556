//! Raw counts: addresses and numbers, no names.
//!
//! [`RawHeap`] is the seam of the program. What makes one needs root and a kernel; what takes one is pure.

pub mod uprobe;

pub mod health;

pub mod memory;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use profiler_common::{counters::Counters, heap::Totals, unwind::WalkEnd};

use self::memory::Resident;
use crate::target::maps::AddressSpace;

/// What a source has counted in one process, as addresses and numbers.
#[derive(Clone, Debug)]
pub struct RawHeap {
    /// The process's PID.
    pub pid: u32,
    /// Its name.
    pub comm: String,
    /// Its executable's path.
    pub exe: String,
    /// The id of the container that it runs in.
    pub container: Option<String>,
    /// When counting began.
    pub started: SystemTime,
    /// How long it had gone on when these numbers were taken.
    pub duration: Duration,
    /// How much of it calls were not seen.
    pub blind: Duration,
    /// Every stack that allocated.
    pub stacks: Vec<RawStack>,
    /// What was allocated and freed, by stack and size class.
    pub entries: Vec<RawEntry>,
    /// The mapped files in which the stacks' frames lie.
    pub space: AddressSpace,
    /// Files that have an allocator of their own, which was not probed.
    pub unprobed: Vec<String>,
    /// What the allocators are called, in the order of their numbers, from 1 on.
    pub allocators: Vec<String>,
    /// What was lost or guessed.
    pub counters: Counters,
    /// What the process had resident; `None` where that was not to be read.
    pub memory: Option<Resident>,
}

impl RawHeap {
    /// Bytes in use, of those allocated since counting began.
    pub fn inuse_bytes(&self) -> u64 {
        let inuse = |entry: &RawEntry| entry.totals.alloc_bytes.saturating_sub(entry.totals.freed_bytes);
        self.entries.iter().map(inuse).fold(0, u64::saturating_add)
    }

    /// The heap of a process that has allocated nothing.
    #[cfg(test)]
    pub(crate) fn empty() -> Self {
        Self {
            pid: 1,
            comm: "guest".to_owned(),
            exe: "/bin/guest".to_owned(),
            container: None,
            started: SystemTime::UNIX_EPOCH,
            duration: Duration::from_secs(10),
            blind: Duration::ZERO,
            stacks: Vec::new(),
            entries: Vec::new(),
            space: AddressSpace::default(),
            unprobed: Vec::new(),
            allocators: vec!["glibc".to_owned()],
            counters: Counters::default(),
            memory: None,
        }
    }
}

/// A stack.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RawStack {
    /// Its frames, leaf first.
    pub frames: Arc<[RawFrame]>,
    /// How the walk ended.
    pub end: WalkEnd,
}

/// A frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RawFrame {
    /// The return address.
    pub address: u64,
    /// What was mapped there when the stack was seen, as a place in [`AddressSpace::ranges`].
    pub range: Option<usize>,
}

/// What blocks of one size class came to, allocated on one stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawEntry {
    /// Where it was allocated.
    pub stack: StackRef,
    /// The number of the allocator that they came from, from 1 on; 0 where that is not known.
    pub allocator: u8,
    /// Allocated and freed.
    pub totals: Totals,
}

/// Where an entry's blocks were allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StackRef {
    /// On a stack, by its place in [`RawHeap::stacks`].
    Known(usize),
    /// On stacks for which the kernel's table had no room.
    Overflow,
    /// On a stack whose frames did not reach user space.
    Unsent,
}
