//! Inputs are names of functions, mangled or not: see [`profiler_user::fuzzing::demangle`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| profiler_user::fuzzing::demangle(bytes));
