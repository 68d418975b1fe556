//! The programs and headers that a command needs from the system, by their Debian packages.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

use anyhow::{Result, bail};

use crate::workspace::{is_root, run};

/// Something that has to be installed.
#[derive(Debug)]
pub(crate) struct Need {
    /// How to tell that it is there.
    sign: Sign,
    package: &'static str,
    /// What for, in the message to who has to install it.
    purpose: &'static str,
}

#[derive(Debug)]
enum Sign {
    /// A program on `PATH`.
    Program(&'static str),
    /// A file.
    File(&'static str),
}

/// The C compiler.
pub(crate) const CC: Need =
    Need { sign: Sign::Program("cc"), package: "gcc", purpose: "compiles the sample programs" };

/// The C library's headers, which Debian's gcc only recommends.
pub(crate) const LIBC_HEADERS: Need = Need {
    sign: Sign::File("/usr/include/stdlib.h"),
    package: "libc6-dev",
    purpose: "compiles the sample programs",
};

/// The C++ compiler with its library.
pub(crate) const CXX: Need = Need {
    sign: Sign::Program("c++"),
    package: "g++",
    purpose: "compiles the tests' C++ programs, one of their allocators, and the engine that fuzzes",
};

/// Programs as Debian builds them, which the tests of unwinding record.
pub(crate) const SMALL_PROGRAMS: [Need; 4] = [
    recorded("/usr/bin/python3", "python3"),
    recorded("/usr/bin/redis-server", "redis-server"),
    recorded("/usr/bin/sqlite3", "sqlite3"),
    recorded("/usr/sbin/nginx", "nginx-light"),
];

/// More of them, of some hundred megabytes.
pub(crate) const LARGE_PROGRAMS: [Need; 7] = [
    recorded("/usr/bin/keytool", "default-jre-headless"),
    recorded("/usr/bin/node", "nodejs"),
    recorded("/usr/sbin/mariadbd", "mariadb-server-core"),
    recorded("/usr/bin/mariadb", "mariadb-client-core"),
    recorded("/usr/bin/chromium", "chromium"),
    recorded("/usr/lib/postgresql", "postgresql"),
    recorded("/usr/bin/psql", "postgresql-client"),
];

const fn recorded(path: &'static str, package: &'static str) -> Need {
    Need { sign: Sign::File(path), package, purpose: "is one of the programs that the tests record" }
}

/// Allocators, and what links programs with them.
pub(crate) const ALLOCATORS: [Need; 7] = [
    linked(Sign::Program("musl-gcc"), "musl-tools"),
    linked(Sign::File("/usr/include/jemalloc/jemalloc.h"), "libjemalloc-dev"),
    linked(Sign::File("/usr/include/gperftools/tcmalloc.h"), "libgoogle-perftools-dev"),
    linked(Sign::File("/usr/include/mimalloc.h"), "libmimalloc-dev"),
    looked_at("/usr/lib/x86_64-linux-gnu/libtbbmalloc_proxy.so.2", "libtbbmalloc2"),
    looked_at("/usr/lib/x86_64-linux-gnu/libdmallocth.so.5", "libdmalloc5"),
    Need {
        sign: Sign::Program("make"),
        package: "make",
        purpose: "builds jemalloc for the Rust program that the tests record",
    },
];

const fn linked(sign: Sign, package: &'static str) -> Need {
    Need { sign, package, purpose: "has an allocator that the tests' programs are linked with" }
}

const fn looked_at(path: &'static str, package: &'static str) -> Need {
    Need { sign: Sign::File(path), package, purpose: "has an allocator that the tests look at" }
}

/// Heap profilers that heaptap is compared with.
pub(crate) const BENCH_PEERS: [Need; 5] = [
    compared(Sign::Program("bpftrace"), "bpftrace"),
    compared(Sign::Program("heaptrack"), "heaptrack"),
    Need { sign: Sign::Program("gdb"), package: "gdb", purpose: "attaches heaptrack" },
    compared(Sign::Program("valgrind"), "valgrind"),
    compared(Sign::File("/usr/lib/x86_64-linux-gnu/libtcmalloc.so.4"), "libgoogle-perftools4"),
];

const fn compared(sign: Sign, package: &'static str) -> Need {
    Need { sign, package, purpose: "has one of the profilers that heaptap is compared with" }
}

/// What they are compared on, beside the sample programs.
pub(crate) const BENCH_WORKLOADS: [Need; 4] = [
    worked(Sign::File("/usr/bin/redis-server"), "redis-server"),
    worked(Sign::Program("redis-benchmark"), "redis-tools"),
    worked(Sign::File("/usr/bin/python3"), "python3"),
    worked(Sign::File("/usr/include/sqlite3.h"), "libsqlite3-dev"),
];

const fn worked(sign: Sign, package: &'static str) -> Need {
    Need { sign, package, purpose: "is part of a program that profilers are compared on" }
}

/// A large library, found by the program that says where it is.
pub(crate) const LLVM: Need = Need {
    sign: Sign::Program("llvm-config"),
    package: "llvm",
    purpose: "has the large library of a program that is attached to",
};

/// A JVM, which compiles the program that it is given.
pub(crate) const JAVA: Need = Need {
    sign: Sign::File("/usr/bin/java"),
    package: "default-jre-headless",
    purpose: "is one of the programs that are attached to",
};

/// The emulator of a whole machine.
pub(crate) const QEMU: Need = Need {
    sign: Sign::Program("qemu-system-x86_64"),
    package: "qemu-system-x86",
    purpose: "boots the kernels that are tested",
};

/// The commands that a machine with nothing else starts with.
pub(crate) const BUSYBOX: Need = Need {
    sign: Sign::File("/bin/busybox"),
    package: "busybox-static",
    purpose: "starts the machine in which kernels are tested",
};

/// gdb, a second unwinder.
pub(crate) const GDB: Need = Need {
    sign: Sign::Program("gdb"),
    package: "gdb",
    purpose: "walks the stacks that heaptap has walked, to compare",
};

/// Go, for its pprof.
pub(crate) const GO: Need = Need {
    sign: Sign::Program("go"),
    package: "golang-go",
    purpose: "reads profiles with the real `go tool pprof`",
};

/// Debian's newest compiler; that of rustup has no sources of `core`.
pub(crate) const BPF_RUSTC: Need = Need {
    sign: Sign::File("/usr/bin/rustc"),
    package: "rustc-web",
    purpose: "compiles heaptap's kernel programs",
};

/// The sources of its standard library.
pub(crate) const BPF_RUST_SRC: Need = Need {
    sign: Sign::File("/usr/lib/rustlib/src/rust/library/core/src/lib.rs"),
    package: "rust-web-src",
    purpose: "has the sources of `core`, for compiling it for the kernel",
};

impl Need {
    pub(crate) const fn package(&self) -> &'static str {
        self.package
    }

    fn is_there(&self) -> bool {
        match self.sign {
            Sign::Program(name) => is_on_path(name),
            Sign::File(path) => Path::new(path).exists(),
        }
    }
}

fn is_on_path(name: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| fs::metadata(folder.join(name)).is_ok_and(|file| file.is_file()))
}

