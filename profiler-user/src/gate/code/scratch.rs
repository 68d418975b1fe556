//! Functions of a few instructions that are gated and called in this very process, for tests. What happens at a gate's stops is seen by
//! breakpoints in place of the `nop`s.

use std::{cell::RefCell, sync::Once};

use iced_x86::code_asm::{
    self as asm_of, CodeAssembler, eax, qword_ptr, r8, r10, r11, r12, rax, rbp, rbx, rdi,
};

use super::{Frame, Gates, Site};

/// Memory that can be written and executed, so near to everything that code in it reaches all of it.
pub(super) struct Memory {
    start: *mut u8,
    length: usize,
}

impl Memory {
    pub(super) fn new(length: usize) -> Self {
        Self::map(length, 0)
    }

    /// Memory below 2 GiB.
    pub(super) fn low(length: usize) -> Self {
        let memory = Self::map(length, libc::MAP_32BIT);
        assert!(memory.address() < 1 << 31);
        memory
    }

    fn map(length: usize, where_to: libc::c_int) -> Self {
        let protection = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | where_to;
        // SAFETY: a new mapping wherever the kernel likes.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, -1, 0) };
        assert_ne!(start, libc::MAP_FAILED);
        Self { start: start.cast(), length }
    }

    pub(super) fn address(&self) -> u64 {
        self.start as u64
    }

    pub(super) fn write(&self, offset: u64, bytes: &[u8]) {
        let offset = usize::try_from(offset).unwrap();
        assert!(offset + bytes.len() <= self.length);
        // SAFETY: it fits the mapping.
        let place = unsafe { self.start.add(offset) };
        // SAFETY: the same; nobody else writes to it meanwhile.
        unsafe { place.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    pub(super) fn word(&self, offset: u64) -> u64 {
        let offset = usize::try_from(offset).unwrap();
        assert!(offset + 8 <= self.length);
        // SAFETY: it lies in the mapping.
        let place = unsafe { self.start.add(offset) };
        // SAFETY: the same; gates write whole words.
        unsafe { place.cast::<u64>().read_volatile() }
    }

    pub(super) fn bytes(&self, offset: u64, length: u64) -> Vec<u8> {
        (0..length).map(|at| (self.word((offset + at) & !7) >> (8 * ((offset + at) & 7))) as u8).collect()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing runs in it any more.
        unsafe { libc::munmap(self.start.cast(), self.length) };
    }
}

// SAFETY: it is memory that does not belong to a thread.
unsafe impl Sync for Memory {}

/// What was seen at a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) address: u64,
    pub(super) rsp: u64,
    pub(super) rax: u64,
    pub(super) r11: u64,
    pub(super) arguments: [u64; 4],
}

/// A call as the function itself saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answered {
    pub(super) arguments: [u64; 4],
    /// The stack pointer at its entry.
    pub(super) rsp: u64,
    /// What was on the stack from there on.
    pub(super) words: [u64; 12],
}

