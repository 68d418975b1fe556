//! A profile whose references are known to lead somewhere.
//!
//! A file may say anything. [`CheckedProfile::new`] is the one gate; behind it the views follow ids and
//! string indexes without a second thought. What is refused is what pprof refuses (`CheckValid` in its
//! `profile/profile.go`), and a profile that has no sample types.

use std::collections::HashMap;

use super::{
    proto,
    sample_type::SampleType,
    validity::{InvalidProfile, check_strings, index_by_id},
};

/// A bound on the frames of all stacks together, inlined ones included.
///
/// A large program has a hundred thousand stacks of a hundred frames. But a file of a few megabytes can
/// name a location with a million lines a million times.
const MAX_FRAMES: usize = 1 << 26;

/// A profile with consistent references.
#[derive(Debug, Clone)]
pub struct CheckedProfile {
    proto: proto::Profile,
    functions: HashMap<u64, usize>,
    locations: HashMap<u64, usize>,
    mappings: HashMap<u64, usize>,
    /// For each string the first index at which it stands: nothing forbids a table with duplicates.
    first_index: Vec<i64>,
    /// For each string its place among the sorted ones: strings may be too long to compare often.
    rank: Vec<usize>,
}

impl CheckedProfile {
    /// Returns the profile if all it refers to is there.
    ///
    /// # Errors
    ///
    /// Fails with the first inconsistency found.
    pub fn new(proto: proto::Profile) -> Result<Self, InvalidProfile> {
        if proto.sample_type.is_empty() {
            return Err(InvalidProfile::NoSampleTypes);
        }
        check_strings(&proto)?;
        let functions = index_by_id("function", proto.function.iter().map(|function| function.id))?;
        let mappings = index_by_id("mapping", proto.mapping.iter().map(|mapping| mapping.id))?;
        let locations = index_by_id("location", proto.location.iter().map(|location| location.id))?;
        for location in &proto.location {
            let id = location.mapping_id;
            if id != 0 && !mappings.contains_key(&id) {
                return Err(InvalidProfile::Missing { by: "location", what: "mapping", id });
            }
            for line in &location.line {
                let id = line.function_id;
                if !functions.contains_key(&id) {
                    return Err(InvalidProfile::Missing { by: "location", what: "function", id });
                }
            }
        }
        let expected = proto.sample_type.len();
        for (sample, proto::Sample { location_id, value, label: _ }) in proto.sample.iter().enumerate() {
            if value.len() != expected {
                return Err(InvalidProfile::ValueCount { sample, expected, found: value.len() });
            }
            if let Some(&id) = location_id.iter().find(|id| !locations.contains_key(id)) {
                return Err(InvalidProfile::Missing { by: "sample", what: "location", id });
            }
        }
        let (first_index, rank) = order(&proto.string_table);
        let profile = Self { proto, functions, locations, mappings, first_index, rank };
        profile.check_frame_count()?;
        Ok(profile)
    }

    /// Returns the messages themselves.
    pub fn proto(&self) -> &proto::Profile {
        &self.proto
    }

    /// Returns the messages themselves, to be written.
    pub fn into_proto(self) -> proto::Profile {
        self.proto
    }

    /// Returns a string of the table.
    pub fn string(&self, index: i64) -> &str {
        usize::try_from(index).ok().and_then(|at| self.proto.string_table.get(at)).map_or("", String::as_str)
    }

    /// Returns the location with this id.
    pub fn location(&self, id: u64) -> Option<&proto::Location> {
        self.proto.location.get(*self.locations.get(&id)?)
    }

    /// Returns the function with this id.
    pub fn function(&self, id: u64) -> Option<&proto::Function> {
        self.proto.function.get(*self.functions.get(&id)?)
    }

    /// Returns the mapping with this id.
    pub fn mapping(&self, id: u64) -> Option<&proto::Mapping> {
        self.proto.mapping.get(*self.mappings.get(&id)?)
    }

