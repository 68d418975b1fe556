//! What a process has mapped: its executable ranges, with the files behind them held open.
//!
//! A file that is held can still be read after the process has ended, or has replaced or deleted it.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::{fd::AsRawFd, unix::fs::FileExt},
    path::PathBuf,
    sync::Arc,
};

use rustix::fs::{MemfdFlags, memfd_create};

use super::{
    mapping::{Mapping, executable},
    process::{ProcessError, live_thread},
    root::RootName,
    version::Version,
};

/// A file that is mapped executable.
#[derive(Clone, Debug)]
pub struct Module {
    /// The file's name, as the process has it: in its mount namespace, from its root directory on.
    pub path: String,
    /// The file, opened through the mapping itself; `None` where that was refused.
    pub file: Option<Arc<File>>,
    /// The build id that the linker left in it.
    pub build_id: Option<Vec<u8>>,
    /// What the file was when it was opened.
    pub(crate) version: Option<Version>,
    /// Which file it is; `None` for the vDSO, which is in no file and held as a copy.
    pub(crate) inode: Option<Inode>,
}

/// A file, as the kernel tells of mappings: its device, major and minor, and its number there.
pub(crate) type Inode = (u32, u32, u64);

/// The kernel's name for it.
const VDSO: &[u8] = b"[vdso]";

/// The vDSO has two pages or three; nothing of that name is longer than this.
const VDSO_LIMIT_BYTES: u64 = 1 << 20;

/// A file that is written to while it is mapped is another from then on, but not any number of times.
const VERSIONS_LIMIT: usize = 8;

/// A range of addresses that is mapped executable.
#[derive(Clone, Debug)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// Offset in the file of the first address, in bytes.
    pub offset: u64,
    /// What is mapped.
    pub content: Content,
}

/// What is mapped in a range.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Content {
    /// A file, by its place in [`AddressSpace::modules`].
    Module(usize),
    /// Code that no file stands for, by the kernel's name for it, such as `[vdso]`; empty for anonymous memory.
    Unnamed(String),
}

/// Every executable range that a process was ever seen to have, and the files behind them.
///
/// Ranges are never taken away: a stack refers to the range that it was found in.
#[derive(Clone, Debug, Default)]
pub struct AddressSpace {
    modules: Vec<Module>,
    /// The place of a file in `modules`, and how many there are of it.
    by_inode: HashMap<Inode, (usize, usize)>,
    ranges: Vec<Range>,
    /// The places in `ranges`, by start, end and offset.
    known: HashMap<(u64, u64, u64, Content), usize>,
    /// The ranges mapped at the last look, as places in `ranges`, by rising address.
    current: Vec<usize>,
    trampoline: Option<u64>,
    /// The vDSO, as a place in `modules`.
    vdso: Option<usize>,
}

impl Module {
    /// A file as it is now, under a name, that is mapped from nowhere.
    pub fn held(path: String, file: File) -> Self {
        let version = Version::of(&file);
        let build_id = version.build_id().map(<[u8]>::to_vec);
        Self { path, file: Some(Arc::new(file)), build_id, version: Some(version), inode: None }
    }

    /// A path that leads to the held file for as long as it is held, to be used by this process only.
    pub fn held_path(&self) -> Option<PathBuf> {
        Some(PathBuf::from(format!("/proc/self/fd/{}", self.file.as_ref()?.as_raw_fd())))
    }

    /// Whether the file has other content now than when it was opened, so that it tells nothing about what was mapped.
    pub(crate) fn has_changed(&self) -> bool {
        let held = self.file.as_deref().zip(self.version.as_ref());
        held.is_some_and(|(file, version)| !version.is_of(file))
    }
}

impl AddressSpace {
    /// An address space in which nobody lives, for stacks that were kept: all of `ranges` are mapped.
    pub fn of(modules: Vec<Module>, ranges: Vec<Range>) -> Self {
        let mut current: Vec<usize> = (0..ranges.len()).collect();
        current.sort_by_key(|&index| ranges.get(index).map(|range| range.start));
        Self { modules, ranges, current, ..Self::default() }
    }

    /// Looks at the process's mappings; what was seen before stays.
    pub fn refresh(&mut self, pid: u32) -> Result<(), ProcessError> {
        let thread = live_thread(pid).ok_or(ProcessError::Gone { pid })?;
        self.update(thread, executable(pid, thread)?);
        Ok(())
    }

    /// Takes in the executable mappings that a thread's process has now.
    pub(super) fn update(&mut self, thread: u32, maps: Vec<Mapping>) {
        let (current, trampoline) = self.take_in(thread, maps);
        self.current = current;
        // A program that took another's place has its own.
        self.trampoline = trampoline;
    }

