//! A gate's memory in its process: a file that is nowhere but in memory, mapped twice.

use std::{
    ffi::CStr,
    fs::File,
    io,
    ops::Range,
    os::{fd::AsRawFd, unix::fs::MetadataExt},
};

use super::{GateError, stop};
use crate::target::{
    process::live_thread,
    stopped::{Argument, StopError, Stopped},
};

/// The file's name, which the kernel shows as `/memfd:heaptap-gate (deleted)`.
const NAME: &CStr = c"heaptap-gate";

/// The same as it stands in the list of a process's mappings.
pub(super) const MAPPED_NAME: &[u8] = b"/memfd:heaptap-gate (deleted)";

/// `MFD_EXEC` of include/uapi/linux/memfd.h (v6.3): without it, `vm.memfd_noexec` decides.
const MFD_EXEC: u64 = 0x10;

/// A gate's memory.
#[derive(Debug)]
pub(super) struct Memory {
    /// What is mapped, locked.
    pub(super) file: File,
    /// Where the process may execute it, from the file's beginning on.
    pub(super) code: Range<u64>,
    /// Where it may read and write it, behind that.
    pub(super) data: Range<u64>,
}

impl Memory {
    /// Makes and maps it: the code at an address, the data anywhere. The process has no descriptor of it behind this.
    pub(super) fn map(
        stopped: &Stopped,
        pid: u32,
        at: u64,
        code_bytes: u64,
        data_bytes: u64,
    ) -> Result<Self, GateError> {
        let descriptor = create(stopped)?;
        let mapped = Self::map_file(stopped, pid, descriptor, at, code_bytes, data_bytes);
        let closed = stopped.syscall(number(libc::SYS_close), [descriptor]);
        let memory = mapped?;
        closed?;
        Ok(memory)
    }

    fn map_file(
        stopped: &Stopped,
        pid: u32,
        descriptor: u64,
        at: u64,
        code_bytes: u64,
        data_bytes: u64,
    ) -> Result<Self, GateError> {
        let file = open(pid, descriptor).map_err(GateError::file(pid, "opened"))?;
        lock(&file, pid)?;
        file.set_len(code_bytes + data_bytes).map_err(GateError::file(pid, "made as large"))?;
        let code = Mapped {
            address: at,
            bytes: code_bytes,
            access: libc::PROT_READ | libc::PROT_EXEC,
            // The kernel is not to choose another place.
            flags: libc::MAP_PRIVATE | libc::MAP_FIXED_NOREPLACE,
            offset: 0,
        };
        let code = code.map(stopped, descriptor)?;
        let data = Mapped {
            address: 0,
            bytes: data_bytes,
            access: libc::PROT_READ | libc::PROT_WRITE,
            flags: libc::MAP_PRIVATE,
            offset: code_bytes,
        };
        match data.map(stopped, descriptor) {
            Ok(data) => Ok(Self { file, code, data }),
            Err(error) => {
                unmap(stopped, &code)?;
                Err(error.into())
            }
        }
    }
}

/// What is to be mapped.
struct Mapped {
    address: u64,
    bytes: u64,
    access: libc::c_int,
    flags: libc::c_int,
    offset: u64,
}

impl Mapped {
    fn map(&self, stopped: &Stopped, descriptor: u64) -> Result<Range<u64>, StopError> {
        let Self { address, bytes, access, flags, offset } = *self;
        let bits = |flags: libc::c_int| u64::from(flags.cast_unsigned());
        let arguments = [address, bytes, bits(access), bits(flags), descriptor, offset];
        let start = stopped.syscall(number(libc::SYS_mmap), arguments)?;
        Ok(start..start.saturating_add(bytes))
    }
}

/// Has the process make the file; gives its descriptor.
fn create(stopped: &Stopped) -> Result<u64, StopError> {
    let make = |flags: u64| {
        let arguments = [Argument::from(NAME), Argument::Value(flags)];
        stopped.syscall(number(libc::SYS_memfd_create), arguments)
    };
    let cloexec = u64::from(libc::MFD_CLOEXEC);
    match make(cloexec | MFD_EXEC) {
        // Before Linux 6.3 there is no such flag, and no need of it.
        Err(StopError::Call { source, .. }) if source.raw_os_error() == Some(libc::EINVAL) => make(cloexec),
        made => made,
    }
}

/// Takes from the process what it has of a gate's file in these places; what else may be there by now, it keeps.
pub(super) fn take_back(pid: u32, file: &File, ranges: &[Range<u64>]) -> Result<(), GateError> {
    let stopped = match stop(pid) {
        Ok(stopped) => stopped,
        Err(StopError::Gone { .. }) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    for range in ranges.iter().filter(|range| is_mapped(pid, range, file)) {
        unmap(&stopped, range)?;
    }
    stopped.release();
    Ok(())
}

/// Takes a range from the process.
pub(super) fn unmap(stopped: &Stopped, range: &Range<u64>) -> Result<(), StopError> {
    stopped.syscall(number(libc::SYS_munmap), [range.start, range.end - range.start]).map(drop)
}

/// Opens a file that the process has open.
fn open(pid: u32, descriptor: u64) -> io::Result<File> {
    // The first thread may have ended, and has no files then.
    let thread = live_thread(pid).ok_or(io::ErrorKind::NotFound)?;
    File::options().read(true).write(true).open(format!("/proc/{thread}/fd/{descriptor}"))
}

/// Opens a file that the process has mapped there.
pub(super) fn open_mapped(pid: u32, range: &Range<u64>) -> io::Result<File> {
    File::options().read(true).write(true).open(mapped_path(pid, range))
}

/// Whether this is the file that the process has mapped there.
pub(super) fn is_mapped(pid: u32, range: &Range<u64>, file: &File) -> bool {
    let (Ok(there), Ok(ours)) = (std::fs::metadata(mapped_path(pid, range)), file.metadata()) else {
        return false;
    };
    (there.dev(), there.ino()) == (ours.dev(), ours.ino())
}

fn mapped_path(pid: u32, range: &Range<u64>) -> String {
    let thread = live_thread(pid).unwrap_or(pid);
    format!("/proc/{thread}/map_files/{:x}-{:x}", range.start, range.end)
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

fn number(call: libc::c_long) -> u64 {
    call.unsigned_abs()
}
