//! What a process has that a heaptap could have changed.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;

/// What a process has, but for what grows as it goes on: open files, mappings of files, and what is executable in them.
#[derive(Debug, PartialEq, Eq)]
pub struct Belongings {
    files: Vec<String>,
    mappings: Vec<String>,
    code: BTreeMap<String, Vec<u8>>,
}

impl Belongings {
    /// Those of a process.
    pub fn of(pid: u32) -> Self {
        let files = open_files(pid);
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("the guest runs");
        let mappings = maps.lines().filter(|line| line.contains('/')).map(ToOwned::to_owned).collect();
        let memory = fs::File::open(format!("/proc/{pid}/mem")).expect("the guest runs");
        let executable = maps.lines().filter(|line| line.contains(" r-xp ") && !line.contains("[v"));
        let code = executable.map(|line| {
            let (start, rest) = line.split_once('-').expect("a range");
            let (end, _) = rest.split_once(' ').expect("a range");
            let address = |text| u64::from_str_radix(text, 16).expect("an address");
            let mut bytes = vec![0; usize::try_from(address(end) - address(start)).expect("it is mapped")];
            memory.read_exact_at(&mut bytes, address(start)).expect("it can be read");
            (line.to_owned(), bytes)
        });
        Self { files, mappings, code: code.collect() }
    }

    /// Panics where they are not what they were.
    #[track_caller]
    pub fn assert_same(&self, before: &Self, when: &str) {
        assert_eq!(self.files, before.files, "{when}");
        assert_eq!(self.mappings, before.mappings, "{when}");
        for ((name, bytes), (_, were)) in self.code.iter().zip(&before.code) {
            let changed = bytes.iter().zip(were).position(|(is, was)| is != was);
            assert_eq!(changed, None, "the first offset in {name} that is not what it was, {when}");
        }
        assert!(self == before, "{when}");
    }
}

/// The files that a process has open, each with where it leads.
pub fn open_files(pid: u32) -> Vec<String> {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).expect("the guest runs");
    let mut files: Vec<String> = files
        .filter_map(|file| {
            let file = file.ok()?.path();
            Some(format!("{} {}", file.display(), fs::read_link(&file).ok()?.display()))
        })
        .collect();
    files.sort();
    files
}
