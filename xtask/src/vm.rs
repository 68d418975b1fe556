//! `cargo xtask test vm`: the kernel tests on Debian's kernels, in emulated machines.
//!
//! A machine is made of software (no KVM), so that this runs wherever CI does. It has no disk and no network: the
//! tests, heaptap and what they record come in the initial file system.

mod boot;
mod initramfs;
mod kernel;
mod outcome;
mod pack;

use std::fs;
use std::thread;

use anyhow::{Context, Result, anyhow, bail, ensure};

use self::boot::Machine;
use self::outcome::Outcome;
use self::pack::Suite;
use crate::packages::{self, ALLOCATORS, BUSYBOX, CC, CXX, LIBC_HEADERS, QEMU, SMALL_PROGRAMS};
use crate::workspace::target_dir;

/// Arguments of `cargo xtask test vm`.
#[derive(Debug, clap::Args)]
pub(crate) struct VmArgs {
    /// Only this machine, which then runs all tests: 6.1, 6.12 or 6.12-la57; or 5.10, which is too old and has to be refused
    #[arg(long)]
    machine: Option<String>,
    /// Only these test binaries
    tests: Vec<String>,
}

/// The machines. Debian 12 has both lines of kernels: the second as the security team's offer of a newer one.
const MACHINES: [Machine; 3] = [
    Machine {
        name: "6.1",
        release: "bookworm",
        package: "linux-image-cloud-amd64",
        cpu: "max,la57=off",
        is_supported: true,
        only: &[],
    },
    Machine {
        name: "6.12",
        release: "bookworm",
        package: "linux-image-6.12-cloud-amd64",
        cpu: "max,la57=off",
        is_supported: true,
        // All that the next one does not run, which has the same kernel.
        only: &[
            "overflow",
            "endings",
            "serve",
            "sampling",
            "commands",
            "bad_input",
            "guests",
            "unwind_debian",
            "changing_files",
            "memory",
            "mappings",
            "own_counts",
        ],
    },
    // Page tables of five levels move where the kernel looks for a user's addresses to end: it is what reads the process's memory that this
    // may make a difference to.
    Machine {
        name: "6.12-la57",
        release: "bookworm",
        package: "linux-image-6.12-cloud-amd64",
        cpu: "max,la57=on",
        is_supported: true,
        only: &[
            "ledger",
            "threads",
            "throw",
            "lifecycle",
            "exec",
            "follow_forks",
            "gate",
            "launch",
            "unwind",
        ],
    },
];

/// The newest kernel of Debian's that is too old. Booted only when asked for: the release is no longer maintained, and
/// will leave the mirrors.
const TOO_OLD: Machine = Machine {
    name: "5.10",
    release: "bullseye",
    package: "linux-image-cloud-amd64",
    cpu: "max,la57=off",
    is_supported: false,
    only: &[],
};

/// The test binaries with their options.
///
/// Not among them: those that read files, whatever the kernel; `pprof`, for which Go would have to come along; `oracle`, for
/// which gdb would; and `namespaces`, for which overlayfs would. Node and a JVM (`unwind_jvm`) would be 300 MB, and translate
/// code all the time, which an emulator then translates again.
const SUITES: [Suite; 21] = [
    Suite { name: "ledger", options: "" },
    Suite { name: "threads", options: "" },
    Suite { name: "throw", options: "" },
    Suite { name: "overflow", options: "" },
    Suite { name: "lifecycle", options: "" },
    Suite { name: "exec", options: "" },
    Suite { name: "follow_forks", options: "" },
    Suite { name: "endings", options: "" },
    Suite { name: "serve", options: "" },
    // Of the other allocators only mimalloc is taken along, and a machine that small gives no block of a gibibyte.
    Suite { name: "sampling", options: "--skip jemalloc --skip tcmalloc --skip large --skip gibibyte" },
    Suite {
        name: "gate",
        options: "--skip jemalloc --skip tcmalloc --skip large --skip mimalloc --skip musl",
    },
    Suite { name: "commands", options: "" },
    Suite { name: "launch", options: "" },
    Suite { name: "bad_input", options: "" },
    Suite { name: "guests", options: "" },
    Suite { name: "unwind", options: "" },
    Suite { name: "unwind_debian", options: "--skip node --skip java" },
    Suite { name: "changing_files", options: "" },
    Suite { name: "memory", options: "" },
    Suite { name: "mappings", options: "--skip what_an_allocator_maps" },
    // Python's ctypes are not taken along.
    Suite { name: "own_counts", options: "--skip python3" },
];

