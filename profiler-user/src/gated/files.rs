//! The files of gates, as processes have them mapped and, for a moment, open.

use std::{
    fs::{self, File},
    io,
    ops::Range,
    os::{
        fd::AsRawFd,
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
};

use rustix::fs::{MemfdFlags, fstat, major, memfd_create, minor};

use super::GateError;
use crate::target::process::live_thread;

/// A file's name as it stands in the list of a process's mappings.
pub(super) const MAPPED_NAME: &[u8] = b"/memfd:heaptap-gate (deleted)";

/// Opens a file that the process has open.
pub(super) fn open(pid: u32, descriptor: u64) -> io::Result<File> {
    File::options().read(true).write(true).open(format!("{}/{descriptor}", descriptors_path(pid)))
}

/// Opens a file that the process has mapped there.
pub(super) fn open_mapped(pid: u32, range: &Range<u64>) -> io::Result<File> {
    File::options().read(true).write(true).open(mapped_path(pid, range))
}

/// Whether this is the file that the process has mapped there.
pub(super) fn is_mapped(pid: u32, range: &Range<u64>, file: &File) -> bool {
    is_same(&mapped_path(pid, range), file)
}

/// Whether this is the file that the process has open by a descriptor.
pub(super) fn is_open(pid: u32, descriptor: u64, file: &File) -> bool {
    is_same(&format!("{}/{descriptor}", descriptors_path(pid)), file)
}

fn is_same(path: &str, file: &File) -> bool {
    let (Ok(there), Ok(ours)) = (fs::metadata(path), file.metadata()) else { return false };
    (there.dev(), there.ino()) == (ours.dev(), ours.ino())
}

/// The descriptors by which a process has files of this name open: of those who were killed before they closed it again.
pub(super) fn descriptors(pid: u32) -> io::Result<Vec<u64>> {
    let ours = memfd_create(c"heaptap", MemfdFlags::CLOEXEC)?;
    let in_memory = mount(&format!("/proc/self/fdinfo/{}", ours.as_raw_fd()));
    let mut found = Vec::new();
    for entry in fs::read_dir(descriptors_path(pid))? {
        let path = entry?.path();
        let number = path.file_name().and_then(|name| name.to_str()?.parse().ok());
        // One that is closed meanwhile is none.
        if let (Some(number), Ok(name)) = (number, fs::read_link(&path))
            && name.as_os_str().as_bytes() == MAPPED_NAME
            && mount(&format!("{}info/{number}", descriptors_path(pid))) == in_memory
        {
            found.push(number);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// The mount that an open file is on.
fn mount(path: &str) -> Option<String> {
    let told = fs::read_to_string(path).ok()?;
    told.lines().find(|line| line.starts_with("mnt_id:")).map(ToOwned::to_owned)
}

fn descriptors_path(pid: u32) -> String {
    // The first thread may have ended, and has no files then.
    format!("/proc/{}/fd", live_thread(pid).unwrap_or(pid))
}

fn mapped_path(pid: u32, range: &Range<u64>) -> String {
    let thread = live_thread(pid).unwrap_or(pid);
    format!("/proc/{thread}/map_files/{:x}-{:x}", range.start, range.end)
}

/// Whether files on a device are nowhere but in memory: what is named like one of ours may be anywhere, and who looks at it waits for whoever
/// has it.
pub(super) fn is_in_memory(device: (u32, u32)) -> io::Result<bool> {
    let ours = memfd_create(c"heaptap", MemfdFlags::CLOEXEC)?;
    let number = fstat(&ours)?.st_dev;
    Ok(device == (major(number), minor(number)))
}

/// Notes that somebody counts by it in this process, for its children have the same file; the kernel forgets that when ours is closed.
///
/// What is locked is the byte of the process's number, whatever is there, by a lock of the open file itself (`F_OFD_SETLK`).
pub(super) fn lock(file: &File, pid: u32) -> Result<(), GateError> {
    let wanted = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: pid.into(),
        l_len: 1,
        l_pid: 0,
    };
    // SAFETY: the kernel reads the struct, which is what this command takes.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const wanted) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Err(GateError::Taken { pid }),
        _ => Err(GateError::file(pid, "locked")(error)),
    }
}
