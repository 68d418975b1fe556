//! The memory of a process that is stopped.

use std::{fs::File, io, os::unix::fs::FileExt};

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

impl Threads {
    /// Reads memory.
    pub(super) fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), StopError> {
        let local = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        // SAFETY: the kernel writes to no more than `bytes`.
        let done = unsafe { self.transfer(libc::process_vm_readv, local, address) };
        done.map_err(self.memory(address, bytes.len(), "read"))
    }

    /// Writes data.
    pub(super) fn write(&self, address: u64, bytes: &[u8]) -> Result<(), StopError> {
        let local = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        // SAFETY: the kernel only reads from `bytes`.
        let done = unsafe { self.transfer(libc::process_vm_writev, local, address) };
        done.map_err(self.memory(address, bytes.len(), "written"))
    }

    /// Writes where the process itself may not, to its own copy of a file's page: code.
    pub(super) fn write_code(&self, address: u64, bytes: &[u8]) -> Result<(), StopError> {
        let path = format!("/proc/{}/mem", self.any()?);
        File::options()
            .write(true)
            .open(path)
            .and_then(|memory| memory.write_all_at(bytes, address))
            .map_err(self.memory(address, bytes.len(), "written"))
    }

    /// # Safety
    ///
    /// `call` may do with the memory of `local` what it does.
    unsafe fn transfer(&self, call: Transfer, local: libc::iovec, address: u64) -> io::Result<()> {
        let thread = self.any().map_err(|_| io::Error::from_raw_os_error(libc::ESRCH))?;
        let length = local.iov_len;
        let start = usize::try_from(address).map_err(|_| io::Error::from_raw_os_error(libc::EFAULT))?;
        let remote = libc::iovec { iov_base: std::ptr::without_provenance_mut(start), iov_len: length };
        // SAFETY: by the caller; the addresses of `remote` are the other process's.
        let moved = unsafe { call(thread, &raw const local, 1, &raw const remote, 1, 0) };
        match usize::try_from(moved) {
            Ok(moved) if moved == length => Ok(()),
            Ok(_) => Err(io::Error::from_raw_os_error(libc::EFAULT)),
            Err(_) => Err(io::Error::last_os_error()),
        }
    }

    fn memory(
        &self,
        address: u64,
        length: usize,
        done: &'static str,
    ) -> impl FnOnce(io::Error) -> StopError + use<> {
        let pid = self.pid;
        move |source| StopError::Memory { pid, address, length, done, source }
    }
}
