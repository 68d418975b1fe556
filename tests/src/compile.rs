//! Compiling the guests, once for each state of their sources.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// `-fno-builtin` keeps the compiler from removing pairs of malloc and free whose block nobody reads.
const C: &[&str] = &["-std=c11", "-O2", "-g", "-fno-omit-frame-pointer", "-fno-builtin", "-pthread"];
const CPP: &[&str] = &["-std=c++17", "-O2", "-g", "-fno-omit-frame-pointer", "-pthread"];
const FREESTANDING: &[&str] =
    &["-std=c11", "-O2", "-nostdlib", "-static", "-ffreestanding", "-fno-pie", "-no-pie"];

/// The width of a program's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// `-m32`
    Bits32,
    /// `-m64`
    Bits64,
}

/// The executable of `guests/NAME.c`, or of `guests/NAME.cpp`.
pub fn program(name: &str) -> PathBuf {
    let c = source(&format!("{name}.c"));
    let (compiler, flags, file) =
        if c.exists() { ("cc", C, c) } else { ("c++", CPP, source(&format!("{name}.cpp"))) };
    let step = Step { compiler, flags, source: &file, more: &[], output: name };
    build(&[step]).join(name)
}

/// The executable of `guests/NAME.c`, which finds the shared library `guests/libNAME.c` beside itself.
pub fn program_with_library(name: &str) -> PathBuf {
    let library = format!("lib{name}.so");
    let (library_source, program_source) = (source(&format!("lib{name}.c")), source(&format!("{name}.c")));
    let link = format!("-l:{library}");
    let steps = [
        Step {
            compiler: "cc",
            flags: C,
            source: &library_source,
            more: &["-shared", "-fPIC"],
            output: &library,
        },
        Step {
            compiler: "cc",
            flags: C,
            source: &program_source,
            more: &["-L.", &link, "-Wl,-rpath,$ORIGIN"],
            output: name,
        },
    ];
    build(&steps).join(name)
}

/// A program without a C library, which waits for ever.
pub fn no_allocator(width: Width) -> PathBuf {
    let file = source("no-allocator.c");
    let more: &[&str] = match width {
        Width::Bits32 => &["-m32"],
        Width::Bits64 => &["-m64"],
    };
    let step = Step { compiler: "cc", flags: FREESTANDING, source: &file, more, output: "no-allocator" };
    build(&[step]).join("no-allocator")
}

/// A file of the guests' folder.
pub fn source(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("guests").join(file)
}

/// The number of the only line of a guest's source that holds `text`, for tests of line numbers.
pub fn line_of(file: &str, text: &str) -> usize {
    let path = source(file);
    let contents = fs::read_to_string(&path).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
    let lines: Vec<usize> =
        contents.lines().enumerate().filter(|(_, line)| line.contains(text)).map(|(at, _)| at + 1).collect();
    match lines[..] {
        [line] => line,
        _ => panic!("`{text}` is on lines {lines:?} of {file} and not on one"),
    }
}

/// The folder in which cargo builds, found from where the running test is.
pub fn target_dir() -> PathBuf {
    let test = env::current_exe().expect("a test knows its own file");
    // target/PROFILE/deps/TEST
    test.ancestors().nth(3).expect("cargo puts tests three folders deep").to_path_buf()
}

struct Step<'a> {
    compiler: &'a str,
    flags: &'a [&'a str],
    source: &'a Path,
    more: &'a [&'a str],
    output: &'a str,
}

/// Runs the steps in a folder named after everything that goes into them, unless it is there already.
fn build(steps: &[Step<'_>]) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    read(&source("ledger.h")).hash(&mut hasher);
    for step in steps {
        (step.compiler, step.flags, step.more, step.output, read(step.source)).hash(&mut hasher);
    }
    let guests = target_dir().join("guests");
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

fn compile(step: &Step<'_>, folder: &Path) {
    let output = Command::new(step.compiler)
        .current_dir(folder)
        .args(step.flags)
        .args(["-Wall", "-Wextra", "-Werror", "-o", step.output])
        .arg(step.source)
        .args(step.more)
        .output()
        .unwrap_or_else(|err| panic!("cannot run `{}` (install gcc and g++): {err}", step.compiler));
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
