//! Inputs are pprof profiles: see [`profiler_user::fuzzing::profile`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| profiler_user::fuzzing::profile(bytes));
