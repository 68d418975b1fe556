//! Reading the target's memory: never faults, fails where a page is not there.

use aya_ebpf::helpers::bpf_probe_read_user;
use profiler_common::unwind::ReadMemory;

/// The memory of the process that runs on this CPU.
pub struct UserMemory;

impl UserMemory {
    /// The word at `address`, or `None` where it cannot be read.
    #[inline(always)]
    pub fn read_u64(&self, address: u64) -> Option<u64> {
        // SAFETY: the helper checks the address and fails where it cannot be read; any bits are a u64.
        unsafe { bpf_probe_read_user(address as *const u64) }.ok()
    }
}

impl ReadMemory for UserMemory {
    #[inline(always)]
    fn read_pair(&self, address: u64) -> Option<[u64; 2]> {
        // SAFETY: the helper checks the address and fails where it cannot be read; any bits are a pair.
        unsafe { bpf_probe_read_user(address as *const [u64; 2]) }.ok()
    }
}
