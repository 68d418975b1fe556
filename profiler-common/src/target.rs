//! What the kernel programs know of each process that they watch.

/// One watched process, the value of the `TARGETS` map; the key is its tgid.
///
/// The programs do nothing for a process that has no entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Target {
    /// Raised when addresses change their meaning (exec, unmapped code).
    pub epoch: u32,
    /// Zero; see [`Target::keep_kernel_stack`].
    pub flags: u32,
    /// Start of the page to which the kernel makes hijacked return addresses point, in the target.
    pub trampoline: u64,
}

/// Where Linux puts the `[uprobes]` page of a 64-bit x86 process unless something is mapped there.
///
/// The hint in `__create_xol_area` (kernel/events/uprobes.c, v6.18) is `TASK_SIZE - PAGE_SIZE`, and
/// `TASK_SIZE` is `(1 << 47) - PAGE_SIZE`.
pub const DEFAULT_TRAMPOLINE: u64 = (1 << 47) - 2 * 4096;

/// Size of the `[uprobes]` page, in bytes.
pub const TRAMPOLINE_BYTES: u64 = 4096;

impl Target {
    /// Whether `address` lies in the page of hijacked return addresses.
    #[inline(always)]
    pub const fn is_trampoline(&self, address: u64) -> bool {
        address.wrapping_sub(self.trampoline) < TRAMPOLINE_BYTES
    }

    /// Always false, in a way that no compiler can see.
    ///
    /// Kernels from 6.13 give a program of this kind a private per-CPU stack unless it can make a tail
    /// call, and that stack is not safe where programs can be preempted, as uprobe programs can. A tail
    /// call that is never made keeps the kernel from doing so.
    #[inline(always)]
    pub const fn keep_kernel_stack(&self) -> bool {
        self.flags != 0
    }
}

const _: () = assert!(size_of::<Target>() == 16, "no padding");

#[cfg(feature = "user")]
// SAFETY: repr(C), no padding (asserted above), any bit pattern is valid.
unsafe impl aya::Pod for Target {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_page_itself_is_the_trampoline() {
        let target = Target { trampoline: 0x7000, ..Target::default() };
        assert!(!target.is_trampoline(0x6fff));
        assert!(target.is_trampoline(0x7000));
        assert!(target.is_trampoline(0x7fff));
        assert!(!target.is_trampoline(0x8000));
    }
}
