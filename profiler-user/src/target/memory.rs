//! What a process has resident, by what the memory is mapped for.
//!
//! Two files of /proc tell (proc_pid_smaps(5), proc_pid_status(5)). `smaps` does it mapping by mapping and is exact: the kernel
//! walks the page tables for it, 15 ms for a GiB of small pages, in which the process can map and unmap nothing. `status` costs
//! microseconds, and has sums only: `RssAnon`, which holds stacks and private copies of files' pages too, `RssFile` and
//! `RssShmem`, which many kernels only know to some dozens of pages for each thread or processor.
//!
//! What an allocator has set aside of the anonymous memory, and what it keeps of freed blocks, is in its own structures:
//! `malloc_info` and its like would have to be called in the process. That is not read here, nor guessed.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek},
    os::unix::fs::FileExt,
};

use super::{
    mapping::Mapping,
    process::{live_thread, status},
    thread_stacks::StackPointers,
};

/// Of a process that has more resident, the mappings are not walked.
const WALK_LIMIT_BYTES: u64 = 2 << 30;

/// A file's name has at most 4095 bytes, each of which may be written as four.
const LINE_LIMIT_BYTES: u64 = 64 << 10;

/// Resident memory by what it is mapped for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Private memory that no file stands for, other than `stacks`: what allocators hand out, zeroed statics, generated code.
    pub anonymous_bytes: u64,
    /// Stacks; `None` where they were not told from other anonymous memory.
    pub stacks: Option<Stacks>,
    /// Mapped files: code, libraries and data, also such pages as the process wrote to and has its own copy of. By `status`,
    /// these copies are anonymous.
    pub file_bytes: u64,
    /// Shared memory: of `mmap` with `MAP_SHARED`, `memfd_create`, `shmget`, or below /dev/shm. By `status`, all files of tmpfs.
    pub shared_bytes: u64,
    /// What the kernel maps by itself, such as the vDSO.
    pub other_bytes: u64,
    /// Not resident: written to swap.
    pub swapped_bytes: u64,
    /// Pages of hugetlbfs, which the kernel does not count as resident.
    pub hugetlb_bytes: u64,
}

/// What is known of stacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stacks {
    /// The first thread's, and those that hold the stack pointer of a thread that waited.
    pub bytes: u64,
    /// Threads that did not wait: their stacks are among the anonymous memory.
    pub untold_threads: usize,
}

impl Usage {
    /// All that is resident: what `ps` and `top` show as RSS and RES.
    pub fn resident_bytes(&self) -> u64 {
        let stacks = self.stacks.map_or(0, |stacks| stacks.bytes);
        [self.anonymous_bytes, stacks, self.file_bytes, self.shared_bytes, self.other_bytes]
            .into_iter()
            .fold(0, u64::saturating_add)
    }
}

/// A process's memory as it was when this was opened, to be looked at for as long as it is there.
///
/// What the kernel tells through a file that was opened before the process replaces its program or ends is of the memory that it
/// had then, whatever the PID stands for afterwards.
#[derive(Debug)]
pub struct Memory {
    pid: u32,
    maps: File,
    smaps: File,
}

impl Memory {
    /// The memory of a process.
    pub fn of(pid: u32) -> io::Result<Self> {
        // Where the first thread has ended, its files tell nothing. Otherwise it stays when others go.
        let open = |number: u32| {
            let file = |name| File::open(format!("/proc/{number}/{name}"));
            let memory = Self { pid, maps: file("maps")?, smaps: file("smaps")? };
            memory.is_there().then_some(memory).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
        };
        open(pid).or_else(|error| open(live_thread(pid).ok_or(error)?))
    }

    /// The sums, at next to no cost; `None` where the memory is gone.
    pub fn glance(&self) -> Option<Usage> {
        let thread = i32::try_from(live_thread(self.pid)?).ok()?;
        let status = status(thread).ok()?;
        let bytes = |kibibytes: Option<u64>| kibibytes.map(|kibibytes| kibibytes.saturating_mul(1024));
        let usage = Usage {
            anonymous_bytes: bytes(status.rssanon)?,
            stacks: None,
            file_bytes: bytes(status.rssfile)?,
            shared_bytes: bytes(status.rssshmem)?,
            other_bytes: 0,
            swapped_bytes: bytes(status.vmswap).unwrap_or_default(),
            hugetlb_bytes: bytes(status.hugetlbpages).unwrap_or_default(),
        };
        // The file is of the process, and that may have other memory by now.
        self.is_there().then_some(usage)
    }

