//! Words of a process's memory.

use std::{fs::File, io, os::unix::fs::FileExt};

use super::process::live_thread;

/// The memory of a process as it was when this was opened: after the process has replaced its program, there is nothing to
/// read any more.
///
/// What is read was written by the process: any of it may be wrong, or change while it is looked at.
#[derive(Debug)]
pub(crate) struct Words(File);

impl Words {
    /// The memory of a process.
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        let thread = live_thread(pid).ok_or(io::ErrorKind::NotFound)?;
        Ok(Self(File::open(format!("/proc/{thread}/mem"))?))
    }

    /// A file in place of a process's memory: addresses are offsets in it.
    #[cfg(test)]
    pub(super) const fn in_file(file: File) -> Self {
        Self(file)
    }

    /// Fills `bytes` from an address on; `None` where not all of them are there.
    pub(crate) fn read(&self, address: u64, bytes: &mut [u8]) -> Option<()> {
        // Offsets of files are signed.
        i64::try_from(address).ok()?;
        self.0.read_exact_at(bytes, address).ok()
    }

    /// The bytes from an address on, so many or as many of them as are there.
    pub(super) fn bytes(&self, address: u64, count: usize) -> Option<Vec<u8>> {
        i64::try_from(address).ok()?;
        let mut bytes = vec![0; count];
        let there = self.0.read_at(&mut bytes, address).ok()?;
        bytes.truncate(there);
        Some(bytes)
    }

    /// The byte at an address.
    pub(super) fn byte(&self, address: u64) -> Option<u8> {
        self.array(address).map(u8::from_le_bytes)
    }

    /// The 16 bits at an address.
    pub(super) fn quarter(&self, address: u64) -> Option<u16> {
        self.array(address).map(u16::from_le_bytes)
    }

    /// The 32 bits at an address.
    pub(super) fn half(&self, address: u64) -> Option<u32> {
        self.array(address).map(u32::from_le_bytes)
    }

    /// The 64 bits at an address.
    pub(crate) fn word(&self, address: u64) -> Option<u64> {
        self.array(address).map(u64::from_le_bytes)
    }

    /// The bytes from an address on up to the first zero; `None` where there is none among the first 64.
    pub(super) fn name(&self, address: u64) -> Option<Vec<u8>> {
        // What follows the name may not be there.
        let mut bytes = self.bytes(address, 64)?;
        bytes.truncate(bytes.iter().position(|byte| *byte == 0)?);
        Some(bytes)
    }

    fn array<const BYTES: usize>(&self, address: u64) -> Option<[u8; BYTES]> {
        let mut bytes = [0; BYTES];
        self.read(address, &mut bytes)?;
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_name_ends_where_it_is_over() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[b"short\0", [b'x'; 64].as_slice(), b"\0last\0open"].concat()).unwrap();
        let words = Words::in_file(file.reopen().unwrap());
        assert_eq!(words.name(0).as_deref(), Some(&b"short"[..]));
        assert_eq!(words.name(5).as_deref(), Some(&b""[..]));
        assert_eq!(words.name(6), None, "it is too long");
        assert_eq!(words.name(7).map(|name| name.len()), Some(63));
        assert_eq!(words.name(71).as_deref(), Some(&b"last"[..]));
        assert_eq!(words.name(76), None, "the file ends before it");
        assert_eq!((words.name(u64::MAX), words.word(u64::MAX - 3)), (None, None));
    }

    #[test]
    fn this_process_can_be_read() {
        let number = 0x0123_4567_89ab_cdef_u64;
        let words = Words::of(std::process::id()).unwrap();
        let address = &raw const number as u64;
        assert_eq!(words.word(address), Some(number));
        assert_eq!((words.byte(address), words.quarter(address)), (Some(0xef), Some(0xcdef)));
        assert_eq!(words.half(address + 4), Some(0x0123_4567));
        assert!(Words::of(u32::MAX).is_err());
    }
}
