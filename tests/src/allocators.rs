//! The allocators that a program may have, and the ways in which it comes by them.
//!
//! The tests run over [`COMBINATIONS`], and the README's table is made of it ([`table`]): what it shows is what is tested.

mod google;
mod programs;
mod rust;

use std::fmt::Write;

use crate::guest::Guest;
use crate::ledger::Ledger;

/// An allocator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocator {
    /// glibc's.
    Glibc,
    /// musl's.
    Musl,
    /// jemalloc.
    Jemalloc,
    /// gperftools' tcmalloc.
    Tcmalloc,
    /// The same without its profilers, in a library of its own.
    TcmallocMinimal,
    /// Google's tcmalloc.
    GoogleTcmalloc,
    /// mimalloc.
    Mimalloc,
}

/// How an allocator comes into a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Linkage {
    /// As a shared library that the program was linked with.
    Shared,
    /// As a shared library, by `LD_PRELOAD`.
    Preload,
    /// From a static library; the C library is a shared one. In Rust, from a crate.
    Archive,
    /// With everything else, at fixed addresses.
    Static,
    /// With everything else, wherever the kernel puts the program.
    StaticPie,
}

/// What a guest is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// `allocators.c`: all functions of the allocator.
    C,
    /// `operators.cpp`: all operators new and delete.
    Cpp,
    /// `rust-allocators`: a global allocator.
    Rust,
}

/// A guest, its allocator, and how it comes by it.
#[derive(Clone, Copy, Debug)]
pub struct Combination {
    /// What its tests are called.
    pub name: &'static str,
    /// What it is written in.
    pub language: Language,
    /// What it allocates with.
    pub allocator: Allocator,
    /// How that comes into it.
    pub linkage: Linkage,
}

const fn of(name: &'static str, language: Language, allocator: Allocator, linkage: Linkage) -> Combination {
    Combination { name, language, allocator, linkage }
}

/// Everything that is tested.
///
/// Debian has no static library of mimalloc, no C++ library for musl, and libunwind of the whole tcmalloc does not go into
/// a static program together with gcc's own unwinder. Google's tcmalloc is meant to be linked in, and is in no package.
pub const COMBINATIONS: [Combination; 44] = {
    use Allocator::{Glibc, GoogleTcmalloc, Jemalloc, Mimalloc, Musl, Tcmalloc, TcmallocMinimal};
    use Language::{C, Cpp, Rust};
    use Linkage::{Archive, Preload, Shared, Static, StaticPie};
    [
        of("c_glibc_shared", C, Glibc, Shared),
        of("c_glibc_static", C, Glibc, Static),
        of("c_glibc_static_pie", C, Glibc, StaticPie),
        of("c_musl_shared", C, Musl, Shared),
        of("c_musl_static", C, Musl, Static),
        of("c_jemalloc_shared", C, Jemalloc, Shared),
        of("c_jemalloc_preload", C, Jemalloc, Preload),
        of("c_jemalloc_archive", C, Jemalloc, Archive),
        of("c_jemalloc_static", C, Jemalloc, Static),
        of("c_jemalloc_static_pie", C, Jemalloc, StaticPie),
        of("c_tcmalloc_shared", C, Tcmalloc, Shared),
        of("c_tcmalloc_preload", C, Tcmalloc, Preload),
        of("c_tcmalloc_archive", C, Tcmalloc, Archive),
        of("c_tcmalloc_minimal_shared", C, TcmallocMinimal, Shared),
        of("c_tcmalloc_minimal_preload", C, TcmallocMinimal, Preload),
        of("c_tcmalloc_minimal_archive", C, TcmallocMinimal, Archive),
        of("c_tcmalloc_minimal_static", C, TcmallocMinimal, Static),
        of("c_tcmalloc_minimal_static_pie", C, TcmallocMinimal, StaticPie),
        of("c_google_tcmalloc_archive", C, GoogleTcmalloc, Archive),
        of("c_google_tcmalloc_static", C, GoogleTcmalloc, Static),
        of("c_google_tcmalloc_static_pie", C, GoogleTcmalloc, StaticPie),
        of("c_mimalloc_shared", C, Mimalloc, Shared),
        of("c_mimalloc_preload", C, Mimalloc, Preload),
        of("cpp_glibc_shared", Cpp, Glibc, Shared),
        of("cpp_glibc_static", Cpp, Glibc, Static),
        of("cpp_glibc_static_pie", Cpp, Glibc, StaticPie),
        of("cpp_jemalloc_shared", Cpp, Jemalloc, Shared),
        of("cpp_jemalloc_preload", Cpp, Jemalloc, Preload),
        of("cpp_jemalloc_archive", Cpp, Jemalloc, Archive),
        of("cpp_jemalloc_static", Cpp, Jemalloc, Static),
        of("cpp_tcmalloc_shared", Cpp, Tcmalloc, Shared),
        of("cpp_tcmalloc_preload", Cpp, Tcmalloc, Preload),
        of("cpp_tcmalloc_archive", Cpp, Tcmalloc, Archive),
        of("cpp_tcmalloc_minimal_shared", Cpp, TcmallocMinimal, Shared),
        of("cpp_tcmalloc_minimal_preload", Cpp, TcmallocMinimal, Preload),
        of("cpp_tcmalloc_minimal_archive", Cpp, TcmallocMinimal, Archive),
        of("cpp_google_tcmalloc_archive", Cpp, GoogleTcmalloc, Archive),
        of("cpp_google_tcmalloc_static", Cpp, GoogleTcmalloc, Static),
        of("cpp_mimalloc_shared", Cpp, Mimalloc, Shared),
        of("cpp_mimalloc_preload", Cpp, Mimalloc, Preload),
        of("rust_glibc_shared", Rust, Glibc, Shared),
        of("rust_jemalloc_archive", Rust, Jemalloc, Archive),
        of("rust_google_tcmalloc_archive", Rust, GoogleTcmalloc, Archive),
        of("rust_mimalloc_archive", Rust, Mimalloc, Archive),
    ]
};