    /// The places in `ranges` of mappings, and the start of the page of hijacked return addresses.
    fn take_in(&mut self, thread: u32, maps: Vec<Mapping>) -> (Vec<usize>, Option<u64>) {
        let mut current = Vec::new();
        let mut trampoline = None;
        let root = RootName::of(thread);
        for map in maps {
            let Mapping { start, end, offset, .. } = map;
            if map.name == b"[uprobes]" {
                trampoline = Some(start);
            }
            let content = match map.inode {
                Some(inode) => Content::Module(self.module(thread, &map, inode, &root)),
                None if map.name == VDSO => {
                    self.vdso(thread, &map).map_or_else(|| Content::Unnamed(name(&map)), Content::Module)
                }
                None => Content::Unnamed(name(&map)),
            };
            let next = self.ranges.len();
            let index = *self.known.entry((start, end, offset, content.clone())).or_insert(next);
            if index == next {
                self.ranges.push(Range { start, end, offset, content });
            }
            current.push(index);
        }
        (current, trampoline)
    }

    /// Looks at the mappings of a process that may have ended or replaced its program meanwhile: then those that were seen
    /// stay as they are, since what is asked about is of that time.
    pub fn look_again(&mut self, pid: u32) {
        let Some(thread) = live_thread(pid) else { return };
        match executable(pid, thread) {
            Ok(maps) => self.update_same(thread, maps),
            Err(error) => tracing::debug!(pid, %error, "mappings not read again"),
        }
    }

    /// Takes in mappings, unless they are another program's: one that goes on keeps the code that it is in.
    fn update_same(&mut self, thread: u32, maps: Vec<Mapping>) {
        let (current, trampoline) = self.take_in(thread, maps);
        if self.current.is_empty() || current.iter().any(|range| self.current.contains(range)) {
            self.current = current;
            self.trampoline = trampoline;
        }
    }

    /// The mapped files, in the order in which they were first seen; the first is not always the executable.
    pub fn modules(&self) -> &[Module] {
        &self.modules
    }

    /// Whether code of a file, by its place in [`AddressSpace::modules`], was mapped at the last look.
    pub fn has(&self, module: usize) -> bool {
        self.current().any(|range| range.content == Content::Module(module))
    }

    /// Every range ever seen.
    pub fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    /// The ranges that were mapped at the last look, by rising address.
    pub fn current(&self) -> impl Iterator<Item = &Range> {
        self.current.iter().filter_map(|&index| self.ranges.get(index))
    }

    /// The place in [`AddressSpace::ranges`] of the range that `address` lay in at the last look.
    pub fn find(&self, address: u64) -> Option<usize> {
        let start = |&index: &usize| self.ranges.get(index).map_or(0, |range| range.start);
        let after = self.current.partition_point(|index| start(index) <= address);
        let index = *self.current.get(after.checked_sub(1)?)?;
        (address < self.ranges.get(index)?.end).then_some(index)
    }

    /// Start of the page to which the kernel makes hijacked return addresses point, once there is one.
    pub const fn trampoline(&self) -> Option<u64> {
        self.trampoline
    }

    fn vdso(&mut self, thread: u32, map: &Mapping) -> Option<usize> {
        if self.vdso.is_none() {
            let file = read_vdso(thread, map)
                .inspect_err(|error| tracing::debug!(%error, "the vDSO cannot be read"))
                .ok()?;
            self.modules.push(Module::held(name(map), file));
            self.vdso = Some(self.modules.len() - 1);
        }
        self.vdso
    }

    fn module(&mut self, thread: u32, map: &Mapping, inode: Inode, root: &RootName) -> usize {
        let (last, versions) = self.by_inode.get(&inode).copied().unwrap_or_default();
        if versions == VERSIONS_LIMIT
            || self.modules.get(last).is_some_and(|module| versions > 0 && !module.has_changed())
        {
            return last;
        }
        let Mapping { start, end, name, .. } = map;
        // The link leads to the mapped file itself (proc(5), `/proc/pid/map_files`), whatever its name means by now
        // and in whichever namespace.
        let file = File::open(format!("/proc/{thread}/map_files/{start:x}-{end:x}")).ok().map(Arc::new);
        let version = file.as_deref().map(Version::of);
        let build_id = version.as_ref().and_then(|version| version.build_id().map(<[u8]>::to_vec));
        let name = root.inside(name.strip_suffix(b" (deleted)").unwrap_or(name));
        let path = String::from_utf8_lossy(name).into_owned();
        self.modules.push(Module { path, file, build_id, version, inode: Some(inode) });
        let module = self.modules.len() - 1;
        self.by_inode.insert(inode, (module, versions + 1));
        module
    }
}

