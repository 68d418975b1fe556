//! What gates do, once more in Rust, for tests to compare with.

use profiler_common::{
    call::{Convention, Outcome, Shape},
    heap::size_class,
    sampling::is_kept_behind_gate,
};

use super::bench::Bench;
use crate::gate::{
    gaps::GAPS,
    layout::{CHARGE_BYTES, HAS_OVERFLOWED, Layout, NEXT_GAP, SLOTS},
};

/// What a gate's data should have.
pub(super) struct Model {
    layout: Layout,
    gaps: Vec<i64>,
    budget: i64,
    next: u32,
    table: Vec<[u64; SLOTS as usize]>,
    filter: Vec<u8>,
    pub(super) overflows: u64,
    lost_budgets: u64,
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lot {
    /// It goes straight through.
    Through,
    /// It stops, with what r11 has to have.
    Stops(u64),
}

/// What a function is asked for; where that is no number, more than there is.
fn bytes_asked_for(convention: Convention, arguments: [u64; 4]) -> u64 {
    let of = |number: u64| arguments[usize::try_from(number - 1).unwrap()];
    let size = of(convention.size_argument());
    match convention.count_argument() {
        0 => size,
        count => of(count).cast_signed().checked_mul(size.cast_signed()).map_or(u64::MAX, i64::cast_unsigned),
    }
}

impl Model {
    pub(super) fn of(bench: &Bench) -> Self {
        let layout = bench.setting.layout;
        let gaps = (0..GAPS as u64).map(|gap| bench.data.word(layout.gaps() + 8 * gap).cast_signed());
        let buckets = usize::try_from(layout.buckets()).unwrap();
        Self {
            layout,
            gaps: gaps.collect(),
            budget: 0,
            next: 0,
            table: vec![[0; SLOTS as usize]; buckets],
            filter: vec![0; buckets],
            overflows: 0,
            lost_budgets: 0,
        }
    }

    pub(super) fn bucket(&self, block: u64) -> usize {
        usize::try_from(self.layout.bucket_of(block)).unwrap()
    }

    /// What the budget had, where a call is in the sample.
    pub(super) fn draw(&mut self, shape: Shape, arguments: [u64; 4]) -> Option<i64> {
        let convention = shape.convention().unwrap();
        let of = |number: u64| arguments[usize::try_from(number - 1).unwrap()];
        let size = of(convention.size_argument());
        let charge = match convention.count_argument() {
            0 => size.wrapping_add_signed(CHARGE_BYTES.into()),
            count => {
                let product = of(count).cast_signed().checked_mul(size.cast_signed());
                product.unwrap_or(1 << 46).wrapping_add(CHARGE_BYTES.into()).cast_unsigned()
            }
        };
        let charge = charge.min(1 << 46).cast_signed();
        let had = self.budget;
        self.budget = had - charge;
        if self.budget >= 0 {
            return None;
        }
        self.budget = self.gaps[self.next as usize % GAPS];
        self.next = self.next.wrapping_add(1);
        self.lost_budgets += u64::from(had < 0);
        let size = bytes_asked_for(convention, arguments);
        (had >= 0 && is_kept_behind_gate(size_class(size), had.cast_unsigned())).then_some(had)
    }

    /// Takes a block out: whether it was in there, or `None` where that is not known.
    pub(super) fn remove(&mut self, block: u64) -> Option<bool> {
        let bucket = self.bucket(block);
        if self.filter[bucket] == 0 || block == 0 {
            return Some(false);
        }
        if let Some(slot) = self.table[bucket].iter_mut().find(|slot| **slot == block) {
            *slot = 0;
            self.filter[bucket] -= 1;
            return Some(true);
        }
        if self.filter[bucket] & HAS_OVERFLOWED != 0 { None } else { Some(false) }
    }

    pub(super) fn insert(&mut self, block: u64) {
        let bucket = self.bucket(block);
        match self.table[bucket].iter_mut().find(|slot| [0, block].contains(slot)) {
            Some(slot) if *slot == block => {}
            Some(slot) => {
                *slot = block;
                self.filter[bucket] += 1;
            }
            None => {
                self.filter[bucket] |= HAS_OVERFLOWED;
                self.overflows += 1;
            }
        }
    }

    /// A call, of which it is known what it will give.
    pub(super) fn call(&mut self, shape: Shape, arguments: [u64; 4], result: u64, stored: u64) -> Lot {
        let Some(convention) = shape.convention() else {
            return match self.remove(arguments[0]) {
                Some(false) => Lot::Through,
                _ => Lot::Stops(0),
            };
        };
        let of = |number: u64| arguments[usize::try_from(number - 1).unwrap()];
        let old = match convention.old_argument() {
            0 => 0,
            old => of(old),
        };
        let removed = if convention.old_argument() == 0 { Some(false) } else { self.remove(old) };
        let drawn = self.draw(shape, arguments);
        if removed == Some(false) && drawn.is_none() {
            return Lot::Through;
        }
        let size = bytes_asked_for(convention, arguments);
        const STORED: u64 = Outcome::Stored as u64;
        const SIZE: u64 = Outcome::Size as u64;
        let block = match convention.outcome() {
            STORED if result as u32 != 0 => 0,
            STORED => stored,
            SIZE if result >= size => old,
            SIZE => 0,
            _ => result,
        };
        let frees = convention.outcome() == Outcome::ReturnedOrFreed as u64
            || (convention.outcome() == Outcome::Returned as u64 && size == 0);
        if block != 0 {
            if drawn.is_some() {
                self.insert(block);
            }
        } else if removed == Some(true) && !frees {
            self.insert(old);
        }
        Lot::Stops(drawn.unwrap_or(-1).cast_unsigned())
    }

    /// Panics unless a gate's data has what it should.
    pub(super) fn assert_equals(&self, bench: &Bench, budget_at: u64) {
        let data = &bench.data;
        assert_eq!(data.word(self.layout.inside()), 0, "threads inside");
        assert_eq!(data.word(self.layout.overflows()), self.overflows, "overflows");
        assert_eq!(data.word(self.layout.lost_budgets()), self.lost_budgets, "lost budgets");
        assert_eq!(data.word(budget_at).cast_signed(), self.budget, "budget");
        assert_eq!(data.word(budget_at + NEXT_GAP) as u32, self.next, "next gap");
        let filter = data.bytes(self.layout.filter(), self.layout.buckets());
        for (bucket, (is, ought)) in filter.iter().zip(&self.filter).enumerate() {
            assert_eq!(is, ought, "filter of bucket {bucket}, {:x?}", self.table[bucket]);
        }
        for (place, bucket) in (0..).zip(&self.table) {
            for (slot, block) in (0..).zip(bucket) {
                let at = self.layout.table() + 8 * (place * SLOTS + slot);
                assert_eq!(data.word(at), *block, "bucket {place}, slot {slot}");
            }
        }
    }
}
