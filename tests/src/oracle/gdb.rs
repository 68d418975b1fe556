//! gdb, which is asked where framehop cannot tell: it evaluates no expression that reads memory, and knows no signal frames.
//!
//! gdb gets a core file with nothing but the registers and the stack, and walks it with the files' unwind information.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use profiler_user::source::uprobe::capture::CapturedStack;

use super::captured::View;
use super::files::Files;

/// What gdb is to do.
const SCRIPT: &str = include_str!("frames.py");

/// `struct elf_prstatus` of include/linux/elfcore.h on x86-64, and in it `pr_reg`, which is a `user_regs_struct`.
const STATUS_BYTES: usize = 336;
const REGISTERS_AT: usize = 112;
const RBP: usize = 4;
const RIP: usize = 16;
const RSP: usize = 19;

/// Walks a stack from where heaptap began; gives the program counters, leaf first.
#[track_caller]
pub(super) fn walk(view: &View, files: &Files, stack: &CapturedStack) -> Vec<u64> {
    let folder = tempfile::tempdir().expect("a folder for the core");
    let core = folder.path().join("core");
    fs::write(&core, core_file(stack)).expect("there is room");
    let script = folder.path().join("frames.py");
    fs::write(&script, SCRIPT).expect("there is room");
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-q", "-batch", "-iex", "set auto-load off", "-iex", "set debuginfod enabled off"]);
    gdb.args(["-ex", "set architecture i386:x86-64"]);
    gdb.args(["-ex", "set backtrace past-main on", "-ex", "set backtrace past-entry on"]);
    gdb.arg("-ex").arg(format!("core-file {}", core.display()));
    let used: BTreeSet<usize> = stack.ranges.iter().flatten().copied().collect();
    let used = used.iter().filter_map(|id| view.ranges.get(id));
    for range in used.filter(|range| range.is_file) {
        let Some(bias) = files.parts(&range.name).bias(range) else { continue };
        let file = files.named(&range.name, folder.path());
        gdb.arg("-ex").arg(format!("add-symbol-file {} -o {bias:#x}", file.display()));
    }
    let output = gdb.arg("-x").arg(&script).output().expect("gdb is installed");
    let said = String::from_utf8_lossy(&output.stdout);
    let frame = |line: &str| u64::from_str_radix(line.strip_prefix("frame 0x")?, 16).ok();
    let pcs: Vec<u64> = said.lines().filter_map(frame).collect();
    assert!(!pcs.is_empty(), "gdb: {said}\n{}", String::from_utf8_lossy(&output.stderr));
    pcs
}

/// A core file of one thread: a note with its registers, and its stack. What could not be read is zero.
fn core_file(stack: &CapturedStack) -> Vec<u8> {
    let mut status = vec![0; STATUS_BYTES];
    // The innermost frame's program counter is taken as it is, not as a return address.
    for (register, value) in [(RBP, stack.fp), (RIP, stack.pc - 1), (RSP, stack.sp)] {
        let at = REGISTERS_AT + 8 * register;
        status[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    let memory: Vec<u8> = stack.memory.iter().flat_map(|word| word.unwrap_or(0).to_le_bytes()).collect();
    let mut note = Vec::new();
    // The lengths of the name and of what follows; NT_PRSTATUS; the name, padded.
    for number in [5_u32, u32::try_from(STATUS_BYTES).expect("it is small"), 1] {
        note.extend(number.to_le_bytes());
    }
    note.extend(b"CORE\0\0\0\0");
    note.extend(status);

    let (headers, header) = (64_u64, 56_u64);
    let note_at = headers + 2 * header;
    let memory_at = note_at + note.len() as u64;
    let mut core = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // ET_CORE, EM_X86_64.
    core.extend([4, 0, 62, 0, 1, 0, 0, 0]);
    for number in [0, headers, 0] {
        core.extend(number.to_le_bytes());
    }
    core.extend([0, 0, 0, 0, 64, 0, 56, 0, 2, 0, 64, 0, 0, 0, 0, 0]);
    // PT_NOTE, and PT_LOAD to be read and written.
    for (kind, flags, offset, address, size, alignment) in [
        (4_u32, 4_u32, note_at, 0, note.len() as u64, 4),
        (1, 6, memory_at, stack.sp, memory.len() as u64, 8),
    ] {
        core.extend(kind.to_le_bytes());
        core.extend(flags.to_le_bytes());
        for number in [offset, address, 0, size, size, alignment] {
            core.extend(number.to_le_bytes());
        }
    }
    core.extend(note);
    core.extend(memory);
    core
}
