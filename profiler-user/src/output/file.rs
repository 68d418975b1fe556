//! A file that is written whole or not at all, and never over another one unasked.

use std::{
    fs::{self, Permissions},
    io::{self, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use tempfile::NamedTempFile;

/// Why an output file cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The directory is not there.
    #[error("cannot write `{}`: there is no directory `{}`", path.display(), parent.display())]
    NoParent {
        /// The file.
        path: PathBuf,
        /// The directory.
        parent: PathBuf,
    },
    /// The directory does not take new files.
    #[error("cannot write `{}`: cannot create files in `{}`", path.display(), parent.display())]
    NotWritable {
        /// The file.
        path: PathBuf,
        /// The directory.
        parent: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// Something else has the name, and nobody said that it may go.
    #[error("`{}` exists already", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A directory or a device has the name, which must not be replaced by a file.
    #[error("cannot write `{}`: it is not a regular file", path.display())]
    NotAFile {
        /// What is there.
        path: PathBuf,
    },
    /// The content could not be written.
    #[error("cannot write `{}`", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
}

/// A file to be: its content appears under its name all at once.
///
/// Make it before the work whose result it will hold: a path that cannot be written is found out then
/// and not after an hour of recording. Dropped without [`commit`](Self::commit), it leaves nothing.
#[derive(Debug)]
pub struct OutputFile {
    path: PathBuf,
    /// In the same directory, for only within a file system a rename is atomic.
    temporary: NamedTempFile,
    overwrite: bool,
}

impl OutputFile {
    /// Returns a file that will have this path; with `overwrite` in the place of one that is there.
    ///
    /// # Errors
    ///
    /// Fails if the path cannot be written or is taken.
    pub fn create(path: &Path, overwrite: bool) -> Result<Self, FileError> {
        let path = path.to_owned();
        match fs::symlink_metadata(&path) {
            Ok(there) if there.is_file() || there.is_symlink() => {
                if !overwrite {
                    return Err(FileError::Exists { path });
                }
            }
            // Renaming onto /dev/null would replace it for the whole machine.
            Ok(_) => return Err(FileError::NotAFile { path }),
            Err(_) => {}
        }
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        if path.file_name().is_none() {
            return Err(FileError::NotAFile { path });
        }
        // As for any new file, the umask takes away from this what the user does not want.
        let permissions = Permissions::from_mode(0o666);
        let temporary =
            tempfile::Builder::new().prefix(".heaptap-").permissions(permissions).tempfile_in(&parent);
        match temporary {
            Ok(temporary) => Ok(Self { path, temporary, overwrite }),
            Err(_) if !parent.is_dir() => Err(FileError::NoParent { path, parent }),
            Err(source) => Err(FileError::NotWritable { path, parent, source }),
        }
    }

    /// Gives the file this content and its name.
    ///
    /// # Errors
    ///
    /// Fails if the disk is full, or if the name was taken meanwhile.
    pub fn commit(self, bytes: &[u8]) -> Result<(), FileError> {
        let Self { path, mut temporary, overwrite } = self;
        // Without the sync a power cut could leave an empty file under the name.
        let written = temporary.write_all(bytes).and_then(|()| temporary.as_file().sync_data());
        if let Err(source) = written {
            return Err(FileError::Write { path, source });
        }
        let persisted = if overwrite { temporary.persist(&path) } else { temporary.persist_noclobber(&path) };
        match persisted.map_err(|failed| failed.error) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(FileError::Exists { path }),
            Err(source) => Err(FileError::Write { path, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn the_content_appears_with_the_commit() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("heap.pb.gz");
        let file = OutputFile::create(&path, false).unwrap();
        assert!(!path.exists());
        file.commit(b"content").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"content");
        assert_eq!(names(directory.path()), ["heap.pb.gz"]);
    }

    #[test]
    fn without_a_commit_nothing_is_left() {
        let directory = tempfile::tempdir().unwrap();
        drop(OutputFile::create(&directory.path().join("heap.pb.gz"), false).unwrap());
        assert_eq!(names(directory.path()), [""; 0]);
    }

    #[test]
    fn a_file_is_overwritten_only_when_asked_to() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("heap.pb.gz");
        fs::write(&path, "old").unwrap();
        let error = OutputFile::create(&path, false).unwrap_err();
        assert!(matches!(error, FileError::Exists { .. }), "{error}");
        OutputFile::create(&path, true).unwrap().commit(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn a_file_that_came_meanwhile_is_not_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("heap.pb.gz");
        let file = OutputFile::create(&path, false).unwrap();
        fs::write(&path, "theirs").unwrap();
        let error = file.commit(b"ours").unwrap_err();
        assert!(matches!(error, FileError::Exists { .. }), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"theirs");
        assert_eq!(names(directory.path()), ["heap.pb.gz"]);
    }

    #[test]
    fn what_is_in_the_way_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let error = OutputFile::create(&directory.path().join("no/heap.pb.gz"), false).unwrap_err();
        assert!(matches!(error, FileError::NoParent { .. }), "{error}");
        let error = OutputFile::create(directory.path(), true).unwrap_err();
        assert!(matches!(error, FileError::NotAFile { .. }), "{error}");
        let error = OutputFile::create(Path::new("/dev/null"), true).unwrap_err();
        assert!(matches!(error, FileError::NotAFile { .. }), "{error}");
    }
}
