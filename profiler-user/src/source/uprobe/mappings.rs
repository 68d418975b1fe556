//! What the program has mapped itself, and what is left of it: mappings are unmapped, covered and moved in parts.

use std::collections::{BTreeMap, HashMap};

use profiler_common::{
    counters::{Counter, Counters},
    event::MappingAction,
    heap::{OVERFLOW_STACK, Totals},
};

/// A change that the kernel side has told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MappingChange {
    pub(super) action: MappingAction,
    /// How often the process had replaced its program.
    pub(super) image: u32,
    pub(super) thread: u32,
    pub(super) site: MappingSite,
    pub(super) address: u64,
    pub(super) length_bytes: u64,
}

/// What mappings are counted under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct MappingSite {
    /// Hash of the stack.
    pub(super) stack: u64,
    /// The number of the functions' "allocator".
    pub(super) allocator: u8,
    /// Whether the process has them from its parent.
    pub(super) is_inherited: bool,
}

/// The mappings of a process, as far as they were made while it was recorded, and their sums.
#[derive(Clone, Debug)]
pub(super) struct Mappings {
    image: u32,
    /// What is mapped, by its first address. Nothing overlaps.
    regions: BTreeMap<u64, Region>,
    /// What the regions are parts of.
    origins: HashMap<u64, Origin>,
    next_origin: u64,
    /// What threads are moving.
    moving: HashMap<u32, Vec<(u64, Region)>>,
    totals: HashMap<MappingSite, Totals>,
    counters: Counters,
    most_regions: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Region {
    end: u64,
    origin: u64,
}

/// A mapping as it was made.
#[derive(Clone, Copy, Debug)]
struct Origin {
    site: MappingSite,
    left_bytes: u64,
}

const PAGE_BYTES: u64 = 4096;

/// The kernel allows 65,530 mappings by default, but takes neighbours together; a program that maps more pieces than this is
/// one that wants to fill our memory.
const REGIONS_LIMIT: usize = 1 << 20;

impl Default for Mappings {
    fn default() -> Self {
        Self {
            image: 0,
            regions: BTreeMap::new(),
            origins: HashMap::new(),
            next_origin: 0,
            moving: HashMap::new(),
            totals: HashMap::new(),
            counters: Counters::default(),
            most_regions: REGIONS_LIMIT,
        }
    }
}

impl Mappings {
    /// Takes in a change. What is mapped is counted where `is_counted` says so.
    pub(super) fn apply(&mut self, change: MappingChange, is_counted: bool) {
        self.run_program(change.image);
        if change.image != self.image {
            // It is of a program that has been replaced since.
            return;
        }
        if change.action == MappingAction::Stay {
            return self.stay(change.thread);
        }
        let Some((start, end)) = pages(change.address, change.length_bytes) else { return };
        match change.action {
            MappingAction::Map | MappingAction::Replace => {
                let overlapped = self.take(start, end);
                if change.action == MappingAction::Map {
                    // It was free: its unmapping went unseen.
                    self.counters.add(Counter::OverwrittenBlocks, overlapped.len() as u64);
                }
                self.give_back(&overlapped);
                if is_counted {
                    self.add(start, end, change.site);
                }
            }
            MappingAction::Cover | MappingAction::Unmap => {
                let gone = self.take(start, end);
                self.give_back(&gone);
            }
            MappingAction::Leave => {
                let leaving = self.take(start, end);
                if let Some(lost) = self.moving.insert(change.thread, leaving) {
                    self.give_back(&lost);
                }
            }
            // It has no pages, and was dealt with above.
            MappingAction::Stay => {}
            MappingAction::Arrive => {
                let moved = self.moving.remove(&change.thread).unwrap_or_default();
                let covered = self.take(start, end);
                self.give_back(&covered);
                if moved.is_empty() {
                    self.counters.add(Counter::UnknownRemaps, 1);
                } else {
                    self.give_back(&moved);
                    self.add(start, end, change.site);
                }
            }
        }
    }

    /// Puts back what a thread was moving.
    fn stay(&mut self, thread: u32) {
        for (start, region) in self.moving.remove(&thread).unwrap_or_default() {
            let in_the_way = self.take(start, region.end);
            self.give_back(&in_the_way);
            self.regions.insert(start, region);
        }
    }