thread_local! {
    static SEEN: RefCell<Vec<Seen>> = const { RefCell::new(Vec::new()) };
    static ANSWERED: RefCell<Vec<Answered>> = const { RefCell::new(Vec::new()) };
    /// What the next calls of this thread give.
    static ANSWERS: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// Has the next call of a function give this.
pub(super) fn answer_with(result: u64) {
    ANSWERS.with_borrow_mut(|answers| answers.push(result));
}

/// The calls since this was last asked.
pub(super) fn answered() -> Vec<Answered> {
    ANSWERED.take()
}

/// The stops since this was last asked.
pub(super) fn seen() -> Vec<Seen> {
    SEEN.take()
}

extern "C" fn answer(first: u64, second: u64, third: u64, fourth: u64, rsp: u64) -> u64 {
    let arguments = [first, second, third, fourth];
    // SAFETY: the callers of the function have more than this on their stacks, which are this thread's.
    let words = unsafe { (rsp as *const [u64; 12]).read() };
    ANSWERED.with_borrow_mut(|answered| answered.push(Answered { arguments, rsp, words }));
    ANSWERS.with_borrow_mut(|answers| answers.pop().unwrap_or_default())
}

/// Puts a breakpoint at each stop of a gate.
pub(super) fn watch(memory: &Memory, sites: &[Site]) {
    static HANDLER: Once = Once::new();
    HANDLER.call_once(|| {
        // SAFETY: a struct of numbers, for which zeros are valid.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = on_trap as extern "C" fn(_, _, _) as usize;
        action.sa_flags = libc::SA_SIGINFO;
        // SAFETY: the handler has the signature that the flag asks for, and only breakpoints in scratch memory raise the signal.
        assert_eq!(unsafe { libc::sigaction(libc::SIGTRAP, &raw const action, std::ptr::null_mut()) }, 0);
    });
    for site in sites {
        memory.write(site.address - memory.address(), &[0xcc]);
    }
}

extern "C" fn on_trap(_signal: i32, _info: *mut libc::siginfo_t, context: *mut libc::ucontext_t) {
    // SAFETY: the kernel passes the context that it goes back to.
    let registers = unsafe { &(*context).uc_mcontext.gregs };
    let of = |register: i32| registers[usize::try_from(register).unwrap()].cast_unsigned();
    let arguments = [libc::REG_RDI, libc::REG_RSI, libc::REG_RDX, libc::REG_RCX].map(of);
    let address = of(libc::REG_RIP) - 1;
    let stop =
        Seen { address, rsp: of(libc::REG_RSP), rax: of(libc::REG_RAX), r11: of(libc::REG_R11), arguments };
    SEEN.with_borrow_mut(|seen| seen.push(stop));
}

/// What a caller gets back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Back {
    pub(super) rax: u64,
    /// rbx, rbp and r12 to r15.
    pub(super) kept: [u64; 6],
    /// The stack pointer as the function had to find it, and as it is when it has come back.
    pub(super) rsp: [u64; 2],
    /// The second half of what is given.
    pub(super) rdx: u64,
}

/// What a function has to leave in rbx, rbp and r12 to r15.
pub(super) const KEPT: [u64; 6] = [0x1111, 0x2222, 0x3333, 0x4444, 0x5555, 0x6666];

/// Calls a function with these arguments.
pub(super) fn call(function: u64, arguments: [u64; 4]) -> Back {
    let mut back = Back::default();
    // SAFETY: tests pass the address of a function in memory of theirs, which takes four numbers.
    unsafe { call_raw(function, arguments.as_ptr(), &raw mut back) };
    back
}

#[unsafe(naked)]
unsafe extern "C" fn call_raw(function: u64, arguments: *const u64, back: *mut Back) {
    core::arch::naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rdx",
        "lea rax, [rsp - 8]",
        "mov [rdx + 56], rax",
        "mov rax, rdi",
        "mov r10, rsi",
        "mov rdi, [r10]",
        "mov rsi, [r10 + 8]",
        "mov rdx, [r10 + 16]",
        "mov rcx, [r10 + 24]",
        "mov ebx, 0x1111",
        "mov ebp, 0x2222",
        "mov r12d, 0x3333",
        "mov r13d, 0x4444",
        "mov r14d, 0x5555",
        "mov r15d, 0x6666",
        "call rax",
        "lea r11, [rsp - 8]",
        "pop r10",
        "mov [r10], rax",
        "mov [r10 + 8], rbx",
        "mov [r10 + 16], rbp",
        "mov [r10 + 24], r12",
        "mov [r10 + 32], r13",
        "mov [r10 + 40], r14",
        "mov [r10 + 48], r15",
        "mov [r10 + 64], r11",
        "mov [r10 + 72], rdx",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
    )
}

/// The beginnings that functions have, each of which is covered in its own way.
pub(super) const PROLOGUES: usize = 9;