/// What the kernel has every process map for calls that need not enter it: an ELF image that is in no file, with its rules
/// and names like any other. It is the same from beginning to end.
fn read_vdso(thread: u32, map: &Mapping) -> io::Result<File> {
    let length = map.end.saturating_sub(map.start);
    if length > VDSO_LIMIT_BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
    File::open(format!("/proc/{thread}/mem"))?.read_exact_at(&mut bytes, map.start)?;
    let file = File::from(memfd_create("vdso", MemfdFlags::CLOEXEC)?);
    file.write_all_at(&bytes, 0)?;
    Ok(file)
}

/// The name of a mapping, as far as it is text.
fn name(map: &Mapping) -> String {
    String::from_utf8_lossy(&map.name).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::mapping::read;

    #[test]
    fn our_own_code_is_found_in_our_executable_and_looking_again_changes_nothing() {
        let mut space = AddressSpace::default();
        space.refresh(std::process::id()).unwrap();
        let here =
            our_own_code_is_found_in_our_executable_and_looking_again_changes_nothing as *const () as u64;
        let index = space.find(here).expect("our code is mapped");
        let range = &space.ranges()[index];
        let Content::Module(module) = range.content else { panic!("{range:?}") };
        assert_eq!(PathBuf::from(&space.modules()[module].path), std::env::current_exe().unwrap());
        let before = space.ranges().len();
        space.refresh(std::process::id()).unwrap();
        assert_eq!(space.find(here), Some(index));
        assert_eq!(space.ranges().len(), before);
        assert_eq!(space.find(0), None);
    }

    #[test]
    fn the_vdso_is_held_like_a_file() {
        let mut space = AddressSpace::default();
        space.refresh(std::process::id()).unwrap();
        space.refresh(std::process::id()).unwrap();
        let vdso: Vec<_> = space.modules().iter().filter(|module| module.path == "[vdso]").collect();
        let [vdso] = vdso[..] else { panic!("{vdso:?}") };
        let file = vdso.file.as_deref().unwrap();
        assert!(crate::target::elf::is_elf(file));
        assert!(vdso.build_id.is_some());
        assert!(!vdso.has_changed());
    }

    #[test]
    fn what_was_mapped_stays_known_while_the_program_that_took_its_place_is_not_asked_about() {
        let maps = |lines: &str| read(lines.as_bytes()).unwrap();
        let before =
            "1000-2000 r-xp 00000000 fe:01 1      /before\n5000-6000 r-xp 00000000 fe:01 2 /library\n";
        let mut space = AddressSpace::default();
        space.update_same(0, maps(before));
        assert!(space.find(0x1000).is_some(), "the first look");
        space.update_same(0, maps("9000-a000 r-xp 00000000 fe:01 2      /library\n"));
        assert!(space.find(0x1000).is_some() && space.find(0x9000).is_none(), "another program's");
        space.update_same(0, maps("1000-2000 r-xp 00000000 fe:01 1      /before\n"));
        assert!(space.find(0x1000).is_some() && space.find(0x5000).is_none(), "a library has gone");
        space.update(0, maps("9000-a000 r-xp 00000000 fe:01 2      /library\n"));
        assert!(space.find(0x1000).is_none() && space.find(0x9000).is_some(), "asked about");
    }

    #[test]
    fn files_of_any_name_are_modules_and_what_the_kernel_names_is_not() {
        let maps = b"1000-2000 r-xp 00000000 fe:01 1      /SYSV\n\
            2000-3000 r-xp 00000000 fe:01 2      /caf\xe9 (deleted)\n\
            4000-5000 r-xp 00000000 00:01 3      [anon_shmem:made]\n\
            5000-6000 r-xp 00000000 00:00 0 \n\
            6000-7000 r-xp 00000000 00:00 0      [vdso]\n";
        let mut space = AddressSpace::default();
        // No thread has this number: there are no files.
        space.update(0, read(&maps[..]).unwrap());
        let paths: Vec<_> = space.modules().iter().map(|module| module.path.as_str()).collect();
        assert_eq!(paths, ["/SYSV", "/caf\u{fffd}"]);
        let names: Vec<_> = space
            .current()
            .filter_map(|range| match &range.content {
                Content::Module(_) => None,
                Content::Unnamed(name) => Some(name.as_str()),
            })
            .collect();
        assert_eq!(names, ["[anon_shmem:made]", "", "[vdso]"]);
    }
}
