//! What the kernel programs know of each process that they watch.

/// One watched process, the value of the `TARGETS` map; the key is its tgid. That of the first one is in its [`Home`].
///
/// The programs do nothing for a process that has no entry. User space makes it, and from then on only the kernel side
/// writes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Target {
    /// Raised when addresses change their meaning: code was unmapped. Never set to what was read of it before.
    pub epoch: u32,
    /// Frames kept of a stack, counted from the leaf; at least 1.
    pub depth: u32,
    /// Raised when the process replaces its program, and its heap with it.
    pub image: u32,
    /// 1 where each new stack is to be sent with the registers and the memory that it was walked in.
    pub is_witnessed: u8,
    /// 1 where the processes that it forks are watched as well, and theirs.
    pub follows: u8,
    /// 1 while the loader is removing objects.
    pub is_removing: u8,
    /// 1 once the process's first thread has ended: its number may be another process's from some time on.
    pub is_headless: u8,
}

/// The place of the process that is watched first, the one value of the `HOME` map: no hash has to be looked up for it.
///
/// Every process has one place, here or in `TARGETS`. The tgid comes last, and is written when all else is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Home {
    /// What to do for it.
    pub target: Target,
    /// Which process it is; 0 for none.
    pub tgid: u32,
    /// 0: for the kernel copies whole words.
    pub nothing: u32,
}

/// What is to be done for a process that still has its parent's memory, the value of the `SHARING` map; the key is its tgid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Sharing {
    /// The tgid of the process that made it.
    pub parent: u32,
    /// [`Target::depth`] of the parent.
    pub depth: u32,
    /// [`Target::is_witnessed`] of the parent.
    pub is_witnessed: u32,
}

/// Size of a page, and so of the kernel's `[uprobes]` mapping, in bytes.
const PAGE_BYTES: u64 = 4096;

impl Target {
    /// Whose blocks those are that the process with this tgid has now: the program that it runs.
    #[inline(always)]
    pub const fn owner(&self, tgid: u32) -> u64 {
        tgid as u64 | (self.image as u64) << 32
    }

    /// Always false, in a way that no compiler can see.
    ///
    /// Kernels from 6.13 give a program of this kind a private per-CPU stack unless it can make a tail
    /// call, and that stack is not safe where programs can be preempted, as uprobe programs can. A tail
    /// call that is never made keeps the kernel from doing so.
    #[inline(always)]
    pub const fn keep_kernel_stack(&self) -> bool {
        self.depth == 0
    }
}

/// Whether a word read where a return address lies is one that the kernel has hijacked.
///
/// `trampoline` is where the page begins to which those point; 0 as long as that is not known, for the kernel maps it at
/// the first of them. Until then every page's first byte is taken for it: the kernel's code begins there
/// (`uprobe_get_trampoline_vaddr` in kernel/events/uprobes.c, v6.18), and hardly any call returns there.
#[inline(always)]
pub const fn is_hijacked(address: u64, trampoline: u64) -> bool {
    if trampoline == 0 {
        return address != 0 && address.is_multiple_of(PAGE_BYTES);
    }
    address.wrapping_sub(trampoline) < PAGE_BYTES
}

const _: () = assert!(size_of::<Target>() == 16, "no padding");
const _: () = assert!(size_of::<Home>() == 24, "no padding");
const _: () = assert!(size_of::<Sharing>() == 12, "no padding");

#[cfg(feature = "user")]
// SAFETY: repr(C), no padding (asserted above), any bit pattern is valid.
unsafe impl aya::Pod for Target {}
#[cfg(feature = "user")]
// SAFETY: repr(C), no padding (asserted above), any bit pattern is valid.
unsafe impl aya::Pod for Home {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_page_itself_is_the_trampoline() {
        let trampoline = 0x7000;
        assert!(!is_hijacked(0x6fff, trampoline));
        assert!(is_hijacked(0x7000, trampoline));
        assert!(is_hijacked(0x7fff, trampoline));
        assert!(!is_hijacked(0x8000, trampoline));
    }

    #[test]
    fn any_pages_first_byte_may_be_the_trampoline_as_long_as_it_is_not_known() {
        assert!(is_hijacked(0x7fff_ffff_e000, 0));
        assert!(!is_hijacked(0x7fff_ffff_e008, 0));
        assert!(!is_hijacked(0, 0));
    }
}
