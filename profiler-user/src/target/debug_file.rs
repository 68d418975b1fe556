//! Separate debug files: where they may be, and whether one belongs to a file.
//!
//! A debug file of another build gives wrong names, which is worse than none. One is used only if it has the
//! file's build id or, found by the name in `.gnu_debuglink`, the content that the link promises.

use std::{
    fs::File,
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use object::ReadRef;

use super::{
    given::{self, Given},
    image::{Cache, DebugLink, Image},
    maps::Module,
    root::{LastLink, Root},
    version::Version,
};

/// Where distributions install them.
const SYSTEM_DIR: &str = "/usr/lib/debug";

/// What is read at most to check a file's content. Chromium's debug file has 4 GiB.
const CONTENT_LIMIT_BYTES: u64 = 16 << 30;

/// The same where a process waits: a tenth of a second, from a cache.
const PROMPT_LIMIT_BYTES: u64 = 256 << 20;

/// A debug file that was checked to belong to a module.
#[derive(Debug)]
pub(crate) struct DebugFile {
    pub(crate) file: File,
    /// Whether it comes from our own directories rather than from the target's.
    pub(crate) is_ours: bool,
    /// What it was when it was checked.
    version: Version,
}

impl DebugFile {
    /// A file that has just been checked.
    pub(crate) fn checked(file: File, is_ours: bool) -> Self {
        Self { version: Version::of(&file), file, is_ours }
    }

    /// Whether it has other content now than when it was checked.
    pub(crate) fn has_changed(&self) -> bool {
        !self.version.is_of(&self.file)
    }
}

/// Looks for the debug file of a module.
#[derive(Debug)]
pub(crate) struct Finder<'places> {
    /// What to look at before the system's own directories.
    given: &'places Given,
    /// The root that our own directories are in.
    ours: Option<&'places Root>,
    /// The target's root.
    target: Option<&'places Root>,
    content_limit_bytes: u64,
}

impl<'places> Finder<'places> {
    /// Looks at what is `given`, in the system's directories in the root `ours`, and in the usual places in the root `target`.
    pub(crate) const fn new(
        given: &'places Given,
        ours: Option<&'places Root>,
        target: Option<&'places Root>,
    ) -> Self {
        Self { given, ours, target, content_limit_bytes: CONTENT_LIMIT_BYTES }
    }

    /// Passes over files that only their whole content could prove to belong, where that takes long to read.
    pub(crate) const fn promptly(self) -> Self {
        Self { content_limit_bytes: PROMPT_LIMIT_BYTES, ..self }
    }

    /// The debug file of `module`, whose content is `image`.
    pub(crate) fn find<'data, R: ReadRef<'data>>(
        &self,
        module: &Module,
        image: &Image<'data, R>,
    ) -> Option<DebugFile> {
        let build_id = image.build_id();
        self.among_files(image).or_else(|| self.by_build_id(build_id.as_deref())).or_else(|| {
            let link = image.debug_link()?;
            self.by_link(module, &link, build_id.as_deref())
        })
    }

    /// Our directories, in the order in which they are searched.
    pub(crate) fn directories(&self) -> Vec<PathBuf> {
        // Names are looked up from the root.
        let given = self.given.directories.iter().map(std::path::absolute).filter_map(Result::ok);
        given.chain([PathBuf::from(SYSTEM_DIR)]).collect()
    }

    /// The file that was given for what has this content.
    fn among_files<'data, R: ReadRef<'data>>(&self, image: &Image<'data, R>) -> Option<DebugFile> {
        let mut files = self.given.files.iter().filter_map(|path| given::open(path));
        let found = files.find(|file| given::belongs(file, image));
        found.map(|file| DebugFile::checked(file, true))
    }

    fn by_build_id(&self, build_id: Option<&[u8]>) -> Option<DebugFile> {
        let build_id = build_id?;
        let name = build_id_name(build_id)?;
        self.open_first(
            self.directories().iter().map(|directory| directory.join(&name)),
            [Path::new(SYSTEM_DIR).join(&name)],
            |file| has_build_id(file, build_id),
        )
    }

