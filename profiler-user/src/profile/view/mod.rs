//! Views of a profile: what a person reads, computed from the samples of one type.

pub mod top;

pub mod tree;

pub mod folded;

mod graph;

use std::collections::HashMap;

use super::{
    checked::CheckedProfile,
    frame::{Frame, FrameName},
    proto,
};

/// What is taken as one and the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Granularity {
    /// All calls of a function.
    #[default]
    Functions,
    /// All calls from one source line.
    Lines,
}

impl Granularity {
    fn apply(self, frame: Frame) -> Frame {
        match self {
            Self::Functions => Frame { file: 0, line: 0, ..frame },
            Self::Lines => frame,
        }
    }
}

/// The distinct frames of a profile, numbered.
#[derive(Debug)]
struct FrameTable {
    frames: Vec<Frame>,
    /// For each location the numbers of its frames, innermost first.
    by_location: HashMap<u64, Vec<usize>>,
}

impl FrameTable {
    fn new(profile: &CheckedProfile, granularity: Granularity) -> Self {
        let mut numbers: HashMap<Frame, usize> = HashMap::new();
        let mut frames = Vec::new();
        let mut by_location = HashMap::with_capacity(profile.proto().location.len());
        for location in &profile.proto().location {
            let of_location = profile.frames(location).map(|frame| {
                let frame = granularity.apply(frame);
                *numbers.entry(frame).or_insert_with(|| {
                    frames.push(frame);
                    frames.len().saturating_sub(1)
                })
            });
            by_location.insert(location.id, of_location.collect());
        }
        Self { frames, by_location }
    }

    /// Returns the numbers of a sample's frames, root first, and whether each was inlined.
    fn stack(&self, sample: &proto::Sample) -> impl Iterator<Item = (usize, bool)> {
        sample.location_id.iter().rev().flat_map(|id| {
            let frames = self.by_location.get(id).map(Vec::as_slice).unwrap_or_default();
            frames.iter().rev().enumerate().map(|(depth, &frame)| (frame, depth > 0))
        })
    }

    fn frame(&self, number: usize) -> Frame {
        self.frames.get(number).copied().unwrap_or(Frame { name: FrameName::Address(0), file: 0, line: 0 })
    }
}

/// Returns a sample's value of one type; 0 if it has none.
fn value(sample: &proto::Sample, sample_index: usize) -> i64 {
    sample.value.get(sample_index).copied().unwrap_or(0)
}

/// Returns what percentages refer to: the sum of the samples' absolute values.
///
/// In a difference of two profiles growth and shrinking would cancel each other otherwise.
pub fn total(profile: &CheckedProfile, sample_index: usize) -> i64 {
    let values = profile.proto().sample.iter().map(|sample| value(sample, sample_index).saturating_abs());
    values.fold(0, i64::saturating_add)
}

/// Returns a fraction of a value, rounded towards zero and without its sign, as pprof's cutoffs are.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "a cutoff is a rule of thumb, and pprof rounds it in the same way"
)]
fn cutoff(value: i64, fraction: f64) -> i64 {
    ((value as f64 * fraction) as i64).saturating_abs()
}
