//! Whether a process's machine code is what its files say, which it is not while it has a probe.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

/// The addresses at which the code of a process differs from the files that it was mapped from.
///
/// A uprobe is a breakpoint instruction in the process's own copy of the page.
pub fn changed_text(pid: u32) -> Vec<String> {
    maps(pid)
        .lines()
        .filter_map(Mapping::parse)
        .flat_map(|mapping| {
            let named = |change: Change| {
                let Change { address, was, now } = change;
                let offset = mapping.offset + address - mapping.start;
                format!("{}+{offset:#x}: {was:#04x} became {now:#04x}", mapping.path)
            };
            mapping.changes(pid).into_iter().map(named).collect::<Vec<_>>()
        })
        .collect()
}

/// The places of a process's probes, to be looked at again and again.
#[derive(Debug)]
pub struct Probed {
    memory: File,
    changes: Vec<Change>,
}

impl Probed {
    /// Those that a process has now.
    pub fn now(pid: u32) -> Self {
        let maps = maps(pid);
        let changes = maps.lines().filter_map(Mapping::parse).flat_map(|mapping| mapping.changes(pid));
        let memory = File::open(format!("/proc/{pid}/mem")).expect("the memory can be read");
        Self { memory, changes: changes.collect() }
    }

    /// At how many of them there is a probe.
    pub fn count(&self) -> usize {
        let mut byte = [0];
        let is_probed = |change: &&Change| {
            self.memory.read_exact_at(&mut byte, change.address).expect("the process is there");
            byte != [change.was]
        };
        self.changes.iter().filter(is_probed).count()
    }
}

/// A byte of code that is not what the file has.
#[derive(Clone, Copy, Debug)]
struct Change {
    address: u64,
    was: u8,
    now: u8,
}

/// The same once the kernel has taken probes out, or has had ten thousand steps of something to do so: it does when the last descriptor goes,
/// which may be after the process that had it has gone.
pub fn text_left_changed(pid: u32, mut step: impl FnMut()) -> Vec<String> {
    for _ in 0..10_000 {
        let left = changed_text(pid);
        if left.is_empty() {
            return left;
        }
        step();
    }
    changed_text(pid)
}

fn maps(pid: u32) -> String {
    let path = format!("/proc/{pid}/maps");
    fs::read_to_string(&path).unwrap_or_else(|err| panic!("cannot read {path}: {err}"))
}

/// An executable mapping of a file.
struct Mapping<'a> {
    range: &'a str,
    start: u64,
    end: u64,
    offset: u64,
    path: &'a str,
}

impl<'a> Mapping<'a> {
    /// Reads `55d0-55d4 r-xp 00001000 fe:01 123   /usr/bin/x`; `None` for any other kind of mapping.
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace();
        let (range, access, offset) = (fields.next()?, fields.next()?, fields.next()?);
        let path = fields.nth(2).filter(|path| path.starts_with('/') && access.contains('x'))?;
        let (start, end) = range.split_once('-')?;
        let hex = |digits| u64::from_str_radix(digits, 16).ok();
        Some(Self { range, start: hex(start)?, end: hex(end)?, offset: hex(offset)?, path })
    }

    fn changes(&self, pid: u32) -> Vec<Change> {
        let length = usize::try_from(self.end - self.start).expect("a mapping fits in memory");
        let memory = read_at(&format!("/proc/{pid}/mem"), self.start, length);
        // A file's last page is mapped whole; what is past the end of the file is zero.
        let file = read_at(&format!("/proc/{pid}/map_files/{}", self.range), self.offset, length);
        let bytes = memory.into_iter().zip(file);
        let changed = (self.start..).zip(bytes).filter(|(_, (now, was))| now != was);
        changed.map(|(address, (now, was))| Change { address, was, now }).collect()
    }
}

/// Up to `length` bytes.
fn read_at(path: &str, offset: u64, length: usize) -> Vec<u8> {
    let file = File::open(path).unwrap_or_else(|err| panic!("{path}: {err}"));
    let mut bytes = vec![0; length];
    let mut filled = 0;
    while filled < length {
        match file.read_at(&mut bytes[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(err) => panic!("{path} at {offset:#x}: {err}"),
        }
    }
    bytes.truncate(filled);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_executable_mappings_of_files_are_compared() {
        let line = "7f2a-7f2c r-xp 00001000 fe:01 123   /usr/lib/libc.so.6";
        let mapping = Mapping::parse(line).expect("a mapping of code");
        assert_eq!((mapping.start, mapping.end, mapping.offset), (0x7f2a, 0x7f2c, 0x1000));
        assert_eq!(mapping.path, "/usr/lib/libc.so.6");
        assert!(Mapping::parse("7f2a-7f2c rw-p 00001000 fe:01 123   /usr/lib/libc.so.6").is_none());
        assert!(Mapping::parse("7ffe-7fff r-xp 00000000 00:00 0   [vdso]").is_none());
        assert!(Mapping::parse("7ffe-7fff r-xp 00000000 00:00 0").is_none());
    }

    #[test]
    fn a_test_has_no_probes() {
        assert_eq!(changed_text(std::process::id()), Vec::<String>::new());
    }
}
