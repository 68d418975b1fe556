//! The initial file system of the machine: an archive in cpio's `newc` format, which the kernel unpacks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Files by their absolute path in the machine. All of them are executable, which does no harm.
#[derive(Debug, Default)]
pub(super) struct Archive {
    files: BTreeMap<String, Content>,
    /// Programs and libraries of this machine, whose own libraries have to come along.
    linked: BTreeSet<PathBuf>,
}

#[derive(Debug)]
enum Content {
    Text(String),
    File(PathBuf),
}

/// Folder, executable file, and the console, which the kernel opens before anything is mounted.
const FOLDER: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;
const CONSOLE: (u32, u32) = (5, 1);

impl Archive {
    /// Adds a file with this text.
    pub(super) fn text(&mut self, path: &str, text: &str) {
        self.files.insert(path.to_owned(), Content::Text(format!("{}\n", text.trim_end())));
    }

    /// Adds a copy of a file.
    pub(super) fn file(&mut self, path: &str, original: &Path) -> Result<()> {
        ensure!(original.is_file(), "there is no {}", original.display());
        self.files.insert(path.to_owned(), Content::File(original.to_owned()));
        Ok(())
    }

    /// Adds a copy of a program, with the libraries that it needs.
    pub(super) fn program(&mut self, path: &str, original: &Path) -> Result<()> {
        self.linked.insert(original.to_owned());
        self.file(path, original)
    }

    /// Adds a folder with all that is in it, programs with their libraries.
    pub(super) fn folder(&mut self, path: &str, original: &Path) -> Result<()> {
        let entries =
            fs::read_dir(original).with_context(|| format!("cannot read {}", original.display()))?;
        for entry in entries {
            let entry = entry?;
            let inside = format!("{path}/{}", entry.file_name().to_string_lossy());
            if entry.file_type()?.is_dir() {
                self.folder(&inside, &entry.path())?;
            } else {
                self.program(&inside, &entry.path())?;
            }
        }
        Ok(())
    }

    /// Writes the archive.
    pub(super) fn write(mut self, path: &Path) -> Result<()> {
        for library in libraries(&self.linked)? {
            let inside = library.to_string_lossy().into_owned();
            self.file(&inside, &library)?;
        }
        let file = fs::File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
        let mut writer = Writer { out: BufWriter::new(file), entries: 0 };
        self.write_entries(&mut writer).with_context(|| format!("cannot write {}", path.display()))
    }

    fn write_entries(&self, writer: &mut Writer<impl Write>) -> Result<()> {
        let mut folders: BTreeSet<&Path> = BTreeSet::from([Path::new("/dev")]);
        for path in self.files.keys() {
            folders.extend(Path::new(path).ancestors().skip(1).filter(|folder| folder.parent().is_some()));
        }
        // In order, so that each comes before what is in it.
        for folder in folders {
            writer.entry(&folder.to_string_lossy(), FOLDER, (0, 0), &[])?;
        }
        writer.entry("/dev/console", CHARACTER_DEVICE, CONSOLE, &[])?;
        for (path, content) in &self.files {
            let bytes = match content {
                Content::Text(text) => text.clone().into_bytes(),
                Content::File(original) => {
                    fs::read(original).with_context(|| format!("cannot read {}", original.display()))?
                }
            };
            writer.entry(path, EXECUTABLE, (0, 0), &bytes)?;
        }
        writer.entry("/TRAILER!!!", 0, (0, 0), &[])?;
        writer.out.flush()?;
        Ok(())
    }
}

struct Writer<W> {
    out: W,
    entries: u32,
}

impl<W: Write> Writer<W> {
    /// Writes a file as `newc` has it: a head of numbers, the name, the bytes, the latter two filled up to four.
    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), bytes: &[u8]) -> Result<()> {
        let name = path.trim_start_matches('/');
        let size = u32::try_from(bytes.len()).with_context(|| format!("{path} is too large"))?;
        let name_size = u32::try_from(name.len() + 1)?;
        self.entries += 1;
        // Inode, mode, user, group, links, time, size, device of the file, device that it is, name, checksum.
        let numbers = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0]
            .map(|it| format!("{it:08x}"));
        let head = format!("070701{}{name}\0", numbers.concat());
        self.padded(head.as_bytes())?;
        self.padded(bytes)
    }

    fn padded(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes)?;
        let rest = bytes.len().next_multiple_of(4) - bytes.len();
        self.out.write_all([0; 3].get(..rest).unwrap_or_default())?;
        Ok(())
    }
}

/// The shared libraries that programs need, by the paths at which they look for them.
fn libraries(programs: &BTreeSet<PathBuf>) -> Result<BTreeSet<PathBuf>> {
    // It fails for files that are no dynamic programs, and goes on to the next.
    let output = Command::new("ldd").args(programs).output().context("cannot run `ldd`")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(said.lines().filter_map(library).filter(|path| !programs.contains(path)).collect())
}

/// The path in `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)` and in `/lib64/ld-linux-x86-64.so.2 (0x…)`.
fn library(line: &str) -> Option<PathBuf> {
    let line = line.strip_prefix('\t')?;
    let path = line.split_once(" => ").map_or(line, |(_, path)| path);
    let path = path.split_once(" (0x").map_or(path, |(path, _)| path);
    path.starts_with('/').then(|| PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_filled_up_to_four_bytes() {
        let mut writer = Writer { out: Vec::new(), entries: 0 };
        writer.entry("/init", EXECUTABLE, (0, 0), b"hello").expect("memory takes all");
        let text = String::from_utf8(writer.out).expect("it is text");
        assert!(text.starts_with("07070100000001000081ed"), "{text}");
        // 110 of the head, 5 and 1 of the name, rounded; then the bytes.
        assert_eq!(&text[110..], "init\0\0hello\0\0\0");
    }

    #[test]
    fn libraries_are_what_ldd_finds() {
        let paths = [
            "\tlinux-vdso.so.1 (0x00007f168b3cb000)",
            "\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f168a41e000)",
            "\t/lib64/ld-linux-x86-64.so.2 (0x00007f168b3cd000)",
            "\tlibplugin.so => not found",
            "\tnot a dynamic executable",
            "/tests/ledger:",
        ]
        .map(library);
        let found: Vec<_> = paths.iter().flatten().map(|path| path.to_string_lossy()).collect();
        assert_eq!(found, ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]);
    }
}
