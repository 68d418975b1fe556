//! How each guest is compiled: by which compiler, with or without frame pointers, with which libraries.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use crate::cache::{Step, build};

/// `-fno-builtin` keeps the compiler from removing pairs of malloc and free whose block nobody reads.
const C: &[&str] = &["-std=c11", "-O2", "-g", "-fno-builtin", "-pthread", "-Wall", "-Wextra", "-Werror"];
const CPP: &[&str] = &["-std=c++17", "-O3", "-g", "-pthread", "-Wall", "-Wextra", "-Werror"];
const RUST: &[&str] = &["--edition=2024", "-O", "-g", "-Dwarnings"];
const FREESTANDING: &[&str] = &[
    "-std=c11",
    "-O2",
    "-nostdlib",
    "-static",
    "-ffreestanding",
    "-fno-pie",
    "-no-pie",
    "-Wall",
    "-Wextra",
    "-Werror",
];

/// A shared library, and a program that finds its libraries beside itself.
const LIBRARY: &[&str] = &["-shared", "-fPIC"];
const BESIDE: &[&str] = &["-L.", "-Wl,-rpath,$ORIGIN"];

/// Neither frame pointers nor `.eh_frame`: how to get to a caller is in `.debug_frame` only, but for what the C library's
/// own start code brings along.
const DEBUG_FRAME: &[&str] =
    &["-fomit-frame-pointer", "-fno-asynchronous-unwind-tables", "-fno-unwind-tables"];

/// The build id of what is split, so that its debug file has a place that is known here.
const BUILD_ID: &str = "-Wl,--build-id=0x0123456789abcdef0123456789abcdef01234567";
const BUILD_ID_FOLDER: &str = "debug/.build-id/01";
const BUILD_ID_FILE: &str = "debug/.build-id/01/23456789abcdef0123456789abcdef01234567.debug";

/// A library that can be mapped by hand.
const UNRELOCATED: &[&str] = &["-nostdlib", "-fno-stack-protector"];

/// The width of a program's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// `-m32`
    Bits32,
    /// `-m64`
    Bits64,
}

/// Whether a program's functions keep frame pointers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// They do.
    FramePointers,
    /// They do not, as in most of what is released.
    NoFramePointers,
}

impl Variant {
    /// Both.
    pub const ALL: [Self; 2] = [Self::FramePointers, Self::NoFramePointers];

    const fn gcc(self) -> &'static str {
        match self {
            Self::FramePointers => "-fno-omit-frame-pointer",
            Self::NoFramePointers => "-fomit-frame-pointer",
        }
    }

    const fn rustc(self) -> &'static str {
        match self {
            Self::FramePointers => "-Cforce-frame-pointers=yes",
            Self::NoFramePointers => "-Cforce-frame-pointers=no",
        }
    }
}

/// The executable of `guests/NAME`, with frame pointers.
pub fn program(name: &str) -> PathBuf {
    program_as(name, Variant::FramePointers)
}

/// The executable of `guests/NAME.c`, `.cpp` or `.rs`; the libraries that it needs lie beside it.
pub fn program_as(name: &str, variant: Variant) -> PathBuf {
    let mut steps = libraries(name, variant);
    let mut program = language(name, variant).output(name);
    if !steps.is_empty() {
        program = program.flags(BESIDE);
    }
    program = match name {
        "constructor" => program.flags(&["-l:libconstructor.so"]),
        // Bound at the first call, whatever the compiler's own default.
        "loads-allocator" => program.flags(&["-ldl"]),
        "replaces-static" => program.flags(&["-static"]),
        "lazy" => program.flags(&["-l:liblazy.so", "-Wl,-z,lazy"]),
        "gated" => program.flags(&["-l:libslots.so"]),
        _ => program,
    };
    steps.push(program);
    build(&steps).join(name)
}

