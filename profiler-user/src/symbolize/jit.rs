//! Names for code that no file stands for, from who made it or the perf map of the process.

use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::{
    line::{Line, Place},
    perf_map,
};
use crate::target::{
    process::{live_thread, status},
    root::{LastLink, Root},
};

/// What stands for the source file of code that was made while the program ran.
const FILE: &str = "[JIT]";

/// The perf map of a process, and what it told so far.
#[derive(Debug, Default)]
pub(super) struct Jit {
    /// What it takes to find the map, from the last time that the process was alive: runtimes leave their maps.
    identity: Option<Identity>,
    /// By the address of the call. A name stays: what is put there later is not what allocated.
    lines: HashMap<u64, [Line; 1]>,
    nameless: BTreeSet<u64>,
    /// What the map was when it was last read.
    seen: Option<State>,
    has_warned: bool,
}

#[derive(Debug)]
struct Identity {
    map: PathBuf,
    /// Whose map is believed, besides root's.
    users: [u32; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    device: u64,
    inode: u64,
    length_bytes: u64,
}

impl Jit {
    /// Notes where the process keeps its map.
    pub(super) fn meet(&mut self, pid: u32) {
        if let Some(identity) = identity(pid) {
            self.identity = Some(identity);
        }
    }

    /// Takes the names of addresses that were told otherwise, each while the code was there.
    pub(super) fn take<'name>(&mut self, names: impl IntoIterator<Item = (u64, &'name str)>) {
        for (address, name) in names {
            self.lines.entry(address).or_insert_with(|| line(name));
            self.nameless.remove(&address);
        }
    }

    /// Looks up addresses that were not looked up before, and the nameless ones again if the map has grown.
    pub(super) fn resolve(&mut self, root: Option<&Root>, addresses: impl IntoIterator<Item = u64>) {
        let before = self.nameless.len();
        self.nameless.extend(addresses.into_iter().filter(|address| !self.lines.contains_key(address)));
        if self.nameless.is_empty() {
            return;
        }
        let Some((root, identity)) = root.zip(self.identity.as_ref()) else { return };
        let (file, state) = match open(root, identity) {
            Ok(opened) => opened,
            // Most processes have none.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => return self.warn(&error),
        };
        if self.nameless.len() == before && self.seen == Some(state) {
            return;
        }
        let wanted: Vec<u64> = self.nameless.iter().copied().collect();
        match perf_map::read(file, &wanted) {
            Ok(told) => {
                if told.malformed > 0 || told.is_cut {
                    let (malformed, is_cut) = (told.malformed, told.is_cut);
                    tracing::debug!(malformed, is_cut, "perf map");
                }
                self.seen = Some(state);
                for (address, name) in wanted.into_iter().zip(told.names) {
                    if let Some(name) = name {
                        self.lines.insert(address, line(&name));
                        self.nameless.remove(&address);
                    }
                }
            }
            Err(error) => self.warn(&error),
        }
    }

    /// The line at an address; empty where it has no name.
    pub(super) fn lines(&self, address: u64) -> &[Line] {
        self.lines.get(&address).map_or(&[], <[Line; 1]>::as_slice)
    }

    fn warn(&mut self, error: &io::Error) {
        if let (Some(identity), false) = (&self.identity, self.has_warned) {
            tracing::warn!(file = %identity.map.display(), "no names from the perf map: {error}");
        }
        self.has_warned = true;
    }
}

fn line(name: &str) -> [Line; 1] {
    [Line::new(name, Place { file: FILE.to_owned(), number: 0 })]
}

fn identity(pid: u32) -> Option<Identity> {
    let thread = i32::try_from(live_thread(pid)?).ok()?;
    let status = status(thread).ok()?;
    // The process knows itself by its PID in the innermost PID namespace; a thread's status has the thread's own.
    let own = if thread == status.tgid { status.nspid.as_ref() } else { status.nstgid.as_ref() };
    let own = own.and_then(|ids| ids.last().copied()).unwrap_or(status.tgid);
    let map = PathBuf::from(format!("/tmp/perf-{own}.map"));
    Some(Identity { map, users: [status.ruid, status.euid] })
}

