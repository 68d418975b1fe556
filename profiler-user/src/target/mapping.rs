//! The lines of `/proc/PID/maps`.
//!
//! The kernel writes the numbers; the names are the target's: any bytes but a line break, which it writes as `\012`.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
};

use rustix::io::Errno;

use super::{
    maps::Inode,
    process::{ProcessError, live_thread},
};

/// A mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub(crate) start: u64,
    /// First address behind it.
    pub(crate) end: u64,
    pub(crate) is_executable: bool,
    /// Whether what is written there is seen by nobody else.
    pub(crate) is_private: bool,
    /// Whether the process may do anything at all with it, which it may not with the guard below a stack.
    pub(super) is_accessible: bool,
    /// Offset in the file of the first address, in bytes.
    pub(crate) offset: u64,
    /// Which file; `None` for memory that no file stands for.
    pub(crate) inode: Option<Inode>,
    /// The file's name, or the kernel's for what has no file; empty for anonymous memory.
    pub(crate) name: Vec<u8>,
}

/// The mappings of a process that are executable, read through one of its threads.
pub(super) fn executable(pid: u32, thread: u32) -> Result<Vec<Mapping>, ProcessError> {
    let mut maps = all(pid, thread)?;
    maps.retain(|map| map.is_executable);
    Ok(maps)
}

/// All mappings of a process, by rising address.
pub(crate) fn of(pid: u32) -> Result<Vec<Mapping>, ProcessError> {
    all(pid, live_thread(pid).ok_or(ProcessError::Gone { pid })?)
}

/// All mappings of a process, by rising address, read through one of its threads.
pub(super) fn all(pid: u32, thread: u32) -> Result<Vec<Mapping>, ProcessError> {
    let maps = File::open(format!("/proc/{thread}/maps"));
    let maps = maps.and_then(|maps| read(BufReader::new(maps))).map_err(|source| {
        match Errno::from_io_error(&source) {
            // The thread ended meanwhile: that is what its files say then.
            Some(Errno::NOENT | Errno::SRCH) => ProcessError::Gone { pid },
            _ => ProcessError::Unreadable { pid, what: "its mappings (/proc/PID/maps)", source },
        }
    })?;
    if maps.is_empty() {
        return Err(ProcessError::Gone { pid });
    }
    Ok(maps)
}

/// All mappings, by rising address.
pub(super) fn read(mut maps: impl BufRead) -> io::Result<Vec<Mapping>> {
    let (mut found, mut line): (Vec<Mapping>, _) = (Vec::new(), Vec::new());
    while maps.read_until(b'\n', &mut line)? > 0 {
        line.pop_if(|last| *last == b'\n');
        // Addresses never go backwards, and mappings do not overlap (Documentation/filesystems/proc.rst).
        let behind = found.last().map_or(0, |last| last.end);
        let map = Mapping::parse(&line)
            .filter(|map| behind <= map.start && map.start < map.end)
            .ok_or(io::ErrorKind::InvalidData)?;
        found.push(map);
        line.clear();
    }
    Ok(found)
}

impl Mapping {
    /// Reads `55d0-55d4 r-xp 00001000 fe:01 123   /usr/bin/x` (proc_pid_maps(5)); `None` where it is no such line.
    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.splitn(6, |byte| *byte == b' ');
        let (start, end) = pair(fields.next()?, b'-')?;
        let access = fields.next()?;
        let offset = hex(fields.next()?)?;
        let (major, minor) = pair(fields.next()?, b':')?;
        let number: u64 = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
        let inode = (u32::try_from(major).ok()?, u32::try_from(minor).ok()?, number);
        // Names stand in a column of their own; spaces behind one belong to it.
        let name = fields.next().unwrap_or_default().trim_ascii_start().to_vec();
        // The kernel's own names are in brackets, also that of shared memory, which has an inode.
        let is_file = number != 0 && !name.starts_with(b"[");
        let is_executable = access.get(2) == Some(&b'x');
        let is_private = access.get(3) == Some(&b'p');
        let is_accessible = !access.starts_with(b"---");
        let inode = is_file.then_some(inode);
        Some(Self { start, end, is_executable, is_private, is_accessible, offset, inode, name })
    }
}

fn pair(text: &[u8], separator: u8) -> Option<(u64, u64)> {
    let at = text.iter().position(|byte| *byte == separator)?;
    let (first, second) = text.split_at_checked(at)?;
    Some((hex(first)?, hex(second.get(1..)?)?))
}

fn hex(digits: &[u8]) -> Option<u64> {
    // `from_str_radix` takes a sign.
    digits.iter().all(u8::is_ascii_hexdigit).then_some(())?;
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_whatever_the_files_name() {
        for name in [&b"/usr/bin/x"[..], b"/SYSV", b"/SYSV0000", b"/a b ", b"/\xff\xfe", b"/x (deleted)"] {
            let line = [b"7f00-7f0a r-xp 0001e000 fe:01 123                      ", name].concat();
            let mapping = Mapping::parse(&line).expect("a line");
            assert_eq!((mapping.start, mapping.end, mapping.offset), (0x7f00, 0x7f0a, 0x1e000));
            assert_eq!(mapping.inode, Some((0xfe, 1, 123)));
            assert!(mapping.is_executable && mapping.is_private);
            assert_eq!(mapping.name, name);
        }
    }

    #[test]
    fn memory_that_no_file_stands_for_has_no_inode() {
        for (line, name) in [
            (&b"7f00-7f0a rw-p 00000000 00:00 0 "[..], ""),
            (b"7f00-7f0a rw-p 00000000 00:00 0          [vdso]", "[vdso]"),
            (b"7f00-7f0a rw-s 00000000 00:01 3          [anon_shmem:made]", "[anon_shmem:made]"),
        ] {
            let mapping = Mapping::parse(line).expect("a line");
            assert_eq!((mapping.inode, mapping.is_executable), (None, false));
            assert_eq!(mapping.name, name.as_bytes());
        }
    }

    #[test]
    fn what_the_kernel_does_not_write_is_an_error() {
        for line in [
            &b"\n"[..],
            b"7f00-7f0a",
            b"7f00 r-xp 0 0:0 0",
            b"7f00- r-xp 0 0:0",
            b"+1-2 r-xp 0 0:0 0 ",
            b"1-10000000000000000 r-xp 0 0:0 0 ",
            b"1-2 r-xp 0 0:100000000 0 ",
            b"1-2 r-xp 0 0:0 x ",
            b"2-1 r-xp 0 0:0 0 ",
            b"3-4 r-xp 0 0:0 0 \n1-2 r-xp 0 0:0 0 ",
            b"1-3 r-xp 0 0:0 0 \n2-4 r-xp 0 0:0 0 ",
        ] {
            let error = read(line).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{:?}", String::from_utf8_lossy(line));
        }
        assert_eq!(read(&b""[..]).unwrap(), []);
    }
}
