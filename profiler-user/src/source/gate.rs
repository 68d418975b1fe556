//! How a recording is gated, for those who tell of it.

use std::{fmt, time::Duration};

use crate::gated::Stay;

/// How a recording is gated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gating {
    /// The mean number of bytes from one sample to the next.
    pub interval_bytes: u64,
    /// The allocators that have a gate, each with the number of its functions.
    pub gated: Vec<(String, usize)>,
    /// Those that have none.
    pub refused: Vec<Refused>,
    /// For how long the process stood still for it.
    pub stood: Stood,
    /// Why the memory of some is there still, behind the end.
    pub stays: Vec<Stay>,
    /// Why some are in still, behind the end.
    pub remain: Vec<String>,
    /// How many functions were changed by somebody else meanwhile, and left alone.
    pub left_alone: usize,
}

/// For how long a process stood still for its gates: each the longest time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stood {
    /// While it was given memory for one.
    pub preparing: Duration,
    /// While the jumps into one were written.
    pub entering: Duration,
    /// While one was taken out.
    pub leaving: Duration,
}

impl Stood {
    /// Takes in what was seen of another gate.
    pub fn extend(&mut self, other: Self) {
        self.preparing = self.preparing.max(other.preparing);
        self.entering = self.entering.max(other.entering);
        self.leaving = self.leaving.max(other.leaving);
    }
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
