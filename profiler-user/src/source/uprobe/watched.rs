//! One of the processes whose records are drained: what is known of it, and what its records change of that.

use std::time::{Duration, Instant};

use super::{learn::Learner, pace::Pace, records::Record, stacks::StackTable};
use crate::target::cpu_time::Activity;

/// Something that happened to a process as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// It replaced its program.
    Exec {
        /// When this was learned.
        seen: Instant,
    },
    /// Its loader has mapped something, which may have an allocator.
    CodeAdded,
    /// Its first thread has ended; others may go on.
    LeaderExit {
        /// When this was learned.
        seen: Instant,
    },
    /// It has made a child that is not followed.
    ChildMade,
    /// A child of it is followed from now on.
    Forked(Forked),
}

/// A child process that is followed from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forked {
    /// Its PID.
    pub pid: u32,
    /// That of its parent.
    pub parent: u32,
    /// Whether it has replaced its program already, and so has nothing of its parent's.
    pub is_empty: bool,
    /// What the number of its program begins with.
    pub(super) image: u32,
    /// What its epoch begins with.
    pub(super) epoch: u32,
}

/// How long to wait before looking for the page of hijacked return addresses again. Each time that it is not there makes this twice as
/// long, up to [`REVIEW`]: where all functions are gated, it never comes.
const SEARCH: Duration = Duration::from_millis(10);

/// How long to wait before looking whether code is there still, of which only the loader says when it goes.
const REVIEW: Duration = Duration::from_secs(1);

/// A process that is watched.
pub(super) struct Watched {
    pid: u32,
    pub(super) learner: Learner,
    pub(super) stacks: StackTable,
    /// When to look whether code is there still.
    review: Pace,
    /// Whether it has computed since: it cannot have unmapped anything otherwise.
    activity: Activity,
    /// When to look for the page of hijacked return addresses.
    search: Pace,
    /// Whether the kernel side was told where hijacked return addresses point.
    knows_trampoline: bool,
    /// Whether the program has allocated: before that there is no such page.
    has_allocated: bool,
    /// Whether at the last review no notice had come of a replaced program.
    was_behind: bool,
}

impl Watched {
    pub(super) fn new(pid: u32, learner: Learner, stacks: StackTable) -> Self {
        Self {
            pid,
            learner,
            knows_trampoline: stacks.space.trampoline().is_some(),
            has_allocated: false,
            stacks,
            review: Pace::new(REVIEW),
            activity: Activity::of(pid),
            search: Pace::new(SEARCH),
            was_behind: false,
        }
    }

    /// A child of it, which has its memory or a new program.
    pub(super) fn child(&self, child: &Forked) -> Self {
        let stacks = self.stacks.inherited(child.image, child.is_empty);
        let mut watched = Self::new(child.pid, self.learner.inherited(child), stacks);
        watched.knows_trampoline = false;
        if child.is_empty {
            watched.learner.look_around(&mut watched.stacks);
        }
        watched
    }

    /// Takes in a record; gives what others want to know of it.
    pub(super) fn take(&mut self, record: Record<'_>) -> Option<Notice> {
        let stacks = &mut self.stacks;
        self.has_allocated |= matches!(record, Record::Stack { .. } | Record::Miss(_));
        match record {
            Record::Stack { hash, pcs, end } => stacks.insert(self.pid, hash, pcs, end),
            Record::Miss(miss) => {
                // It may be of code that has come in the place of other code.
                if self.review.allows() {
                    self.review.look(|| self.learner.review(stacks));
                }
                self.learner.learn(&miss, stacks);
            }
            Record::Mapping(change) => stacks.change_mappings(change),
            Record::Chunk { stack, copy, is_last } => self.learner.extend(stack, copy, is_last, stacks),
            Record::CodeAdded => {
                self.learner.look_around(stacks);
                return Some(Notice::CodeAdded);
            }
            Record::CodeChange => self.learner.forget(stacks),
            Record::Notice(notice) => {
                if let Notice::Exec { .. } = notice {
                    self.learner.start_over(stacks);
                    self.knows_trampoline = false;
                    self.search = Pace::new(SEARCH);
                    self.has_allocated = false;
                    self.was_behind = false;
                }
                return Some(notice);
            }
            Record::Fork(child) => return Some(Notice::Forked(child)),
        }
        None
    }

    /// Looks whether code is there still, where it is time to; gives whether it was.
    pub(super) fn review(&mut self) -> bool {
        let is_time = self.review.rest().is_zero();
        if is_time {
            let Self { review, activity, learner, stacks, .. } = self;
            review.look(|| {
                // Before the look, so that what it computes meanwhile is seen the next time.
                if activity.look() {
                    learner.review(stacks);
                }
            });
        }
        is_time
    }

    /// Goes on with a program whose notice did not fit the ring buffer: one that had yet to come at the last review has come.
    pub(super) fn catch_up(&mut self) -> Option<Notice> {
        let is_behind = self.learner.is_behind();
        if is_behind && self.was_behind {
            self.learner.start_over(&mut self.stacks);
            self.knows_trampoline = false;
            self.search = Pace::new(SEARCH);
            self.was_behind = self.learner.is_behind();
            return Some(Notice::Exec { seen: Instant::now() });
        }
        self.was_behind = is_behind;
        None
    }

    /// Does a part of what can wait; false where there is nothing more to do.
    pub(super) fn tidy(&mut self) -> bool {
        self.learner.tidy(&mut self.stacks.space)
    }

    /// Finds the page of hijacked return addresses, which is mapped with the first of them, and tells the kernel side, where it is
    /// time to.
    pub(super) fn look_for_trampoline(&mut self) {
        if !self.is_searching() || !self.search.rest().is_zero() {
            return;
        }
        let space = &mut self.stacks.space;
        self.search.look(|| space.look_again(self.pid));
        match space.trampoline() {
            Some(trampoline) => {
                self.learner.teach_trampoline(trampoline);
                self.knows_trampoline = true;
            }
            None => self.search.slow_down(REVIEW),
        }
    }

    /// How long it can be left alone.
    pub(super) fn rest(&self) -> Duration {
        if self.is_searching() { self.review.rest().min(self.search.rest()) } else { self.review.rest() }
    }

    const fn is_searching(&self) -> bool {
        self.has_allocated && !self.knows_trampoline
    }
}
