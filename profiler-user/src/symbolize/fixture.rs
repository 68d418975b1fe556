//! Libraries and programs to find names in, made when a test runs.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use object::{Object, ObjectSymbol};

use super::{error::SymbolizeError, line::Line, module::Sources};
use crate::target::{
    debug_file::Finder,
    elf,
    given::Given,
    image::{Cache, Image},
    maps::Module,
    root::Root,
    version::Version,
};

/// Two functions for others to use, and between them one that is not, and one without a size behind them.
const SOURCE: &str = r#"
#define KEEP __attribute__((noinline, noclone, used))
KEEP int first_shared(int number) { return number * 3 + 1; }
KEEP static int hidden_between(int number) { return number * 5 + 2; }
KEEP int last_shared(int number) { return hidden_between(number) + 7; }
__asm__(".text\n.globl by_hand\nby_hand:\n.skip 64, 0x90\n.type data_in_text, @object\ndata_in_text:\n"
        ".globl after_hand\nafter_hand:\n.skip 8192, 0x90\n");
int main(void) { return last_shared(1); }
"#;

/// A directory that stands for a target's root, with a file `/lib/guest` in it.
pub(crate) struct Guest {
    pub(crate) root: tempfile::TempDir,
    /// The file before anything was taken out of it.
    whole: PathBuf,
    held: Option<Arc<File>>,
}

impl Guest {
    /// Compiles the source with debug information and these options.
    pub(crate) fn build(options: &[&str]) -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("lib")).unwrap();
        fs::write(root.path().join("guest.c"), SOURCE).unwrap();
        let guest = Self { whole: root.path().join("whole"), root, held: None };
        let always = ["-g", "-O1", "-fno-toplevel-reorder", "-Wl,--build-id", "-o", "whole", "guest.c"];
        guest.run("cc", &[&always[..], options].concat());
        fs::copy(&guest.whole, guest.file()).unwrap();
        guest
    }

    pub(crate) fn library() -> Self {
        Self::build(&["-shared", "-fPIC"])
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.root.path().join("lib/guest")
    }

    /// Runs a program in the root.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) {
        let status = Command::new(program).args(arguments).current_dir(self.root.path()).status().unwrap();
        assert!(status.success(), "{program} {arguments:?}");
    }

    /// Takes everything out that names need, but for `.dynsym`.
    pub(crate) fn strip(&self) {
        self.run("strip", &["lib/guest"]);
    }

    /// Makes `debug`, which has what `strip` takes out.
    pub(crate) fn make_debug_file(&self, name: &str) -> PathBuf {
        let path = self.root.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        self.run("objcopy", &["--only-keep-debug", "whole", name]);
        path
    }

    /// Opens the file as it is now, as the mapping of a process would hold it.
    pub(crate) fn hold(&mut self) {
        self.held = Some(Arc::new(File::open(self.file()).unwrap()));
    }

    /// Takes another file for the one that a mapping holds.
    pub(crate) fn hold_as(&mut self, file: Arc<File>) {
        self.held = Some(file);
    }

    /// The file as the mapping of a process would have it.
    pub(crate) fn module(&self) -> Module {
        let file = self.held.clone().unwrap_or_else(|| Arc::new(File::open(self.file()).unwrap()));
        let version = Version::of(&file);
        let build_id = version.build_id().map(<[u8]>::to_vec);
        Module {
            path: "/lib/guest".to_owned(),
            file: Some(file),
            build_id,
            version: Some(version),
            inode: None,
        }
    }

    pub(crate) fn build_id(&self) -> String {
        let id = elf::build_id(&File::open(&self.whole).unwrap()).unwrap().unwrap();
        id.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Where a debug directory has the debug file.
    pub(crate) fn build_id_name(&self) -> String {
        let id = self.build_id();
        format!(".build-id/{}/{}.debug", &id[..2], &id[2..])
    }

    /// The address of a function, as the file states it.
    pub(crate) fn address(&self, function: &str) -> u64 {
        let bytes = fs::read(&self.whole).unwrap();
        let elf = object::File::parse(bytes.as_slice()).unwrap();
        let symbol = elf.symbols().find(|symbol| symbol.name() == Ok(function));
        symbol.unwrap_or_else(|| panic!("no {function}")).address()
    }

    /// Where in the file the address lies that is `inside` bytes behind a function's start, and what is behind it.
    pub(crate) fn place(&self, function: &str, inside: u64) -> (u64, u64) {
        let whole = fs::read(&self.whole).unwrap();
        let segments = Image::parse(whole.as_slice()).unwrap().segments();
        segments.rest_from(self.address(function) + inside).expect("it is loaded")
    }

    /// The lines at an address that lies `inside` bytes behind a function's start.
    pub(crate) fn lines(&self, function: &str, inside: u64, debug_dirs: &[&Path]) -> Vec<Line> {
        self.try_lines(function, inside, debug_dirs).unwrap()
    }

    /// The same, of a file that may be broken.
    pub(super) fn try_lines(
        &self,
        function: &str,
        inside: u64,
        debug_dirs: &[&Path],
    ) -> Result<Vec<Line>, SymbolizeError> {
        let module = self.module();
        let cache = Cache::new(module.file.as_deref().unwrap());
        let (offset, _) = self.place(function, inside);
        let image = Image::parse(&cache)?;
        let directories = debug_dirs.iter().map(|path| path.to_path_buf()).collect();
        let given = Given { directories, ..Given::default() };
        let (ours, target) = (Root::at(Path::new("/")).unwrap(), Root::at(self.root.path()).unwrap());
        let finder = Finder::new(&given, Some(&ours), Some(&target));
        let debug = finder.find(&module, &image);
        let sources = Sources {
            module: &module,
            debug: debug.as_ref(),
            debug_dirs: &finder.directories(),
            reader: None,
        };
        Ok(sources.look_up(&[offset])?.lines.remove(0))
    }

    /// The name there, empty where there is none.
    pub(crate) fn name(&self, function: &str, inside: u64, debug_dirs: &[&Path]) -> String {
        let lines = self.lines(function, inside, debug_dirs);
        lines.last().map(|line| line.function.name.clone()).unwrap_or_default()
    }
}
