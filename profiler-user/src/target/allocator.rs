//! Which allocators a process has, and where to probe them.

use std::{
    collections::{BTreeSet, HashSet},
    fs::File,
    sync::{Arc, LazyLock},
};

use object::ReadRef;
use profiler_common::call::Shape;

use super::{
    calls::{self, Whose},
    elf::{self, ElfError},
    family::{self, FAMILIES, Family},
    functions::Functions,
    hooks::{self, Hook},
    image::{Cache, Image},
    maps::{AddressSpace, Content},
    mini,
    separate::Places,
    specimen::Specimen,
    text::Text,
};

/// An allocator in a mapped file.
#[derive(Clone, Debug)]
pub struct Allocator {
    /// What kind it is.
    pub family: &'static Family,
    /// The file, by its place in [`AddressSpace::modules`].
    pub module: usize,
    /// The functions to probe.
    pub hooks: Vec<Hook>,
    /// Functions that cannot be probed, or not wholly, with the reason.
    pub unhooked: Vec<(String, String)>,
    /// What calls return to that its functions make: offsets in the file. None for those that lead to the kernel.
    pub calls: Calls,
}

/// What calls of an allocator return to: offsets in its file.
#[derive(Clone, Debug, Default)]
pub struct Calls {
    /// All that its functions make, themselves or through others.
    pub all: BTreeSet<u64>,
    /// Those that its functions make which allocate and are probed.
    pub of_allocating: BTreeSet<u64>,
}

/// What was found in a mapped file that is not probed.
#[derive(Clone, Debug)]
pub struct Passed {
    /// The file, by its place in [`AddressSpace::modules`].
    pub module: usize,
    /// What was found.
    pub verdict: Verdict,
}

/// Why a mapped file is not probed.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// It has no allocator.
    NoAllocator,
    /// It has no symbols that could tell, and is the only file that the process runs.
    Stripped,
    /// It has an allocator none of whose functions can be probed.
    Unprobed(Vec<(String, String)>),
    /// The file behind the mapping could not be opened.
    Unopened,
    /// The file could not be read.
    Unreadable(Arc<ElfError>),
}

impl Verdict {
    /// The verdict in words.
    pub fn text(&self) -> String {
        match self {
            Self::NoAllocator => "has no malloc".to_owned(),
            Self::Stripped => {
                "is static and stripped, so that its malloc cannot be found; its debug package, a debug file in a --debug-dir, or the file before it was stripped, by --symbols, would tell"
                    .to_owned()
            }
            Self::Unprobed(functions) => {
                let first = functions.first().map(|(name, reason)| format!(": {name} {reason}"));
                format!("has a malloc of its own that cannot be probed{}", first.unwrap_or_default())
            }
            Self::Unopened => "could not be opened".to_owned(),
            Self::Unreadable(error) => format!("could not be read: {error}"),
        }
    }
}

/// Everything that was looked at in a process.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// The allocators that can be probed.
    pub allocators: Vec<Allocator>,
    /// The files that are not.
    pub passed: Vec<Passed>,
    /// Whether the functions are looked for as well by which programs map memory themselves.
    pub with_mappings: bool,
}

impl Findings {
    /// The files that have a `malloc` which is not probed.
    pub fn unprobed(&self, space: &AddressSpace) -> Vec<String> {
        let passed = self.passed.iter().filter(|passed| matches!(passed.verdict, Verdict::Unprobed(_)));
        let halves = self.allocators.iter().filter(|allocator| allocator.lacks_malloc());
        let modules = passed.map(|passed| passed.module).chain(halves.map(|allocator| allocator.module));
        modules.filter_map(|module| space.modules().get(module)).map(|module| module.path.clone()).collect()
    }

    /// The names of the allocators, in the order in which they were found: what a label says.
    pub fn labels(&self, space: &AddressSpace) -> Vec<String> {
        self.allocators.iter().map(|allocator| allocator.label(space)).collect()
    }

    /// The allocators with their numbers, from 1 on; all that come after the 255th have that number.
    pub fn numbered(&self) -> impl Iterator<Item = (u8, &Allocator)> {
        let numbers = (1..=u8::MAX).chain(std::iter::repeat(u8::MAX));
        numbers.zip(&self.allocators)
    }

    /// Whether a file was looked at.
    fn knows(&self, module: usize) -> bool {
        self.allocators.iter().any(|allocator| allocator.module == module)
            || self.passed.iter().any(|passed| passed.module == module)
    }
}

impl Allocator {
    /// Whether its malloc is among what cannot be probed.
    fn lacks_malloc(&self) -> bool {
        let malloc = format!("{}malloc", self.family.prefix);
        let is_malloc = |name: &str| name == malloc || name == "malloc";
        self.unhooked.iter().any(|(name, _)| is_malloc(name))
    }

