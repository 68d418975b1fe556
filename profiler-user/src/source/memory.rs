//! What a process has resident beside what was counted in it, so that the one can be told from the other.

use std::time::{Duration, Instant};

use super::RawHeap;
use crate::target::memory::{Memory, Usage};

/// What a process had resident near the end of a recording, and at its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resident {
    /// Just before counting began.
    pub began: Usage,
    /// Later, told in the same way.
    pub now: Usage,
    /// What was in use then of what had been allocated since counting began; `None` where that is what the heap has.
    pub inuse_bytes: Option<u64>,
    /// How long before the heap's own numbers that was.
    pub age: Duration,
}

/// Resident memory taken apart. Without `absent_bytes`, which are not resident, the parts come to all of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// In use of what was allocated since the recording began.
    pub inuse_bytes: u64,
    /// What of these cannot be resident: there is less anonymous memory. It was never written to, or is swapped out.
    pub absent_bytes: u64,
    /// Anonymous memory that is not in use by what was counted, up to as much as there was when the recording began.
    pub earlier_bytes: u64,
    /// What there is beyond that.
    pub grown_bytes: u64,
    /// Stacks, where they are known.
    pub stack_bytes: u64,
    /// Files.
    pub file_bytes: u64,
    /// Shared memory.
    pub shared_bytes: u64,
    /// The kernel's own mappings.
    pub other_bytes: u64,
}

impl Resident {
    /// Takes apart what the process had, of which `heap` was counted.
    ///
    /// Which pages hold which blocks is not known, so that this is what has to be at least or can be at most: a block of
    /// which no page was written counts as resident as long as there is anonymous memory enough.
    pub fn parts(&self, heap: &RawHeap) -> Parts {
        let Usage { anonymous_bytes, stacks, file_bytes, shared_bytes, other_bytes, .. } = self.now;
        let inuse_bytes = self.inuse_bytes.unwrap_or_else(|| heap.inuse_bytes());
        let left_bytes = anonymous_bytes.saturating_sub(inuse_bytes);
        let earlier_bytes = left_bytes.min(self.began.anonymous_bytes);
        Parts {
            inuse_bytes,
            absent_bytes: inuse_bytes.saturating_sub(anonymous_bytes),
            earlier_bytes,
            grown_bytes: left_bytes - earlier_bytes,
            stack_bytes: stacks.map_or(0, |stacks| stacks.bytes),
            file_bytes,
            shared_bytes,
            other_bytes,
        }
    }
}

/// A process's memory, watched during a recording.
#[derive(Debug)]
pub struct Watch {
    memory: Memory,
    began: Told,
    last: Option<(Instant, Resident)>,
}

/// What was told at one time, in both ways.
#[derive(Clone, Copy, Debug)]
struct Told {
    glanced: Usage,
    walked: Option<Usage>,
}

impl Watch {
    /// Begins to watch, before counting does; `None` where the memory cannot be read.
    pub fn begin(pid: u32) -> Option<Self> {
        let memory = open(pid)?;
        let began = Told { glanced: memory.glance()?, walked: memory.walk() };
        let mut watch = Self { memory, began, last: None };
        // It may end before anybody looks again.
        watch.note(0);
        Some(watch)
    }

    /// Begins to watch a program that has just replaced another one, which had nothing before.
    pub fn begin_anew(pid: u32) -> Option<Self> {
        let nothing = Told { glanced: Usage::default(), walked: Some(Usage::default()) };
        let mut watch = Self { memory: open(pid)?, began: nothing, last: None };
        watch.note(0);
        Some(watch)
    }

    /// Notes the sums as they are now, when so much was in use of what was counted.
    pub fn note(&mut self, inuse_bytes: u64) {
        if let Some(resident) = self.glance() {
            self.last = Some((Instant::now(), Resident { inuse_bytes: Some(inuse_bytes), ..resident }));
        }
    }

    /// The sums as they are now.
    pub fn glance(&self) -> Option<Resident> {
        let now = self.memory.glance()?;
        Some(Resident { began: self.began.glanced, now, inuse_bytes: None, age: Duration::ZERO })
    }

    /// Looks once more, when counting has just ended and the process perhaps as well: then what was noted last stays.
    pub fn finish(&mut self) {
        let walked = || {
            let (began, now) = (self.began.walked?, self.memory.walk()?);
            Some(Resident { began, now, inuse_bytes: None, age: Duration::ZERO })
        };
        if let Some(resident) = walked().or_else(|| self.glance()) {
            self.last = Some((Instant::now(), resident));
        }
    }

