//! The sites in every allocator library of Debian, beside what binutils' disassembler says of the same code.

use std::{collections::HashMap, fs::File, path::Path, process::Command};

use object::{Object, ObjectSegment};

use super::{
    allocator,
    maps::Module,
    separate::Places,
    site::{Choice, Site},
    specimen::Specimen,
};

const LIBRARIES: [&str; 10] = [
    "/lib/x86_64-linux-gnu/libc.so.6",
    "/lib/ld-musl-x86_64.so.1",
    "/lib/x86_64-linux-gnu/libjemalloc.so.2",
    "/lib/x86_64-linux-gnu/libtcmalloc.so.4",
    "/lib/x86_64-linux-gnu/libtcmalloc_debug.so.4",
    "/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4",
    "/lib/x86_64-linux-gnu/libtcmalloc_minimal_debug.so.4",
    "/lib/x86_64-linux-gnu/libmimalloc.so.2",
    "/lib/x86_64-linux-gnu/libtbbmalloc_proxy.so.2",
    "/lib/x86_64-linux-gnu/libdmallocth.so.5",
];

/// Instructions without a jump that write what their first operand names and nothing else but flags.
const PLAIN: [&str; 40] = [
    "mov", "movabs", "movzx", "movsx", "movsxd", "lea", "test", "cmp", "xor", "and", "or", "add", "sub",
    "adc", "sbb", "not", "neg", "inc", "dec", "shl", "shr", "sar", "bt", "bsr", "bsf", "sete", "setne",
    "seta", "setb", "setbe", "setae", "cmove", "cmovne", "cmova", "cmovae", "cmovb", "cmovbe", "endbr64",
    "nop", "data16",
];

/// What the kernel does itself (`uprobe_init_insn` and what it calls in arch/x86/kernel/uprobes.c), jumps aside.
const EMULATED: [&str; 3] = ["push", "nop", "call"];

/// What the programs read at a site: rdi, rsi, rdx, rcx, rsp and rbp, by all their names.
const READ: [&str; 24] = [
    "rdi", "edi", "di", "dil", "rsi", "esi", "si", "sil", "rdx", "edx", "dx", "dl", "rcx", "ecx", "cx", "cl",
    "rsp", "esp", "sp", "spl", "rbp", "ebp", "bp", "bpl",
];

/// An instruction as objdump writes it.
struct Line {
    mnemonic: String,
    operands: String,
    next: u64,
}

/// A library's code as objdump lists it, by address.
struct Listing {
    lines: HashMap<u64, Line>,
    /// The addresses that direct jumps and calls lead to.
    targets: Vec<u64>,
}

impl Listing {
    fn of(path: &str) -> Self {
        let output = Command::new("objdump")
            .args(["-d", "-w", "-M", "intel", "--no-show-raw-insn", path])
            .output()
            .unwrap_or_else(|error| panic!("objdump: {error}"));
        assert!(output.status.success(), "objdump {path}");
        let text = String::from_utf8_lossy(&output.stdout);
        let mut listing = Self { lines: HashMap::new(), targets: Vec::new() };
        let mut before: Option<u64> = None;
        for line in text.lines() {
            let Some((address, instruction)) = line.split_once(":\t") else { continue };
            let Ok(address) = u64::from_str_radix(address.trim(), 16) else { continue };
            if let Some(line) = before.and_then(|before| listing.lines.get_mut(&before)) {
                line.next = address;
            }
            let (mnemonic, operands) = instruction.split_once(' ').unwrap_or((instruction, ""));
            let operands = operands.trim().to_owned();
            if mnemonic.starts_with('j') || mnemonic == "call" {
                let target = operands.split(' ').next().and_then(|word| u64::from_str_radix(word, 16).ok());
                listing.targets.extend(target);
            }
            listing.lines.insert(address, Line { mnemonic: mnemonic.to_owned(), operands, next: address });
            before = Some(address);
        }
        listing.targets.sort_unstable();
        listing
    }

    /// Panics unless whoever calls the function at `entry` passes `site` once, with everything in place.
    fn assert_right(&self, name: &str, entry: u64, site: u64, choice: Choice) {
        let mut at = entry;
        while at != site {
            let line = self.lines.get(&at).unwrap_or_else(|| panic!("{name}: no instruction at {at:#x}"));
            let Line { mnemonic, operands, next } = line;
            assert!(at < site, "{name}: {site:#x} is within an instruction");
            assert!(PLAIN.contains(&mnemonic.as_str()), "{name}: passes `{mnemonic} {operands}`");
            let written = operands.split(',').next().unwrap_or_default();
            let is_written = !["test", "cmp", "bt", "nop", "data16"].contains(&mnemonic.as_str());
            assert!(!(is_written && READ.contains(&written)), "{name}: passes `{mnemonic} {operands}`");
            at = *next;
        }
        let jumped_to = self.targets.partition_point(|target| *target <= entry);
        let jumped_to = self.targets.get(jumped_to).filter(|target| **target <= site);
        assert_eq!(jumped_to, None, "{name}: a jump leads between {entry:#x} and {site:#x}");
        let mnemonic = &self.lines[&site].mnemonic;
        let is_emulated = EMULATED.contains(&mnemonic.as_str()) || mnemonic.starts_with('j');
        match choice {
            Choice::EntryEmulated => assert!(is_emulated && site == entry, "{name}: {mnemonic}"),
            Choice::LaterEmulated => assert!(is_emulated && site > entry, "{name}: {mnemonic}"),
            Choice::EntryStepped => assert!(site == entry, "{name}: {mnemonic}"),
        }
    }
}

/// The address in the file's own terms of a byte of it.
fn address(file: &object::File<'_>, offset: u64) -> u64 {
    let of_segment = |segment: object::Segment<'_, '_>| {
        let (start, length) = segment.file_range();
        (start..start + length).contains(&offset).then(|| segment.address() + (offset - start))
    };
    file.segments().find_map(of_segment).expect("a site lies in a segment")
}

#[test]
fn debians_allocators_are_probed_where_a_disassembler_finds_it_safe() {
    let mut sites = Vec::new();
    for path in LIBRARIES {
        let path = std::fs::canonicalize(path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let path = path.to_str().unwrap();
        let module = Module::held(path.to_owned(), File::open(Path::new(path)).unwrap());
        let found =
            allocator::examine(0, &Specimen::of(&module).expect("it is open"), &Places::default(), true);
        let found = found.unwrap_or_else(|verdict| panic!("{path}: {verdict:?}"));
        let bytes = std::fs::read(path).unwrap();
        let file = object::File::parse(&*bytes).unwrap();
        let listing = Listing::of(path);
        for hook in found.iter().flat_map(|allocator| &allocator.hooks) {
            let Site { offset, into_function_bytes, choice, .. } = hook.site;
            let site = address(&file, offset);
            let name = format!("{} of {path}", hook.names.join(", "));
            listing.assert_right(&name, site - into_function_bytes, site, choice);
            sites.push(choice);
        }
        // malloc and free at the least, and what each library has of its own.
        assert!(found.iter().map(|allocator| allocator.hooks.len()).sum::<usize>() >= 8, "{path}: {found:?}");
    }
    let of = |wanted: Choice| sites.iter().filter(|choice| **choice == wanted).count();
    let all = [Choice::EntryEmulated, Choice::LaterEmulated, Choice::EntryStepped].map(of);
    assert!(all.iter().sum::<usize>() > 240 && all.iter().all(|count| *count > 10), "{all:?}");
}
