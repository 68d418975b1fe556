//! Google's tcmalloc as a library that C and C++ programs are linked with.
//!
//! Debian has no package of it. A crate of Rust's brings the sources and builds them, all but what replaces malloc and the
//! operators: that is in one source, which is compiled here once more, and which the linker then takes in place of the crate's.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use super::rust;
use crate::cache::{Step, build};

const OBJECT: &str = "tcmalloc.o";

/// As the crate compiles all the others, but without frame pointers. The warnings are not ours.
const FLAGS: &[&str] = &[
    "-c",
    "-std=c++17",
    "-O2",
    "-g1",
    "-fPIC",
    "-fomit-frame-pointer",
    "-pthread",
    "-w",
    "-DNDEBUG",
    "-DTCMALLOC_INTERNAL_8K_PAGES",
];

/// The object file with what replaces malloc, and the archive with all the rest.
struct Library {
    object: PathBuf,
    archive: PathBuf,
}

static LIBRARY: LazyLock<Library> = LazyLock::new(|| {
    let built = rust::built_by("libtcmalloc-sys");
    let sources = built.join("patched_deps/c_src");
    let source = sources.join("tcmalloc/tcmalloc/tcmalloc.cc");
    let mut step = Step::of("c++", source).output(OBJECT).flags(FLAGS);
    for folder in ["abseil-cpp", "tcmalloc"] {
        step = step.flags(&["-I", text(&sources.join(folder))]);
    }
    Library { object: build(&[step]).join(OBJECT), archive: built.join("libtcmalloc.a") }
});

/// Links a program with it.
pub(super) fn link(step: Step) -> Step {
    step.flags(&[text(&LIBRARY.object), text(&LIBRARY.archive)])
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}
