//! What can be put in front of an allocator's functions so that only calls in the sample, and frees of blocks in the sample, reach a
//! probe: code and data for the process, made here and written nowhere.

pub mod plan;

pub mod layout;

pub mod table;

pub mod gaps;

pub mod code;

pub mod room;
