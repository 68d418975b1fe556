//! Reading the target's memory: never faults, fails where a page is not there.

use core::{ffi::c_void, hint::black_box};

use aya_ebpf::helpers::{
    bpf_probe_read_user,
    generated::{self, bpf_find_vma, bpf_get_current_task_btf, bpf_loop},
};
use profiler_common::{
    limits::{COPY_BYTES, SMALL_COPY_BYTES},
    unwind::ReadMemory,
};

/// The memory of the process that runs on this CPU.
pub struct UserMemory;

/// A page: it is there or it is not.
const PAGE_BYTES: u64 = 4096;

/// The beginning of `struct vm_area_struct` in include/linux/mm_types.h, the same from before v5.17 to v6.18.
#[repr(C)]
struct Mapping {
    start: u64,
    end: u64,
}

/// Where a stack ends of which nobody knows.
const UNKNOWN: u64 = u64::MAX;

/// The end of the mapping that `sp` lies in, which for a thread's stack is where it began to grow; [`UNKNOWN`] where
/// somebody is changing the mappings.
#[inline(always)]
pub fn stack_end(sp: u64) -> u64 {
    let mut end = 0_u64;
    // SAFETY: the helper takes nothing, and its task is the one that runs here.
    let task = unsafe { bpf_get_current_task_btf() };
    // SAFETY: the callback has the signature that the helper asks for, and `end` outlives the call.
    unsafe { bpf_find_vma(task, sp, keep_end as *mut c_void, (&raw mut end).cast(), 0) };
    if end == 0 { UNKNOWN } else { end }
}

unsafe extern "C" fn keep_end(_task: *mut c_void, mapping: *const Mapping, end: *mut u64) -> i64 {
    // SAFETY: the kernel passes a mapping, which it keeps as it is meanwhile.
    let found = unsafe { (*mapping).end };
    // SAFETY: `stack_end` passes a word of its own.
    unsafe { *end = found };
    0
}

/// What was copied of a stack.
#[repr(C)]
pub struct Copied {
    /// Where the stack goes on behind what was copied, or 0.
    pub rest: u64,
    /// Number of bytes, those of missing pages included.
    pub length: u32,
    /// A bit for each page of which nothing is there, the lowest for that of the first byte.
    pub missing: u32,
}

/// A copy that is being made.
#[repr(C)]
struct Copy {
    to: *mut u8,
    sp: u64,
    end: u64,
    copied: Copied,
}

/// The part of a page from `sp` on: at least one byte, and at most a page, which the verifier can see.
#[inline(always)]
const fn first_part(sp: u64) -> u64 {
    PAGE_BYTES - (sp & (PAGE_BYTES - 1))
}

/// Room for the copy of a stack: whole pages as many as fit behind the part of one that `sp` is in.
#[inline(always)]
const fn room<const BYTES: usize>(sp: u64) -> u64 {
    first_part(sp) + BYTES as u64 - PAGE_BYTES
}

/// Whether `BYTES` are enough for the stack from `sp` to `end`.
#[inline(always)]
pub const fn holds<const BYTES: usize>(sp: u64, end: u64) -> bool {
    end.wrapping_sub(sp) <= room::<BYTES>(sp)
}

/// Copies the stack from `sp` to `end` into `bytes`, page by page. A page that is not there is left out: where arrays lie on
/// a stack, some were never written. Where the end is not known, that is the end.
#[inline(always)]
pub fn copy_stack<const BYTES: usize>(bytes: *mut [u8; BYTES], sp: u64, end: u64) -> Copied {
    const { assert!(BYTES == SMALL_COPY_BYTES || BYTES == COPY_BYTES) };
    let mut copied = Copied { rest: 0, length: 0, missing: 0 };
    if BYTES == SMALL_COPY_BYTES {
        copied = copy_to(bytes, sp, end);
    } else {
        copy_much(bytes.cast(), sp, end, &raw mut copied);
    }
    copied
}

/// A function by itself: pieces are copied in a loop, and the verifier need look at it once.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn copy_much(bytes: *mut [u8; COPY_BYTES], sp: u64, end: u64, copied: *mut Copied) -> u64 {
    // SAFETY: `copy_stack` passes what it has.
    let Some(copied) = (unsafe { copied.as_mut() }) else { return 0 };
    if !bytes.is_null() {
        *copied = copy_to(bytes, sp, end);
    }
    0
}

#[inline(always)]
fn copy_to<const BYTES: usize>(bytes: *mut [u8; BYTES], sp: u64, end: u64) -> Copied {
    let copied = Copied { rest: 0, length: 0, missing: 0 };
    let mut copy = Copy { to: bytes.cast(), sp, end, copied };
    if read(bytes.cast(), first_part(sp) as u32, sp) {
        copy.copied.length = first_part(sp) as u32;
    } else {
        copy.copied.missing = 1;
    }
    let pages = (BYTES as u64 / PAGE_BYTES) as u32;
    // SAFETY: the callback has the signature that the helper asks for, and `copy` outlives the call.
    unsafe { bpf_loop(pages, copy_page::<BYTES> as *mut c_void, (&raw mut copy).cast(), 0) };
    copy.copied
}

unsafe extern "C" fn copy_page<const BYTES: usize>(index: u64, copy: *mut c_void) -> i64 {
    // SAFETY: `copy_stack` passes a `Copy` of its own.
    let copy = unsafe { &mut *copy.cast::<Copy>() };
    if index >= BYTES as u64 / PAGE_BYTES - 1 {
        let behind = copy.sp.wrapping_add(room::<BYTES>(copy.sp));
        if behind < copy.end {
            copy.copied.length = room::<BYTES>(copy.sp) as u32;
            copy.copied.rest = behind;
        }
        return 1;
    }
    // The verifier has to see that what is calculated from here on has this bound.
    let index = black_box(index);
    let first = first_part(copy.sp);
    let from = copy.sp.wrapping_add(first).wrapping_add(index * PAGE_BYTES);
    if from >= copy.end {
        return 1;
    }
    // SAFETY: the first part is at most a page, and there is one page less than BYTES have behind it.
    let to = unsafe { copy.to.add((first + index * PAGE_BYTES) as usize) };
    if read(to, PAGE_BYTES as u32, from) {
        copy.copied.length = (first + (index + 1) * PAGE_BYTES) as u32;
        return 0;
    }
    copy.copied.missing |= 2 << index;
    i64::from(copy.end == UNKNOWN)
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
