//! Values of several profiles, brought together by what their stacks are called.

use std::collections::HashMap;

use super::{
    checked::CheckedProfile,
    frame::{Frame, FrameName},
    strings::StringTable,
};

/// A stack with what changed there.
#[derive(Debug)]
pub(super) struct Change<'p> {
    /// Where the stack was first met.
    pub(super) profile: &'p CheckedProfile,
    /// The ids of its locations in that profile.
    pub(super) stack: &'p [u64],
    /// What the caller of [`Changes::add`] has summed up.
    pub(super) values: Vec<i64>,
}

/// The stacks of several profiles, told apart by names.
#[derive(Debug)]
pub(super) struct Changes<'p> {
    strings: StringTable,
    /// Frames by their texts in `strings`, numbered.
    frames: HashMap<Frame, usize>,
    /// Stacks by their frames' numbers: where they stand in `changes`.
    stacks: HashMap<Vec<usize>, usize>,
    changes: Vec<Change<'p>>,
}

impl Default for Changes<'_> {
    fn default() -> Self {
        let (frames, stacks, changes) = <(HashMap<_, _>, HashMap<_, _>, Vec<_>)>::default();
        Self { strings: StringTable::new(), frames, stacks, changes }
    }
}

impl<'p> Changes<'p> {
    /// Adds or subtracts the values at `indexes` of each of the profile's samples.
    pub(super) fn add(
        &mut self,
        profile: &'p CheckedProfile,
        indexes: impl Iterator<Item = usize> + Clone,
        combine: impl Fn(i64, i64) -> i64,
    ) {
        let by_location = self.number_frames(profile);
        let width = indexes.clone().count();
        for sample in &profile.proto().sample {
            let frames = sample.location_id.iter().filter_map(|id| by_location.get(id)).flatten();
            let next = self.changes.len();
            let at = *self.stacks.entry(frames.copied().collect()).or_insert(next);
            if at == next {
                let stack = sample.location_id.as_slice();
                self.changes.push(Change { profile, stack, values: vec![0; width] });
            }
            if let Some(change) = self.changes.get_mut(at) {
                for (sum, index) in change.values.iter_mut().zip(indexes.clone()) {
                    *sum = combine(*sum, sample.value.get(index).copied().unwrap_or(0));
                }
            }
        }
    }

    /// Returns the stacks in the order in which they were met, also those that did not change.
    pub(super) fn list(&self) -> &[Change<'p>] {
        &self.changes
    }

    /// Returns the numbers of each location's frames.
    fn number_frames(&mut self, profile: &'p CheckedProfile) -> HashMap<u64, Vec<usize>> {
        let mut common: HashMap<i64, i64> = HashMap::new();
        let Self { strings, frames, .. } = self;
        let mut common = |index| *common.entry(index).or_insert_with(|| strings.index(profile.string(index)));
        let mut by_location = HashMap::new();
        for location in &profile.proto().location {
            let numbers = profile.frames(location).map(|Frame { name, file, line }| {
                let name = match name {
                    FrameName::Function(name) => FrameName::Function(common(name)),
                    FrameName::Module { file, offset_bytes } => {
                        FrameName::Module { file: common(file), offset_bytes }
                    }
                    FrameName::Address(address) => FrameName::Address(address),
                };
                let next = frames.len();
                *frames.entry(Frame { name, file: common(file), line }).or_insert(next)
            });
            by_location.insert(location.id, numbers.collect());
        }
        by_location
    }
}