/// Installs what is missing, where we are root and have apt-get; otherwise names it.
pub(crate) fn ensure_installed<'a>(needs: impl IntoIterator<Item = &'a Need>) -> Result<()> {
    let missing: Vec<&Need> = needs.into_iter().filter(|need| !need.is_there()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for Need { package, purpose, .. } in &missing {
        eprintln!("xtask: package `{package}` is missing; it {purpose}");
    }
    let packages: Vec<&str> = missing.iter().map(|need| need.package).collect();
    if !is_on_path("apt-get") {
        bail!("install what Debian calls `{}`, then run this again", packages.join(" "));
    }
    if !is_root() {
        bail!("run `sudo apt-get install {}`, then this again", packages.join(" "));
    }
    install(&packages)?;
    match missing.iter().find(|need| !need.is_there()) {
        Some(need) => bail!("package `{}` is installed, and still there is no {:?}", need.package, need.sign),
        None => Ok(()),
    }
}

fn install(packages: &[&str]) -> Result<()> {
    // A machine that has never been updated, as a fresh container, knows no package at all.
    let install = || {
        let mut command = apt_get();
        command.args(["install", "--yes", "--no-install-recommends"]).args(packages);
        run(&mut command)
    };
    if install().is_ok() {
        return Ok(());
    }
    run(apt_get().arg("update"))?;
    install()
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.arg("--quiet").env("DEBIAN_FRONTEND", "noninteractive");
    command
}
