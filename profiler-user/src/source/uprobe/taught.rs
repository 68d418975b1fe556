//! The rows that the kernel side was taught of a process, and whether they still hold.

use std::collections::HashMap;

use profiler_common::unwind::Row;

use crate::target::layout::Place;

/// Rows by pc, with what lay there when they were taught.
#[derive(Clone, Debug, Default)]
pub(super) struct Taught(HashMap<u64, Lesson>);

#[derive(Clone, Copy, Debug)]
struct Lesson {
    row: Row,
    place: Place,
}

impl Lesson {
    /// Whether the row is of other code than lies there now.
    fn is_outdated(&self, now: Place) -> bool {
        match (self.place, now) {
            // What is taken to keep frame pointers because nobody says otherwise may come and go: so does the code that a JIT
            // makes, in memory or in a file that is only memory, and the next is taken for the same.
            (Place::File { inode: then, .. }, Place::File { inode: now, .. })
                if self.row == Row::FRAME_POINTER =>
            {
                then != now
            }
            (Place::File { .. }, _) if self.row == Row::FRAME_POINTER => false,
            (Place::File { .. }, now) => self.place != now,
            (Place::Unnamed, now) => matches!(now, Place::File { .. }),
            (Place::Nothing, now) => now != Place::Nothing,
        }
    }
}

impl Taught {
    /// The row that was taught for a pc.
    pub(super) fn row(&self, pc: u64) -> Option<Row> {
        self.0.get(&pc).map(|lesson| lesson.row)
    }

    /// Notes a row, with what lies at its pc.
    pub(super) fn insert(&mut self, pc: u64, row: Row, place: Place) {
        self.0.insert(pc, Lesson { row, place });
    }

    /// Takes a row back; false where none was taught.
    pub(super) fn remove(&mut self, pc: u64) -> bool {
        self.0.remove(&pc).is_some()
    }

    /// The pcs.
    pub(super) fn pcs(&self) -> impl Iterator<Item = u64> {
        self.0.keys().copied()
    }

    /// Takes everything back; gives the pcs.
    pub(super) fn clear(&mut self) -> impl Iterator<Item = u64> + use<> {
        std::mem::take(&mut self.0).into_keys()
    }

    /// Whether some code has gone, or has come where there was other code; `place` tells what lies at an address now.
    pub(super) fn is_outdated(&self, place: impl Fn(u64) -> Place) -> bool {
        self.0.iter().any(|(pc, lesson)| lesson.is_outdated(place(pc.saturating_sub(1))))
    }
}

#[cfg(test)]
mod tests {
    use profiler_common::unwind::{FpRule, Kind, WalkEnd};

    use super::*;

    const RULE: Row = Row::new(Kind::Sp, FpRule::Unchanged, 0, 16);

    const fn file(inode: u64, offset: u64) -> Place {
        Place::File { inode: (8, 1, inode), offset }
    }

    fn is_outdated(row: Row, then: Place, now: Place) -> bool {
        let mut taught = Taught::default();
        taught.insert(0x1001, row, then);
        assert_eq!(taught.row(0x1001), Some(row));
        taught.is_outdated(|address| if address == 0x1000 { now } else { Place::Nothing })
    }

    #[test]
    fn the_rules_of_a_file_hold_only_where_the_file_lies_as_it_did() {
        assert!(!is_outdated(RULE, file(1, 0x10), file(1, 0x10)));
        for now in [file(2, 0x10), file(1, 0x20), Place::Unnamed, Place::Nothing] {
            assert!(is_outdated(RULE, file(1, 0x10), now), "{now:?}");
        }
    }

    #[test]
    fn code_that_is_taken_to_keep_frame_pointers_may_come_and_go() {
        for now in [Place::Unnamed, Place::Nothing] {
            assert!(!is_outdated(Row::FRAME_POINTER, Place::Unnamed, now), "{now:?}");
            assert!(!is_outdated(Row::FRAME_POINTER, file(1, 0x10), now), "{now:?}");
        }
        assert!(!is_outdated(Row::FRAME_POINTER, file(1, 0x10), file(1, 0x20)));
        assert!(is_outdated(Row::FRAME_POINTER, file(1, 0x10), file(2, 0x10)));
        assert!(is_outdated(Row::FRAME_POINTER, Place::Unnamed, file(1, 0x10)));
    }

    #[test]
    fn an_address_without_code_may_get_some() {
        let stop = Row::stop(WalkEnd::NoCode);
        assert!(!is_outdated(stop, Place::Nothing, Place::Nothing));
        assert!(is_outdated(stop, Place::Nothing, Place::Unnamed));
        assert!(is_outdated(stop, Place::Nothing, file(1, 0)));
    }

    #[test]
    fn what_was_taken_back_is_not_outdated() {
        let mut taught = Taught::default();
        taught.insert(0x1001, RULE, file(1, 0));
        assert_eq!(taught.clear().collect::<Vec<_>>(), [0x1001]);
        assert_eq!(taught.row(0x1001), None);
        assert!(!taught.is_outdated(|_| Place::Nothing));
    }
}
