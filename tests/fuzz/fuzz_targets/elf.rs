//! Inputs are ELF files, for functions, probe sites and names: see [`profiler_user::fuzzing::elf`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| profiler_user::fuzzing::elf(bytes));