fn open(root: &Root, identity: &Identity) -> io::Result<(File, State)> {
    open_map(root, &identity.map, &identity.users)
}

/// Opens a map that the process itself could have written: `/tmp` is everybody's.
fn open_map(root: &Root, map: &Path, users: &[u32]) -> io::Result<(File, State)> {
    let file = root.open(map, LastLink::Refuse)?;
    let metadata = file.metadata()?;
    if metadata.uid() != 0 && !users.contains(&metadata.uid()) {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it belongs to another user"));
    }
    let state = State { device: metadata.dev(), inode: metadata.ino(), length_bytes: metadata.len() };
    Ok((file, state))
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt, chown, symlink},
    };

    use super::*;

    fn named(jit: &Jit, address: u64) -> &str {
        jit.lines(address).first().map_or("", |line| &line.function.name)
    }

    #[test]
    fn names_come_from_the_processs_own_map_and_stay_while_the_map_grows() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("tmp")).unwrap();
        let map = directory.path().join(format!("tmp/perf-{}.map", std::process::id()));
        let root = Root::at(directory.path()).unwrap();
        let mut jit = Jit::default();
        jit.meet(std::process::id());
        jit.resolve(Some(&root), [0x1008]);
        assert_eq!(named(&jit, 0x1008), "", "there is no map");
        fs::write(&map, "1000 10 _ZN4made3barEi\n").unwrap();
        jit.resolve(Some(&root), [0x1008, 0x2008]);
        assert_eq!(named(&jit, 0x1008), "made::bar(int)");
        assert_eq!(jit.lines(0x1008)[0].function.file, "[JIT]");
        assert_eq!(named(&jit, 0x2008), "");
        fs::write(&map, "1000 10 _ZN4made3barEi\n2000 10 later\n1000 10 instead\n").unwrap();
        // The process has ended.
        jit.meet(u32::MAX);
        jit.resolve(Some(&root), []);
        assert_eq!(named(&jit, 0x2008), "later");
        assert_eq!(named(&jit, 0x1008), "made::bar(int)");
    }

    #[test]
    fn names_that_were_told_while_the_code_was_there_are_believed_before_the_map() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("tmp")).unwrap();
        let map = directory.path().join(format!("tmp/perf-{}.map", std::process::id()));
        fs::write(&map, "1000 20 later\n").unwrap();
        let root = Root::at(directory.path()).unwrap();
        let mut jit = Jit::default();
        jit.meet(std::process::id());
        jit.take([(0x1008, "Inflater.inflate")]);
        jit.resolve(Some(&root), [0x1008, 0x1018]);
        assert_eq!(named(&jit, 0x1008), "Inflater.inflate");
        assert_eq!(named(&jit, 0x1018), "later");
        jit.take([(0x1008, "another")]);
        assert_eq!(named(&jit, 0x1008), "Inflater.inflate");
    }

    #[test]
    fn a_map_of_another_user_or_behind_a_link_is_not_believed() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::at(directory.path()).unwrap();
        let file = directory.path().join("map");
        fs::write(&file, "").unwrap();
        symlink("map", directory.path().join("link")).unwrap();
        let user = fs::metadata(&file).unwrap().uid();
        let open = |name, users: [u32; 2]| open_map(&root, Path::new(name), &users);
        assert!(open("/map", [user, user]).is_ok());
        assert!(open("/link", [user, user]).is_err());
        if user == 0 {
            chown(&file, Some(12345), None).unwrap();
            assert!(open("/map", [12345, 0]).is_ok());
        }
        let refused = open("/map", [4242, 4243]).map(|_| ());
        assert_eq!(refused.is_err(), fs::metadata(&file).unwrap().uid() != 0);
    }
}
