//! Which mapping an address is in, of a process that is stopped.
//!
//! From 6.11 on the kernel is asked for the one; before, it tells of all, which of a process with thousands of mappings takes longer than
//! everything else for which the process has to stand still.

use std::{fs::File, io, ops::Range, os::fd::AsRawFd};

use nix::errno::Errno;

use super::{
    super::mapping::{self, Mapping},
    StopError,
    threads::Threads,
};

/// A mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) range: Range<u64>,
    /// Whether it is the stack of the process's first thread.
    pub(super) is_main_stack: bool,
}

/// What has been asked so far; stacks stay what they are while their threads are stopped.
#[derive(Debug, Default)]
pub(super) struct Extents {
    maps: Option<File>,
    /// All mappings by rising address, where the kernel does not tell of one.
    all: Option<Vec<Mapping>>,
}

impl Threads {
    /// The mapping that an address is in.
    pub(super) fn extent_at(&mut self, address: u64) -> Result<Option<Extent>, StopError> {
        let thread = self.any()?;
        if self.extents.all.is_none() {
            let asked = self.extents.maps(thread).and_then(|maps| ask(maps, address));
            match asked {
                Ok(extent) => return Ok(Some(extent)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(_) => {
                    let all = mapping::all(self.pid, u32::try_from(thread).unwrap_or_default());
                    self.extents.all = Some(all.map_err(|_| self.gone())?);
                }
            }
        }
        Ok(find(self.extents.all.as_deref().unwrap_or_default(), address))
    }
}

impl Extents {
    fn maps(&mut self, thread: i32) -> io::Result<&File> {
        match self.maps {
            Some(ref maps) => Ok(maps),
            None => Ok(self.maps.insert(File::open(format!("/proc/{thread}/maps"))?)),
        }
    }
}

fn find(all: &[Mapping], address: u64) -> Option<Extent> {
    let mapping = all.get(all.partition_point(|mapping| mapping.end <= address))?;
    let is_main_stack = mapping.name == MAIN_STACK;
    let range = mapping.start..mapping.end;
    (mapping.start <= address).then_some(Extent { range, is_main_stack })
}

const MAIN_STACK: &[u8] = b"[stack]";

/// `struct procmap_query` of include/uapi/linux/fs.h (v6.11).
#[repr(C)]
#[derive(Default)]
struct Query {
    size: u64,
    query_flags: u64,
    query_addr: u64,
    vma_start: u64,
    vma_end: u64,
    vma_flags: u64,
    vma_page_size: u64,
    vma_offset: u64,
    inode: u64,
    dev_major: u32,
    dev_minor: u32,
    vma_name_size: u32,
    build_id_size: u32,
    vma_name_addr: u64,
    build_id_addr: u64,
}

nix::ioctl_readwrite!(procmap_query, b'f', 17, Query);

/// Asks the kernel for the mapping that an address is in; `ENOENT` where it is in none.
fn ask(maps: &File, address: u64) -> io::Result<Extent> {
    // The name of the stack has room, and its end.
    let mut name = [0_u8; 16];
    match ask_with(maps, address, &mut name) {
        // A longer one is another.
        Err(Errno::ENAMETOOLONG) => ask_with(maps, address, &mut []),
        asked => asked,
    }
    .map_err(io::Error::from)
}

fn ask_with(maps: &File, address: u64, name: &mut [u8]) -> Result<Extent, Errno> {
    let mut query = Query { size: size_of::<Query>() as u64, query_addr: address, ..Query::default() };
    if !name.is_empty() {
        query.vma_name_size = u32::try_from(name.len()).unwrap_or_default();
        query.vma_name_addr = name.as_mut_ptr().expose_provenance() as u64;
    }
    // SAFETY: the kernel writes no more than the query's size says, and no more of the name than that has room for.
    unsafe { procmap_query(maps.as_raw_fd(), &raw mut query) }?;
    let length = usize::try_from(query.vma_name_size).unwrap_or_default();
    let name = name.get(..length).unwrap_or_default();
    let is_main_stack = name.strip_suffix(&[0]).unwrap_or(name) == MAIN_STACK;
    Ok(Extent { range: query.vma_start..query.vma_end, is_main_stack })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_is_asked_for_is_what_it_tells_of_all() {
        let pid = std::process::id();
        let all = mapping::all(pid, pid).unwrap();
        let maps = File::open("/proc/self/maps").unwrap();
        let here = 0_u8;
        let places = [
            (&raw const here).addr(),
            what_the_kernel_is_asked_for_is_what_it_tells_of_all as fn() as usize,
            Box::new(1_u8).as_ref() as *const u8 as usize,
        ];
        // Where the process has a stack that is the first thread's.
        let stack = all.iter().find(|mapping| mapping.name == MAIN_STACK).unwrap().start as usize;
        for address in places.into_iter().chain([stack]).map(|address| address as u64) {
            match ask(&maps, address) {
                Ok(extent) => {
                    let expected = find(&all, address).unwrap();
                    assert_eq!(extent.is_main_stack, expected.is_main_stack, "{address:#x}");
                    // Others may grow meanwhile.
                    assert_eq!(extent.range.start, expected.range.start, "{address:#x}");
                }
                // Before 6.11.
                Err(error) => assert_eq!(error.raw_os_error(), Some(Errno::ENOTTY as i32)),
            }
        }
        if let Err(error) = ask(&maps, 0x1000) {
            let expected = [Errno::ENOENT, Errno::ENOTTY].map(|errno| Some(errno as i32));
            assert!(expected.contains(&error.raw_os_error()), "{error}");
        }
        assert_eq!(find(&all, 0x1000), None);
        assert!(find(&all, stack as u64).unwrap().is_main_stack);
    }
}
