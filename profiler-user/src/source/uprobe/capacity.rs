//! How much may be kept, in the kernel and here, and what of it fits a limit of memory.

use std::time::Duration;

use profiler_common::limits;

use crate::target::{Process, cpu_time::Activity};

/// How much may be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacities {
    /// Live blocks that are followed.
    pub live_blocks: u32,
    /// Pairs of a stack and a size class that are told apart.
    pub totals: u32,
    /// Size of the ring buffer, in bytes: a power of two, at least a page.
    pub ring_bytes: u32,
    /// Frames kept of a stack, counted from the leaf: at least 1, at most [`limits::MAX_FRAMES`].
    pub stack_depth: u32,
    /// Memory for the stacks of each process, in bytes.
    pub stack_bytes: u64,
    /// Memory for what the files of each process say about unwinding, in bytes.
    pub unwind_bytes: u64,
}

/// What is to be recorded, as far as it says how much there will be to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The memory that it has resident, in bytes.
    pub rss_bytes: u64,
    /// Whether it does nothing at the moment: there will be no burst of new stacks at the start.
    pub is_asleep: bool,
    /// One allocation is kept for so many bytes, on average; 1 where all are.
    pub interval_bytes: u64,
}

impl Subject {
    /// How long a process is looked at, at most, and how often.
    const LOOK: Duration = Duration::from_millis(1);
    const LOOKS: u32 = 10;

    /// A process that runs already.
    pub fn running(process: &Process) -> Self {
        let mut activity = Activity::of(process.pid());
        activity.look();
        let is_awake = (0..Self::LOOKS).any(|_| {
            std::thread::sleep(Self::LOOK);
            activity.look()
        });
        Self { rss_bytes: process.rss_bytes(), is_asleep: !is_awake, ..Self::beginning() }
    }

    /// A program that has yet to begin.
    pub const fn beginning() -> Self {
        Self { rss_bytes: 0, is_asleep: false, interval_bytes: 1 }
    }

    /// The same where only a sample is kept, one allocation for so many bytes; all of them for `None`.
    pub fn sampled(self, interval_bytes: Option<u64>) -> Self {
        Self { interval_bytes: interval_bytes.unwrap_or(1), ..self }
    }
}

impl Capacities {
    /// The least memory that a recording makes sense with, in bytes.
    pub const LEAST_MEMORY_BYTES: u64 = 128 << 20;

    /// The memory that is taken at most where nothing else is asked for, on a machine that has `memory_bytes`: a quarter of
    /// it, which a machine can spare for a while, and not more than a block table for ten million blocks needs.
    pub fn default_memory_bytes(memory_bytes: u64) -> u64 {
        (memory_bytes / 4).clamp(2 * Self::LEAST_MEMORY_BYTES, 2 << 30)
    }

    /// What to keep of it, so that all of it fits `limit_bytes`.
    pub fn within(limit_bytes: u64, subject: Subject) -> Self {
        let most = if subject.is_asleep { QUIET_RING_BYTES } else { limits::DEFAULT_RING_BYTES.into() };
        let ring_bytes = (limit_bytes / 8).clamp(LEAST_RING_BYTES, most);
        // The power of two below.
        let ring_bytes = 1 << ring_bytes.ilog2();
        let rest = limit_bytes.saturating_sub(FIXED_BYTES + ring_bytes);
        let (stacks, unwind_bytes) = (rest / 4, rest / 8);
        let blocks = rest - stacks - unwind_bytes;
        let live_blocks = u64::from(live_blocks_for(subject)).min(blocks / LIVE_BYTES);
        let most = if subject.is_asleep { limits::QUIET_MAX_TOTALS } else { limits::DEFAULT_MAX_TOTALS };
        let totals = (stacks / TOTALS_BYTES).min(most.into());
        let at_least_one = |count: u64| u32::try_from(count.max(1)).unwrap_or(u32::MAX);
        Self {
            live_blocks: at_least_one(live_blocks),
            totals: at_least_one(totals),
            ring_bytes: at_least_one(ring_bytes),
            stack_depth: limits::DEFAULT_FRAMES,
            stack_bytes: stacks / 8 * 3,
            unwind_bytes,
        }
    }
}

