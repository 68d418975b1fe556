//! Compiled guests, kept for as long as nothing changes that goes into them.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use crate::compile::source;

/// A run of a compiler, which makes one file, or of another tool.
#[derive(Debug)]
pub(crate) struct Step {
    program: &'static str,
    source: Option<PathBuf>,
    /// They follow the source: libraries have to.
    flags: Vec<String>,
    output: String,
}

impl Step {
    /// Compiles a source.
    pub(crate) fn of(compiler: &'static str, source: PathBuf) -> Self {
        Self { program: compiler, source: Some(source), flags: Vec::new(), output: String::new() }
    }

    /// Runs a tool on what the steps before have made.
    pub(crate) fn tool(program: &'static str, arguments: &[&str]) -> Self {
        Self { program, source: None, flags: Vec::new(), output: String::new() }.flags(arguments)
    }

    /// Builds a package of Go's, which is a folder.
    pub(crate) fn go(package: PathBuf) -> Self {
        Self::of("go", package)
    }

    /// With these flags after the ones so far.
    pub(crate) fn flags(mut self, flags: &[&str]) -> Self {
        self.flags.extend(flags.iter().copied().map(str::to_owned));
        self
    }

    /// With one more.
    pub(crate) fn flag(self, flag: &str) -> Self {
        self.flags(&[flag])
    }

    /// To a file of this name.
    pub(crate) fn output(mut self, name: &str) -> Self {
        name.clone_into(&mut self.output);
        self
    }

    fn run(&self, folder: &Path) {
        let mut command = Command::new(self.program);
        command.current_dir(folder);
        match &self.source {
            Some(package) if package.is_dir() => {
                // Go looks at the package's repository otherwise, which may be somebody else's.
                command.args(["build", "-buildvcs=false", "-o"]).arg(folder.join(&self.output));
                command.current_dir(package);
            }
            Some(source) => {
                command.args(["-o", &self.output]).arg(source);
            }
            None => {}
        }
        command.args(&self.flags);
        let output = command.output().unwrap_or_else(|err| {
            panic!("cannot run `{}` (install gcc, g++, Go and rustc): {err}", self.program)
        });
        assert!(
            output.status.success(),
            "`{command:?}` failed:\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

/// The folder in which cargo builds, found from where the running test is.
pub(crate) fn target_dir() -> PathBuf {
    let test = env::current_exe().expect("a test knows its own file");
    // target/PROFILE/deps/TEST
    test.ancestors().nth(3).expect("cargo puts tests three folders deep").to_path_buf()
}

/// Where the compiled guests are: `HEAPTAP_GUESTS`, for a machine that has no compiler, or beside the tests.
pub(crate) fn folder() -> PathBuf {
    env::var_os("HEAPTAP_GUESTS").map_or_else(|| target_dir().join("guests"), PathBuf::from)
}

/// Runs the steps in a folder named after everything that goes into them, unless it is there already.
pub(crate) fn build(steps: &[Step]) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    for header in ["ledger.h", "allocators.h", "paths.h"] {
        read(&source(header)).hash(&mut hasher);
    }
    for step in steps {
        let source = step.source.as_deref().map(read);
        (step.program, &step.flags, &step.output, source).hash(&mut hasher);
    }
    let guests = folder();
    let finished = guests.join(format!("{:016x}", hasher.finish()));
    if finished.exists() {
        return finished;
    }
    fs::create_dir_all(&guests).unwrap_or_else(|err| panic!("{}: {err}", guests.display()));
    let fresh = tempfile::tempdir_in(&guests).expect("a folder to compile in");
    for step in steps {
        step.run(fresh.path());
    }
    // Another test may have built the same meanwhile: its folder then stays, and this one goes.
    if let Err(err) = fs::rename(fresh.path(), &finished) {
        assert!(finished.exists(), "{}: {err}", finished.display());
    }
    finished
}

/// What is in a file, or in all the files of a folder.
fn read(path: &Path) -> Vec<u8> {
    if !path.is_dir() {
        return fs::read(path).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
    }
    let entries = fs::read_dir(path).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("the folder stays").path()).collect();
    files.sort();
    files.iter().flat_map(|file| read(file)).collect()
}