    /// Everything, mapping by mapping; `None` where the memory is gone or so large that it would hold up the process.
    pub fn walk(&self) -> Option<Usage> {
        if self.glance()?.resident_bytes() > WALK_LIMIT_BYTES {
            return None;
        }
        let pointers = StackPointers::of(self.pid);
        let mut smaps = &self.smaps;
        smaps.rewind().ok()?;
        let usage = read(BufReader::with_capacity(64 << 10, smaps), &pointers)
            .inspect_err(
                |error| tracing::debug!(pid = self.pid, %error, "the mappings' sizes cannot be read"),
            )
            .ok()?;
        // Of memory that went while it was read, only a part was seen.
        self.is_there().then_some(usage)
    }

    fn is_there(&self) -> bool {
        matches!(self.maps.read_at(&mut [0; 64], 0), Ok(1..))
    }
}

/// Adds up the lines of `smaps`.
pub(super) fn read(mut smaps: impl BufRead, pointers: &StackPointers) -> io::Result<Usage> {
    let (mut usage, mut stacks) = (Usage::default(), Stacks::default());
    stacks.untold_threads = pointers.untold;
    let mut kind = None;
    // End of the mapping below, where nothing may be done with that.
    let mut guard_end = None;
    let mut line = Vec::new();
    loop {
        line.clear();
        (&mut smaps).take(LINE_LIMIT_BYTES).read_until(b'\n', &mut line)?;
        if line.pop_if(|last| *last == b'\n').is_none() {
            break;
        }
        // Names of fields begin with a capital letter, and mappings with a number.
        if !line.first().is_some_and(u8::is_ascii_uppercase) {
            let mapping = Mapping::parse(&line).ok_or(io::ErrorKind::InvalidData)?;
            kind = Some(Kind::of(&mapping, pointers, guard_end == Some(mapping.start)));
            guard_end = (!mapping.is_accessible).then_some(mapping.end);
            continue;
        }
        let Some((field, bytes)) = size(&line) else { continue };
        let kind = kind.ok_or(io::ErrorKind::InvalidData)?;
        let sum = match field {
            b"Rss" => match kind {
                Kind::Anonymous => &mut usage.anonymous_bytes,
                Kind::Stack => &mut stacks.bytes,
                Kind::File => &mut usage.file_bytes,
                Kind::Shared => &mut usage.shared_bytes,
                Kind::Other => &mut usage.other_bytes,
            },
            b"Swap" => &mut usage.swapped_bytes,
            b"Private_Hugetlb" | b"Shared_Hugetlb" => &mut usage.hugetlb_bytes,
            _ => continue,
        };
        *sum = sum.saturating_add(bytes);
    }
    // The last line is cut short, or longer than any can be.
    if !line.is_empty() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(Usage { stacks: Some(stacks), ..usage })
}

/// Reads `Rss:                1234 kB`; `None` for fields that are no sizes.
fn size(line: &[u8]) -> Option<(&[u8], u64)> {
    let (field, value) = line.split_at_checked(line.iter().position(|byte| *byte == b':')?)?;
    let number = std::str::from_utf8(value.get(1..)?).ok()?.strip_suffix(" kB")?.trim_ascii_start();
    Some((field, number.parse::<u64>().ok()?.saturating_mul(1024)))
}

/// What memory is mapped for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Anonymous,
    Stack,
    File,
    Shared,
    Other,
}

/// The kernel's names for shared memory that is in no file system that anybody sees (mm/shmem.c, ipc/shm.c), and where POSIX
/// shared memory has its files (shm_open(3)). A file of the process's own that it names like that counts as shared too.
const SHARED: [&[u8]; 5] = [b"/dev/zero (deleted)", b"/memfd:", b"/SYSV", b"/dev/shm/", b"[anon_shmem:"];

/// The names that C libraries give to threads' stacks: glibc 2.39 and later where `glibc.mem.decorate_maps` is set, and Android's.
const NAMED_STACKS: [&[u8]; 3] =
    [b"[anon: glibc: pthread stack:", b"[anon: glibc: pthread user stack:", b"[anon:stack_and_tls:"];

