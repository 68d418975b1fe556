//! How the programs are built and started.

use std::path::PathBuf;
use std::process::Command;

use super::{Allocator, Combination, Language, Linkage, google, rust};
use crate::cache::build;
use crate::compile::{Variant, c, cpp};

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
            Allocator::GoogleTcmalloc => panic!("{}: there is no library to preload", self.name),
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
            Language::Rust => return rust::program(self.allocator),
        };
        let mut step = step.output(name).flags(self.linkage.flags());
        if self.allocator == Allocator::GoogleTcmalloc {
            step = google::link(step);
        }
        build(&[step.flags(self.libraries())]).join(name)
    }

    fn libraries(self) -> &'static [&'static str] {
        use Allocator::{Glibc, GoogleTcmalloc, Jemalloc, Mimalloc, Musl, Tcmalloc, TcmallocMinimal};
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
            (GoogleTcmalloc, _) => &["-lstdc++", "-lm"],
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
