//! Every way in which the kernel side can lose or guess something, defined once.

/// A counter, by its place in [`Counters`]. Numbers are retired, never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Counter {
    /// Frees of blocks that were never seen.
    UnknownFrees = 0,
    /// Inserts that replaced a live entry: the free in between was missed.
    OverwrittenBlocks = 1,
    /// Calls that never came back.
    AbandonedCalls = 2,
    /// Returns without a call.
    UnmatchedReturns = 3,
    /// Calls that could not be followed because there is no room for what is known of another thread.
    InflightFull = 4,
    /// Blocks whose later free cannot be told.
    LiveFullObjects = 5,
    /// Their bytes.
    LiveFullBytes = 6,
    /// Allocations counted without their stack.
    TotalsFull = 7,
    /// Stacks that had to be sent again.
    RingFull = 8,
    /// Results that could not be read from the target.
    UnreadableResults = 9,
    /// Lifecycle events that did not reach user space.
    LostEvents = 10,
    /// Code that went without the loader saying so.
    UnannouncedUnmaps = 11,
    /// Heaps that were freed as a whole.
    DestroyedHeaps = 12,
    /// Allocations whose size the function's arguments do not tell.
    UnsizedAllocations = 13,
    /// Blocks whose program was replaced.
    GoneBlocks = 14,
    /// Changes of mappings that did not reach user space.
    LostMappings = 15,
    /// Mappings that were moved or given another length, of which nothing was known.
    UnknownRemaps = 16,
    /// Mappings of which it was not known yet whether they were part of an allocator's call.
    GuessedMappings = 17,
    /// Children that were to be followed and are not.
    UnfollowedChildren = 18,
    /// Blocks that a child has from its parent, of which nothing is known.
    UninheritedBlocks = 19,
    /// Stacks that user space has no room for.
    UnkeptStacks = 20,
    /// Calls that a gate had in its sample, or that took a block which it had.
    GateCalls = 21,
    /// Those of them that came back.
    GateReturns = 22,
    /// Those of them that are not counted.
    GateUncounted = 23,
    /// Frees of blocks that a gate had in its sample and that are counted.
    GateFrees = 24,
    /// Frees that a gate had to ask for, of others.
    GateUnknownFrees = 25,
    /// Blocks for which a gate's table had no room.
    GateOverflows = 26,
    /// Samples of a gate that two calls had a part in.
    GateLostBudgets = 27,
}

/// Number of counters.
pub const COUNTERS: usize = 28;

/// The counters of one target, the value of the `COUNTERS` map; the key is its tgid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counters(pub [u64; COUNTERS]);

/// What a counter's number means for the profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Expected in a healthy recording.
    Normal,
    /// The profile is off by what the counter says.
    Loss,
}

/// A counter as people and machines see it.
#[derive(Clone, Copy, Debug)]
pub struct Description {
    /// Which one.
    pub counter: Counter,
    /// Stable name, in snake case.
    pub name: &'static str,
    /// Whether it speaks of a loss.
    pub severity: Severity,
    /// One sentence: what happened, and what it means for the numbers.
    pub help: &'static str,
}