/// The shared libraries of a guest.
fn libraries(name: &str, variant: Variant) -> Vec<Step> {
    let library = |file: &str| c("cc", file, variant).flags(LIBRARY);
    match name {
        "constructor" => vec![library("libconstructor.c").output("libconstructor.so")],
        "gated" => vec![library("libslots.c").output("libslots.so")],
        "lazy" => vec![library("liblazy.c").output("liblazy.so")],
        "plugins" => vec![
            library("libplugin.c").output("libplugin-first.so"),
            library("libplugin.c").flag("-DSECOND").output("libplugin-second.so"),
        ],
        "unannounced" => vec![
            library("libunannounced.c")
                .flags(UNRELOCATED)
                .flag("-Wl,-e,first_work")
                .output("libunannounced-first.so"),
            library("libunannounced.c")
                .flags(UNRELOCATED)
                .flags(&["-DSECOND", "-Wl,-e,second_work"])
                .output("libunannounced-second.so"),
        ],
        _ => Vec::new(),
    }
}

/// The compiler of a program and its flags, by what kind of source there is.
fn language(name: &str, variant: Variant) -> Step {
    let file = |extension: &str| source(&format!("{name}.{extension}"));
    if file("c").exists() {
        c("cc", &format!("{name}.c"), variant)
    } else if file("cpp").exists() {
        cpp(&format!("{name}.cpp"), variant)
    } else {
        Step::of("rustc", file("rs")).flags(RUST).flag(variant.rustc())
    }
}

/// Compiles a C program by gcc, or by what calls gcc with another C library.
pub(crate) fn c(compiler: &'static str, file: &str, variant: Variant) -> Step {
    Step::of(compiler, source(file)).flags(C).flag(variant.gcc())
}

/// Compiles a C++ program.
pub(crate) fn cpp(file: &str, variant: Variant) -> Step {
    Step::of("c++", source(file)).flags(CPP).flag(variant.gcc())
}

/// The executable of `guests/NAME.c` with its unwind information in `.debug_frame`.
pub fn with_debug_frame(name: &str) -> PathBuf {
    build(&[debug_frame(name)]).join(name)
}

/// The same, stripped, and the directory to which everything went that was taken out.
pub fn split(name: &'static str) -> (PathBuf, PathBuf) {
    let folder = build(&[
        debug_frame(name),
        Step::tool("mkdir", &["-p", BUILD_ID_FOLDER]),
        Step::tool("objcopy", &["--only-keep-debug", name, BUILD_ID_FILE]),
        Step::tool("strip", &[name]),
    ]);
    (folder.join(name), folder.join("debug"))
}

fn debug_frame(name: &str) -> Step {
    Step::of("cc", source(&format!("{name}.c"))).flags(C).flags(DEBUG_FRAME).flag(BUILD_ID).output(name)
}

/// The plugins, whose first library has compressed debug information.
pub fn packed_plugins() -> PathBuf {
    let packs = [Step::tool("objcopy", &["--compress-debug-sections=zlib", "libplugin-first.so"])];
    plugins(packs)
}

/// The plugins, whose libraries are stripped and name debug files beside them.
pub fn linked_plugins() -> PathBuf {
    plugins([
        Step::tool("objcopy", &["--only-keep-debug", "libplugin-first.so", "libplugin-first.debug"]),
        Step::tool("objcopy", &["--only-keep-debug", "libplugin-second.so", "libplugin-second.debug"]),
        Step::tool("strip", &["libplugin-first.so", "libplugin-second.so"]),
        Step::tool("objcopy", &["--add-gnu-debuglink=libplugin-first.debug", "libplugin-first.so"]),
        Step::tool("objcopy", &["--add-gnu-debuglink=libplugin-second.debug", "libplugin-second.so"]),
    ])
}

fn plugins(then: impl IntoIterator<Item = Step>) -> PathBuf {
    let name = "plugins";
    let mut steps = libraries(name, Variant::NoFramePointers);
    steps.extend(then);
    steps.push(language(name, Variant::NoFramePointers).output(name).flags(BESIDE));
    build(&steps).join(name)
}

