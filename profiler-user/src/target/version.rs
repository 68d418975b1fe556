//! Whether a file that is held is still what it was: its content may be replaced while it keeps its inode.

use std::{fs::File, os::unix::fs::MetadataExt};

use object::{ReadRef, elf::ELFMAG};

use super::{bounded::BoundedFile, elf};

/// What a file was when it was opened. It is compared with what it is before it is believed again: what is learned from
/// another content than that which was mapped is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    /// When it was written last, in seconds and nanoseconds; with its length. `None` where it is no ELF file: nothing is
    /// learned from its content, and a file that a program makes code in is written to all the time.
    written: Option<(i64, i64, u64)>,
    /// The build id that the linker left in it.
    build_id: Option<Vec<u8>>,
}

impl Version {
    /// What a file is now.
    pub(crate) fn of(file: &File) -> Self {
        // Before its content is read: what is written meanwhile makes it another.
        let written = written(file);
        let content = BoundedFile::new(file);
        let is_elf = (&content).read_bytes_at(0, 4).is_ok_and(|magic| magic == ELFMAG);
        Self { written: written.filter(|_| is_elf), build_id: elf::build_id_in(&content).ok().flatten() }
    }

    /// The build id that the linker left in the file.
    pub(crate) fn build_id(&self) -> Option<&[u8]> {
        self.build_id.as_deref()
    }

    /// Whether a file is the same still. One that was written to, but has the same build id and is not shorter, is.
    pub(crate) fn is_of(&self, file: &File) -> bool {
        let now = written(file);
        if self.written.is_none() || now == self.written {
            return true;
        }
        let is_shorter = now.map(|now| now.2) < self.written.map(|then| then.2);
        !is_shorter && self.build_id.is_some() && elf::build_id(file).ok().flatten() == self.build_id
    }
}

fn written(file: &File) -> Option<(i64, i64, u64)> {
    let metadata = file.metadata().ok()?;
    Some((metadata.mtime(), metadata.mtime_nsec(), metadata.len()))
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::FileExt,
        time::{Duration, SystemTime},
    };

    use super::*;

    fn copy(path: &str) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&std::fs::read(path).unwrap(), 0).unwrap();
        file
    }

    fn touch(file: &File, seconds: u64) {
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
    }

    #[test]
    fn a_file_that_is_only_touched_is_the_same() {
        let file = copy("/lib/x86_64-linux-gnu/libdl.so.2");
        let version = Version::of(&file);
        assert!(version.build_id().is_some());
        assert!(version.is_of(&file));
        touch(&file, 1);
        assert!(version.is_of(&file));
    }

    #[test]
    fn a_file_with_other_content_or_less_of_it_is_another() {
        let file = copy("/lib/x86_64-linux-gnu/libdl.so.2");
        let version = Version::of(&file);
        let length = file.metadata().unwrap().len();
        file.set_len(length - 1).unwrap();
        assert!(!version.is_of(&file));
        file.write_all_at(&std::fs::read("/lib/x86_64-linux-gnu/librt.so.1").unwrap(), 0).unwrap();
        file.set_len(length).unwrap();
        touch(&file, 1);
        assert!(!version.is_of(&file));
    }

    #[test]
    fn a_file_without_a_build_id_is_another_once_it_is_written_to() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"\x7fELF", 0).unwrap();
        let version = Version::of(&file);
        touch(&file, 1);
        assert!(!version.is_of(&file));
    }

    #[test]
    fn a_file_that_tells_nothing_stays_what_it_is() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"code", 0).unwrap();
        let version = Version::of(&file);
        touch(&file, 1);
        assert!(version.is_of(&file));
    }
}
