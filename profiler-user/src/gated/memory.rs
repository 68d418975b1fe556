//! A gate's memory in its process: a file that is nowhere but in memory, mapped twice.

use std::{ffi::CStr, fs::File, io, ops::Range, os::unix::fs::MetadataExt};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use super::GateError;
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

/// Notes that somebody counts by it; the kernel forgets that when the file is closed.
pub(super) fn lock(file: &File, pid: u32) -> Result<(), GateError> {
    flock(file, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
        Errno::WOULDBLOCK => GateError::Taken { pid },
        error => GateError::file(pid, "locked")(error.into()),
    })
}

fn number(call: libc::c_long) -> u64 {
    call.unsigned_abs()
}
