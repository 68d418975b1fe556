//! What the fuzz targets do with the target's files.

use std::fs::File;

use super::{
    allocator::{self, Verdict},
    elf::{self, Function},
    hooks::Hook,
    layout::Place,
    mapping::read,
    maps::{AddressSpace, Module, Range},
    memory,
    separate::Places,
    site::{Choice, Targets, choose},
    specimen::Specimen,
    thread_stacks::StackPointers,
};
use crate::fuzzing::Input;

/// Names by which functions are looked for.
const NAMES: [&str; 4] = ["malloc", "free", "_dl_debug_state", "gnu_get_libc_version"];

/// How many functions are looked at in detail.
const FUNCTIONS_LIMIT: usize = 16;

/// Functions and probe sites in an ELF file.
pub(crate) fn elf(file: &File) {
    let functions = elf::exported(file, &NAMES).unwrap_or_default();
    for function in functions.iter().take(FUNCTIONS_LIMIT) {
        check_function(file, function);
    }
    let address = elf::exported_address(file, "malloc").ok().flatten();
    let has_malloc = functions.iter().any(|function| function.name == "malloc");
    assert!(address.is_some() || !has_malloc, "{functions:?}");
    let has_free = functions.iter().any(|function| function.name == "free");
    check_allocator(file, has_malloc && has_free);
}

fn check_function(file: &File, function: &Function) {
    let Function { name, offset, .. } = function;
    assert!(NAMES.contains(&name.as_str()), "{function:?}");
    let address = elf::address_at(file, *offset).expect("the file was read before");
    assert!(address.is_some(), "{function:?} is not loaded");
    let Ok(Some(code)) = elf::code_around(file, *offset) else { return };
    let inside = offset.checked_sub(code.offset).and_then(|inside| usize::try_from(inside).ok());
    assert!(inside.is_some_and(|inside| inside < code.bytes.len()), "{function:?} is not in its code");
    let targets = Targets::of(&code);
    let Some(site) = choose(&code, *offset, &targets) else { return };
    assert_eq!(site.offset, offset.saturating_add(site.into_function_bytes), "{site:?} of {function:?}");
    assert!(site.into_function_bytes < 32, "{site:?}");
    match site.choice {
        Choice::EntryEmulated | Choice::EntryStepped => assert_eq!(site.into_function_bytes, 0),
        Choice::LaterEmulated => {
            let behind_entry = offset.saturating_add(1)..=site.offset;
            assert!(site.into_function_bytes > 0, "{site:?}");
            assert!(!targets.any_in(behind_entry), "jumps lead into {site:?}");
        }
    }
}

fn check_allocator(file: &File, has_allocator: bool) {
    let module = Module::held("/lib/libc.so.6".to_owned(), file.try_clone().expect("a descriptor"));
    match allocator::examine(0, &Specimen::of(&module).expect("it is open"), &Places::default(), true) {
        Ok(allocators) => {
            let hooks: Vec<_> = allocators.iter().flat_map(|allocator| &allocator.hooks).collect();
            assert!(!hooks.is_empty(), "{allocators:?}");
            for Hook { names, .. } in hooks {
                assert!(!names.is_empty(), "{allocators:?}");
            }
        }
        Err(Verdict::NoAllocator) => assert!(!has_allocator, "malloc is overlooked"),
        Err(_) => {}
    }
}

/// The lines of `/proc/PID/maps`, at two looks, and as they are in `smaps`.
pub fn maps(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let length = usize::from(input.half());
    let (first, second) = (input.bytes(length), input.rest());
    let mut space = AddressSpace::default();
    for look in [first, second] {
        check_sizes(look);
        let Ok(maps) = read(look) else { continue };
        let before = space.ranges().len();
        // There is no thread 0, and there are no files.
        space.update(0, maps.clone());
        check_ranges(&space);
        let known = space.ranges().len();
        assert!(known - before <= maps.len(), "more ranges than mappings");
        space.update(0, maps);
        assert_eq!(space.ranges().len(), known, "the same look twice finds something new");
        check_ranges(&space);
    }
}

fn check_sizes(smaps: &[u8]) {
    let Ok(usage) = memory::read(smaps, &StackPointers::default()) else { return };
    let largest =
        [usage.anonymous_bytes, usage.file_bytes, usage.shared_bytes, usage.other_bytes].into_iter().max();
    assert!(Some(usage.resident_bytes()) >= largest, "{usage:?}");
    assert!(!smaps.is_empty() || usage.resident_bytes() == 0, "{usage:?}");
}

fn check_ranges(space: &AddressSpace) {
    let current: Vec<&Range> = space.current().collect();
    for range in &current {
        for address in [range.start, range.end.saturating_sub(1)] {
            let found = space.find(address).and_then(|index| space.ranges().get(index));
            assert!(found.is_some_and(|found| std::ptr::eq(found, *range)), "{address:#x} in {range:x?}");
            assert_ne!(space.place(address), Place::Nothing);
        }
        for address in [range.start.checked_sub(1), Some(range.end)].into_iter().flatten() {
            let holds = |range: &&&Range| range.start <= address && address < range.end;
            let other = current.iter().find(holds).map(|range| range.start);
            let found = space.find(address).and_then(|index| space.ranges().get(index));
            assert_eq!(found.map(|range| range.start), other, "{address:#x}");
        }
    }
}
