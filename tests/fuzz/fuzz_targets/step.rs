//! Inputs are rows, registers and memory, for the unwinder to walk: see [`profiler_user::fuzzing::step`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| profiler_user::fuzzing::step(bytes));
