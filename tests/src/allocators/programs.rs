//! How the programs are built and started.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use super::{Allocator, Combination, Language, Linkage};
use crate::cache::{build, folder};
use crate::compile::{Variant, c, cpp, source};

/// What an allocator lacks is a weak symbol in the guests, which has to stay undefined until the program is loaded.
const UNDEFINED_WEAK: &str = "-Wl,-z,dynamic-undefined-weak";

impl Combination {
    /// The command that starts the program, ready for arguments.
    pub fn command(self) -> Command {
        let mut command = Command::new(self.program());
        if let Some(library) = self.preload() {
            command.env("LD_PRELOAD", library);
        }
        command
    }

    /// What to preload.
    pub fn preload(self) -> Option<&'static str> {
        (self.linkage == Linkage::Preload).then(|| match self.allocator {
            Allocator::Glibc | Allocator::Musl => panic!("{}: a C library is not preloaded", self.name),
            Allocator::Jemalloc => "libjemalloc.so.2",
            Allocator::Tcmalloc => "libtcmalloc.so.4",
            Allocator::TcmallocMinimal => "libtcmalloc_minimal.so.4",
            Allocator::Mimalloc => "libmimalloc.so.2",
        })
    }

    /// The executable, without frame pointers as most of what is released.
    pub fn program(self) -> PathBuf {
        let (step, name) = match self.language {
            Language::C => {
                let compiler = if self.allocator == Allocator::Musl { "musl-gcc" } else { "cc" };
                (c(compiler, "allocators.c", Variant::NoFramePointers), "allocators")
            }
            Language::Cpp => (cpp("operators.cpp", Variant::NoFramePointers), "operators"),
            Language::Rust => return rust_program(self.allocator),
        };
        let step = step.output(name).flags(self.linkage.flags()).flags(self.libraries());
        build(&[step]).join(name)
    }

    fn libraries(self) -> &'static [&'static str] {
        use Allocator::{Glibc, Jemalloc, Mimalloc, Musl, Tcmalloc, TcmallocMinimal};
        use Linkage::{Archive, Preload, Shared, Static, StaticPie};
        match (self.allocator, self.linkage) {
            (Glibc | Musl, _) | (_, Preload) => &[],
            (Jemalloc, Shared) => &["-ljemalloc"],
            (Jemalloc, Static) => &["-ljemalloc", "-lm"],
            (Jemalloc, Archive | StaticPie) => &["-l:libjemalloc_pic.a", "-lm"],
            (Tcmalloc, Shared) => &["-ltcmalloc"],
            (Tcmalloc, Archive | Static | StaticPie) => {
                &["-l:libtcmalloc.a", "-lstdc++", "-lunwind", "-llzma", "-lm"]
            }
            (TcmallocMinimal, Shared) => &["-ltcmalloc_minimal"],
            (TcmallocMinimal, Archive | Static | StaticPie) => {
                &["-l:libtcmalloc_minimal.a", "-lstdc++", "-lm"]
            }
            (Mimalloc, _) => &["-lmimalloc"],
        }
    }
}

impl Linkage {
    const fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Shared | Self::Preload | Self::Archive => &[UNDEFINED_WEAK],
            Self::Static => &["-static"],
            Self::StaticPie => &["-static-pie"],
        }
    }
}

/// A program of the crate in `guests/rust-allocators`. Cargo knows what has changed, and locks the folder while it builds.
fn rust_program(allocator: Allocator) -> PathBuf {
    let name = match allocator {
        Allocator::Glibc => "rust-system",
        Allocator::Jemalloc => "rust-jemalloc",
        Allocator::Mimalloc => "rust-mimalloc",
        Allocator::Musl | Allocator::Tcmalloc | Allocator::TcmallocMinimal => {
            panic!("no Rust guest has {}", allocator.label())
        }
    };
    let target = folder().join("rust-allocators");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--locked", "--release", "--manifest-path"]);
    cargo.arg(source("rust-allocators/Cargo.toml")).arg("--target-dir").arg(&target);
    let output = cargo.output().unwrap_or_else(|err| panic!("cannot run cargo: {err}"));
    assert!(output.status.success(), "{cargo:?} failed:\n{}", String::from_utf8_lossy(&output.stderr));
    target.join("release").join(name)
}
