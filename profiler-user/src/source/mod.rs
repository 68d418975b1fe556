//! Raw counts: addresses and numbers, no names.
//!
//! [`RawHeap`] is the seam of the program. What makes one needs root and a kernel; what takes one is pure.

pub mod uprobe;

pub mod health;

pub mod cost;

pub mod gate;

pub mod memory;

use std::{
    collections::HashMap,
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, SystemTime},
};

use profiler_common::{counters::Counters, heap::Totals, unwind::WalkEnd};

use self::{cost::Cost, gate::Gating, memory::Resident};
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
    /// The executables that it ran before, while it was recorded. What they had is no longer in use.
    pub former: Vec<String>,
    /// What it has from the process that made it, where that was recorded as well.
    pub inheritance: Option<Inheritance>,
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
    /// What code that was made at run time is called, by return address, where who made it has said so.
    pub made: HashMap<u64, Arc<str>>,
    /// What was allocated and freed, by stack and size class; estimates where not all allocations were kept.
    pub entries: Vec<RawEntry>,
    /// The mean numbers of bytes from one allocation that was kept to the next, one after the other in time; 1 for every allocation.
    pub intervals_bytes: Vec<u64>,
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
    /// What the recording has cost the process; `None` where that is not known.
    pub cost: Option<Cost>,
    /// How it was gated, where it was.
    pub gate: Option<Gating>,
}

impl RawHeap {
    /// Bytes in use, of those allocated since counting began.
    pub fn inuse_bytes(&self) -> u64 {
        let inuse = |entry: &RawEntry| entry.totals.alloc_bytes.saturating_sub(entry.totals.freed_bytes);
        self.entries.iter().map(inuse).fold(0, u64::saturating_add)
    }

    /// Whether not all allocations were kept, so that the numbers are estimates.
    pub fn is_sampled(&self) -> bool {
        self.intervals_bytes.iter().any(|interval_bytes| *interval_bytes > 1)
    }

    /// The heap of a process that has allocated nothing.
    #[cfg(test)]
    pub(crate) fn empty() -> Self {
        Self {
            pid: 1,
            comm: "guest".to_owned(),
            exe: "/bin/guest".to_owned(),
            former: Vec::new(),
            inheritance: None,
            container: None,
            started: SystemTime::UNIX_EPOCH,
            duration: Duration::from_secs(10),
            blind: Duration::ZERO,
            stacks: Vec::new(),
            made: HashMap::new(),
            entries: Vec::new(),
            intervals_bytes: vec![1],
            space: AddressSpace::default(),
            unprobed: Vec::new(),
            allocators: vec!["glibc".to_owned()],
            counters: Counters::default(),
            memory: None,
            cost: None,
            gate: None,
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

/// A frame. There may be tens of millions of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RawFrame {
    /// The return address.
    pub address: u64,
    /// What was mapped there when the stack was seen: the place in [`AddressSpace::ranges`] and 1.
    range: Option<NonZeroU32>,
}

impl RawFrame {
    /// A frame, by its return address and what was mapped there when the stack was seen, as a place in
    /// [`AddressSpace::ranges`].
    pub fn new(address: u64, range: Option<usize>) -> Self {
        let number = |place: usize| NonZeroU32::new(u32::try_from(place.checked_add(1)?).ok()?);
        Self { address, range: range.and_then(number) }
    }

    /// What was mapped there when the stack was seen, as a place in [`AddressSpace::ranges`].
    pub const fn range(&self) -> Option<usize> {
        match self.range {
            Some(number) => Some(number.get() as usize - 1),
            None => None,
        }
    }
}

/// What blocks of one size class came to, allocated on one stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawEntry {
    /// Where it was allocated.
    pub stack: StackRef,
    /// The number of the allocator that they came from, from 1 on; 0 where that is not known.
    pub allocator: u8,
    /// Whether the process has these blocks from the one that made it, and has not allocated them itself.
    pub is_inherited: bool,
    /// Allocated and freed.
    pub totals: Totals,
}

/// What a process has from the one that made it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Inheritance {
    /// That process's PID.
    pub parent: u32,
    /// Blocks.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Inheritance {
    /// What these entries say.
    pub fn of(parent: u32, entries: &[RawEntry]) -> Self {
        let nothing = Self { parent, ..Self::default() };
        entries.iter().filter(|entry| entry.is_inherited).fold(nothing, |sum, entry| Self {
            objects: sum.objects.saturating_add(entry.totals.alloc_objects),
            bytes: sum.bytes.saturating_add(entry.totals.alloc_bytes),
            ..sum
        })
    }
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