    /// Forgets the mappings of earlier programs, when the process has replaced its program as often as `image` says.
    pub(super) fn run_program(&mut self, image: u32) {
        // Behind is what wraps around only after two thousand million programs.
        if image.wrapping_sub(self.image).cast_signed() <= 0 {
            return;
        }
        self.image = image;
        self.counters.add(Counter::GoneBlocks, self.origins.len() as u64);
        self.regions.clear();
        self.moving.clear();
        for (_, origin) in std::mem::take(&mut self.origins) {
            let totals = self.totals.entry(origin.site).or_default();
            totals.freed_objects += 1;
            totals.freed_bytes += origin.left_bytes;
        }
    }

    /// What a child process has of these, which has replaced its program as often as `image` says.
    pub(super) fn inherited(&self, image: u32) -> Self {
        let mut child =
            Self { image, regions: self.regions.clone(), next_origin: self.next_origin, ..Self::default() };
        // Another thread that was moving some is not there to go on with that; most that are moved arrive.
        for (start, region) in self.moving.values().flatten() {
            child.regions.entry(*start).or_insert(*region);
        }
        for (number, origin) in &self.origins {
            let site = MappingSite { is_inherited: true, ..origin.site };
            child.origins.insert(*number, Origin { site, ..*origin });
            let totals = child.totals.entry(site).or_default();
            totals.alloc_objects += 1;
            totals.alloc_bytes += origin.left_bytes;
        }
        child
    }

    /// What was mapped and unmapped.
    pub(super) fn totals(&self) -> impl Iterator<Item = (MappingSite, Totals)> {
        self.totals.iter().map(|(site, totals)| (*site, *totals))
    }

    /// What was lost or guessed.
    pub(super) const fn counters(&self) -> &Counters {
        &self.counters
    }

    fn add(&mut self, start: u64, end: u64, site: MappingSite) {
        let bytes = end - start;
        let totals = self.totals.entry(site).or_default();
        totals.alloc_objects += 1;
        totals.alloc_bytes += bytes;
        if site.stack == OVERFLOW_STACK {
            self.counters.add(Counter::TotalsFull, 1);
        }
        if self.regions.len() >= self.most_regions {
            totals.freed_objects += 1;
            totals.freed_bytes += bytes;
            self.counters.add(Counter::LiveFullObjects, 1);
            self.counters.add(Counter::LiveFullBytes, bytes);
            return;
        }
        let origin = self.next_origin;
        self.next_origin += 1;
        self.origins.insert(origin, Origin { site, left_bytes: bytes });
        self.regions.insert(start, Region { end, origin });
    }

    /// Takes what lies between two addresses out of the regions, cut there.
    fn take(&mut self, start: u64, end: u64) -> Vec<(u64, Region)> {
        let before = self.regions.range(..start).next_back().map(|(start, region)| (*start, *region));
        if let Some((first, region)) = before.filter(|(_, region)| region.end > start) {
            self.regions.insert(first, Region { end: start, ..region });
            self.regions.insert(start, region);
        }
        let mut taken = Vec::new();
        while let Some((&first, &region)) = self.regions.range(start..end).next() {
            self.regions.remove(&first);
            if region.end > end {
                self.regions.insert(end, region);
            }
            taken.push((first, Region { end: region.end.min(end), ..region }));
        }
        taken
    }

