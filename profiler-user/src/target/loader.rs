//! The dynamic loader of a process, and where it says what it is doing (the `r_debug` protocol of <link.h>).

use super::{
    elf,
    maps::{AddressSpace, Content},
};

/// The function that the loader calls at every change of its state.
pub const ANNOUNCEMENT: &str = "_dl_debug_state";

/// The variable that holds glibc's state.
const STATE: &str = "_r_debug";

/// How the names of most loaders begin: glibc's and musl's.
const NAMES: [&str; 2] = ["ld-", "ld."];

/// Offset of `r_state` in `struct r_debug`: behind an int, padded, and two pointers.
pub const R_STATE: u64 = 24;

/// `RT_CONSISTENT` of <link.h>: no objects are being added or removed.
pub const RT_CONSISTENT: u32 = 0;

/// A loader that is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loader {
    /// Its file, by its place in [`AddressSpace::modules`].
    pub module: usize,
    /// Offset in the file of the function that it calls at every change.
    pub announcement_offset: u64,
    /// Where it is mapped.
    pub announcement_address: u64,
    /// Where the state lies; `None` where there is none to be found. musl's announces itself only when it has added objects, and
    /// removes none (`_dl_debug_state` in ldso/dynlink.c, musl 1.2.3).
    pub state_address: Option<u64>,
}

impl Loader {
    /// How far behind the function the state lies, wherever the file is mapped; wraps where it lies before. 0 where there is
    /// none.
    pub fn state_distance(&self) -> u64 {
        self.state_address.map_or(0, |address| address.wrapping_sub(self.announcement_address))
    }
}

/// The loader among the files that are mapped; `None` where there is none that announces itself.
pub fn find(space: &AddressSpace) -> Option<Loader> {
    // Most have such a name, and a process has hundreds of files.
    let is_named_so = |module: usize| {
        space.modules().get(module).is_some_and(|module| {
            module
                .path
                .rsplit('/')
                .next()
                .is_some_and(|name| NAMES.iter().any(|begin| name.starts_with(begin)))
        })
    };
    let modules = || {
        space.current().filter_map(|range| match range.content {
            Content::Module(module) => Some((range, module)),
            Content::Unnamed(_) => None,
        })
    };
    let named = modules().filter(|(_, module)| is_named_so(*module));
    let others = modules().filter(|(_, module)| !is_named_so(*module));
    named.chain(others).find_map(|(range, module)| {
        let file = space.modules().get(module)?.file.as_deref()?;
        let announcement = elf::exported(file, &[ANNOUNCEMENT]).ok()?.into_iter().next()?;
        let state = elf::exported_address(file, STATE).ok().flatten();
        let stated = elf::address_at(file, announcement.offset).ok().flatten()?;
        let into_range = announcement.offset.checked_sub(range.offset)?;
        let announcement_address = range.start.checked_add(into_range)?;
        // Where the file's addresses lie in the process; differences wrap for files linked above where they are mapped.
        let bias = announcement_address.wrapping_sub(stated);
        Some(Loader {
            module,
            announcement_offset: announcement.offset,
            announcement_address,
            state_address: state.map(|state| bias.wrapping_add(state).wrapping_add(R_STATE)),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_loader_is_found_and_consistent() {
        let mut space = AddressSpace::default();
        space.refresh(std::process::id()).unwrap();
        let loader = find(&space).expect("tests are linked dynamically");
        let path = &space.modules()[loader.module].path;
        assert!(path.contains("ld-linux"), "{path}");
        // SAFETY: the loader's own variable, a 32-bit number that stays mapped for the life of the process.
        let state = unsafe { (loader.state_address.unwrap() as *const u32).read_volatile() };
        assert_eq!(state, RT_CONSISTENT);
    }
}