impl Allocator {
    const ALL: [Self; 7] = [
        Self::Glibc,
        Self::Musl,
        Self::Jemalloc,
        Self::Tcmalloc,
        Self::TcmallocMinimal,
        Self::GoogleTcmalloc,
        Self::Mimalloc,
    ];

    /// What heaptap calls it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Glibc => "glibc",
            Self::Musl => "musl",
            Self::Jemalloc => "jemalloc",
            Self::Tcmalloc | Self::TcmallocMinimal | Self::GoogleTcmalloc => "tcmalloc",
            Self::Mimalloc => "mimalloc",
        }
    }

    const fn title(self) -> &'static str {
        match self {
            Self::Tcmalloc => "tcmalloc (gperftools)",
            Self::TcmallocMinimal => "tcmalloc_minimal (gperftools)",
            Self::GoogleTcmalloc => "tcmalloc (Google)",
            other => other.label(),
        }
    }

    /// Sites of `allocators.c` that only programs with this allocator reach.
    const fn own_sites(self) -> &'static [&'static str] {
        match self {
            Self::Glibc => &["call_pvalloc"],
            Self::Musl => &[],
            Self::Jemalloc => &[
                "call_mallocx",
                "call_mallocx_aligned",
                "call_rallocx",
                "call_rallocx_aligned",
                "call_xallocx",
            ],
            Self::Tcmalloc | Self::TcmallocMinimal => &[
                "call_pvalloc",
                "call_tc_malloc",
                "call_tc_realloc",
                "call_tc_new",
                "call_tc_newarray_nothrow",
            ],
            Self::GoogleTcmalloc => &["call_pvalloc", "call_size_returning_new"],
            Self::Mimalloc => &[
                "call_pvalloc",
                "call_mi_malloc",
                "call_mi_zalloc_aligned",
                "call_mi_realloc",
                "call_mi_expand",
                "call_mi_heap_malloc",
                "call_mi_heap_realloc",
                "call_mi_new",
            ],
        }
    }
}

impl Linkage {
    const ALL: [Self; 5] = [Self::Shared, Self::Preload, Self::Archive, Self::Static, Self::StaticPie];

    const fn title(self) -> &'static str {
        match self {
            Self::Shared => "shared library",
            Self::Preload => "`LD_PRELOAD`",
            Self::Archive => "static library or crate",
            Self::Static => "static program",
            Self::StaticPie => "static PIE",
        }
    }
}