/// All counters, in the order of their numbers.
pub const REGISTRY: [Description; COUNTERS] = [
    Description {
        counter: Counter::UnknownFrees,
        name: "unknown_frees",
        severity: Severity::Normal,
        help: "frees of blocks allocated before the recording began, or that were not followed",
    },
    Description {
        counter: Counter::OverwrittenBlocks,
        name: "overwritten_blocks",
        severity: Severity::Loss,
        help: "blocks handed out again although their free was not seen; counted as freed",
    },
    Description {
        counter: Counter::AbandonedCalls,
        name: "abandoned_calls",
        severity: Severity::Normal,
        help: "allocator calls that never returned (longjmp, thread exit); what they allocated, if anything, is not counted",
    },
    Description {
        counter: Counter::UnmatchedReturns,
        name: "unmatched_returns",
        severity: Severity::Normal,
        help: "returns whose call was not followed: it began before the recording or was part of another call",
    },
    Description {
        counter: Counter::InflightFull,
        name: "inflight_full",
        severity: Severity::Loss,
        help: "allocations not counted because more threads allocate than there is room for",
    },
    Description {
        counter: Counter::LiveFullObjects,
        name: "live_full_objects",
        severity: Severity::Loss,
        help: "blocks missing from inuse_* because the table of live blocks was full; alloc_* has them",
    },
    Description {
        counter: Counter::LiveFullBytes,
        name: "live_full_bytes",
        severity: Severity::Loss,
        help: "bytes missing from inuse_* because the table of live blocks was full; alloc_* has them",
    },
    Description {
        counter: Counter::TotalsFull,
        name: "totals_full",
        severity: Severity::Loss,
        help: "allocations counted without their stack because the table of stacks was full",
    },
    Description {
        counter: Counter::RingFull,
        name: "ring_full",
        severity: Severity::Normal,
        help: "stacks that did not fit the ring buffer; those that the kernel can walk are sent again",
    },
    Description {
        counter: Counter::UnreadableResults,
        name: "unreadable_results",
        severity: Severity::Loss,
        help: "allocations not counted because the address of the block could not be read",
    },
    Description {
        counter: Counter::LostEvents,
        name: "lost_events",
        severity: Severity::Loss,
        help: "notices of an exec or of the first thread's end that did not fit the ring buffer",
    },
    Description {
        counter: Counter::UnannouncedUnmaps,
        name: "unannounced_unmaps",
        severity: Severity::Normal,
        help: "times that code was unmapped other than by the loader; a second's stacks may have been taken for those of before",
    },
    Description {
        counter: Counter::DestroyedHeaps,
        name: "destroyed_heaps",
        severity: Severity::Loss,
        help: "heaps freed as a whole (mi_heap_destroy), whose blocks stay in inuse_*",
    },
    Description {
        counter: Counter::UnsizedAllocations,
        name: "unsized_allocations",
        severity: Severity::Loss,
        help: "allocations not counted because the function is not told how many bytes (mi_strdup)",
    },
    Description {
        counter: Counter::GoneBlocks,
        name: "gone_blocks",
        severity: Severity::Normal,
        help: "blocks in use when the process replaced its program (exec), and gone with it; counted as freed",
    },
    Description {
        counter: Counter::LostMappings,
        name: "lost_mappings",
        severity: Severity::Loss,
        help: "mmap, mremap, munmap and brk calls that did not fit the ring buffer: what they mapped or unmapped is not counted",
    },
    Description {
        counter: Counter::UnknownRemaps,
        name: "unknown_remaps",
        severity: Severity::Normal,
        help: "mremap calls on memory that was mapped before the recording began, by an allocator, or from a file; not counted",
    },
    Description {
        counter: Counter::GuessedMappings,
        name: "guessed_mappings",
        severity: Severity::Normal,
        help: "mappings made during an allocator's call before it was known how to walk from the one to the other: taken for the allocator's",
    },
    Description {
        counter: Counter::UnfollowedChildren,
        name: "unfollowed_children",
        severity: Severity::Loss,
        help: "child processes that are not followed because a table or the ring buffer was full",
    },
    Description {
        counter: Counter::UninheritedBlocks,
        name: "uninherited_blocks",
        severity: Severity::Loss,
        help: "blocks missing from what a child has of its parent's because the table of live blocks was full; their frees are unknown_frees",
    },
    Description {
        counter: Counter::UnkeptStacks,
        name: "unkept_stacks",
        severity: Severity::Loss,
        help: "times that a stack was not kept because --memory-limit leaves no room for it; its allocations are unsent_stacks",
    },
    Description {
        counter: Counter::GateCalls,
        name: "gate_calls",
        severity: Severity::Normal,
        help: "allocator calls that the gate let through to a probe: those in its sample, and resizes of blocks in it",
    },
    Description {
        counter: Counter::GateReturns,
        name: "gate_returns",
        severity: Severity::Normal,
        help: "of the gate_calls, those that came back; the others were under way at the end, or never returned",
    },
    Description {
        counter: Counter::GateUncounted,
        name: "gate_uncounted",
        severity: Severity::Normal,
        help: "of the gate_calls, those that are no sample: part of another allocator call, or resizes of a block that was none",
    },
    Description {
        counter: Counter::GateFrees,
        name: "gate_frees",
        severity: Severity::Normal,
        help: "frees of blocks in the sample that the gate let through to a probe",
    },
    Description {
        counter: Counter::GateUnknownFrees,
        name: "gate_unknown_frees",
        severity: Severity::Normal,
        help: "frees of other blocks that the gate let through: gate_uncounted ones, or of buckets of its table that had been full",
    },
    Description {
        counter: Counter::GateOverflows,
        name: "gate_overflows",
        severity: Severity::Normal,
        help: "blocks for which the gate's table had no room; their frees are let through all the same, with others",
    },
    Description {
        counter: Counter::GateLostBudgets,
        name: "gate_lost_budgets",
        severity: Severity::Normal,
        help: "samples that were lost: two calls used up the gate's budget of a processor at the same time, or one that throws found no memory at first",
    },
];

impl Counters {
    /// The count of one counter.
    pub fn get(&self, counter: Counter) -> u64 {
        self.0.get(counter as usize).copied().unwrap_or_default()
    }

    /// Adds all that others have counted.
    pub fn add_all(&mut self, others: &Self) {
        for (count, other) in self.0.iter_mut().zip(others.0) {
            *count = count.saturating_add(other);
        }
    }

    /// Adds to a counter.
    pub fn add(&mut self, counter: Counter, amount: u64) {
        if let Some(count) = self.0.get_mut(counter as usize) {
            *count = count.saturating_add(amount);
        }
    }
}

const _: () = assert!(size_of::<Counters>() == 8 * COUNTERS, "no padding");

#[cfg(feature = "user")]
// SAFETY: repr(C), no padding (asserted above), any bit pattern is valid.
unsafe impl aya::Pod for Counters {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registry_is_in_the_order_of_the_numbers_and_names_are_unique() {
        for (index, description) in REGISTRY.iter().enumerate() {
            assert_eq!(description.counter as usize, index, "{}", description.name);
            assert_eq!(REGISTRY.iter().filter(|other| other.name == description.name).count(), 1);
        }
    }
}
