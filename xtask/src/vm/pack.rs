//! What the machines take along: heaptap, the tests, the compiled guests, and programs of Debian's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::initramfs::Archive;
use crate::workspace::{cargo, output, root, run, target_dir};

/// Programs of this machine that tests run, and a library that one of their guests loads, with the libraries that they
/// need.
const PROGRAMS: [&str; 10] = [
    "/usr/bin/setarch",
    "/bin/sh",
    "/bin/cat",
    "/bin/true",
    "/usr/bin/sqlite3",
    "/usr/bin/redis-server",
    "/usr/bin/redis-benchmark",
    "/usr/sbin/nginx",
    "/usr/lib/x86_64-linux-gnu/libmimalloc.so.2",
    PYTHON,
];

const PYTHON: &str = "/usr/bin/python3";

/// Names the files of the modules that the test of python3 imports, and of those that they do.
const PYTHON_MODULES: &str = "\
import json, re, sys, zlib, decimal, encodings.ascii
for module in list(sys.modules.values()):
    if getattr(module, '__file__', None):
        print(module.__file__)
";

/// What the machine's first process does.
const INIT: &str = include_str!("init.sh");

/// Root, who calls sudo in a test, and as whom nginx would serve.
const USERS: &str = "\
root:x:0:0:root:/root:/bin/sh
nobody:x:65534:65534:nobody:/tmp:/bin/sh
www-data:x:33:33:www-data:/tmp:/bin/sh
";

const GROUPS: &str = "\
root:x:0:
nogroup:x:65534:
www-data:x:33:
";

/// A test binary, with the options that it is run with.
pub(super) struct Suite {
    pub(super) name: &'static str,
    pub(super) options: &'static str,
}

/// Builds what the tests need, and puts it where they look for it.
pub(super) fn pack(folder: &Path, suites: &[&Suite]) -> Result<Archive> {
    run(cargo()?.args(["build", "--release", "--package", "profiler-user", "--bin", "heaptap"]))?;
    let guests = folder.join("guests");
    // What is not of the present sources would only be carried along.
    if guests.exists() {
        fs::remove_dir_all(&guests).with_context(|| format!("cannot remove {}", guests.display()))?;
    }
    run(cargo()?
        .args(["test", "--quiet", "--package", "heaptap-tests", "--test", "guests", "every_guest_compiles"])
        .env("HEAPTAP_GUESTS", &guests))?;

    let mut archive = Archive::default();
    archive.text("/init", INIT);
    archive.text("/etc/passwd", USERS);
    archive.text("/etc/group", GROUPS);
    let lines: Vec<String> =
        suites.iter().map(|Suite { name, options }| format!("{name} {options}")).collect();
    archive.text("/suites", &lines.join("\n"));
    archive.file("/bin/busybox", Path::new("/bin/busybox"))?;
    for program in PROGRAMS {
        archive.program(program, Path::new(program))?;
    }
    for module in output(Command::new(PYTHON).args(["-c", PYTHON_MODULES]))?.lines() {
        archive.program(module, Path::new(module))?;
    }
    let stripped = folder.join("stripped");
    fs::create_dir_all(&stripped).with_context(|| format!("cannot create {}", stripped.display()))?;
    archive.program("/heaptap", &strip(&target_dir()?.join("release/heaptap"), &stripped)?)?;
    for (name, executable) in test_binaries(suites)? {
        archive.program(&format!("/tests/{name}"), &strip(&executable, &stripped)?)?;
    }
    archive.folder("/guests", &guests)?;
    // The tests look for the guests' sources where they were when the tests were compiled.
    let sources = root()?.join("tests/guests");
    archive.folder(&sources.to_string_lossy(), &sources)?;
    Ok(archive)
}

/// A copy without debugging information, which is most of a file and of no use there.
fn strip(program: &Path, folder: &Path) -> Result<PathBuf> {
    let copy = folder.join(program.file_name().context("a program has a name")?);
    run(Command::new("strip").arg("--strip-debug").arg("-o").arg(&copy).arg(program))?;
    Ok(copy)
}

/// Where cargo puts the test binaries.
fn test_binaries(suites: &[&Suite]) -> Result<Vec<(String, PathBuf)>> {
    let mut build = cargo()?;
    build.args(["test", "--no-run", "--message-format=json", "--package", "heaptap-tests"]);
    for suite in suites {
        build.args(["--test", suite.name]);
    }
    let mut binaries = Vec::new();
    for line in output(&mut build)?.lines() {
        if let Ok(Message { target, executable: Some(executable) }) = serde_json::from_str(line) {
            binaries.push((target.name, executable));
        }
    }
    ensure!(
        suites.iter().all(|suite| binaries.iter().any(|(name, _)| name == suite.name)),
        "cargo has built {binaries:?} only"
    );
    Ok(binaries)
}

/// What cargo says of something that it has built, and no other message.
#[derive(Deserialize)]
struct Message {
    target: Target,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}
