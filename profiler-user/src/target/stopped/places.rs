//! Where in a process instructions stand that make a system call, and those that return from a signal.

use super::{super::mapping, StopError, memory::Memory, threads::Threads};

/// What is read of mappings at once and at most.
const CHUNK_BYTES: usize = 64 << 10;
const LIMIT_BYTES: u64 = 64 << 20;

/// `syscall; ret`
const CALL: [u8; 3] = [0x0f, 0x05, 0xc3];

/// `mov $15,%eax; syscall` and `mov $15,%rax; syscall`: the C library's `__restore_rt`.
const RETURNS: [&[u8]; 2] = [&[0xb8, 15, 0, 0, 0, 0x0f, 0x05], &[0x48, 0xc7, 0xc0, 15, 0, 0, 0, 0x0f, 0x05]];

/// What may be before the end of a chunk and behind its beginning.
const OVERLAP_BYTES: usize = 8;

/// The first addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Places {
    pub(super) call: u64,
    pub(super) returns: u64,
}

impl Threads {
    /// The two places, looked for unless they are where they were found before.
    pub(super) fn places(&mut self) -> Result<Places, StopError> {
        let thread = self.any()?;
        match self.places {
            Some(places) if self.are_there(places) => Ok(places),
            _ => self.find_places(thread),
        }
    }

    /// Looks for them, through one of the threads.
    pub(super) fn find_places(&mut self, thread: i32) -> Result<Places, StopError> {
        let number = u32::try_from(thread).unwrap_or_default();
        let mut mappings = mapping::executable(self.pid, number).map_err(|_| self.gone())?;
        mappings.sort_by_key(|mapping| (!is_c_library(&mapping.name), mapping.end - mapping.start));
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut left = LIMIT_BYTES;
        let (mut call, mut returns) = (None, None);
        for mapping in mappings {
            let mut start = mapping.start;
            while start < mapping.end && left > 0 {
                let length = (mapping.end - start).min(CHUNK_BYTES as u64);
                left = left.saturating_sub(length);
                let Some(bytes) = usize::try_from(length).ok().and_then(|length| chunk.get_mut(..length))
                else {
                    break;
                };
                if Memory::of(self.pid, thread).read(start, bytes).is_err() {
                    break;
                }
                let at = |place: usize| start.saturating_add(place as u64);
                call = call.or_else(|| position(bytes, &CALL).map(at));
                returns =
                    returns.or_else(|| RETURNS.iter().find_map(|sequence| position(bytes, sequence)).map(at));
                if let (Some(call), Some(returns)) = (call, returns) {
                    let places = Places { call, returns };
                    self.places = Some(places);
                    return Ok(places);
                }
                start = start.saturating_add(length);
                if start < mapping.end {
                    start = start.saturating_sub(OVERLAP_BYTES as u64);
                }
            }
        }
        let missing = if call.is_none() { "`syscall; ret`" } else { "`mov $15,%eax; syscall`" };
        Err(StopError::NoInstruction { pid: self.pid, missing })
    }

    /// Whether nothing else has been mapped in their place.
    fn are_there(&self, places: Places) -> bool {
        let (mut call, mut returns) = ([0; CALL.len()], [0; 9]);
        let [short, long] = RETURNS;
        let Ok(memory) = self.memory() else { return false };
        memory.read(places.call, &mut call).is_ok()
            && call == CALL
            && memory.read(places.returns, &mut returns).is_ok()
            && (returns.starts_with(short) || returns.starts_with(long))
    }
}

/// The C library looks through a megabyte in no time, also where this is compiled for debugging.
fn position(bytes: &[u8], sequence: &[u8]) -> Option<usize> {
    // SAFETY: it reads as many bytes as there are in each.
    let found =
        unsafe { libc::memmem(bytes.as_ptr().cast(), bytes.len(), sequence.as_ptr().cast(), sequence.len()) };
    (!found.is_null()).then(|| found.addr().wrapping_sub(bytes.as_ptr().addr()))
}

/// By its name: most have both in there.
fn is_c_library(name: &[u8]) -> bool {
    let file = name.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    file.starts_with(b"libc.") || file.starts_with(b"libc-") || file.starts_with(b"ld-musl-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_is_found_where_it_is() {
        assert_eq!(position(b"\x0f\x05\x90\x0f\x05\xc3", &CALL), Some(3));
        assert_eq!(position(b"\x0f\x05\xc3", &CALL), Some(0));
        assert_eq!(position(b"\x0f\x05", &CALL), None);
        assert_eq!(position(b"", &CALL), None);
    }

    #[test]
    fn the_c_library_is_known_by_its_name() {
        for name in ["/usr/lib/x86_64-linux-gnu/libc.so.6", "/lib/libc-2.31.so", "/lib/ld-musl-x86_64.so.1"] {
            assert!(is_c_library(name.as_bytes()), "{name}");
        }
        for name in ["/usr/lib/libcurl.so.4", "[vdso]", ""] {
            assert!(!is_c_library(name.as_bytes()), "{name}");
        }
    }
}
