//! Inputs are perf maps, and addresses that are looked up in them: see [`profiler_user::fuzzing::perf_map`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| profiler_user::fuzzing::perf_map(bytes));
