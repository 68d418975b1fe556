//! A process's root directory, to open files by the names that the process has for them.
//!
//! What the names lead to is the process's to choose, and heaptap is root: links stay inside that root, and only
//! regular files are opened, since opening a pipe waits and opening a device does things.

use std::{
    cell::OnceCell,
    fs::File,
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};

use super::process::live_thread;

/// A directory that stands for `/`.
#[derive(Debug)]
pub struct Root(OwnedFd);

/// Whether the last part of a name may be a symbolic link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastLink {
    /// It may, and is followed inside the root.
    Follow,
    /// It must not.
    Refuse,
}

impl Root {
    /// The root of a process, in its mount namespace.
    pub fn of(pid: u32) -> io::Result<Self> {
        let thread = live_thread(pid).ok_or(io::ErrorKind::NotFound)?;
        Self::at(Path::new(&format!("/proc/{thread}/root")))
    }

    /// A directory of ours.
    pub fn at(directory: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(directory, flags, Mode::empty())?))
    }

    /// Opens a regular file for reading.
    pub fn open(&self, path: &Path, last: LastLink) -> io::Result<File> {
        let mut flags = OFlags::PATH | OFlags::CLOEXEC;
        if last == LastLink::Refuse {
            flags |= OFlags::NOFOLLOW;
        }
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let place = openat2(&self.0, path, flags, Mode::empty(), resolve)?;
        // An O_PATH descriptor has opened nothing yet: what it leads to can be looked at without consequences.
        let kind = FileType::from_raw_mode(fstat(&place)?.st_mode);
        if kind != FileType::RegularFile {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let mut options = File::options();
        let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
        options.read(true).custom_flags(i32::try_from(flags.bits()).unwrap_or_default());
        options.open(format!("/proc/self/fd/{}", place.as_raw_fd()))
    }
}

/// A file's name as a process itself has it.
///
/// The kernel tells others the name from the top of the process's mount namespace. That is another where the process's root
/// directory is not that top (chroot(2)); a file that is not in there keeps its name.
pub(crate) fn name_inside(thread: u32, name: &[u8]) -> &[u8] {
    RootName::of(thread).inside(name)
}

/// What the kernel calls a process's root directory to others: asked for once for many names, and not at all for none.
#[derive(Debug)]
pub(crate) struct RootName {
    thread: u32,
    name: OnceCell<Option<PathBuf>>,
}

impl RootName {
    /// That of a thread's process.
    pub(crate) const fn of(thread: u32) -> Self {
        Self { thread, name: OnceCell::new() }
    }

    /// A file's name as the process has it.
    pub(crate) fn inside<'name>(&self, name: &'name [u8]) -> &'name [u8] {
        // What is told of the root directory begins at the same place as all names.
        let root = self.name.get_or_init(|| std::fs::read_link(format!("/proc/{}/root", self.thread)).ok());
        root.as_deref().map_or(name, |root| strip(name, root.as_os_str().as_bytes()))
    }
}

fn strip<'name>(name: &'name [u8], root: &[u8]) -> &'name [u8] {
    name.strip_prefix(root).filter(|rest| rest.starts_with(b"/")).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, process::Command};

    use super::*;

    #[test]
    fn names_begin_at_the_root_directory() {
        assert_eq!(strip(b"/srv/root/bin/x", b"/srv/root"), b"/bin/x");
        assert_eq!(strip(b"/srv/rooted/bin/x", b"/srv/root"), b"/srv/rooted/bin/x");
        assert_eq!(strip(b"/bin/x", b"/srv/root"), b"/bin/x");
        assert_eq!(strip(b"/bin/x", b"/"), b"/bin/x");
        assert_eq!(strip(b"/srv/root", b"/srv/root"), b"/srv/root");
        assert_eq!(strip(b"/\xff/x", b"/\xff"), b"/x");
        assert_eq!(name_inside(u32::MAX, b"/bin/x"), b"/bin/x");
        assert_eq!(name_inside(std::process::id(), b"/bin/x"), b"/bin/x");
    }

    #[test]
    fn links_stay_inside_the_root_and_pipes_are_not_opened() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("file"), "inside").unwrap();
        symlink("/file", at("absolute")).unwrap();
        symlink("../../../../etc/passwd", at("outside")).unwrap();
        assert!(Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());
        let root = Root::at(directory.path()).unwrap();
        let open = |name: &str, last| root.open(Path::new(name), last);
        assert_eq!(io::read_to_string(open("/absolute", LastLink::Follow).unwrap()).unwrap(), "inside");
        assert!(open("/absolute", LastLink::Refuse).is_err());
        assert!(open("/outside", LastLink::Follow).is_err());
        assert!(open("/pipe", LastLink::Follow).is_err());
        assert!(open("/", LastLink::Follow).is_err());
    }
}
