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
    /// Start of the page to which the kernel makes hijacked return addresses point, in the target; 0 as long as
    /// that is not known. The kernel maps it at the first of them, somewhere high.
    pub trampoline: u64,
}

/// Size of a page, and so of the kernel's `[uprobes]` mapping, in bytes.
const PAGE_BYTES: u64 = 4096;

impl Target {
    /// Whether a word read where a return address lies is one that the kernel has hijacked.
    ///
    /// As long as it is not known where those point, every page's first byte is taken for it: the kernel's code begins
    /// there (`uprobe_get_trampoline_vaddr` in kernel/events/uprobes.c, v6.18), and hardly any call returns there.
    #[inline(always)]
    pub const fn is_trampoline(&self, address: u64) -> bool {
        if self.trampoline == 0 {
            return address != 0 && address.is_multiple_of(PAGE_BYTES);
        }
        address.wrapping_sub(self.trampoline) < PAGE_BYTES
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

    #[test]
    fn any_pages_first_byte_may_be_the_trampoline_as_long_as_it_is_not_known() {
        let target = Target::default();
        assert!(target.is_trampoline(0x7fff_ffff_e000));
        assert!(!target.is_trampoline(0x7fff_ffff_e008));
        assert!(!target.is_trampoline(0));
    }
}
