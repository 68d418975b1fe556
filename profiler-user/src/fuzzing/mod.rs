//! What the fuzz targets in `tests/fuzz` do with an input.
//!
//! Each target is a function that takes any bytes and panics where the code does not keep a promise: the fuzzer looks
//! for bytes by which one does, or takes long, or takes much memory. Inputs that reach something new are kept in
//! `tests/fuzz/corpus`, and `cargo test` does the same with all of them.

mod description;

mod eh_frame;

mod input;

mod profile;

mod step;

pub(crate) use input::{Input, file};

pub use self::{description::description, eh_frame::eh_frame, profile::profile, step::step};
pub use crate::{
    symbolize::fuzzing::{demangle, perf_map},
    target::fuzzing::maps,
};

/// An ELF file: its functions, probe sites and names.
pub fn elf(bytes: &[u8]) {
    let file = file(bytes);
    crate::target::fuzzing::elf(&file);
    crate::symbolize::fuzzing::elf(&file);
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        fs,
        panic::catch_unwind,
        path::{Path, PathBuf},
        thread,
    };

    use crate::allocations::largest;

    /// The fuzzer's own limit; the largest dictionary that is allocated for mini debug information has 80 MiB.
    const LARGEST_BYTES: usize = 128 << 20;

    /// What the main thread has, in which the fuzzer runs.
    const STACK_BYTES: usize = 8 << 20;

    type Target = fn(&[u8]);

    /// Every target by its name in `tests/fuzz`.
    const TARGETS: [(&str, Target); 8] = [
        ("demangle", super::demangle),
        ("description", super::description),
        ("eh_frame", super::eh_frame),
        ("elf", super::elf),
        ("maps", super::maps),
        ("perf_map", super::perf_map),
        ("profile", super::profile),
        ("step", super::step),
    ];

    fn entries(folder: &str) -> Vec<PathBuf> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz").join(folder);
        let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    #[test]
    fn every_target_has_a_program_and_a_corpus() {
        let names = |folder| -> BTreeSet<String> {
            let stem = |path: PathBuf| path.file_stem().unwrap().to_str().unwrap().to_owned();
            entries(folder).into_iter().map(stem).collect()
        };
        let targets: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(names("fuzz_targets"), targets);
        assert_eq!(names("corpus"), targets);
    }

    #[test]
    fn every_promise_is_kept_for_every_input_in_the_corpus() {
        let replay = || {
            for (name, target) in TARGETS {
                let inputs = entries(&format!("corpus/{name}"));
                assert!(inputs.len() > 10, "{} inputs for {name}", inputs.len());
                for path in inputs {
                    let bytes = fs::read(&path).unwrap();
                    let (outcome, largest_bytes) = largest(|| catch_unwind(|| target(&bytes)));
                    assert!(outcome.is_ok(), "{name} fails for {}", path.display());
                    assert!(largest_bytes <= LARGEST_BYTES, "{largest_bytes} bytes for {}", path.display());
                }
            }
        };
        // Names are demangled recursively. The compiler's optimizations make frames of 4 KiB of 16 and more.
        let thread = thread::Builder::new().stack_size(STACK_BYTES).spawn(replay).unwrap();
        assert!(thread.join().is_ok());
    }
}
