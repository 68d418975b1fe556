//! Walks that are not made again: see [`profiler_common::unwind::remembered`] for why they need not be.

use core::{ffi::c_void, hint::black_box};

use aya_ebpf::{
    bindings::pt_regs,
    helpers::generated::{bpf_loop, bpf_probe_read_user},
};
use profiler_common::{
    heap::TotalsKey,
    thread::Thread,
    unwind::{
        ReadMemory, Regs,
        remembered::{Knowledge, Noting, WALKS as REMEMBERED, WINDOW_WORDS, Walks, place},
    },
};

use crate::{
    maps::{self, NO_EXIST, WALKS, WalksWords},
    memory::UserMemory,
    unwind::{self, Stack, Walk, Walked},
};

/// The walks that are remembered of the thread at hand, if any are.
pub type ThreadWalks = Option<*mut Walks>;

/// Nothing remembered. Not on the stack, where there is no room for it.
#[unsafe(no_mangle)]
static NO_WALKS: WalksWords = [0; size_of::<Walks>() / 8];

/// How many stacks of a thread are walked before any is remembered: a thread that allocates less is not worth the memory.
const FIRST_WALKS: u32 = 64;

/// The walks that are remembered of a thread.
#[inline(always)]
pub fn of_thread(pid_tgid: u64, thread: *mut Thread) -> ThreadWalks {
    if let Some(walks) = WALKS.get_ptr_mut(pid_tgid) {
        return Some(walks.cast());
    }
    // SAFETY: a word of a map value, which only this thread writes.
    let made = unsafe {
        let made = (*thread).walks.wrapping_add(1);
        (*thread).walks = made;
        made
    };
    // Where there is no room now, there may be some after as many again.
    if made % FIRST_WALKS == 0 {
        let nothing: &WalksWords = &NO_WALKS;
        let _ = WALKS.insert(pid_tgid, nothing, NO_EXIST);
    }
    None
}

/// Registers as the caller of an allocator function has them once it gets its result, given those at the function's entry;
/// `None` where the return address cannot be read. What the next walk may be known by is read along with it.
#[inline(always)]
pub fn caller(walks: ThreadWalks, regs: &pt_regs) -> Option<Regs> {
    let Some(walks) = walks else {
        return unwind::caller(regs.rsp, regs.rbp);
    };
    // SAFETY: a word of a map value, which only this thread writes.
    let length = unsafe { (&raw const (*walks).length).read_volatile() };
    if !read_window(walks, length, regs.rsp) {
        // The stack may end above. Nothing is in the window now; the kernel has written zeros.
        // SAFETY: as above.
        unsafe { (*walks).length = 0 };
    }
    // SAFETY: as above.
    match unsafe { (*walks).window[0] } {
        0 => unwind::caller(regs.rsp, regs.rbp),
        pc => Some(Regs { pc, sp: regs.rsp.wrapping_add(8), fp: regs.rbp }),
    }
}

/// Reads so many words of the stack into the window; false where they cannot be read.
#[inline(always)]
fn read_window(walks: *mut Walks, length: u64, from: u64) -> bool {
    let length = length.clamp(1, WINDOW_WORDS as u64);
    // SAFETY: the window has so many words; the helper checks the address in the target.
    unsafe {
        let window = (&raw mut (*walks).window).cast::<c_void>();
        bpf_probe_read_user(window, (length * 8) as u32, from as *const c_void) == 0
    }
}

/// Walks a stack, or finds that this was done before. The window has what was read along with the stack's leaf.
#[cfg(not(feature = "kernel-walk"))]
#[inline(always)]
pub fn walk(stack: &mut Stack, walks: ThreadWalks) -> Walked {
    let Some(walks) = walks else {
        return unwind::walk(stack);
    };
    let mut walked = Walked::nowhere(stack);
    recall(walks, stack, &raw mut walked);
    walked
}