    fn by_link(&self, module: &Module, link: &DebugLink, build_id: Option<&[u8]>) -> Option<DebugFile> {
        let directory = Path::new(&module.path).parent()?;
        let below_root = directory.strip_prefix("/").ok()?;
        let identity = |file: &File| file.metadata().map(|data| (data.dev(), data.ino())).ok();
        let module_identity = module.file.as_deref().and_then(identity);
        let ours = self.directories();
        self.open_first(
            ours.iter().flat_map(|ours| [ours.join(below_root).join(&link.name), ours.join(&link.name)]),
            [
                directory.join(&link.name),
                directory.join(".debug").join(&link.name),
                Path::new(SYSTEM_DIR).join(below_root).join(&link.name),
            ],
            |file| {
                identity(file) != module_identity
                    && Candidate::of(file).is_some_and(|found| match (&found.build_id, build_id) {
                        (Some(found), Some(wanted)) => found == wanted,
                        _ => true,
                    })
                    && checksum(file, self.content_limit_bytes) == Some(link.crc)
            },
        )
    }

    /// The first file that passes the check, looked for among our names and then among the target's.
    fn open_first(
        &self,
        ours: impl IntoIterator<Item = PathBuf>,
        theirs: impl IntoIterator<Item = PathBuf>,
        belongs: impl Fn(&File) -> bool,
    ) -> Option<DebugFile> {
        let open = |root: Option<&Root>, path: PathBuf| {
            let file = root?.open(&path, LastLink::Follow).ok()?;
            let belongs = belongs(&file);
            tracing::debug!(path = %path.display(), belongs, "a debug file");
            belongs.then_some(file)
        };
        let ours = ours.into_iter().find_map(|path| open(self.ours, path));
        let found = ours.map(|file| DebugFile::checked(file, true));
        found.or_else(|| {
            let theirs = theirs.into_iter().find_map(|path| open(self.target, path));
            theirs.map(|file| DebugFile::checked(file, false))
        })
    }
}

/// What is asked of a file before it is used as a debug file.
struct Candidate {
    build_id: Option<Vec<u8>>,
}

impl Candidate {
    /// `None` where the file has nothing to give.
    fn of(file: &File) -> Option<Self> {
        let cache = Cache::new(file);
        let image = Image::parse(&cache).ok()?;
        image.tells().then(|| Self { build_id: image.build_id() })
    }
}

/// Whether `file` is the debug file of what has this build id.
pub(crate) fn has_build_id(file: &File, build_id: &[u8]) -> bool {
    Candidate::of(file).is_some_and(|found| found.build_id.as_deref() == Some(build_id))
}

/// `.build-id/xx/yyyy.debug`
fn build_id_name(build_id: &[u8]) -> Option<PathBuf> {
    let (first, rest) = build_id.split_first()?;
    // Real ones have 8 bytes or more; an ELF note may hold anything.
    if !(7..64).contains(&rest.len()) {
        return None;
    }
    let rest: String = rest.iter().map(|byte| format!("{byte:02x}")).collect();
    Some(PathBuf::from(format!(".build-id/{first:02x}/{rest}.debug")))
}

