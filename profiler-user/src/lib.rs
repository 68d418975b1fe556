//! heaptap: a heap profiler that works from outside the program.
//!
//! The modules stand in the order in which data flows: a process is looked at ([`target`]), code is made that
//! counts in front of its probes ([`gate`]) and put into it where that is asked for ([`gated`]), its allocations are counted ([`source`]), addresses get names ([`symbolize`]), names and numbers become a
//! profile ([`profile`]), and the profile goes somewhere ([`output`]). [`cli`] starts one of all this.
//! Left of [`source::RawHeap`] the code needs root; right of it, it is pure and is tested from files.

pub mod target;

#[cfg(test)]
mod allocations;

#[cfg(test)]
mod numbers;

pub mod gate;

pub mod gated;

pub mod causes;

pub mod source;

pub mod symbolize;

pub mod profile;

pub mod output;

pub mod cli;

#[cfg(any(test, fuzzing))]
pub mod fuzzing;
