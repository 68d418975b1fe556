//! Meaning: the pprof profile, read, built, compared and viewed.

pub mod proto;

pub mod sample_type;

pub mod entry;

pub mod builder;

pub mod heap;

pub mod memory;

pub mod cost;

pub mod gate;

mod flags;

mod strings;

pub mod write;

pub mod read;

mod budget;

pub mod checked;

pub mod validity;

pub mod frame;

pub mod printable;

pub mod prune;

pub mod diff;

mod changes;

pub mod view;

#[cfg(test)]
pub(crate) mod fixture;
