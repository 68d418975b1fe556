//! Inputs are call frame information, in an ELF image or in sections put into one: see [`profiler_user::fuzzing::eh_frame`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| profiler_user::fuzzing::eh_frame(bytes));
