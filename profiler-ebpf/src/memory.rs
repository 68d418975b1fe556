//! Reading the target's memory: never faults, fails where a page is not there.

use core::ffi::c_void;

use aya_ebpf::helpers::{bpf_probe_read_user, generated};
use profiler_common::unwind::ReadMemory;

/// The memory of the process that runs on this CPU.
pub struct UserMemory;

/// A page, the most that is read at once.
const PAGE_BYTES: usize = 4096;

/// Copies the stack from `sp` on into `bytes`, piece by piece up to the first page that is not there; gives the length.
#[inline(always)]
pub fn copy_stack<const BYTES: usize>(bytes: *mut [u8; BYTES], sp: u64) -> u32 {
    let piece_bytes = if BYTES < PAGE_BYTES { BYTES } else { PAGE_BYTES };
    let mut length = 0;
    // Written out by the compiler: the verifier then sees constant places to write to.
    for piece in 0..BYTES / piece_bytes {
        let from = sp.wrapping_add((piece * piece_bytes) as u64);
        // SAFETY: the piece lies inside `bytes`.
        let to = unsafe { bytes.cast::<u8>().add(piece * piece_bytes) };
        if read(to, piece_bytes as u32, from) {
            length += piece_bytes as u32;
            continue;
        }
        // The stack ends somewhere in here, at the end of a page of the target's.
        let rest = PAGE_BYTES as u32 - (from as u32 & (PAGE_BYTES as u32 - 1));
        if rest < piece_bytes as u32 && read(to, rest, from) {
            length += rest;
        }
        break;
    }
    length
}

#[inline(always)]
fn read(to: *mut u8, length: u32, from: u64) -> bool {
    // SAFETY: callers have `length` bytes at `to`; the helper checks the address in the target.
    let result = unsafe { generated::bpf_probe_read_user(to.cast(), length, from as *const c_void) };
    result == 0
}

impl ReadMemory for UserMemory {
    #[inline(always)]
    fn read_word(&self, address: u64) -> Option<u64> {
        // SAFETY: the helper checks the address and fails where it cannot be read; any bits are a word.
        unsafe { bpf_probe_read_user(address as *const u64) }.ok()
    }

    #[inline(always)]
    fn read_pair(&self, address: u64) -> Option<[u64; 2]> {
        // SAFETY: the helper checks the address and fails where it cannot be read; any bits are a pair.
        unsafe { bpf_probe_read_user(address as *const [u64; 2]) }.ok()
    }
}