impl Capacities {
    /// Live blocks that have a place of their own: a power of two, and no less than two.
    pub(super) fn fresh_blocks(&self) -> u32 {
        (self.live_blocks / limits::LIVE_PER_FRESH).clamp(2, limits::MAX_FRESH).next_power_of_two()
    }
}

impl Default for Capacities {
    /// Those for a small process on a large machine.
    fn default() -> Self {
        Self::within(Self::default_memory_bytes(u64::MAX), Subject::beginning())
    }
}

/// A tenth of a second of new stacks.
const LEAST_RING_BYTES: u64 = 4 << 20;

/// Room for what a process has to be learned of it that wakes up, and not for all that allocates from its first moment on.
const QUIET_RING_BYTES: u64 = 8 << 20;

/// What there is whatever is recorded: heaptap itself with the names of what it records (45 MiB), and the maps whose size is
/// fixed (rows with their cache, threads with the walks that are remembered of them, thresholds).
const FIXED_BYTES: u64 = 96 << 20;

/// What a live block takes: an entry's slot of 96, and its part of a bucket array, which has a power of two of buckets of 16, and of
/// places of 40, of which there is a power of two as well.
const LIVE_BYTES: u64 = 96 + 2 * 16 + 2 * 40 / limits::LIVE_PER_FRESH as u64 + 1;

/// What a pair of a stack and a size class takes: a slot of 128 and its part of a bucket array; the stack with its
/// place in two indexes, 16 for each of some 32 frames and 160; and about as much again while a profile is
/// written.
const TOTALS_BYTES: u64 = 128 + 2 * 16 + 2 * (16 * 32 + 160) + 288;

/// Live blocks to follow: one for every 64 bytes, which is more than most programs have, within the limits that keep an empty
/// table affordable. No more than what is in a sample of [`SAMPLED_BYTES`], or of 64 times what there is: so that there are twice as many
/// places of their own as blocks, and children that have all of it from their parent find room.
fn live_blocks_for(subject: Subject) -> u32 {
    let least = if subject.is_asleep { limits::LEAST_DEFAULT_MAX_LIVE } else { limits::DEFAULT_MAX_LIVE };
    let blocks = (subject.rss_bytes / 64).clamp(least.into(), limits::LARGEST_DEFAULT_MAX_LIVE.into());
    let sampled = subject.rss_bytes.saturating_mul(64).max(SAMPLED_BYTES) / subject.interval_bytes.max(1);
    let blocks = blocks.min(sampled.max(limits::LEAST_SAMPLED_MAX_LIVE.into())).next_power_of_two();
    u32::try_from(blocks).unwrap_or(limits::LARGEST_DEFAULT_MAX_LIVE)
}

