//! What the user says about where debug files are.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use object::ReadRef;

use super::{
    debug_file::has_build_id,
    elf::is_elf,
    image::{Cache, Image},
    segments::Segment,
};

/// Places for debug files, to be looked at before the system's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Given {
    /// Directories laid out like `/usr/lib/debug`.
    pub directories: Vec<PathBuf>,
    /// Files: each is that of the program, or of a library, whose build id or code it has.
    pub files: Vec<PathBuf>,
}

/// A file that can be given, checked to be one.
pub fn readable_elf(path: &str) -> Result<PathBuf, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    if is_elf(&file) { Ok(PathBuf::from(path)) } else { Err("not an ELF file".to_owned()) }
}

/// Whether `file` was made with what is mapped of `image`: they have one build id or, without any, the same code.
pub(crate) fn belongs<'data, R: ReadRef<'data>>(file: &File, image: &Image<'data, R>) -> bool {
    if let Some(build_id) = image.build_id() {
        return has_build_id(file, &build_id);
    }
    let cache = Cache::new(file);
    Image::parse(&cache)
        .is_ok_and(|other| other.build_id().is_none() && other.tells() && has_same_code(image, &other))
}

/// Whether two files load the same code at the same addresses. A file whose code was taken out has none.
fn has_same_code<'one, 'other, R: ReadRef<'one>, S: ReadRef<'other>>(
    one: &Image<'one, R>,
    other: &Image<'other, S>,
) -> bool {
    code(one).is_some_and(|code_of_one| !code_of_one.is_empty() && Some(code_of_one) == code(other))
}

/// The code that a file loads, by address; `None` where it cannot be read.
fn code<'data, R: ReadRef<'data>>(image: &Image<'data, R>) -> Option<Vec<(u64, &'data [u8])>> {
    let segments = image.segments();
    let executable = segments.iter().filter(|segment| segment.is_executable && segment.size_bytes > 0);
    let data = image.elf.data();
    executable
        .map(|Segment { offset, address, size_bytes, .. }| {
            Some((*address, data.read_bytes_at(*offset, *size_bytes).ok()?))
        })
        .collect()
}

/// Opens a file of ours by its path.
pub(crate) fn open(path: &Path) -> Option<File> {
    File::open(path).inspect_err(|error| tracing::warn!(path = %path.display(), %error, "not used")).ok()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::symbolize::fixture::Guest;

    /// Whether the file that is beside a guest's own, by this name, belongs to it.
    fn is_its(guest: &Guest, name: &str) -> bool {
        let module = guest.module();
        let file = File::open(guest.root.path().join(name)).unwrap();
        belongs(&file, &Image::parse(&Cache::new(module.file.as_deref().unwrap())).unwrap())
    }

    /// A copy of a guest's file as it is now.
    fn keep(guest: &Guest, name: &str) {
        fs::copy(guest.root.path().join("lib/guest"), guest.root.path().join(name)).unwrap();
    }

    #[test]
    fn what_has_the_build_id_belongs_whatever_else_it_has() {
        let guest = Guest::library();
        let debug = guest.make_debug_file("debug");
        assert!(debug.exists());
        keep(&guest, "whole");
        guest.strip();
        assert!(is_its(&guest, "debug") && is_its(&guest, "whole"));
        let other = Guest::build(&["-shared", "-fPIC", "-O2", "-DOTHER"]);
        fs::copy(other.root.path().join("lib/guest"), guest.root.path().join("other")).unwrap();
        assert!(!is_its(&guest, "other"));
    }

    #[test]
    fn without_a_build_id_what_has_the_code_belongs() {
        let options = ["-shared", "-fPIC", "-Wl,--build-id=none"];
        let guest = Guest::build(&options);
        guest.make_debug_file("debug");
        keep(&guest, "whole");
        guest.strip();
        assert!(is_its(&guest, "whole"));
        assert!(!is_its(&guest, "debug"), "its code was taken out, and nothing else tells");
        let other = Guest::build(&[&options[..], &["-O2"]].concat());
        fs::copy(other.root.path().join("lib/guest"), guest.root.path().join("other")).unwrap();
        assert!(!is_its(&guest, "other"));
        fs::write(guest.root.path().join("text"), "no ELF file").unwrap();
        assert!(!is_its(&guest, "text"));
    }

    #[test]
    fn only_an_elf_file_can_be_given() {
        assert!(readable_elf("/bin/sh").is_ok());
        assert_eq!(readable_elf("/etc/passwd").unwrap_err(), "not an ELF file");
        assert!(readable_elf("/nowhere").unwrap_err().contains("No such file"));
    }
}
