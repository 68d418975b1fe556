//! How a recording is gated, for those who tell of it.

use std::{fmt, time::Duration};

/// How a recording is gated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gating {
    /// The mean number of bytes from one sample to the next.
    pub interval_bytes: u64,
    /// The allocators that have a gate, each with the number of its functions.
    pub gated: Vec<(String, usize)>,
    /// Those that have none.
    pub refused: Vec<Refused>,
    /// How many gates were taken out that somebody had left.
    pub removed: usize,
    /// The longest time that the process stood still for it.
    pub stood: Duration,
    /// Why gates' memory is there still, behind the end.
    pub stays: Vec<String>,
    /// How many functions were changed by somebody else meanwhile, and left alone.
    pub left_alone: usize,
}

/// An allocator that has no gate, and is counted by ordinary probes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// What it is called.
    pub label: String,
    /// Its place among those that were found.
    pub allocator: usize,
    /// How many of its functions would have had a gate.
    pub functions: usize,
    /// Why not.
    pub reason: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} is not gated: {}", self.label, self.reason)
    }
}