/// The sum that `.gnu_debuglink` has: CRC-32 of the whole file.
fn checksum(file: &File, limit_bytes: u64) -> Option<u32> {
    if file.metadata().ok()?.len() > limit_bytes {
        return None;
    }
    let mut hasher = crc32fast::Hasher::new();
    let mut chunk = vec![0; 1 << 20];
    let mut reader = File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file)))
        .ok()?
        .take(limit_bytes);
    loop {
        match reader.read(&mut chunk).ok()? {
            0 => return Some(hasher.finalize()),
            count => hasher.update(chunk.get(..count)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use crate::symbolize::fixture::Guest;

    /// A stripped library whose debug file lies where `name` says, in the target's root.
    fn linked(name: &str) -> Guest {
        let guest = Guest::library();
        guest.make_debug_file(name);
        guest.run("strip", &["lib/guest"]);
        guest.run("objcopy", &[&format!("--add-gnu-debuglink={name}"), "lib/guest"]);
        guest
    }

    #[test]
    fn a_debug_file_is_found_by_its_name_near_the_file_in_the_targets_root() {
        for name in ["lib/guest.debug", "lib/.debug/guest.debug", "usr/lib/debug/lib/guest.debug"] {
            let guest = linked(name);
            let lines = guest.lines("hidden_between", 1, &[]);
            assert_eq!(lines.last().unwrap().function.name, "hidden_between", "{name}");
            assert!(lines.last().unwrap().function.file.ends_with("guest.c"), "{name}");
            assert_eq!(lines.last().unwrap().number, 4, "{name}");
        }
    }

    #[test]
    fn a_debug_file_is_found_by_its_name_in_a_directory_that_was_given() {
        for name in ["given/guest.debug", "given/lib/guest.debug"] {
            let guest = linked(name);
            assert_eq!(guest.name("hidden_between", 1, &[]), "", "{name}");
            let given = guest.root.path().join("given");
            assert_eq!(guest.name("hidden_between", 1, &[&given]), "hidden_between", "{name}");
        }
    }

    #[test]
    fn a_debug_file_with_other_content_than_the_link_promises_is_not_used() {
        let guest = linked("lib/guest.debug");
        let mut file =
            fs::File::options().append(true).open(guest.root.path().join("lib/guest.debug")).unwrap();
        file.write_all(b"!").unwrap();
        assert_eq!(guest.name("hidden_between", 1, &[]), "");
        assert_eq!(guest.name("first_shared", 1, &[]), "first_shared");
    }

    #[test]
    fn a_debug_file_of_another_build_is_not_used_though_its_content_is_as_promised() {
        let other = Guest::build(&["-shared", "-fPIC", "-DOTHER", "-O2"]);
        let guest = Guest::library();
        assert_ne!(guest.build_id(), other.build_id());
        fs::copy(other.make_debug_file("lib/guest.debug"), guest.root.path().join("lib/guest.debug"))
            .unwrap();
        guest.run("strip", &["lib/guest"]);
        guest.run("objcopy", &["--add-gnu-debuglink=lib/guest.debug", "lib/guest"]);
        assert_eq!(guest.name("hidden_between", 1, &[]), "");
    }

    #[test]
    fn a_link_that_leads_out_of_the_directory_is_not_followed() {
        let guest = linked("lib/guest.debug");
        fs::create_dir(guest.root.path().join("lib/sub")).unwrap();
        let link = |name: &str| {
            let bytes = fs::read(guest.root.path().join("lib/guest.debug")).unwrap();
            let mut section = name.as_bytes().to_vec();
            section.resize((name.len() + 4) / 4 * 4, 0);
            section.extend(crc32fast::hash(&bytes).to_le_bytes());
            fs::write(guest.root.path().join("link"), section).unwrap();
            guest.run("objcopy", &["--remove-section=.gnu_debuglink", "lib/guest"]);
            guest.run("objcopy", &["--add-section", ".gnu_debuglink=link", "lib/guest"]);
            guest.name("hidden_between", 1, &[])
        };
        assert_eq!(link("guest.debug"), "hidden_between");
        for name in ["sub/../guest.debug", "/lib/guest.debug", "../lib/guest.debug", ".", "..", ""] {
            assert_eq!(link(name), "", "{name}");
        }
    }

    #[test]
    fn a_debug_file_is_found_by_build_id_in_a_given_directory_and_in_the_targets_own() {
        let guest = Guest::library();
        guest.make_debug_file(&format!("given/{}", guest.build_id_name()));
        guest.strip();
        let given = guest.root.path().join("given");
        assert_eq!(guest.name("hidden_between", 1, &[&given]), "hidden_between");
        assert_eq!(guest.name("hidden_between", 1, &[]), "");
        guest.make_debug_file(&format!("usr/lib/debug/{}", guest.build_id_name()));
        assert_eq!(guest.name("hidden_between", 1, &[]), "hidden_between");
    }

    #[test]
    fn a_debug_file_with_another_build_id_is_not_used_whatever_its_name() {
        let guest = Guest::library();
        guest.strip();
        let other = Guest::build(&["-shared", "-fPIC", "-O2"]);
        let path = guest.root.path().join("given").join(guest.build_id_name());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::copy(other.make_debug_file("debug"), path).unwrap();
        assert_eq!(guest.name("hidden_between", 1, &[&guest.root.path().join("given")]), "");
    }
}