    /// Its name, for people: that of its kind, or of its file where nothing else is known.
    pub fn label(&self, space: &AddressSpace) -> String {
        if self.family.has_marks() {
            return self.family.name.to_owned();
        }
        let path = space.modules().get(self.module).map_or("?", |module| module.path.as_str());
        format!("malloc of {}", path.rsplit('/').next().unwrap_or(path))
    }
}

/// Looks for allocators in every file that is mapped executable and was not looked at before.
pub fn find(space: &AddressSpace, places: &Places, findings: &mut Findings) {
    find_beside(space, places, findings, |_, _| {});
}

/// The same, while something else is looked for in these files: each that could be opened is handed to `other`, with its place
/// in [`AddressSpace::modules`].
pub(crate) fn find_beside(
    space: &AddressSpace,
    places: &Places,
    findings: &mut Findings,
    mut other: impl FnMut(usize, &Specimen<'_>),
) {
    let mut files = Vec::new();
    for range in space.current() {
        let Content::Module(index) = range.content else { continue };
        // The vDSO, which is in no file, has none.
        let Some(module) = space.modules().get(index).filter(|module| module.inode.is_some()) else {
            continue;
        };
        if !files.contains(&index) {
            files.push(index);
        }
        if findings.knows(index) {
            continue;
        }
        let specimen = Specimen::of(module);
        let found = specimen.as_ref().ok_or(Verdict::Unopened);
        match found.and_then(|specimen| examine(index, specimen, places, findings.with_mappings)) {
            Ok(allocators) => findings.allocators.extend(allocators),
            Err(verdict) => findings.passed.push(Passed { module: index, verdict }),
        }
        if let Some(specimen) = &specimen {
            other(index, specimen);
        }
    }
    // A process of one file has its allocator in there, or none.
    if let ([only], [passed], []) = (&*files, &mut *findings.passed, &*findings.allocators)
        && passed.module == *only
        && matches!(passed.verdict, Verdict::NoAllocator)
    {
        passed.verdict = Verdict::Stripped;
    }
}

/// Every name that is looked for.
static WANTED: LazyLock<HashSet<String>> = LazyLock::new(|| {
    let functions = FAMILIES.iter().chain([&family::OTHER, &family::MAPPINGS]).flat_map(Family::functions);
    functions.map(|(name, _)| name).collect()
});

static MARKS: LazyLock<HashSet<&str>> =
    LazyLock::new(|| FAMILIES.iter().flat_map(|family| family.marks).copied().collect());

/// The allocators in a file, at least one.
pub(super) fn examine(
    index: usize,
    specimen: &Specimen<'_>,
    places: &Places,
    with_mappings: bool,
) -> Result<Vec<Allocator>, Verdict> {
    let functions = Functions::of_content(&specimen.content, &WANTED, &MARKS);
    let mut functions = functions.map_err(|error| Verdict::Unreadable(Arc::new(error)))?;
    if families(&functions).next().is_none() {
        look_elsewhere(&mut functions, specimen, places);
    }
    let mut text = Text::new(&specimen.content);
    let mut taken = BTreeSet::new();
    let mut allocators = Vec::new();
    let mut unprobed = Vec::new();
    for family in families(&functions) {
        let (hooks, unhooked) = hooks::find(family, &functions, &mut text, &mut taken);
        if hooks.is_empty() {
            unprobed.extend(unhooked);
        } else {
            let entry = |hook: &Hook| hook.site.offset - hook.site.into_function_bytes;
            let mut part = |to, most_bytes| {
                let to = text.behind_stub(to, &functions)?;
                text.part(to, most_bytes, &functions)
            };
            let allocating = hooks.iter().filter(|hook| hook.shape.convention().is_some());
            let calls = Calls {
                all: calls::returned_to(hooks.iter().map(entry), Whose::All, &mut part),
                of_allocating: calls::returned_to(allocating.map(entry), Whose::Own, &mut part),
            };
            allocators.push(Allocator { family, module: index, hooks, unhooked, calls });
        }
    }
    if with_mappings {
        allocators.extend(mappings(index, specimen.content.file(), &functions, &mut text, &mut taken));
    }
    if !allocators.is_empty() {
        return Ok(allocators);
    }
    Err(if unprobed.is_empty() { Verdict::NoAllocator } else { Verdict::Unprobed(unprobed) })
}

/// The variable in which the C library keeps where the data segment ends.
const BREAK: &str = "__curbrk";

/// The functions of a file by which programs map memory themselves, if all are to use them.
fn mappings(
    index: usize,
    file: &File,
    functions: &Functions,
    text: &mut Text<'_, '_>,
    taken: &mut BTreeSet<u64>,
) -> Option<Allocator> {
    let family = &family::MAPPINGS;
    let is_public = |name| functions.get(name).any(|function| !function.is_local);
    if !(is_public("mmap") && is_public("munmap")) {
        return None;
    }
    let (mut hooks, mut unhooked) = hooks::find(family, functions, text, taken);
    let state = elf::exported_address(file, BREAK).ok().flatten();
    hooks.retain_mut(|hook| {
        if hook.shape != Shape::Break {
            return true;
        }
        let probe = functions.address_at(hook.site.offset);
        let distance = state.zip(probe).map(|(state, probe)| state.wrapping_sub(probe).cast_signed());
        hook.state_distance = distance.filter(|distance| i32::try_from(*distance).is_ok());
        if hook.state_distance.is_none() {
            let reason = format!("does not tell where the data segment ends: there is no {BREAK} in reach");
            unhooked.push((hook.names.join(", "), reason));
        }
        hook.state_distance.is_some()
    });
    (!hooks.is_empty()).then(|| Allocator { family, module: index, hooks, unhooked, calls: Calls::default() })
}

/// The kinds of allocators that the functions are of.
fn families(functions: &Functions) -> impl Iterator<Item = &'static Family> {
    let known = FAMILIES.iter().filter(|family| {
        family.marks.iter().any(|mark| functions.has_mark(mark))
            && family.functions().any(|(name, _)| functions.get(&name).next().is_some())
    });
    // Others may have functions of their own by these names; one that all are to use is an allocator.
    let is_public = |name| functions.get(name).any(|function| !function.is_local);
    let known: Vec<&Family> = known.collect();
    let is_other =
        !known.iter().any(|family| family.has_standard) && is_public("malloc") && is_public("free");
    known.into_iter().chain(is_other.then_some(&family::OTHER))
}

