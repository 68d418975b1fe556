//! Which allocators a process has, and where to probe them.

use std::collections::BTreeSet;

use profiler_common::call::Shape;

use super::{
    elf::{self, ElfError, Function},
    maps::{AddressSpace, Content, Module},
    site::{self, Site},
};

/// The functions of glibc's allocator, with their shapes.
const GLIBC: [(&str, Shape); 11] = [
    ("malloc", Shape::Size),
    ("calloc", Shape::CountSize),
    ("realloc", Shape::Resize),
    ("reallocarray", Shape::ResizeCount),
    ("posix_memalign", Shape::OutAlignSize),
    ("aligned_alloc", Shape::AlignSize),
    ("memalign", Shape::AlignSize),
    ("valloc", Shape::Size),
    ("pvalloc", Shape::Size),
    ("free", Shape::Free),
    ("cfree", Shape::Free),
];

/// A function that only glibc has; it tells glibc from whatever else exports `malloc`.
const GLIBC_MARK: &str = "gnu_get_libc_version";

/// An allocator in a mapped file.
#[derive(Clone, Debug)]
pub struct Allocator {
    /// What it is.
    pub name: &'static str,
    /// The file, by its place in [`AddressSpace::modules`].
    pub module: usize,
    /// The functions to probe.
    pub hooks: Vec<Hook>,
    /// Functions that cannot be probed, with the reason.
    pub unhooked: Vec<(String, String)>,
}

/// A function to probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// Its names: aliases stand at the same place.
    pub names: Vec<String>,
    /// How it takes its arguments.
    pub shape: Shape,
    /// Where the probe goes.
    pub site: Site,
}

/// What was found in a mapped file that is not an allocator we know.
#[derive(Debug)]
pub struct Passed {
    /// The file, by its place in [`AddressSpace::modules`].
    pub module: usize,
    /// What was found.
    pub verdict: Verdict,
}

/// Why a mapped file is not probed.
#[derive(Debug)]
pub enum Verdict {
    /// It has no allocator.
    NoAllocator,
    /// It exports `malloc` but is not an allocator that we know.
    UnknownAllocator,
    /// The file behind the mapping could not be opened.
    Unopened,
    /// The file could not be read.
    Unreadable(ElfError),
}

impl Verdict {
    /// The verdict in words.
    pub fn text(&self) -> String {
        match self {
            Self::NoAllocator => "exports no malloc".to_owned(),
            Self::UnknownAllocator => "exports malloc, but is not an allocator that heaptap knows".to_owned(),
            Self::Unopened => "could not be opened".to_owned(),
            Self::Unreadable(error) => format!("could not be read: {error}"),
        }
    }
}

/// Everything that was looked at in a process.
#[derive(Debug, Default)]
pub struct Findings {
    /// The allocators that can be probed.
    pub allocators: Vec<Allocator>,
    /// The files that are not.
    pub passed: Vec<Passed>,
}

impl Findings {
    /// The files that export `malloc` but are not allocators that we know.
    pub fn unprobed(&self, space: &AddressSpace) -> Vec<String> {
        self.passed
            .iter()
            .filter(|passed| matches!(passed.verdict, Verdict::UnknownAllocator))
            .filter_map(|passed| space.modules().get(passed.module))
            .map(|module| module.path.clone())
            .collect()
    }
}

/// Looks for allocators in every file that is mapped executable.
pub fn find(space: &AddressSpace) -> Findings {
    let mut findings = Findings::default();
    let mut seen = BTreeSet::new();
    for range in space.current() {
        let Content::Module(index) = range.content else { continue };
        if !seen.insert(index) {
            continue;
        }
        // The vDSO, which is in no file, has none.
        let Some(module) = space.modules().get(index).filter(|module| module.inode.is_some()) else {
            continue;
        };
        match examine(index, module) {
            Ok(allocator) => findings.allocators.push(allocator),
            Err(verdict) => findings.passed.push(Passed { module: index, verdict }),
        }
    }
    findings
}

pub(super) fn examine(index: usize, module: &Module) -> Result<Allocator, Verdict> {
    let file = module.file.as_deref().ok_or(Verdict::Unopened)?;
    let names: Vec<&str> = GLIBC.iter().map(|(name, _)| *name).chain([GLIBC_MARK]).collect();
    let functions = elf::exported(file, &names).map_err(Verdict::Unreadable)?;
    let has = |name: &str| functions.iter().find(|function| function.name == name);
    let Some(malloc) = has("malloc") else { return Err(Verdict::NoAllocator) };
    if has(GLIBC_MARK).is_none() {
        return Err(Verdict::UnknownAllocator);
    }
    let code = elf::code_around(file, malloc.offset).map_err(Verdict::Unreadable)?;
    let targets = code.as_ref().map(site::branch_targets).unwrap_or_default();
    let mut hooks: Vec<Hook> = Vec::new();
    let mut unhooked = Vec::new();
    for (name, shape) in GLIBC {
        let found: Vec<&Function> = functions.iter().filter(|function| function.name == name).collect();
        if found.is_empty() {
            unhooked.push((name.to_owned(), "this file does not have it".to_owned()));
        }
        for function in found {
            let site = code.as_ref().and_then(|code| site::choose(code, function.offset, &targets));
            let Some(site) = site else {
                unhooked.push((name.to_owned(), "no code where its symbol points".to_owned()));
                continue;
            };
            let alias = hooks.iter_mut().find(|hook| hook.site.offset == site.offset);
            match alias {
                Some(hook) if hook.names.iter().any(|known| known == name) => {}
                Some(hook) if hook.shape == shape => hook.names.push(name.to_owned()),
                Some(hook) => {
                    unhooked
                        .push((name.to_owned(), format!("shares its code with {}", hook.names.join(", "))));
                }
                None => hooks.push(Hook { names: vec![name.to_owned()], shape, site }),
            }
        }
    }
    Ok(Allocator { name: "glibc", module: index, hooks, unhooked })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_glibc_is_found_whole() {
        let mut space = AddressSpace::default();
        space.refresh(std::process::id()).unwrap();
        let findings = find(&space);
        let [glibc] = findings.allocators.as_slice() else { panic!("{findings:?}") };
        let hooked: Vec<_> = glibc.hooks.iter().flat_map(|hook| &hook.names).collect();
        for (name, _) in GLIBC {
            assert!(hooked.iter().any(|hooked| *hooked == name), "{name} in {glibc:?}");
        }
        assert!(
            findings.passed.iter().all(|passed| matches!(passed.verdict, Verdict::NoAllocator)),
            "{findings:?}"
        );
    }
}
