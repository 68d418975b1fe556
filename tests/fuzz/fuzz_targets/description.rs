//! Inputs are the files of gates: see [`profiler_user::fuzzing::description`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| profiler_user::fuzzing::description(bytes));
