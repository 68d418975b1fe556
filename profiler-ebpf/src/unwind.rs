//! Walking the target's stack by the rows that are known.
//!
//! What loops over frames is a global function in the verifier's sense: one that it looks at once, whatever its callers
//! know. Otherwise it would go through every way out of one loop into the next, and give up.

use core::{ffi::c_void, hint::black_box};

use aya_ebpf::helpers::{bpf_ktime_get_ns, generated::bpf_loop};
use profiler_common::{
    counters::Counter,
    heap::{RowKey, TotalsKey},
    target::{Target, is_hijacked},
    unwind::{
        CachedRow, Frame, Nesting, ReadMemory, Regs, Row, StackHash, WalkEnd,
        remembered::{Come, WALKS as REMEMBERED},
    },
};

use crate::{
    counters::count,
    maps::{self, ROW_CACHE, ROWS},
    memory::UserMemory,
    send::send_miss,
};

/// A stack by its leaf: where a walk begins, and in which process.
#[repr(C)]
pub struct Stack {
    /// The registers of the leaf.
    pub regs: Regs,
    pub tgid: u32,
    pub epoch: u32,
    /// Which program of the process it is of.
    pub image: u32,
    /// The most frames to walk.
    depth: u16,
    /// 1 where the stack is to be sent with its memory.
    pub is_witnessed: u8,
    /// Frames that were walked.
    pub walked: u32,
    /// The stack pointer at the last of them.
    pub walked_sp: u64,
}

impl Stack {
    /// The stack of the process `tgid` whose leaf has these registers.
    #[inline(always)]
    pub fn new(regs: Regs, tgid: u32, target: &Target) -> Self {
        let Target { epoch, depth, image, is_witnessed, .. } = *target;
        Self { regs, tgid, epoch, image, depth: depth as u16, is_witnessed, walked: 0, walked_sp: regs.sp }
    }

    /// The most frames to walk.
    #[inline(always)]
    pub const fn depth(&self) -> u32 {
        self.depth as u32
    }

    /// Whose block it is that is allocated here: [`Target::owner`].
    #[inline(always)]
    pub const fn owner(&self) -> u64 {
        self.tgid as u64 | (self.image as u64) << 32
    }
}

/// What a walk has come to.
#[repr(C)]
pub struct Walked {
    hash: StackHash,
    /// Under what it is known to user space; 0 for nothing.
    announced: u64,
    /// The [`WalkEnd`].
    end: u16,
    /// 1 where it led through a function that allocates and is probed.
    is_of_allocator: u16,
    /// Where it is remembered, if it is.
    place: u32,
}

impl Walked {
    /// What a walk has come to that has not begun.
    #[inline(always)]
    pub const fn nowhere(stack: &Stack) -> Self {
        let hash = StackHash::new(stack.epoch);
        Self { hash, announced: 0, end: WalkEnd::Cut as u16, is_of_allocator: 0, place: REMEMBERED as u32 }
    }

    /// Takes in what a walk of a stack has come to.
    #[inline(always)]
    pub const fn come(&mut self, stack: &mut Stack, come: Come, place: u32, announced: u64) {
        let Come { hash, sp, depth, end, is_of_allocator } = come;
        (stack.walked, stack.walked_sp) = (depth, sp);
        *self = Self { hash, announced, end, is_of_allocator, place };
    }

    /// What somebody else's walk has come to, under an id of theirs.
    #[cfg(feature = "kernel-walk")]
    #[inline(always)]
    pub const fn known(stack: &Stack, id: u64) -> Self {
        let Self { hash, .. } = Self::nowhere(stack);
        Self { hash: hash.push(id), end: WalkEnd::Whole as u16, ..Self::nowhere(stack) }
    }

    /// Whether the walk stopped for want of a row.
    #[inline(always)]
    pub const fn misses_row(&self) -> bool {
        self.end == WalkEnd::MissingRow as u16
    }

    /// Whether it led through a function that allocates and is probed.
    #[inline(always)]
    pub const fn is_of_allocator(&self) -> bool {
        self.is_of_allocator != 0
    }

    /// Where it is remembered; a place that is none where it is not.
    #[inline(always)]
    pub const fn place(&self) -> u32 {
        self.place
    }

    /// Whether it is known that user space knows it under a key.
    #[inline(always)]
    pub const fn is_announced(&self, key: TotalsKey) -> bool {
        self.announced == key.without_stack()
    }