impl Kind {
    fn of(mapping: &Mapping, pointers: &StackPointers, is_guarded: bool) -> Self {
        let name = mapping.name.as_slice();
        let is_one_of = |beginnings: &[&[u8]]| beginnings.iter().any(|beginning| name.starts_with(beginning));
        if is_one_of(&SHARED) {
            return Self::Shared;
        }
        if mapping.inode.is_some() {
            return Self::File;
        }
        if name == b"[stack]" || is_one_of(&NAMED_STACKS) {
            return Self::Stack;
        }
        if name == b"[heap]" {
            return Self::Anonymous;
        }
        if !name.is_empty() && !name.starts_with(b"[anon:") {
            return Self::Other;
        }
        if pointers.have(mapping.start, mapping.end, is_guarded) { Self::Stack } else { Self::Anonymous }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    /// A mapping as the kernel writes it, with `size_kib` resident of it.
    fn mapping(line: &str, rss_kib: u64) -> String {
        format!(
            "{line}\nSize:               9999 kB\nKernelPageSize:        4 kB\nMMUPageSize:           4 kB\n\
             Rss:            {rss_kib:8} kB\nPss:                   1 kB\nPss_Dirty:             1 kB\n\
             Shared_Clean:          0 kB\nPrivate_Dirty:         1 kB\nAnonymous:             1 kB\n\
             Shared_Hugetlb:        0 kB\nPrivate_Hugetlb:       0 kB\nSwap:                  2 kB\n\
             SwapPss:               2 kB\nLocked:                0 kB\nTHPeligible:           0\n\
             ProtectionKey:         0\nVmFlags: rd wr mr mw me ac sd \n"
        )
    }

    fn usage(smaps: impl AsRef<[u8]>, pointers: &StackPointers) -> io::Result<Usage> {
        read(smaps.as_ref(), pointers)
    }

    #[test]
    fn every_kind_of_mapping_is_added_up_by_itself() {
        let text: String = [
            ("1000-2000 r-xp 00000000 fe:01 11                         /usr/bin/guest", 1),
            ("2000-3000 rw-p 00001000 fe:01 11                         /usr/bin/guest", 2),
            ("3000-9000 rw-p 00000000 00:00 0                          [heap]", 10),
            ("100000-200000 rw-p 00000000 00:00 0 ", 20),
            ("200000-201000 rw-p 00000000 00:00 0                      [anon: glibc: malloc]", 40),
            (
                "201000-202000 rw-p 00000000 00:00 0                      [anon: glibc: pthread stack: 77]",
                100,
            ),
            ("300000-301000 rw-s 00000000 00:01 3                      /dev/zero (deleted)", 1000),
            ("301000-302000 rw-s 00000000 00:01 4                      /memfd:made (deleted)", 2000),
            ("302000-303000 rw-s 00000000 00:01 5                      /SYSV00000000 (deleted)", 4000),
            ("303000-304000 rw-s 00000000 00:1a 6                      /dev/shm/made", 8000),
            ("304000-305000 rw-s 00000000 00:01 7                      [anon_shmem:made]", 16000),
            ("7fff1000-7fff9000 rw-p 00000000 00:00 0                  [stack]", 200),
            ("7fffa000-7fffb000 r--p 00000000 00:00 0                  [vvar]", 0),
            ("7fffb000-7fffc000 r-xp 00000000 00:00 0                  [vdso]", 4),
            ("ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0  [vsyscall]", 0),
        ]
        .iter()
        .map(|(line, rss)| mapping(line, *rss))
        .collect();
        let usage = usage(text, &StackPointers::default()).unwrap();
        let wanted = Usage {
            anonymous_bytes: 70 << 10,
            stacks: Some(Stacks { bytes: 300 << 10, untold_threads: 0 }),
            file_bytes: 3 << 10,
            shared_bytes: 31000 << 10,
            other_bytes: 4 << 10,
            swapped_bytes: 30 << 10,
            hugetlb_bytes: 0,
        };
        assert_eq!(usage, wanted);
        assert_eq!(usage.resident_bytes(), 31377 << 10);
    }

    #[test]
    fn a_stack_is_told_by_the_pointer_in_it_and_the_guard_below_it() {
        let guard = mapping("10000-11000 ---p 00000000 00:00 0 ", 0);
        let stack = mapping("11000-21000 rw-p 00000000 00:00 0 ", 8);
        let pointers = StackPointers::at(&[0x20f00], 3);
        let stacks = |text: String| usage(text, &pointers).unwrap().stacks.unwrap();
        let told = Stacks { bytes: 8 << 10, untold_threads: 3 };
        assert_eq!(stacks(format!("{guard}{stack}")), told);
        assert_eq!(stacks(stack.clone()), Stacks { bytes: 0, ..told }, "nothing guards it");
        let between = mapping("8000-9000 rw-p 00000000 00:00 0 ", 0);
        assert_eq!(stacks(format!("{guard}{between}{stack}")), Stacks { bytes: 0, ..told });
        let file = mapping("11000-21000 rw-p 00000000 fe:01 7  /x", 8);
        assert_eq!(stacks(format!("{guard}{file}")), Stacks { bytes: 0, ..told });
    }

    #[test]
    fn names_of_files_are_the_targets_to_choose() {
        for name in [
            &b"/Rss:  99 kB"[..],
            b"/x\\012Rss:                99 kB",
            b"/\xff\xfe [heap]",
            b"/[stack]",
            b"/ ",
        ] {
            let mut text = [b"1000-2000 r--p 00000000 fe:01 11                         ", name].concat();
            text.extend_from_slice(b"\nRss:  4 kB\n");
            let usage = usage(&text, &StackPointers::default()).unwrap();
            assert_eq!(
                (usage.file_bytes, usage.resident_bytes()),
                (4096, 4096),
                "{}",
                String::from_utf8_lossy(name)
            );
        }
    }

    #[test]
    fn what_the_kernel_does_not_write_is_an_error_and_no_number_is_too_large() {
        let invalid = |text: &[u8]| {
            let error = usage(text, &StackPointers::default()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{}", String::from_utf8_lossy(text));
        };
        invalid(b"Rss: 4 kB\n");
        invalid(b"\n");
        invalid(b"nonsense\n");
        invalid(b"1000-2000 r--p 00000000 fe:01 11 /x\nRss:  4 kB");
        invalid(&vec![b'A'; 1 << 20]);
        let mut text = "1000-2000 r--p 00000000 fe:01 11 /x\n".to_owned();
        for value in ["18446744073709551615 kB", "18446744073709551616 kB", "-1 kB", "1", "x kB", " kB", ""] {
            let _ = writeln!(text, "Rss: {value}");
        }
        text.push_str("Rss: 18446744073709551615 kB\nRss\n");
        assert_eq!(usage(text, &StackPointers::default()).unwrap().file_bytes, u64::MAX);
        assert_eq!(usage("", &StackPointers::default()).unwrap().resident_bytes(), 0);
    }

    #[test]
    fn our_own_memory_grows_by_what_is_written_to() {
        const SIZE_BYTES: usize = 64 << 20;
        let memory = Memory::of(std::process::id()).unwrap();
        let (walked, glanced) = (memory.walk().unwrap(), memory.glance().unwrap());
        assert!(
            walked.stacks.unwrap().bytes > 0 && walked.file_bytes > 0 && walked.anonymous_bytes > 0,
            "{walked:?}"
        );
        let block = std::hint::black_box(vec![1_u8; SIZE_BYTES]);
        // Other tests of this process allocate and free beside this one, but not as much.
        let least = SIZE_BYTES as u64 / 2;
        let (more_walked, more_glanced) = (memory.walk().unwrap(), memory.glance().unwrap());
        assert!(more_walked.anonymous_bytes > walked.anonymous_bytes + least, "{walked:?} {more_walked:?}");
        assert!(
            more_glanced.anonymous_bytes > glanced.anonymous_bytes + least,
            "{glanced:?} {more_glanced:?}"
        );
        drop(block);
    }

    #[test]
    fn memory_that_is_gone_tells_nothing_though_the_process_goes_on() {
        use std::{
            io::{BufRead as _, BufReader, Write as _},
            process::{Command, Stdio},
        };
        let mut child = Command::new("sh")
            .args(["-c", "echo ready; read line; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut stdin, mut answers) =
            (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut line = String::new();
        answers.read_line(&mut line).unwrap();
        let memory = Memory::of(child.id()).unwrap();
        assert!(memory.walk().unwrap().resident_bytes() > 0);
        stdin.write_all(b"go\nanswer\n").unwrap();
        line.clear();
        answers.read_line(&mut line).unwrap();
        assert_eq!((line.as_str(), memory.walk(), memory.glance()), ("answer\n", None, None));
        assert!(Memory::of(child.id()).unwrap().walk().is_some());
        drop(stdin);
        assert!(child.wait().unwrap().success());
        assert!(Memory::of(child.id()).is_err());
    }
}