impl Language {
    const fn title(self) -> &'static str {
        match self {
            Self::C => "C",
            Self::Cpp => "C++",
            Self::Rust => "Rust",
        }
    }
}

impl Combination {
    /// The one of this name.
    #[track_caller]
    pub fn named(name: &str) -> Self {
        *COMBINATIONS
            .iter()
            .find(|combination| combination.name == name)
            .unwrap_or_else(|| panic!("no combination is called `{name}`"))
    }

    /// Starts the guest, and waits until it is ready.
    pub fn start(self) -> Guest {
        let mut guest = Guest::spawn_command(self.name, self.command());
        guest.line("ready");
        guest
    }

    /// Panics unless the guest has allocated from the sites that make it what it is.
    #[track_caller]
    pub fn assert_called(self, ledger: &Ledger) {
        let common: &[&str] = match self.language {
            Language::C => &[
                "call_malloc",
                "call_malloc_zero",
                "call_calloc",
                "call_posix_memalign",
                "call_aligned_alloc",
                "call_memalign",
                "call_valloc",
                "call_realloc_grow",
                "call_realloc_large",
                "call_reallocarray",
            ],
            Language::Cpp => {
                &["call_new", "call_new_array_nothrow", "call_new_aligned", "call_new_array_aligned_nothrow"]
            }
            Language::Rust => {
                &["call_alloc", "call_alloc_zeroed_aligned", "call_realloc_aligned", "grow_vector"]
            }
        };
        let own = if self.language == Language::C { self.allocator.own_sites() } else { &[] };
        for site in common.iter().chain(own) {
            assert!(ledger.site(site).alloc_objects > 0, "`{site}` was not called:\n{ledger}");
        }
        assert!(ledger.total().inuse_objects > 0, "nothing is left:\n{ledger}");
    }

    /// Whether the guest has nowhere in its code what returns from handlers of signals, by which threads make calls for heaptap: it
    /// handles none, and only a C library that is shared has everything.
    pub fn lacks_a_call(self) -> bool {
        self.allocator == Allocator::Musl && self.linkage == Linkage::Static
    }

    /// How many exceptions the guest catches in a run.
    ///
    /// mimalloc, which Debian compiles as C, cannot throw, and Google's tcmalloc does not: they end the program, and so are not
    /// made to.
    pub const fn caught(self) -> u64 {
        match (self.language, self.allocator) {
            (Language::Cpp, Allocator::Mimalloc | Allocator::GoogleTcmalloc)
            | (Language::C | Language::Rust, _) => 0,
            (Language::Cpp, _) => 100,
        }
    }

    /// How many blocks an allocator may take of itself within a call in a run, and free outside of any: within a call nothing
    /// is counted by itself, so that these frees are of blocks nobody has seen.
    ///
    /// In C++ these are exceptions that an operator new throws, some of them twice, and some of which it catches itself before
    /// it returns null; gperftools' tcmalloc keeps stacks of large blocks.
    pub const fn taken_within(self) -> u64 {
        let exceptions = match self.language {
            Language::Cpp => 2 * (self.caught() + 80),
            Language::C | Language::Rust => 0,
        };
        let stacks = if matches!(self.allocator, Allocator::Tcmalloc) { 16 } else { 0 };
        exceptions + stacks
    }
}

/// The README's table: a row for each allocator, with the languages of the guests that come by it in each way.
pub fn table() -> String {
    let mut table = String::from("| allocator |");
    for linkage in Linkage::ALL {
        write!(table, " {} |", linkage.title()).expect("a string takes all");
    }
    table += "\n| --- |";
    table += &" --- |".repeat(Linkage::ALL.len());
    for allocator in Allocator::ALL {
        write!(table, "\n| {} |", allocator.title()).expect("a string takes all");
        for linkage in Linkage::ALL {
            let languages: Vec<&str> = COMBINATIONS
                .iter()
                .filter(|combination| combination.allocator == allocator && combination.linkage == linkage)
                .map(|combination| combination.language.title())
                .collect();
            write!(table, " {} |", languages.join(", ")).expect("a string takes all");
        }
    }
    table += "\n";
    table
}
