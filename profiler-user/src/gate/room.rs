//! Where in a process a gate has room: its code so near to its allocator that jumps reach from the one to the other, and its data at
//! addresses that fit an instruction.

use std::ops::Range;

/// How far a jump or an operand reaches, less what is added on the way: 2 GiB less 64 KiB.
const REACH_BYTES: u64 = (1 << 31) - (1 << 16);

/// What is left free beside what is there: a neighbour may grow, and one that reads beyond its end is to fail as before.
const MARGIN_BYTES: u64 = 1 << 16;

/// The lowest address that a process may map at, whatever `vm.mmap_min_addr` says.
const LOWEST: u64 = 1 << 16;

/// The end of what user space has with page tables of four levels.
const HIGHEST: u64 = (1 << 47) - 4096;

/// The end of the addresses that fit a displacement of 32 bits, which has a sign.
const LOW: u64 = 1 << 31;

/// What is left to a data segment in front of that, which begins anywhere in the first GiB or behind it where the program is not
/// position-independent (`arch_randomize_brk` in arch/x86/kernel/process.c).
const GROWTH_BYTES: u64 = 1 << 29;

/// An address at which `length_bytes`, a multiple of a page, can be mapped near `module`; `None` where there is no room.
///
/// `mapped` is all that the process has mapped, in ascending order, and `growing` the end of its data segment, which may grow. Below the
/// module is looked first: there the kernel maps what comes next, and nothing grows.
pub fn near(
    mapped: &[Range<u64>],
    module: &Range<u64>,
    length_bytes: u64,
    growing: Option<u64>,
) -> Option<u64> {
    let needed = length_bytes.checked_add(2 * MARGIN_BYTES)?;
    let gaps = || gaps(mapped).filter(move |(from, to)| to.saturating_sub(*from) >= needed);
    let reaches = |address: &u64| {
        module.end.saturating_sub(*address) <= REACH_BYTES
            && (*address + length_bytes).saturating_sub(module.start) <= REACH_BYTES
    };
    let below = gaps().filter(|(_, to)| *to <= module.start).map(|(_, to)| to - MARGIN_BYTES - length_bytes);
    let above = gaps()
        .filter(|(from, _)| *from >= module.end && Some(*from) != growing)
        .map(|(from, _)| from + MARGIN_BYTES);
    let nearest = below.filter(reaches).max();
    nearest.or_else(|| above.filter(reaches).min()).map(|address| address & !4095)
}

/// The highest address below 2 GiB at which `length_bytes`, a multiple of a page, can be mapped; `None` where there is no room, or a data
/// segment would have little left. `mapped` and `growing` as in [`near`].
pub fn low(mapped: &[Range<u64>], length_bytes: u64, growing: Option<u64>) -> Option<u64> {
    let room = |(from, to): (u64, u64)| {
        let before = if growing == Some(from) { GROWTH_BYTES } else { MARGIN_BYTES };
        let address = to.min(LOW).checked_sub(MARGIN_BYTES)?.checked_sub(length_bytes)?;
        (address >= from.checked_add(before)?).then_some(address & !4095)
    };
    gaps(mapped).filter_map(room).max()
}

