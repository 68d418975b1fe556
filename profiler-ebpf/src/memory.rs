//! Reading the target's memory: never faults, fails where a page is not there.

use core::ffi::c_void;

use aya_ebpf::helpers::{bpf_probe_read_user, generated};
use profiler_common::{limits::COPY_BYTES, unwind::ReadMemory};

/// The memory of the process that runs on this CPU.
pub struct UserMemory;

/// A page, the most that is read at once.
const PAGE_BYTES: usize = 4096;

/// Copies the stack from `sp` on into `bytes`, page by page up to the first that is not there; gives the length.
#[inline(always)]
pub fn copy_stack(bytes: *mut [u8; COPY_BYTES], sp: u64) -> u64 {
    let mut length = 0;
    // Written out by the compiler: the verifier then sees constant places to write to.
    for page in 0..COPY_BYTES / PAGE_BYTES {
        let from = sp.wrapping_add((page * PAGE_BYTES) as u64);
        // SAFETY: the page lies inside `bytes`.
        let to = unsafe { bytes.cast::<u8>().add(page * PAGE_BYTES) };
        if read(to, PAGE_BYTES as u32, from) {
            length += PAGE_BYTES as u64;
            continue;
        }
        // The stack ends somewhere in here, at the end of a page of the target's.
        let rest = PAGE_BYTES as u64 - (from & (PAGE_BYTES as u64 - 1));
        if rest < PAGE_BYTES as u64 && read(to, rest as u32, from) {
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