#[cfg(not(feature = "kernel-walk"))]
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn recall(walks: *mut Walks, stack: *mut Stack, walked: *mut Walked) -> u64 {
    if walks.is_null() {
        return 0;
    }
    // SAFETY: `walk` passes what it has.
    let (Some(stack), Some(walked)) = (unsafe { stack.as_mut() }, unsafe { walked.as_mut() }) else {
        return 0;
    };
    let knowledge = Knowledge { epoch: stack.epoch, image: stack.image, generation: maps::generation() };
    let regs = stack.regs;
    let place = place(regs);
    // SAFETY: only this thread's programs write this, one after the other.
    let (length, remembered) = unsafe { ((*walks).length, (*walks).walks.get(place as usize)) };
    let Some(remembered) = remembered else { return 0 };
    let begin = regs.sp.wrapping_sub(8);
    if remembered.began_with(regs, knowledge) {
        let needed = u64::from(remembered.length());
        let is_read = needed <= length || {
            let is_read = read_window(walks, needed, begin);
            // SAFETY: as above.
            unsafe { (*walks).length = if is_read { needed } else { 0 } };
            is_read
        };
        if is_read && finds_the_same(walks, place) != 0 {
            // Not at once as little as this one needs: where two take turns, the longer one is read at once as well.
            // SAFETY: as above.
            unsafe { (*walks).length -= ((*walks).length - needed) / 8 };
            let come = remembered.come();
            walked.come(stack, come, place, remembered.announced());
            return 0;
        }
    }
    remembered.begin();
    // SAFETY: as above.
    unsafe { (*walks).begin = begin };
    let mut noted = NotedWalk { walk: Walk::new(stack), walks, place };
    // SAFETY: the callback has the signature that the helper asks for, and `noted` outlives the call.
    unsafe { bpf_loop(stack.depth(), walk_frame as *mut c_void, (&raw mut noted).cast(), 0) };
    let come = noted.walk.come();
    let place = if remembered.finish(regs, knowledge, come) { place } else { REMEMBERED as u32 };
    walked.come(stack, come, place, 0);
    0
}

/// 1 where the walk at this place would find the same words as before. A function by itself, for each word that differs is a way out of it.
#[cfg(not(feature = "kernel-walk"))]
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn finds_the_same(walks: *const Walks, place: u32) -> u64 {
    if walks.is_null() {
        return 0;
    }
    // SAFETY: `recall` passes what it has; only this thread's programs write it, one after the other.
    let (window, remembered) = unsafe { (&(*walks).window, (*walks).walks.get(place as usize)) };
    u64::from(remembered.is_some_and(|remembered| remembered.finds_the_same_in(window)))
}

/// A walk that is under way, and where it notes what it reads.
#[cfg(not(feature = "kernel-walk"))]
#[repr(C)]
struct NotedWalk {
    walk: Walk,
    walks: *const Walks,
    place: u32,
}

#[cfg(not(feature = "kernel-walk"))]
unsafe extern "C" fn walk_frame(_index: u64, noted: *mut c_void) -> i64 {
    // SAFETY: `recall` passes a `NotedWalk` of its own.
    let noted = unsafe { &mut *noted.cast::<NotedWalk>() };
    unwind::has_ended(advance_noting(&raw mut noted.walk, noted.walks, noted.place))
}

/// [`Walk::advance`] that notes what it reads. A function by itself: the verifier need look at it once, and not for each frame.
#[cfg(not(feature = "kernel-walk"))]
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn advance_noting(walk: *mut Walk, walks: *const Walks, place: u32) -> u64 {
    // SAFETY: `walk_frame` passes what it has; only this thread's programs write it, one after the other.
    let (Some(walk), Some(walks)) = (unsafe { walk.as_mut() }, unsafe { walks.as_ref() }) else {
        return 0;
    };
    let Some(remembered) = walks.walks.get(place as usize) else { return 0 };
    let (memory, begin, words) = (Window(walks), walks.begin, remembered.words());
    u64::from(walk.advance(&Noting { memory, begin, words }))
}

/// The target's memory, of which a part was read at once: another word of that takes no call of a helper.
#[cfg(not(feature = "kernel-walk"))]
struct Window<'walks>(&'walks Walks);

#[cfg(not(feature = "kernel-walk"))]
impl Window<'_> {
    /// A word of that part.
    #[inline(always)]
    fn word(&self, address: u64) -> Option<u64> {
        let Self(walks) = self;
        let offset = address.wrapping_sub(walks.begin);
        let index = offset >> 3;
        if offset & 7 != 0 || index >= walks.length {
            return None;
        }
        // The verifier has to see the bound of what is looked up, and not that of something else that comes to the same.
        walks.window.get(black_box(index) as usize).copied()
    }
}

#[cfg(not(feature = "kernel-walk"))]
impl ReadMemory for Window<'_> {
    #[inline(always)]
    fn read_word(&self, address: u64) -> Option<u64> {
        self.word(address).or_else(|| UserMemory.read_word(address))
    }

    #[inline(always)]
    fn read_pair(&self, address: u64) -> Option<[u64; 2]> {
        match (self.word(address), self.word(address.wrapping_add(8))) {
            (Some(first), Some(second)) => Some([first, second]),
            _ => UserMemory.read_pair(address),
        }
    }
}

/// Takes note that the stack that was walked is known to user space under a key.
#[inline(always)]
pub fn announced(walks: ThreadWalks, walked: &Walked, key: TotalsKey) {
    let place = walked.place() as usize;
    // A place that is none, once more in a way that the verifier of Linux 6.1 sees.
    if let Some(walks) = walks
        && place < REMEMBERED
        // SAFETY: only this thread's programs write this, one after the other.
        && let Some(remembered) = unsafe { (*walks).walks.get(black_box(place) % REMEMBERED) }
    {
        remembered.announce(key.without_stack());
    }
}
