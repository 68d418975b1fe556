//! What brings a thread back that executes a system call for us, should we die meanwhile.
//!
//! Below what a thread uses of its stack lie, by rising address: the address that the call returns to, which is of two
//! instructions that make the system call `rt_sigreturn`; the frame that this call takes, as if a signal's handler had returned;
//! what the call's arguments point to; and the state of the floating point unit, which the frame points to. See
//! arch/x86/kernel/signal_64.c and arch/x86/include/uapi/asm/sigcontext.h.

use super::request::Registers;

/// What functions use below the stack pointer without moving it.
pub(super) const RED_ZONE_BYTES: u64 = 128;

/// The return address, which the frame begins with, and `struct ucontext`.
const FRAME_BYTES: usize = 8 + 304;

/// What `XRSTOR` asks for.
const STATE_ALIGNMENT: u64 = 64;

/// `UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS`
const FLAGS: u64 = 1 | 2 | 4;

/// No mode that a stack for signals has: the kernel leaves the one that there is, of which nothing tells us.
const NO_STACK_MODE: u64 = 3;

/// Where things have come to lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    /// The first address: the stack pointer for the call.
    pub(super) start: u64,
    /// What is to be written there.
    pub(super) bytes: Vec<u8>,
    /// The address of each of the call's arguments that are bytes.
    pub(super) arguments: Vec<u64>,
}

/// What a thread goes on with.
pub(super) struct Saved<'a> {
    /// Its registers.
    pub(super) registers: &'a Registers,
    /// The signals that it does not take.
    pub(super) blocked: u64,
    /// The state of its floating point unit, as it is in a frame.
    pub(super) state: &'a [u8],
}

impl Frame {
    /// Lays out what is to lie below a stack pointer; `None` where there are no such addresses.
    pub(super) fn below(
        stack_pointer: u64,
        returns_to: u64,
        saved: &Saved<'_>,
        arguments: &[Vec<u8>],
    ) -> Option<Self> {
        let top = stack_pointer.checked_sub(RED_ZONE_BYTES)?;
        let state_at = down(top, saved.state.len(), STATE_ALIGNMENT)?;
        let mut start = state_at;
        let mut places = Vec::with_capacity(arguments.len());
        for argument in arguments {
            start = down(start, argument.len(), 8)?;
            places.push(start);
        }
        start = down(start, FRAME_BYTES, 16)?;
        let mut bytes = vec![0; usize::try_from(top.checked_sub(start)?).ok()?];
        put(&mut bytes, start, start, &context(returns_to, saved, state_at))?;
        for (place, argument) in places.iter().zip(arguments) {
            put(&mut bytes, start, *place, argument)?;
        }
        put(&mut bytes, start, state_at, saved.state)?;
        Some(Self { start, bytes, arguments: places })
    }
}

/// The return address and `struct ucontext`.
fn context(returns_to: u64, saved: &Saved<'_>, state_at: u64) -> Vec<u8> {
    let of = saved.registers;
    // The selectors are 16 bits each: `cs`, `gs`, `fs`, `ss`.
    let selectors = (of.cs & 0xffff) | (of.ss & 0xffff) << 48;
    let words = [
        returns_to,
        // uc_flags, uc_link, uc_stack: its address, its flags, its size.
        FLAGS,
        0,
        0,
        NO_STACK_MODE,
        0,
        // uc_mcontext
        of.r8,
        of.r9,
        of.r10,
        of.r11,
        of.r12,
        of.r13,
        of.r14,
        of.r15,
        of.rdi,
        of.rsi,
        of.rbp,
        of.rbx,
        of.rdx,
        of.rax,
        of.rcx,
        of.rsp,
        of.rip,
        of.eflags,
        selectors,
        // err, trapno, oldmask, cr2
        0,
        0,
        0,
        0,
        state_at,
        // reserved1
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        // uc_sigmask
        saved.blocked,
    ];
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn down(from: u64, length: usize, alignment: u64) -> Option<u64> {
    let start = from.checked_sub(u64::try_from(length).ok()?)?;
    start.checked_sub(start.checked_rem(alignment)?)
}

fn put(bytes: &mut [u8], start: u64, at: u64, piece: &[u8]) -> Option<()> {
    let at = usize::try_from(at.checked_sub(start)?).ok()?;
    bytes.get_mut(at..)?.get_mut(..piece.len())?.copy_from_slice(piece);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registers() -> Registers {
        // SAFETY: it is numbers, for which zero is a value.
        let zero: Registers = unsafe { std::mem::zeroed() };
        Registers { rip: 0x1234, rsp: 0x7fff_0000_1008, cs: 0x33, ss: 0x2b, rax: 7, ..zero }
    }

    #[test]
    fn everything_has_its_place() {
        let registers = registers();
        let state = [0xaa; 832 + 4];
        let saved = Saved { registers: &registers, blocked: 0x55, state: &state };
        let frame = Frame::below(registers.rsp, 0x4000, &saved, &[b"name\0".to_vec(), vec![1; 9]]).unwrap();
        let top = registers.rsp - 128;
        assert_eq!(frame.start + frame.bytes.len() as u64, top);
        let bytes = |address: u64, length: usize| {
            let at = usize::try_from(address - frame.start).unwrap();
            &frame.bytes[at..at + length]
        };
        let word = |address| u64::from_le_bytes(bytes(address, 8).try_into().unwrap());
        assert_eq!(frame.start % 16, 0);
        assert_eq!(word(frame.start), 0x4000);
        let context = frame.start + 8;
        assert_eq!((word(context), word(context + 296)), (7, 0x55));
        // As libc has it.
        let greg = |number: i32| word(context + 40 + u64::try_from(number).unwrap() * 8);
        assert_eq!(greg(libc::REG_RIP), 0x1234);
        assert_eq!(greg(libc::REG_RSP), registers.rsp);
        assert_eq!(greg(libc::REG_RAX), 7);
        assert_eq!(greg(libc::REG_CSGSFS), 0x33 | 0x2b << 48);
        assert_eq!(std::mem::offset_of!(libc::ucontext_t, uc_sigmask), 296);
        let state_at = word(context + 40 + 23 * 8);
        assert_eq!(state_at % 64, 0);
        assert!(state_at + 836 <= top);
        assert_eq!(bytes(state_at, 836), state);
        assert_eq!(bytes(frame.arguments[0], 5), b"name\0");
        assert_eq!(bytes(frame.arguments[1], 9), [1; 9]);
    }

    #[test]
    fn a_stack_pointer_that_is_none_has_nothing_below() {
        let registers = registers();
        let saved = Saved { registers: &registers, blocked: 0, state: &[0; 836] };
        for stack_pointer in [0, 127, 128, 900] {
            assert_eq!(Frame::below(stack_pointer, 0, &saved, &[]), None);
        }
        assert!(Frame::below(u64::MAX, 0, &saved, &[]).is_some());
    }
}