    /// Counts what was taken as unmapped.
    fn give_back(&mut self, taken: &[(u64, Region)]) {
        for (start, region) in taken {
            let Some(origin) = self.origins.get_mut(&region.origin) else { continue };
            let bytes = region.end - start;
            origin.left_bytes = origin.left_bytes.saturating_sub(bytes);
            let (site, is_gone) = (origin.site, origin.left_bytes == 0);
            let totals = self.totals.entry(site).or_default();
            totals.freed_bytes += bytes;
            if is_gone {
                totals.freed_objects += 1;
                self.origins.remove(&region.origin);
            }
        }
    }
}

/// The first address of the first page, and the one behind the last; `None` where there is none.
fn pages(address: u64, length_bytes: u64) -> Option<(u64, u64)> {
    let end = address.checked_add(length_bytes)?.checked_next_multiple_of(PAGE_BYTES)?;
    let start = address / PAGE_BYTES * PAGE_BYTES;
    (length_bytes > 0 && start < end).then_some((start, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGES: u64 = 32;

    fn change(action: MappingAction, site: u64, page: u64, pages: u64) -> MappingChange {
        let site = MappingSite { stack: site + 2, allocator: 7, is_inherited: false };
        let (address, length_bytes) = (page * PAGE_BYTES, pages * PAGE_BYTES);
        MappingChange { action, image: 0, thread: 1, site, address, length_bytes }
    }

    /// Pages mapped and in use, mappings made and not wholly gone, of all sites together.
    fn sums(mappings: &Mappings) -> (u64, u64, u64, u64) {
        let mut sums = (0, 0, 0, 0);
        for (_, totals) in mappings.totals() {
            sums.0 += totals.alloc_bytes / PAGE_BYTES;
            sums.1 += (totals.alloc_bytes - totals.freed_bytes) / PAGE_BYTES;
            sums.2 += totals.alloc_objects;
            sums.3 += totals.alloc_objects - totals.freed_objects;
        }
        sums
    }

    #[test]
    fn a_mapping_is_there_until_its_last_page_has_gone() {
        let mut mappings = Mappings::default();
        let mut after = |action, page, pages| {
            mappings.apply(change(action, 1, page, pages), true);
            sums(&mappings)
        };
        assert_eq!(after(MappingAction::Map, 10, 5), (5, 5, 1, 1));
        assert_eq!(after(MappingAction::Unmap, 12, 1), (5, 4, 1, 1));
        assert_eq!(after(MappingAction::Cover, 8, 4), (5, 2, 1, 1));
        assert_eq!(after(MappingAction::Unmap, 0, 100), (5, 0, 1, 0));
        assert_eq!(after(MappingAction::Unmap, 0, 100), (5, 0, 1, 0));
    }

    #[test]
    fn what_is_moved_is_another_mapping_and_what_stays_the_same() {
        let mut mappings = Mappings::default();
        let mut after = |action, page, pages| {
            mappings.apply(change(action, 1, page, pages), true);
            sums(&mappings)
        };
        after(MappingAction::Map, 10, 5);
        assert_eq!(after(MappingAction::Leave, 12, 2), (5, 5, 1, 1), "it is not known yet where to");
        assert_eq!(after(MappingAction::Stay, 0, 1), (5, 5, 1, 1));
        after(MappingAction::Leave, 12, 2);
        assert_eq!(after(MappingAction::Arrive, 20, 9), (14, 12, 2, 2));
        assert_eq!(after(MappingAction::Unmap, 12, 2), (14, 12, 2, 2), "it has left");
        assert_eq!(after(MappingAction::Unmap, 20, 9), (14, 3, 2, 1));
        after(MappingAction::Leave, 25, 1);
        assert_eq!(after(MappingAction::Arrive, 20, 9), (14, 3, 2, 1), "nothing was known of it");
        assert_eq!(mappings.counters().get(Counter::UnknownRemaps), 1);
    }

    #[test]
    fn what_an_allocator_maps_is_not_counted_and_takes_the_place_of_what_was_there() {
        let mut mappings = Mappings::default();
        mappings.apply(change(MappingAction::Map, 1, 10, 5), true);
        mappings.apply(change(MappingAction::Map, 2, 12, 1), false);
        assert_eq!(sums(&mappings), (5, 4, 1, 1));
        assert_eq!(mappings.counters().get(Counter::OverwrittenBlocks), 1);
        mappings.apply(change(MappingAction::Replace, 2, 13, 1), true);
        assert_eq!(sums(&mappings), (6, 4, 2, 2));
        assert_eq!(mappings.counters().get(Counter::OverwrittenBlocks), 1, "that was meant to be");
    }

    #[test]
    fn the_mappings_of_a_replaced_program_are_gone() {
        let mut mappings = Mappings::default();
        mappings.apply(change(MappingAction::Map, 1, 10, 5), true);
        let later = MappingChange { image: 2, ..change(MappingAction::Map, 1, 10, 3) };
        mappings.apply(later, true);
        assert_eq!(sums(&mappings), (8, 3, 2, 1));
        assert_eq!(mappings.counters().get(Counter::GoneBlocks), 1);
        mappings.apply(change(MappingAction::Unmap, 1, 10, 5), true);
        assert_eq!(sums(&mappings), (8, 3, 2, 1), "that was before");
        mappings.run_program(2);
        mappings.run_program(3);
        assert_eq!(sums(&mappings), (8, 0, 2, 0));
    }

    #[test]
    fn a_child_has_its_parents_mappings_without_having_made_them() {
        let mut parent = Mappings::default();
        parent.apply(change(MappingAction::Map, 1, 10, 5), true);
        parent.apply(change(MappingAction::Unmap, 0, 14, 1), true);
        let mut child = parent.inherited(7 << 16);
        let inherited: Vec<_> = child.totals().collect();
        let [(site, totals)] = inherited[..] else { panic!("{inherited:?}") };
        assert!(site.is_inherited && totals.alloc_objects == 1 && totals.alloc_bytes == 4 * PAGE_BYTES);
        let unmap = MappingChange { image: 7 << 16, ..change(MappingAction::Unmap, 0, 10, 4) };
        child.apply(unmap, true);
        assert_eq!(child.totals[&site].freed_bytes, 4 * PAGE_BYTES);
        assert_eq!(sums(&parent), (5, 4, 1, 1));
    }

    #[test]
    fn what_there_is_no_room_for_is_said_to_be_missing() {
        let mut mappings = Mappings { most_regions: 2, ..Mappings::default() };
        for page in [10, 20, 30] {
            mappings.apply(change(MappingAction::Map, 1, page, 2), true);
        }
        assert_eq!(sums(&mappings), (6, 4, 3, 2));
        let counted = |counter| mappings.counters().get(counter);
        assert_eq!(counted(Counter::LiveFullObjects), 1);
        assert_eq!(counted(Counter::LiveFullBytes), 2 * PAGE_BYTES);
    }

    #[test]
    fn addresses_that_cannot_be_do_no_harm() {
        let mut mappings = Mappings::default();
        for (address, length_bytes) in
            [(u64::MAX, 1), (u64::MAX - 10, u64::MAX), (0, 0), (0, u64::MAX), (5, 0)]
        {
            for action in 1..8 {
                let action = MappingAction::from_raw(action).unwrap();
                let place = MappingChange { address, length_bytes, ..change(action, 1, 0, 0) };
                mappings.apply(place, true);
            }
        }
        assert_eq!(sums(&mappings), (0, 0, 0, 0));
    }

    /// Whatever is done, what is left is what a table of pages has.
    #[test]
    fn any_changes_leave_what_they_leave_in_a_table_of_pages() {
        let mut seed = 7_u64;
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            (seed >> 33) % below
        };
        for _ in 0..200 {
            let mut mappings = Mappings::default();
            // Which mapping each page is of, and of which site each mapping is.
            let mut pages: Vec<Option<usize>> = vec![None; PAGES as usize];
            let mut sites = Vec::new();
            let mut leaving: Vec<(usize, usize)> = Vec::new();
            for _ in 0..60 {
                let page = random(PAGES);
                let count = 1 + random(PAGES - page);
                let site = random(3);
                let range = page as usize..(page + count) as usize;
                let action = MappingAction::from_raw(1 + u32::try_from(random(7)).unwrap()).unwrap();
                let is_moving = !leaving.is_empty();
                mappings.apply(change(action, site, page, count), true);
                match action {
                    MappingAction::Map | MappingAction::Replace => {
                        pages[range].fill(Some(sites.len()));
                        sites.push(site);
                    }
                    MappingAction::Cover | MappingAction::Unmap => pages[range].fill(None),
                    MappingAction::Leave => {
                        leaving = range.clone().filter_map(|at| Some((at, pages[at]?))).collect();
                        pages[range].fill(None);
                    }
                    MappingAction::Stay => {
                        leaving.drain(..).for_each(|(at, mapping)| pages[at] = Some(mapping));
                    }
                    MappingAction::Arrive => {
                        pages[range.clone()].fill(None);
                        if is_moving {
                            pages[range].fill(Some(sites.len()));
                            sites.push(site);
                        }
                        leaving.clear();
                    }
                }
                for site in 0..3 {
                    let of_site = |mapping: &&usize| sites[**mapping] == site;
                    let left: Vec<usize> = pages
                        .iter()
                        .flatten()
                        .chain(leaving.iter().map(|(_, mapping)| mapping))
                        .filter(of_site)
                        .copied()
                        .collect();
                    let distinct: std::collections::BTreeSet<_> = left.iter().collect();
                    let key = MappingSite { stack: site + 2, allocator: 7, is_inherited: false };
                    let totals = mappings.totals.get(&key).copied().unwrap_or_default();
                    let inuse = (
                        totals.alloc_objects - totals.freed_objects,
                        totals.alloc_bytes - totals.freed_bytes,
                    );
                    assert_eq!(inuse, (distinct.len() as u64, left.len() as u64 * PAGE_BYTES), "{action:?}");
                    assert_eq!(totals.alloc_objects, sites.iter().filter(|of| **of == site).count() as u64);
                }
            }
        }
    }
}