/// Runs the command.
pub(crate) fn run(args: &VmArgs) -> Result<()> {
    packages::ensure_installed(
        [CC, LIBC_HEADERS, CXX, QEMU, BUSYBOX].iter().chain(&SMALL_PROGRAMS).chain(&ALLOCATORS),
    )?;
    let folder = target_dir()?.join("vm");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let machines = machines(args.machine.as_deref())?;
    let suites: Vec<&Suite> = SUITES
        .iter()
        .filter(|suite| args.tests.is_empty() || args.tests.iter().any(|wanted| wanted == suite.name))
        .collect();
    ensure!(!suites.is_empty(), "no such tests; there are {:?}", SUITES.map(|suite| suite.name));

    let file_system = folder.join("initramfs");
    pack::pack(&folder, &suites)?.write(&file_system)?;
    let names: Vec<&str> = suites.iter().map(|suite| suite.name).collect();
    let kernels = machines
        .iter()
        .map(|machine| kernel::Packages::update(&folder, machine.release)?.kernel(machine.package))
        .collect::<Result<Vec<_>>>()?;
    // All at once: each keeps one processor busy, and none of them all the time.
    let outcomes = thread::scope(|scope| {
        let boots: Vec<_> = machines
            .iter()
            .zip(&kernels)
            .map(|(machine, kernel)| {
                let is_asked_for = |name: &&str| args.machine.is_some() || machine.runs(name);
                let names: Vec<&str> = names.iter().copied().filter(is_asked_for).collect();
                let (file_system, folder) = (&file_system, &folder);
                scope.spawn(move || machine.boot(kernel, file_system, &names, folder))
            })
            .collect();
        let joined = boots.into_iter().map(|boot| boot.join().map_err(|_| anyhow!("a thread panicked"))?);
        joined.collect::<Result<Vec<_>>>()
    })?;
    report(&machines, &outcomes)
}

/// The machines of this name, or all that should pass.
fn machines(name: Option<&str>) -> Result<Vec<&'static Machine>> {
    let Some(name) = name else { return Ok(MACHINES.iter().collect()) };
    let all = || MACHINES.iter().chain([&TOO_OLD]);
    let found: Vec<_> = all().filter(|machine| machine.name == name).collect();
    let names: Vec<_> = all().map(|machine| machine.name).collect();
    ensure!(!found.is_empty(), "no machine `{name}`; there are {}", names.join(", "));
    Ok(found)
}

/// Prints what every machine came to; an error unless all of it passed.
fn report(machines: &[&Machine], outcomes: &[Outcome]) -> Result<()> {
    let mut failing = Vec::new();
    for (machine, outcome) in machines.iter().zip(outcomes) {
        print!("\n{} (-cpu {}):\n{outcome}", machine.name, machine.cpu);
        if !outcome.passed() {
            failing.push(format!("{} ({})", machine.name, outcome.failures()));
        }
    }
    if !failing.is_empty() {
        bail!("failed on: {}", failing.join(", "));
    }
    let names: Vec<_> = machines.iter().map(|machine| machine.name).collect();
    println!("\nall machines passed: {}", names.join(", "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_test_runs_on_every_kernel() {
        for package in MACHINES.map(|machine| machine.package) {
            for suite in &SUITES {
                let mut machines = MACHINES.iter().filter(|machine| machine.package == package);
                assert!(machines.any(|machine| machine.runs(suite.name)), "{} on {package}", suite.name);
            }
        }
    }
}