/// Looks into the tables that were split off or packed.
fn look_elsewhere(functions: &mut Functions, specimen: &Specimen<'_>, places: &Places) {
    let Ok(image) = Image::parse(&specimen.content) else { return };
    match mini::unpack(&image) {
        Ok(Some(bytes)) => look_into(functions, bytes.as_slice()),
        Ok(None) => {}
        Err(error) => tracing::debug!(file = specimen.module.path, %error, "mini debug information not read"),
    }
    if let Some(separate) = specimen.separate(places) {
        look_into(functions, &Cache::new(separate));
    }
}

fn look_into<'data, R: ReadRef<'data>>(functions: &mut Functions, data: R) {
    if let Ok(image) = Image::parse(data) {
        functions.look_through(&image, &WANTED, &MARKS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::{hooks::Back, maps::Module};

    fn names(allocator: &Allocator) -> Vec<&str> {
        allocator.hooks.iter().flat_map(|hook| &hook.names).map(String::as_str).collect()
    }

    fn library(path: &str) -> Allocator {
        let file = File::open(path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let module = Module::held(path.to_owned(), file);
        let mut found = examine(0, &Specimen::of(&module).unwrap(), &Places::default(), false)
            .unwrap_or_else(|verdict| panic!("{path}: {verdict:?}"));
        assert_eq!(found.len(), 1, "{path}: {found:?}");
        found.remove(0)
    }

    #[test]
    fn our_own_glibc_is_found_whole() {
        let mut space = AddressSpace::default();
        space.refresh(std::process::id()).unwrap();
        let mut findings = Findings::default();
        find(&space, &Places::default(), &mut findings);
        let [glibc] = findings.allocators.as_slice() else { panic!("{findings:?}") };
        assert_eq!(glibc.label(&space), "glibc");
        for name in [
            "malloc",
            "calloc",
            "realloc",
            "reallocarray",
            "posix_memalign",
            "aligned_alloc",
            "memalign",
            "valloc",
            "pvalloc",
            "free",
            "cfree",
        ] {
            assert!(names(glibc).contains(&name), "{name} in {glibc:?}");
        }
        assert!(
            findings.passed.iter().all(|passed| matches!(passed.verdict, Verdict::NoAllocator)),
            "{findings:?}"
        );
    }

    #[test]
    fn debians_allocators_are_found_with_all_their_operators() {
        for (path, family, own) in [
            ("/lib/x86_64-linux-gnu/libjemalloc.so.2", "jemalloc", "xallocx"),
            ("/lib/x86_64-linux-gnu/libtcmalloc.so.4", "tcmalloc", "tc_newarray_aligned"),
            ("/lib/x86_64-linux-gnu/libmimalloc.so.2", "mimalloc", "mi_heap_recalloc"),
        ] {
            let allocator = library(path);
            assert_eq!(allocator.family.name, family);
            assert!(allocator.unhooked.is_empty(), "{path}: {:?}", allocator.unhooked);
            let names = names(&allocator);
            for name in ["malloc", "free", "_ZnwmSt11align_val_tRKSt9nothrow_t", "_ZdaPvm", own] {
                assert!(names.contains(&name), "{name} in {names:?}");
            }
            for hook in &allocator.hooks {
                let throws = hook.names.iter().any(|name| family::may_throw(name));
                match &hook.back {
                    Back::Rets(offsets) => assert!(throws && !offsets.is_empty(), "{hook:?}"),
                    Back::ReturnProbe | Back::Unseen => assert!(!throws, "{hook:?}"),
                }
            }
        }
    }
}