    /// Returns what the values of each sample mean.
    pub fn sample_types(&self) -> impl ExactSizeIterator<Item = SampleType<'_>> {
        self.proto
            .sample_type
            .iter()
            .map(|kind| SampleType { name: self.string(kind.r#type), unit: self.string(kind.unit) })
    }

    /// Returns the remarks about the whole profile.
    pub fn comments(&self) -> impl Iterator<Item = &str> {
        self.proto.comment.iter().map(|&index| self.string(index))
    }

    /// Returns the index under which all equal strings are known: comparing two of these compares text.
    pub(super) fn first_index(&self, index: i64) -> i64 {
        usize::try_from(index).ok().and_then(|at| self.first_index.get(at)).copied().unwrap_or(0)
    }

    /// Returns a number by which two strings compare as their texts do.
    pub(super) fn rank(&self, index: i64) -> usize {
        usize::try_from(index).ok().and_then(|at| self.rank.get(at)).copied().unwrap_or(0)
    }

    fn check_frame_count(&self) -> Result<(), InvalidProfile> {
        let ids = self.proto.sample.iter().flat_map(|sample| &sample.location_id);
        let frames = ids.map(|id| self.location(*id).map_or(0, |location| location.line.len().max(1)));
        if frames.fold(0, usize::saturating_add) > MAX_FRAMES {
            return Err(InvalidProfile::TooManyFrames { limit: MAX_FRAMES });
        }
        Ok(())
    }

    /// Returns the tables that pruning shortens; what it leaves must still exist.
    pub(super) fn prunable(&mut self) -> (&mut [proto::Location], &mut [proto::Sample]) {
        (&mut self.proto.location, &mut self.proto.sample)
    }
}

/// Returns for each string the index of the first equal one, and its place among the sorted ones.
fn order(strings: &[String]) -> (Vec<i64>, Vec<usize>) {
    let mut first = HashMap::with_capacity(strings.len());
    for (index, text) in (0..).zip(strings) {
        first.entry(text.as_str()).or_insert(index);
    }
    let mut sorted: Vec<_> = first.keys().copied().collect();
    sorted.sort_unstable();
    let ranks: HashMap<_, _> = sorted.into_iter().zip(0..).collect();
    let of = |text: &String| {
        let text = text.as_str();
        (first.get(text).copied().unwrap_or(0), ranks.get(text).copied().unwrap_or(0))
    };
    strings.iter().map(of).unzip()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::fixture;

    /// Returns why the server's profile is refused once it was changed like this.
    fn refusal(change: impl FnOnce(&mut proto::Profile)) -> String {
        let mut profile = fixture::server();
        change(&mut profile);
        CheckedProfile::new(profile).unwrap_err().to_string()
    }

    #[test]
    fn references_that_lead_nowhere_are_refused() {
        assert_eq!(refusal(|p| p.function[0].name = 999), "a function's name is string 999 of 17");
        assert_eq!(refusal(|p| p.comment.push(-1)), "a comment is string -1 of 17");
        assert_eq!(
            refusal(|p| p.sample[1].location_id[0] = 77),
            "sample refers to location 77, which does not exist"
        );
        assert_eq!(
            refusal(|p| p.location[0].mapping_id = 9),
            "location refers to mapping 9, which does not exist"
        );
        assert_eq!(
            refusal(|p| p.location[0].line[0].function_id = 0),
            "location refers to function 0, which does not exist"
        );
    }

    #[test]
    fn ids_are_unique_and_not_zero() {
        assert_eq!(refusal(|p| p.location[1].id = p.location[0].id), "two locations have the id 1");
        assert_eq!(refusal(|p| p.mapping[0].id = 0), "a mapping has the reserved id 0");
    }

    #[test]
    fn every_value_has_a_meaning() {
        assert_eq!(
            refusal(|p| p.sample[0].value.truncate(3)),
            "sample 0 has 3 values where the profile has 4 sample types"
        );
        assert_eq!(refusal(|p| p.sample_type.clear()), "profile has no sample types");
        assert_eq!(refusal(|p| p.string_table.clear()), "string table does not start with the empty string");
    }

    #[test]
    fn a_small_file_with_endless_stacks_is_refused() {
        let endless = |profile: &mut proto::Profile| {
            let line = profile.location[0].line[0];
            profile.location[0].line = vec![line; 10_000];
            profile.sample[0].location_id = vec![profile.location[0].id; 10_000];
        };
        assert_eq!(refusal(endless), "the stacks have more than 67108864 frames in all");
    }

    #[test]
    fn equal_strings_are_known_by_their_first_index() {
        let mut profile = fixture::server();
        let count = i64::try_from(profile.string_table.len()).unwrap();
        profile.string_table.push("main".to_owned());
        let profile = CheckedProfile::new(profile).unwrap();
        assert_eq!(profile.string(profile.first_index(count)), "main");
        assert!(profile.first_index(count) < count);
    }
}
