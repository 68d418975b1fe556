//! Compiled guests, kept for as long as nothing changes that goes into them.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use crate::compile::source;

/// A run of a compiler, which makes one file.
#[derive(Debug)]
pub(crate) struct Step {
    compiler: &'static str,
    source: PathBuf,
    /// They follow the source: libraries have to.
    flags: Vec<&'static str>,
    output: String,
}

impl Step {
    /// Compiles a source.
    pub(crate) fn of(compiler: &'static str, source: PathBuf) -> Self {
        Self { compiler, source, flags: Vec::new(), output: String::new() }
    }

    /// With these flags after the ones so far.
    pub(crate) fn flags(mut self, flags: &[&'static str]) -> Self {
        self.flags.extend(flags);
        self
    }

    /// With one more.
    pub(crate) fn flag(self, flag: &'static str) -> Self {
        self.flags(&[flag])
    }

    /// To a file of this name.
    pub(crate) fn output(mut self, name: &str) -> Self {
        name.clone_into(&mut self.output);
        self
    }
}

/// The folder in which cargo builds, found from where the running test is.
pub(crate) fn target_dir() -> PathBuf {
    let test = env::current_exe().expect("a test knows its own file");
    // target/PROFILE/deps/TEST
    test.ancestors().nth(3).expect("cargo puts tests three folders deep").to_path_buf()
}

/// Where the compiled guests are: `HEAPTAP_GUESTS`, for a machine that has no compiler, or beside the tests.
fn folder() -> PathBuf {
    env::var_os("HEAPTAP_GUESTS").map_or_else(|| target_dir().join("guests"), PathBuf::from)
}

/// Runs the steps in a folder named after everything that goes into them, unless it is there already.
pub(crate) fn build(steps: &[Step]) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    read(&source("ledger.h")).hash(&mut hasher);
    for step in steps {
        (step.compiler, &step.flags, &step.output, read(&step.source)).hash(&mut hasher);
    }
    let guests = folder();
    let finished = guests.join(format!("{:016x}", hasher.finish()));
    if finished.exists() {
        return finished;
    }
    fs::create_dir_all(&guests).unwrap_or_else(|err| panic!("{}: {err}", guests.display()));
    let fresh = tempfile::tempdir_in(&guests).expect("a folder to compile in");
    for step in steps {
        compile(step, fresh.path());
    }
    // Another test may have built the same meanwhile: its folder then stays, and this one goes.
    if let Err(err) = fs::rename(fresh.path(), &finished) {
        assert!(finished.exists(), "{}: {err}", finished.display());
    }
    finished
}

fn compile(step: &Step, folder: &Path) {
    let output = Command::new(step.compiler)
        .current_dir(folder)
        .args(["-o", &step.output])
        .arg(&step.source)
        .args(&step.flags)
        .output()
        .unwrap_or_else(|err| panic!("cannot run `{}` (install gcc, g++ and rustc): {err}", step.compiler));
    assert!(
        output.status.success(),
        "`{}` failed on {}:\n{}",
        step.compiler,
        step.source.display(),
        String::from_utf8_lossy(&output.stderr)
    );
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|err| panic!("{}: {err}", path.display()))
}
