//! The memory of a process that is stopped.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt, ptr};

use super::{StopError, threads::Threads};

/// `process_vm_readv` or `process_vm_writev`.
type Transfer = unsafe extern "C" fn(
    libc::pid_t,
    *const libc::iovec,
    libc::c_ulong,
    *const libc::iovec,
    libc::c_ulong,
    libc::c_ulong,
) -> isize;

/// A process's memory, which any thread of ours may read and write: the requests of ptrace(2) are what only one may make.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory {
    pid: u32,
    /// A thread that has it: the first may have ended.
    thread: i32,
}

impl Memory {
    /// The memory of a process that one of its threads has.
    pub(super) const fn of(pid: u32, thread: i32) -> Self {
        Self { pid, thread }
    }

    /// Reads memory.
    pub(super) fn read(self, address: u64, bytes: &mut [u8]) -> Result<(), StopError> {
        let local = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        let remotes = [remote(address, bytes.len())];
        // SAFETY: the kernel writes to no more than `bytes`.
        let done = unsafe { transfer(libc::process_vm_readv, self.thread, local, &remotes) };
        done.map_err(self.failed(address, bytes.len(), "read"))
    }

    /// Reads all of many ranges, one behind the other, in the place of what `bytes` holds.
    pub(super) fn read_ranges(self, ranges: &[Range<u64>], bytes: &mut Vec<u8>) -> Result<(), StopError> {
        let length = |range: &Range<u64>| usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(0);
        let remotes: Vec<libc::iovec> =
            ranges.iter().map(|range| remote(range.start, length(range))).collect();
        let total = ranges.iter().map(length).fold(0, usize::saturating_add);
        bytes.resize(total, 0);
        let local = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: total };
        // SAFETY: the kernel writes to no more than `bytes`.
        let done = unsafe { transfer(libc::process_vm_readv, self.thread, local, &remotes) };
        done.map_err(self.failed(ranges.first().map_or(0, |range| range.start), total, "read"))
    }

    /// Writes data.
    pub(super) fn write(self, address: u64, bytes: &[u8]) -> Result<(), StopError> {
        let local = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        let remotes = [remote(address, bytes.len())];
        // SAFETY: the kernel only reads from `bytes`.
        let done = unsafe { transfer(libc::process_vm_writev, self.thread, local, &remotes) };
        done.map_err(self.failed(address, bytes.len(), "written"))
    }

    /// Writes where the process itself may not, to its own copy of a file's page: code.
    pub(super) fn write_code(self, address: u64, bytes: &[u8]) -> Result<(), StopError> {
        let path = format!("/proc/{}/mem", self.thread);
        File::options()
            .write(true)
            .open(path)
            .and_then(|memory| memory.write_all_at(bytes, address))
            .map_err(self.failed(address, bytes.len(), "written"))
    }

    fn failed(
        self,
        address: u64,
        length: usize,
        done: &'static str,
    ) -> impl FnOnce(io::Error) -> StopError + use<> {
        move |source| StopError::Memory { pid: self.pid, address, length, done, source }
    }
}

impl Threads {
    /// The memory of the process.
    pub(super) fn memory(&self) -> Result<Memory, StopError> {
        Ok(Memory::of(self.pid, self.any()?))
    }
}

/// Memory of the other process. An address that is none of ours either is one that the kernel refuses.
fn remote(address: u64, length: usize) -> libc::iovec {
    let start = usize::try_from(address).unwrap_or(usize::MAX);
    libc::iovec { iov_base: ptr::without_provenance_mut(start), iov_len: length }
}

/// Moves all bytes or fails.
///
/// # Safety
///
/// `call` may do with the memory of `local` what it does.
unsafe fn transfer(
    call: Transfer,
    thread: i32,
    local: libc::iovec,
    remotes: &[libc::iovec],
) -> io::Result<()> {
    let count = libc::c_ulong::try_from(remotes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: by the caller; the addresses of `remotes` are the other process's.
    let moved = unsafe { call(thread, &raw const local, 1, remotes.as_ptr(), count, 0) };
    match usize::try_from(moved) {
        Ok(moved) if moved == local.iov_len => Ok(()),
        Ok(_) => Err(io::Error::from_raw_os_error(libc::EFAULT)),
        Err(_) => Err(io::Error::last_os_error()),
    }
}