    /// The hash of the stack.
    #[inline(always)]
    pub fn hash(&self) -> u64 {
        self.hash.finish(WalkEnd::from_raw(self.end as u32).unwrap_or(WalkEnd::UnknownRow))
    }

    /// An id for this one walk, which no other has: not its hash, because what lies above is not known.
    #[inline(always)]
    pub fn provisional_id(&self, pid_tgid: u64) -> u64 {
        // SAFETY: the helper takes nothing.
        let now_ns = unsafe { bpf_ktime_get_ns() };
        self.hash.push(pid_tgid).push(now_ns).finish(WalkEnd::MissingRow)
    }
}

/// A walk that is under way.
#[repr(C)]
pub struct Walk {
    /// The frame at hand.
    pub frame: Frame,
    hash: StackHash,
    tgid: u32,
    epoch: u32,
    /// Frames walked.
    pub depth: u32,
    /// How it ended, a [`WalkEnd`].
    pub end: u16,
    /// 1 where it led through a function that allocates and is probed.
    is_of_allocator: u16,
}

impl Walk {
    /// A walk that has not begun.
    #[inline(always)]
    pub const fn new(stack: &Stack) -> Self {
        let Stack { regs, tgid, epoch, .. } = *stack;
        // No stack has as many frames, but a quarter of what fits the field.
        let frame = Frame::new_unless(stack.depth() >> 14, regs);
        // Cut is what is left when the loop runs out of frames.
        let end = WalkEnd::Cut as u16;
        Self { frame, hash: StackHash::new(epoch), tgid, epoch, depth: 0, end, is_of_allocator: 0 }
    }

    /// What it has come to.
    #[inline(always)]
    pub const fn come(&self) -> Come {
        let Self { hash, depth, end, is_of_allocator, .. } = *self;
        Come { hash, sp: self.frame.sp, depth, end, is_of_allocator }
    }

    /// Takes the frame at hand into the hash and goes on to its caller; false at the end.
    #[inline(always)]
    pub fn advance(&mut self, memory: &impl ReadMemory) -> bool {
        self.hash = self.hash.push(self.frame.pc);
        self.depth += 1;
        let row = row(self.tgid, self.epoch, self.frame.pc);
        self.is_of_allocator |= row.is_of_allocator() as u16;
        match self.frame.caller(row, memory) {
            Ok(caller) => {
                self.frame = caller;
                true
            }
            Err(end) => {
                self.end = end as u16;
                false
            }
        }
    }
}

/// The row that is known for a pc, or one that stops.
#[inline(always)]
fn row(tgid: u32, epoch: u32, pc: u64) -> Row {
    let key = RowKey { pc, tgid, epoch };
    if let Some(cached) = ROW_CACHE.get_ptr(CachedRow::slot(key)) {
        // SAFETY: aligned words of a map value; should they be replaced meanwhile, they do not fit together.
        let cached = unsafe { cached.read_volatile() };
        if let Some(row) = cached.row(key) {
            return row;
        }
    }
    match ROWS.get_ptr(key) {
        // SAFETY: an aligned word of a map value; entries are replaced by ones that say the same.
        Some(row) => Row::from_raw(unsafe { *row }),
        None => Row::stop(WalkEnd::MissingRow),
    }
}

/// Registers as the caller of an allocator function has them once it gets its result, given those at the
/// function's entry; `None` where the return address cannot be read.
#[inline(always)]
pub fn caller(sp: u64, fp: u64) -> Option<Regs> {
    let pc = UserMemory.read_word(sp)?;
    Some(Regs { pc, sp: sp.wrapping_add(8), fp })
}

/// Walks a stack.
#[cfg(not(feature = "kernel-walk"))]
#[inline(always)]
pub fn walk(stack: &mut Stack) -> Walked {
    let mut walked = Walked::nowhere(stack);
    walk_stack(stack, &raw mut walked);
    walked
}

#[cfg(not(feature = "kernel-walk"))]
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn walk_stack(stack: *mut Stack, walked: *mut Walked) -> u64 {
    // SAFETY: `walk` passes what it has.
    let (Some(stack), Some(walked)) = (unsafe { stack.as_mut() }, unsafe { walked.as_mut() }) else {
        return 0;
    };
    let mut walk = Walk::new(stack);
    // SAFETY: the callback has the signature that the helper asks for, and `walk` outlives the call.
    unsafe { bpf_loop(stack.depth(), walk_frame as *mut c_void, (&raw mut walk).cast(), 0) };
    walked.come(stack, walk.come(), REMEMBERED as u32, 0);
    0
}

