//! Inputs are two looks at `/proc/PID/maps`: see [`profiler_user::fuzzing::maps`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| profiler_user::fuzzing::maps(bytes));
