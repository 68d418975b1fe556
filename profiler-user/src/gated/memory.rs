//! A gate's memory in its process: a file that is nowhere but in memory, mapped twice.

use std::{ffi::CStr, fs::File, ops::Range, time::Duration};

use super::{
    GateError, STOP_TRIES_TO_LEAVE,
    files::{is_mapped, lock, open},
    stop_by,
};
use crate::target::stopped::{Argument, StopError, Stopped};

/// The file's name, which the kernel shows as `/memfd:heaptap-gate (deleted)`.
const NAME: &CStr = c"heaptap-gate";

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
    /// Makes and maps it: the code in a place, the data in another or, where there is none for it, anywhere. The process has no descriptor of it
    /// behind this.
    pub(super) fn map(stopped: &Stopped, pid: u32, place: Place) -> Result<Self, GateError> {
        let descriptor = create(stopped).map_err(|error| match error {
            // Of this call, nothing else is not permitted.
            StopError::Call { source, .. } if source.raw_os_error() == Some(libc::EACCES) => {
                GateError::NoExec { pid }
            }
            error => error.into(),
        })?;
        let mapped = Self::map_file(stopped, pid, descriptor, place);
        let closed = close(stopped, descriptor);
        let memory = mapped?;
        closed?;
        Ok(memory)
    }

    fn map_file(stopped: &Stopped, pid: u32, descriptor: u64, place: Place) -> Result<Self, GateError> {
        let Place { code_bytes, data_bytes, .. } = place;
        let file = open(pid, descriptor).map_err(GateError::file(pid, "opened"))?;
        lock(&file, pid)?;
        file.set_len(code_bytes + data_bytes).map_err(GateError::file(pid, "made as large"))?;
        let code = Mapped {
            address: Some(place.code),
            bytes: code_bytes,
            access: libc::PROT_READ | libc::PROT_EXEC,
            offset: 0,
        };
        let code = code.map(stopped, descriptor)?;
        let data = Mapped {
            address: place.data,
            bytes: data_bytes,
            access: libc::PROT_READ | libc::PROT_WRITE,
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

/// Where there is room for a gate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// For its code, and how much it takes.
    pub(super) code: u64,
    pub(super) code_bytes: u64,
    /// The same for its data; `None` where it may be anywhere.
    pub(super) data: Option<u64>,
    pub(super) data_bytes: u64,
}

/// What is to be mapped; anywhere where it has no address.
struct Mapped {
    address: Option<u64>,
    bytes: u64,
    access: libc::c_int,
    offset: u64,
}

impl Mapped {
    fn map(&self, stopped: &Stopped, descriptor: u64) -> Result<Range<u64>, StopError> {
        let Self { address, bytes, access, offset } = *self;
        // The kernel is not to choose another place.
        let fixed = if address.is_some() { libc::MAP_FIXED_NOREPLACE } else { 0 };
        let bits = |flags: libc::c_int| u64::from(flags.cast_unsigned());
        let flags = bits(libc::MAP_PRIVATE | fixed);
        let arguments = [address.unwrap_or(0), bytes, bits(access), flags, descriptor, offset];
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

/// Takes from the process what it has of a gate's file in these places, in which no thread is; what else may be there by now, it
/// keeps. The other threads go on meanwhile, unless it takes all to find one that can do it.
pub(super) fn take_back(pid: u32, file: &File, ranges: &[Range<u64>]) -> Result<(), GateError> {
    match take_back_by(Stopped::few, pid, file, ranges) {
        Err(StopError::NoThread { .. }) => take_back_by(Stopped::all, pid, file, ranges),
        done => done,
    }
    .map_err(GateError::from)
}

fn take_back_by(
    stop: fn(u32, Duration) -> Result<Stopped, StopError>,
    pid: u32,
    file: &File,
    ranges: &[Range<u64>],
) -> Result<(), StopError> {
    let stopped = match stop_by(pid, STOP_TRIES_TO_LEAVE, stop) {
        Ok(stopped) => stopped,
        Err(StopError::Gone { .. }) => return Ok(()),
        Err(error) => return Err(error),
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

/// Has the process close a descriptor.
pub(super) fn close(stopped: &Stopped, descriptor: u64) -> Result<(), StopError> {
    stopped.syscall(number(libc::SYS_close), [descriptor]).map(drop)
}

fn number(call: libc::c_long) -> u64 {
    call.unsigned_abs()
}
