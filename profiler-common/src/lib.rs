//! What heaptap's kernel programs and its user-space half agree on.
//!
//! Every type here is `repr(C)` without padding, and its size is asserted, because both halves read
//! the same bytes. Code that must behave the same on both sides (the unwinder's [`unwind::step`], the
//! [`heap::size_class`] of a block) is written once, here, and is free of I/O.
#![cfg_attr(not(test), no_std)]

pub mod limits;

pub mod target;

pub mod call;

pub mod thread;

pub mod unwind;

pub mod sampling;

pub mod heap;

pub mod event;

pub mod counters;