/// Bytes of a heap whose sample has room whatever the process has now: 64 GiB.
const SAMPLED_BYTES: u64 = 64 << 30;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_for_live_blocks_grows_with_the_process_within_limits() {
        let busy = |rss_bytes| Subject { rss_bytes, ..Subject::beginning() };
        assert_eq!(live_blocks_for(busy(0)), 1 << 21);
        assert_eq!(live_blocks_for(busy((128 << 20) + 64)), 1 << 22);
        assert_eq!(live_blocks_for(busy(u64::MAX)), 1 << 24);
        assert_eq!(live_blocks_for(Subject { is_asleep: true, ..busy(0) }), 1 << 20);
        assert_eq!(live_blocks_for(Subject { is_asleep: true, ..busy(u64::MAX) }), 1 << 24);
    }

    #[test]
    fn a_sample_takes_less_room_and_any_heap_of_it_has_its_own() {
        let sampled = |rss_bytes, interval_bytes| {
            live_blocks_for(Subject { rss_bytes, ..Subject::beginning() }.sampled(Some(interval_bytes)))
        };
        assert_eq!(sampled(0, 1), live_blocks_for(Subject::beginning()));
        assert_eq!(sampled(100 << 20, 512 << 10), 1 << 17);
        assert_eq!(sampled(8 << 30, 512 << 10), 1 << 20);
        assert_eq!(sampled(u64::MAX, 512 << 10), 1 << 24);
        assert_eq!(sampled(100 << 20, 64 << 10), 1 << 20);
        assert_eq!(sampled(100 << 20, 2 << 10), 1 << 21);
        assert_eq!(sampled(100 << 20, 1 << 40), 1 << 17);
        assert_eq!(sampled(0, 0), live_blocks_for(Subject::beginning()));
    }

    #[test]
    fn beside_a_small_process_that_sleeps_all_of_it_takes_50_mebibytes() {
        let kept = Capacities::within(
            2 << 30,
            Subject { rss_bytes: 10 << 20, is_asleep: true, ..Subject::beginning() },
        );
        // heaptap itself has 15, and the maps of a fixed size have 10.
        let empty_bytes = 40 * u64::from(kept.fresh_blocks())
            + u64::from(kept.ring_bytes)
            + 16 * (u64::from(kept.live_blocks) + u64::from(kept.totals));
        assert!(empty_bytes + (25 << 20) <= 53 << 20, "{kept:?}");
    }

    #[test]
    fn one_block_in_thirty_two_has_a_place_of_its_own_and_any_recording_has_places() {
        let of = |live_blocks| Capacities { live_blocks, ..Capacities::default() }.fresh_blocks();
        assert_eq!([1, 1000, 1 << 20, 1 << 21, u32::MAX].map(of), [2, 32, 1 << 15, 1 << 16, 1 << 20]);
    }

    #[test]
    fn a_small_process_on_a_large_machine_is_not_limited() {
        let ample = Capacities::default();
        assert_eq!(ample.live_blocks, limits::DEFAULT_MAX_LIVE);
        assert_eq!(ample.totals, limits::DEFAULT_MAX_TOTALS);
        assert_eq!(ample.ring_bytes, limits::DEFAULT_RING_BYTES);
    }

    #[test]
    fn what_is_kept_fits_the_limit() {
        for limit_mib in [128, 200, 256, 1000, 2048, 1 << 20] {
            let limit_bytes = limit_mib << 20;
            let kept =
                Capacities::within(limit_bytes, Subject { rss_bytes: u64::MAX, ..Subject::beginning() });
            let buckets = |entries: u32| 16 * u64::from(entries.next_power_of_two());
            let in_kernel = u64::from(kept.live_blocks) * 96
                + buckets(kept.live_blocks)
                + 40 * u64::from(kept.fresh_blocks())
                + u64::from(kept.totals) * 128
                + buckets(kept.totals)
                + u64::from(kept.ring_bytes);
            // Of a stack there is one copy, and what is made of it for a profile is smaller.
            let here = 2 * kept.stack_bytes + kept.unwind_bytes;
            assert!(FIXED_BYTES + in_kernel + here <= limit_bytes, "{limit_mib} MiB: {kept:?}");
            assert!(kept.ring_bytes.is_power_of_two() && kept.live_blocks >= 50_000, "{kept:?}");
        }
    }

    #[test]
    fn ten_million_blocks_have_room_where_nothing_is_asked_for() {
        let limit_bytes = Capacities::default_memory_bytes(24 << 30);
        assert_eq!(limit_bytes, 2 << 30);
        assert!(
            Capacities::within(limit_bytes, Subject { rss_bytes: u64::MAX, ..Subject::beginning() })
                .live_blocks
                >= 9_000_000
        );
        assert_eq!(Capacities::default_memory_bytes(1 << 30), 256 << 20);
    }
}
