//! `cargo xtask test vm`: the kernel tests on Debian's kernels, in an emulated machine.
//!
//! The machine is made of software (no KVM), so that this runs wherever CI does. It has no disk and no network: the
//! tests, heaptap and the compiled guests come in the initial file system.

mod boot;
mod initramfs;
mod kernel;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use self::boot::{Machine, Outcome};
use self::initramfs::Archive;
use crate::packages::{self, BUSYBOX, CC, CXX, LIBC_HEADERS, QEMU};
use crate::workspace::{cargo, output, root, run as run_command, target_dir};

/// Arguments of `cargo xtask test vm`.
#[derive(Debug, clap::Args)]
pub(crate) struct VmArgs {
    /// Only this machine: 6.1, 6.12 or 6.12-la57
    #[arg(long)]
    machine: Option<String>,
    /// Only these test binaries
    tests: Vec<String>,
}

/// The machines, by a name, the package that brings the newest kernel of its line, and the processor. Page tables of
/// five levels move where the kernel looks for a user's addresses to end.
const MACHINES: [Machine; 3] = [
    Machine { name: "6.1", package: "linux-image-cloud-amd64", cpu: "max,la57=off" },
    Machine { name: "6.12", package: "linux-image-6.12-cloud-amd64", cpu: "max,la57=off" },
    Machine { name: "6.12-la57", package: "linux-image-6.12-cloud-amd64", cpu: "max,la57=on" },
];

/// The test binaries that need no more than what is taken along. `pprof` needs Go, `unwind_debian` most of a Debian.
const TESTS: [&str; 11] = [
    "ledger",
    "threads",
    "throw",
    "overflow",
    "lifecycle",
    "endings",
    "serve",
    "commands",
    "launch",
    "unwind",
    "changing_files",
];

/// Programs of this machine that tests run, with the libraries that they need.
const PROGRAMS: [&str; 3] = ["/usr/bin/setarch", "/bin/sh", "/bin/cat"];

/// What the machine's first process does.
const INIT: &str = include_str!("vm/init.sh");

/// Runs the command.
pub(crate) fn run(args: &VmArgs) -> Result<()> {
    packages::ensure_installed(&[CC, LIBC_HEADERS, CXX, QEMU, BUSYBOX])?;
    let folder = target_dir()?.join("vm");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let machines: Vec<&Machine> = MACHINES
        .iter()
        .filter(|machine| args.machine.as_ref().is_none_or(|name| machine.name == name))
        .collect();
    ensure!(!machines.is_empty(), "no such machine; there are {:?}", MACHINES.map(|machine| machine.name));
    let tests: Vec<&str> = TESTS
        .into_iter()
        .filter(|name| args.tests.is_empty() || args.tests.iter().any(|wanted| wanted == name))
        .collect();
    ensure!(!tests.is_empty(), "no such tests; there are {TESTS:?}");

    let file_system = folder.join("initramfs");
    pack(&folder, &tests)?.write(&file_system)?;
    let packages = kernel::Packages::update(&folder)?;
    let mut outcomes = Vec::new();
    for machine in machines {
        let kernel = packages.kernel(machine.package)?;
        outcomes.push((machine, machine.boot(&kernel, &file_system, &tests, &folder)?));
    }
    report(&outcomes)
}

/// Builds what the tests need, and puts it where they look for it.
fn pack(folder: &Path, tests: &[&str]) -> Result<Archive> {
    run_command(cargo()?.args(["build", "--package", "profiler-user", "--bin", "heaptap"]))?;
    let guests = folder.join("guests");
    // What is not of the present sources would only be carried along.
    if guests.exists() {
        fs::remove_dir_all(&guests).with_context(|| format!("cannot remove {}", guests.display()))?;
    }
    run_command(
        cargo()?
            .args([
                "test",
                "--quiet",
                "--package",
                "heaptap-tests",
                "--test",
                "guests",
                "every_guest_compiles",
            ])
            .env("HEAPTAP_GUESTS", &guests),
    )?;

    let mut archive = Archive::default();
    archive.text("/init", INIT);
    // The second is who calls sudo in a test.
    let users = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/tmp:/bin/sh";
    archive.text("/etc/passwd", users);
    archive.text("/etc/group", "root:x:0:\nnogroup:x:65534:");
    archive.text("/run-tests", &tests.join("\n"));
    archive.file("/bin/busybox", Path::new("/bin/busybox"))?;
    for program in PROGRAMS {
        archive.program(program, Path::new(program))?;
    }
    let stripped = folder.join("stripped");
    fs::create_dir_all(&stripped).with_context(|| format!("cannot create {}", stripped.display()))?;
    archive.program("/heaptap", &strip(&target_dir()?.join("debug/heaptap"), &stripped)?)?;
    for (name, executable) in test_binaries(tests)? {
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
    run_command(Command::new("strip").arg("--strip-debug").arg("-o").arg(&copy).arg(program))?;
    Ok(copy)
}

/// Where cargo puts the test binaries.
fn test_binaries(tests: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    let mut build = cargo()?;
    build.args(["test", "--no-run", "--message-format=json", "--package", "heaptap-tests"]);
    tests.iter().for_each(|name| {
        build.args(["--test", name]);
    });
    let mut binaries = Vec::new();
    for line in output(&mut build)?.lines() {
        if let Ok(Message { target, executable: Some(executable) }) = serde_json::from_str(line) {
            binaries.push((target.name, executable));
        }
    }
    ensure!(binaries.len() == tests.len(), "cargo has built {binaries:?} for {tests:?}");
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

/// Prints what every machine came to; an error unless all of it passed.
fn report(outcomes: &[(&Machine, Outcome)]) -> Result<()> {
    let mut failing = Vec::new();
    for (machine, outcome) in outcomes {
        print!("\n{} (-cpu {}):\n{outcome}", machine.name, machine.cpu);
        if !outcome.passed() {
            failing.push(machine.name);
        }
    }
    if !failing.is_empty() {
        bail!("failed on: {}", failing.join(", "));
    }
    println!("\nall machines passed");
    Ok(())
}