/// What is free, as far as the kernel gives it to anybody.
fn gaps(mapped: &[Range<u64>]) -> impl Iterator<Item = (u64, u64)> {
    let ends = std::iter::once(LOWEST).chain(mapped.iter().map(|range| range.end));
    let starts = mapped.iter().map(|range| range.start).chain(std::iter::once(HIGHEST));
    ends.zip(starts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numbers::Numbers;

    const PAGE: u64 = 4096;
    const LIBRARY: Range<u64> = 0x7f00_0000_0000..0x7f00_0020_0000;

    #[test]
    fn the_nearest_room_below_is_taken() {
        let mapped = [0x5500_0000_0000..0x5500_0010_0000, 0x7eff_fff0_0000..0x7f00_0000_0000, LIBRARY];
        let found = near(&mapped, &LIBRARY, PAGE, None).unwrap();
        assert_eq!(found, 0x7eff_fff0_0000 - MARGIN_BYTES - PAGE);
    }

    #[test]
    fn a_program_at_the_bottom_has_room_above_but_not_where_its_data_grows() {
        let program = 0x2_0000..0x50_0000;
        let mapped = [program.clone(), 0x60_0000..0x70_0000, 0x4000_0000..0x4000_1000];
        assert_eq!(near(&mapped, &program, PAGE, Some(0x70_0000)), Some(0x50_0000 + MARGIN_BYTES));
        let full = [program.clone(), 0x50_0000..0x70_0000, 0x4000_0000..0x4000_1000];
        assert_eq!(near(&full, &program, PAGE, Some(0x70_0000)), Some(0x4000_1000 + MARGIN_BYTES));
        assert_eq!(near(&full, &program, PAGE, None), Some(0x70_0000 + MARGIN_BYTES));
    }

    #[test]
    fn what_is_too_far_away_is_no_room() {
        let around =
            [LIBRARY.start - (3 << 30)..LIBRARY.start, LIBRARY, LIBRARY.end..LIBRARY.end + (3 << 30)];
        assert_eq!(near(&around, &LIBRARY, PAGE, None), None);
        // A library that is larger than a jump reaches.
        let large = LIBRARY.start..LIBRARY.start + (3 << 30);
        assert_eq!(near(std::slice::from_ref(&large), &large, PAGE, None), None);
        assert_eq!(near(&[LIBRARY], &LIBRARY, u64::MAX, None), None);
        assert_eq!(near(&[], &(u64::MAX - PAGE..u64::MAX), PAGE, None), None);
    }

    #[test]
    fn what_is_low_is_as_high_as_it_can_be_and_leaves_the_heap_some_room() {
        let end = |address: Option<u64>| address.map(|address| address + PAGE + MARGIN_BYTES);
        assert_eq!(end(low(&[LIBRARY], PAGE, None)), Some(LOW));
        assert_eq!(end(low(&[], PAGE, None)), Some(LOW));
        let above = 0x7fff_8000..0x9000_0000;
        assert_eq!(end(low(std::slice::from_ref(&above), PAGE, None)), Some(0x7fff_8000));
        let program = 0x40_0000..0x3000_0000;
        assert_eq!(end(low(std::slice::from_ref(&program), PAGE, Some(program.end))), Some(LOW));
        let (grown, behind) = (0x40_0000..0x7000_0000, 0x7000_0000);
        assert_eq!(end(low(std::slice::from_ref(&grown), PAGE, Some(behind))), Some(grown.start));
        assert_eq!(end(low(std::slice::from_ref(&grown), PAGE, None)), Some(LOW));
        assert_eq!(low(std::slice::from_ref(&(0..LOW)), PAGE, None), None);
        assert_eq!(low(&[], LOW, None), None);
        assert_eq!(low(&[], u64::MAX, None), None);
    }

    #[test]
    fn whatever_is_mapped_what_is_found_overlaps_nothing_and_is_near() {
        let mut numbers = Numbers::new();
        let mut number = || numbers.next();
        let mut found = 0;
        for _ in 0..2_000 {
            let mut at = 0x1_0000 + (number() % (1 << 20)) * PAGE;
            let mut mapped = Vec::new();
            for _ in 0..20 {
                let end = at + (1 + number() % (1 << 15)) * PAGE;
                mapped.push(at..end);
                at = end + number() % 4 * (number() % (1 << 16)) * PAGE;
            }
            let module = mapped[(number() % 20) as usize].clone();
            let length_bytes = (1 + number() % 16) * PAGE;
            let Some(address) = near(&mapped, &module, length_bytes, Some(mapped[3].end)) else { continue };
            found += 1;
            let room = address..address + length_bytes;
            let is_free = |room: &Range<u64>| {
                mapped.iter().all(|range| range.end <= room.start || room.end <= range.start)
            };
            assert!(is_free(&room));
            let low = low(&mapped, length_bytes, Some(mapped[3].end));
            assert!(low.is_none_or(|low| low + length_bytes < LOW && is_free(&(low..low + length_bytes))));
            assert!(address.is_multiple_of(PAGE));
            for here in [room.start, room.end] {
                for there in [module.start, module.end] {
                    assert!(here.abs_diff(there) < 1 << 31);
                }
            }
        }
        assert!(found > 1_000, "{found}");
    }
}