    /// What was noted last, for a recording that ended at `end`.
    pub fn last(&self, end: Instant) -> Option<Resident> {
        let (at, resident) = self.last?;
        Some(Resident { age: end.saturating_duration_since(at), ..resident })
    }
}

fn open(pid: u32) -> Option<Memory> {
    Memory::of(pid).inspect_err(|error| tracing::debug!(pid, %error, "resident memory cannot be read")).ok()
}

#[cfg(test)]
mod tests {
    use profiler_common::heap::Totals;

    use super::*;
    use crate::{
        source::{RawEntry, StackRef},
        target::memory::Stacks,
    };

    const MIB: u64 = 1 << 20;

    fn heap(inuse_bytes: u64) -> RawHeap {
        let totals = Totals {
            alloc_objects: 2,
            alloc_bytes: inuse_bytes + 7,
            freed_objects: 1,
            freed_bytes: 7,
            ..Totals::default()
        };
        RawHeap {
            entries: vec![RawEntry { stack: StackRef::Unsent, allocator: 0, is_inherited: false, totals }],
            ..RawHeap::empty()
        }
    }

    fn resident(began: u64, now: u64) -> Resident {
        let usage = Usage {
            anonymous_bytes: now,
            stacks: Some(Stacks { bytes: 3, untold_threads: 0 }),
            file_bytes: 5,
            shared_bytes: 11,
            other_bytes: 13,
            swapped_bytes: 17,
            hugetlb_bytes: 19,
        };
        let began = Usage { anonymous_bytes: began, ..Usage::default() };
        Resident { began, now: usage, inuse_bytes: None, age: Duration::ZERO }
    }

    #[test]
    fn the_parts_come_to_what_is_resident() {
        for (began, now, inuse) in [
            (120, 341, 200),
            (120, 250, 200),
            (120, 320, 200),
            (120, 50, 200),
            (0, 0, 0),
            (9, 0, 1),
            (0, 7, 7),
        ] {
            let (resident, heap) = (resident(began * MIB, now * MIB), heap(inuse * MIB));
            let parts = resident.parts(&heap);
            let Parts { inuse_bytes, absent_bytes, earlier_bytes, grown_bytes, .. } = parts;
            let rest = parts.stack_bytes + parts.file_bytes + parts.shared_bytes + parts.other_bytes;
            assert_eq!(
                inuse_bytes - absent_bytes + earlier_bytes + grown_bytes + rest,
                resident.now.resident_bytes(),
                "{parts:?}"
            );
            assert_eq!(inuse_bytes, inuse * MIB);
        }
    }

    #[test]
    fn what_is_not_counted_was_there_before_or_came_since() {
        let parts = |began, now, inuse| {
            let parts = resident(began, now).parts(&heap(inuse));
            (parts.absent_bytes, parts.earlier_bytes, parts.grown_bytes)
        };
        assert_eq!(parts(120, 341, 200), (0, 120, 21));
        assert_eq!(parts(120, 250, 200), (0, 50, 0), "of what was there some was used again");
        assert_eq!(parts(120, 150, 200), (50, 0, 0), "more is in use than is resident");
    }

    #[test]
    fn what_was_noted_earlier_goes_with_what_was_in_use_then() {
        let then = Resident { inuse_bytes: Some(150), ..resident(120, 300) };
        assert_eq!(then.parts(&heap(200)).inuse_bytes, 150);
        assert_eq!(then.parts(&heap(200)).grown_bytes, 30);
    }

    #[test]
    fn a_watch_keeps_what_it_saw_of_a_process_that_ends() {
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let mut watch = Watch::begin(child.id()).unwrap();
        assert_eq!(watch.last(Instant::now()).unwrap().inuse_bytes, Some(0));
        watch.note(7);
        let noted = watch.last(Instant::now()).unwrap();
        assert!(noted.now.resident_bytes() > 0);
        assert_eq!((noted.inuse_bytes, noted.now.stacks), (Some(7), None));
        child.kill().unwrap();
        child.wait().unwrap();
        watch.note(8);
        watch.finish();
        let later = Instant::now() + Duration::from_secs(5);
        let kept = watch.last(later).unwrap();
        assert_eq!(Resident { age: noted.age, ..kept }, noted);
        assert!(kept.age >= Duration::from_secs(5));
    }

    #[test]
    fn what_is_seen_at_the_end_is_seen_mapping_by_mapping() {
        let mut watch = Watch::begin(std::process::id()).unwrap();
        watch.finish();
        let resident = watch.last(Instant::now()).unwrap();
        assert!(resident.began.stacks.is_some() && resident.now.stacks.is_some(), "{resident:?}");
        assert_eq!(resident.inuse_bytes, None);
    }
}