/// A function at an address that asks [`answer`] for its result, and begins in one of several ways; and how many bytes it has by its
/// symbol, behind which its code may go on under another one.
pub(super) fn function(address: u64, prologue: usize) -> (Vec<u8>, u64) {
    let mut asm = CodeAssembler::new(64).unwrap();
    let mut body = asm.create_label();
    let mut helper = asm.create_label();
    let mut called = asm.create_label();
    let mut constant = asm.create_label();
    let mut pushed = 0;
    let endbr = prologue == 5;
    if endbr {
        asm.endbr64().unwrap();
    }
    match prologue {
        // Registers saved.
        0 | 5 => {
            asm.push(r12).unwrap();
            asm.push(rbp).unwrap();
            asm.push(rbx).unwrap();
            asm.sub(asm_of::rsp, 16).unwrap();
            pushed = 5;
        }
        // A branch behind a test, as glibc's free has it.
        1 => {
            asm.test(rdi, rdi).unwrap();
            asm.je(body).unwrap();
            asm.lea(r10, qword_ptr(rdi + 8)).unwrap();
        }
        // What lies behind the code is read by where the code is.
        2 => {
            asm.mov(rax, qword_ptr(constant)).unwrap();
            asm.push(rbp).unwrap();
            asm.mov(rbp, asm_of::rsp).unwrap();
            pushed = 1;
        }
        // An address by where the code is, and a shorter instruction behind.
        3 => {
            asm.lea(r11, qword_ptr(constant)).unwrap();
            asm.xor(eax, eax).unwrap();
        }
        // Room on the stack, first of all.
        6 => {
            asm.sub(asm_of::rsp, 24).unwrap();
            asm.mov(r8, rdi).unwrap();
            asm.xor(eax, eax).unwrap();
            pushed = 3;
        }
        // A call, which is to return to where it was made from.
        7 => {
            asm.push(rbx).unwrap();
            asm.call(helper).unwrap();
            asm.set_label(&mut called).unwrap();
            asm.mov(rbx, rdi).unwrap();
            pushed = 1;
        }
        // A jump that ends it too early, behind which there is space.
        8 => {
            asm.xor(eax, eax).unwrap();
            asm.jmp(body).unwrap();
            asm.nops_with_size(9).unwrap();
        }
        // A jump that ends it.
        _ => {
            asm.push(rbx).unwrap();
            asm.mov(rbx, rdi).unwrap();
            asm.jmp(body).unwrap();
            asm.int3().unwrap();
            asm.int3().unwrap();
            asm.int3().unwrap();
            pushed = 1;
        }
    }
    asm.set_label(&mut body).unwrap();
    asm.lea(r8, qword_ptr(asm_of::rsp + 8 * pushed)).unwrap();
    let padding = if pushed % 2 == 0 { 8 } else { 16 };
    asm.sub(asm_of::rsp, padding).unwrap();
    asm.mov(rax, answer as extern "C" fn(_, _, _, _, _) -> _ as usize as u64).unwrap();
    asm.call(rax).unwrap();
    asm.add(asm_of::rsp, padding).unwrap();
    match prologue {
        0 | 5 => {
            asm.add(asm_of::rsp, 16).unwrap();
            asm.pop(rbx).unwrap();
            asm.pop(rbp).unwrap();
            asm.pop(r12).unwrap();
        }
        6 => asm.add(asm_of::rsp, 24).unwrap(),
        2 => asm.pop(rbp).unwrap(),
        4 | 7 => asm.pop(rbx).unwrap(),
        _ => {}
    }
    asm.ret().unwrap();
    if prologue == 7 {
        let mut right = asm.create_label();
        asm.set_label(&mut helper).unwrap();
        asm.lea(r10, qword_ptr(called)).unwrap();
        asm.cmp(r10, qword_ptr(asm_of::rsp)).unwrap();
        asm.je(right).unwrap();
        asm.ud2().unwrap();
        asm.set_label(&mut right).unwrap();
        asm.ret().unwrap();
    }
    // As the shortest functions have it.
    for _ in 0..8 {
        asm.int3().unwrap();
    }
    asm.set_label(&mut constant).unwrap();
    asm.dq(&[0x1234_5678_9abc_def0]).unwrap();
    let bytes = asm.assemble(address).unwrap();
    let own_bytes = if prologue == 8 { 4 } else { bytes.len() as u64 };
    (bytes, own_bytes)
}

/// Puts the jump to its gate over a function's beginning.
pub(super) fn jump_into_gate(memory: &Memory, from: u64, to: u64) {
    let distance = i32::try_from(to.wrapping_sub(from + 5).cast_signed()).unwrap();
    let mut jump = vec![0xe9];
    jump.extend(distance.to_le_bytes());
    memory.write(from - memory.address(), &jump);
}

/// Whether an address lies in the gates' code.
pub(super) fn is_in(gates: &Gates, code_address: u64, address: u64) -> bool {
    (code_address..code_address + gates.bytes.len() as u64).contains(&address)
}

/// Where a frame's caller goes on, by what the gate says of the frame, of a call that it made.
pub(super) fn caller_of(frame: &Frame, answered: &Answered) -> u64 {
    // The stack pointer is one word higher when the call returns, and the return address one word below the CFA.
    answered.words[usize::try_from(frame.cfa_offset).unwrap() / 8]
}