#[cfg(not(feature = "kernel-walk"))]
unsafe extern "C" fn walk_frame(_index: u64, walk: *mut c_void) -> i64 {
    // SAFETY: `walk_stack` passes a `Walk` of its own.
    has_ended(advance(unsafe { &mut *walk.cast() }))
}

/// What a callback comes away with: 1 where a walk has ended. Nothing else may be given, and what a function gives is unknown to the
/// verifier.
#[inline(always)]
pub fn has_ended(goes_on: u64) -> i64 {
    (black_box(goes_on) & 1 ^ 1) as i64
}

/// [`Walk::advance`] for all who walk and look at nothing else: the verifier need look at it once. 0 at the end.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn advance(walk: *mut Walk) -> u64 {
    // SAFETY: callers pass a walk of their own.
    let Some(walk) = (unsafe { walk.as_mut() }) else { return 0 };
    u64::from(walk.advance(&UserMemory))
}

/// A question about nesting, with what it takes to find rows.
#[repr(C)]
struct NestingWalk {
    nesting: Nesting,
    tgid: u32,
    epoch: u32,
    /// Where hijacked return addresses point.
    trampoline: u64,
    misses_row: u64,
}

/// The walk has proved what is asked, or nothing speaks against it.
const IS_INSIDE: u64 = 1;

/// On the way a row was missing.
const MISSES_ROW: u64 = 2;

/// Whether a call from a stack is part of one whose return address lies at `outer_sp`.
#[inline(always)]
pub fn is_inside(stack: &Stack, outer_sp: u64) -> bool {
    let answer = leads_to(stack, outer_sp);
    if answer & MISSES_ROW != 0 {
        // Nested calls are not walked otherwise, and would never be learned from.
        send_miss(0, stack);
    }
    answer & IS_INSIDE != 0
}

/// The same, of a mapping: where a row is missing it is taken for a part, and the guess is counted.
#[inline(always)]
pub fn may_be_inside(stack: &Stack, outer_sp: u64) -> bool {
    let answer = leads_to(stack, outer_sp);
    if answer & MISSES_ROW != 0 {
        send_miss(0, stack);
        count(stack.tgid, Counter::GuessedMappings, 1);
    }
    answer != 0
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn leads_to(stack: *const Stack, outer_sp: u64) -> u64 {
    // SAFETY: `is_inside` passes a stack of its caller's.
    let Some(stack) = (unsafe { stack.as_ref() }) else { return 0 };
    let nesting = Nesting::new(stack.regs, outer_sp);
    let (tgid, epoch) = (stack.tgid, stack.epoch);
    let mut walk = NestingWalk { nesting, tgid, epoch, trampoline: maps::trampoline(tgid), misses_row: 0 };
    // SAFETY: the callback has the signature that the helper asks for, and `walk` outlives the call.
    unsafe { bpf_loop(stack.depth(), nesting_frame as *mut c_void, (&raw mut walk).cast(), 0) };
    if walk.misses_row != 0 {
        // Until it is learned, a call is taken for one of its own: should it be nested, that is counted.
        return MISSES_ROW | if walk.nesting.has_arrived() { IS_INSIDE } else { 0 };
    }
    if walk.nesting.is_inside() { IS_INSIDE } else { 0 }
}

unsafe extern "C" fn nesting_frame(_index: u64, walk: *mut c_void) -> i64 {
    // SAFETY: `leads_to` passes a `NestingWalk` of its own.
    has_ended(advance_nesting(unsafe { &mut *walk.cast() }))
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn advance_nesting(walk: *mut NestingWalk) -> u64 {
    // SAFETY: `nesting_frame` passes on what it is passed.
    let Some(walk) = (unsafe { walk.as_mut() }) else { return 0 };
    if is_hijacked(walk.nesting.pc(), walk.trampoline) {
        // A call between the two is under way, which was found to be part of the outer one when it began.
        walk.nesting.arrive();
        return 0;
    }
    let mut row = row(walk.tgid, walk.epoch, walk.nesting.pc());
    if row == Row::stop(WalkEnd::MissingRow) {
        walk.misses_row = 1;
        // The best guess: where it is wrong, it seldom leads anywhere, and that is no answer.
        row = Row::FRAME_POINTER;
    }
    u64::from(walk.nesting.advance(row, &UserMemory))
}
