//! The state of a thread's floating point unit, as the frame of a signal holds it.
//!
//! The kernel tells it in the same form (`NT_X86_XSTATE`), but for what it wants to find in a frame: which parts there are, how
//! long it is, and a word behind it. Otherwise it takes of it what processors had before there was AVX, and clears the rest.
//! See `check_xstate_in_sigframe` in arch/x86/kernel/fpu/signal.c.

use std::{arch::x86_64::__cpuid_count, io};

use super::request;

/// More than any processor has: AMX takes 11 KiB.
const LIMIT_BYTES: usize = 64 << 10;

/// Where the kernel notes the parts that it knows, in what it tells, and `struct _fpx_sw_bytes` is, in a frame.
const SOFTWARE_OFFSET: usize = 464;

/// Where the parts are noted that are not as they were at first.
const HEADER_OFFSET: usize = 512;

/// What is always there, with the header.
const LEAST_BYTES: usize = 576;

/// The first two parts are in what is always there.
const FIRST_EXTENDED: u32 = 2;

/// The tiles of AMX, which threads have from their first use on.
const ON_DEMAND: u64 = 1 << 18;

/// `FP_XSTATE_MAGIC1` and `FP_XSTATE_MAGIC2`
const BEGINS: u32 = 0x4650_5853;
const ENDS: u32 = 0x4650_5845;

/// The state of a thread that is stopped.
pub(super) fn of(thread: i32) -> io::Result<Vec<u8>> {
    let mut told = vec![0; LIMIT_BYTES];
    match request::register_set(thread, request::EXTENDED_STATE, &mut told) {
        Ok(length) if length < LIMIT_BYTES => {
            told.truncate(length);
            in_frame(told, part).ok_or_else(|| io::ErrorKind::InvalidData.into())
        }
        Ok(_) => Err(io::ErrorKind::InvalidData.into()),
        // A processor that has nothing more than the first parts: the kernel takes them as they are.
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {
            let length = request::register_set(thread, request::FLOATING_POINT, &mut told)?;
            told.truncate(length);
            Ok(told)
        }
        Err(error) => Err(error),
    }
}

/// Where a part begins, and how long it is.
fn part(number: u32) -> (usize, usize) {
    let told = __cpuid_count(0xd, number);
    (told.ebx as usize, told.eax as usize)
}

/// Completes what the kernel tells.
fn in_frame(mut state: Vec<u8>, part: impl Fn(u32) -> (usize, usize)) -> Option<Vec<u8>> {
    let known = word(&state, SOFTWARE_OFFSET)?;
    let used = word(&state, HEADER_OFFSET)?;
    let parts = known & !(ON_DEMAND & !used);
    let ends = (FIRST_EXTENDED..u64::BITS).filter(|number| parts & 1 << number != 0).map(|number| {
        let (start, length) = part(number);
        start.saturating_add(length)
    });
    let length = ends.max().unwrap_or(LEAST_BYTES).max(LEAST_BYTES).min(state.len());
    let number = u32::try_from(length).ok()?;

    let mut software = Vec::from(BEGINS.to_le_bytes());
    software.extend(number.saturating_add(4).to_le_bytes());
    software.extend(parts.to_le_bytes());
    software.extend(number.to_le_bytes());
    state.get_mut(SOFTWARE_OFFSET..HEADER_OFFSET)?.fill(0);
    state.get_mut(SOFTWARE_OFFSET..)?.get_mut(..software.len())?.copy_from_slice(&software);
    // Kernels look behind the length that is noted here or behind the thread's own, and tiles that are all clear are not in
    // `used` even where the thread has them.
    state.extend(ENDS.to_le_bytes());
    state.get_mut(length..)?.get_mut(..4)?.copy_from_slice(&ENDS.to_le_bytes());
    Some(state)
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().copied().map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// AVX, the registers for AMX's tiles, and these.
    const PARTS: u64 = 0b111 | 1 << 17 | ON_DEMAND;

    fn told(used: u64) -> Vec<u8> {
        let mut state = vec![0; 11008];
        state[SOFTWARE_OFFSET..][..8].copy_from_slice(&PARTS.to_le_bytes());
        state[HEADER_OFFSET..][..8].copy_from_slice(&used.to_le_bytes());
        state
    }

    fn place(number: u32) -> (usize, usize) {
        match number {
            2 => (576, 256),
            17 => (2752, 64),
            18 => (2816, 8192),
            _ => (0, 0),
        }
    }

    fn number(state: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(state[at..][..4].try_into().unwrap())
    }

    #[test]
    fn tiles_are_counted_where_they_are_used() {
        for (used, length, parts) in [(0b11, 2816, PARTS & !ON_DEMAND), (0b11 | ON_DEMAND, 11008, PARTS)] {
            let state = in_frame(told(used), place).unwrap();
            assert_eq!(number(&state, 464), 0x4650_5853);
            assert_eq!((number(&state, 468), number(&state, 480)), (length + 4, length));
            assert_eq!(word(&state, 472), Some(parts));
            assert_eq!(word(&state, 512), Some(used));
            assert_eq!(number(&state, length as usize), 0x4650_5845);
            assert_eq!(number(&state, 11008), 0x4650_5845);
        }
    }

    #[test]
    fn what_is_too_short_is_no_state() {
        assert_eq!(in_frame(vec![0; 300], place), None);
        assert_eq!(in_frame(vec![0; 515], place), None);
    }
}