/// A static guest, with its symbols.
pub fn linked_statically(name: &'static str) -> PathBuf {
    build(&[language(name, Variant::NoFramePointers).flags(&["-static"]).output(name)]).join(name)
}

/// A static guest without a build id, stripped, and the same as it was before.
pub fn static_and_stripped(name: &'static str) -> (PathBuf, PathBuf) {
    let folder = build(&[
        language(name, Variant::NoFramePointers).flags(&["-static", "-Wl,--build-id=none"]).output("whole"),
        Step::tool("strip", &["-o", name, "whole"]),
    ]);
    (folder.join(name), folder.join("whole"))
}

/// The guest `cgo`, with names in it or without.
pub fn cgo(with_names: bool) -> PathBuf {
    let build_go = Step::go(source("cgo")).output("cgo");
    let step = if with_names { build_go } else { build_go.flag("-ldflags=-s -w -X main.nameless=yes") };
    build(&[step]).join("cgo")
}

/// The folder of a library that MariaDB loads, which asks glibc for its own count.
pub fn mariadb_plugins() -> PathBuf {
    let file = "libmallinfo";
    build(&[c("cc", &format!("{file}.c"), Variant::NoFramePointers)
        .flags(LIBRARY)
        .output(&format!("{file}.so"))])
}

/// A guest that loads an allocator, with musl for its C library, and a library that has one.
pub fn loads_allocator_by_musl() -> (PathBuf, PathBuf) {
    let compile = |file| c("musl-gcc", file, Variant::NoFramePointers);
    let folder = build(&[
        compile("libbump.c").flags(LIBRARY).output("libbump.so"),
        compile("loads-allocator.c").output("loads-allocator"),
    ]);
    (folder.join("loads-allocator"), folder.join("libbump.so"))
}

/// A guest in C with musl for its C library.
pub fn by_musl(name: &str) -> PathBuf {
    build(&[c("musl-gcc", &format!("{name}.c"), Variant::NoFramePointers).output(name)]).join(name)
}

/// A library with an allocator into the middle of which another function of it reaches.
pub fn lying_allocator() -> PathBuf {
    let name = "libentered";
    let library = format!("{name}.so");
    build(&[c("cc", &format!("{name}.c"), Variant::NoFramePointers).flags(LIBRARY).output(&library)])
        .join(library)
}

/// Compiles every program in every way that a test might ask for, for tests that run where no compiler is.
pub fn every_program() -> Vec<PathBuf> {
    let folder = source("");
    let entries = fs::read_dir(&folder).unwrap_or_else(|err| panic!("{}: {err}", folder.display()));
    let mut programs = vec![no_allocator(Width::Bits32), no_allocator(Width::Bits64)];
    programs.extend([with_debug_frame("frames"), split("frames").0]);
    programs.extend([packed_plugins(), linked_plugins()]);
    programs.extend([cgo(true), cgo(false), linked_statically("mappings")]);
    for entry in entries {
        let path = entry.expect("the folder stays").path();
        let name = path.file_stem().and_then(OsStr::to_str).expect("guests have names");
        let is_program = ["c", "cpp", "rs"].iter().any(|kind| path.extension() == Some(OsStr::new(kind)));
        // Libraries are built with their programs.
        if is_program && !name.starts_with("lib") && name != "no-allocator" {
            programs.extend(Variant::ALL.map(|variant| program_as(name, variant)));
        }
    }
    programs
}

/// A program without a C library, which waits for ever.
pub fn no_allocator(width: Width) -> PathBuf {
    let width = match width {
        Width::Bits32 => "-m32",
        Width::Bits64 => "-m64",
    };
    let step = Step::of("cc", source("no-allocator.c")).flags(FREESTANDING).flag(width);
    build(&[step.output("no-allocator")]).join("no-allocator")
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
