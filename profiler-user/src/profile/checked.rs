//! A profile whose references are known to lead somewhere.
//!
//! A file may say anything. [`CheckedProfile::new`] is the one gate; behind it the views follow ids and
//! string indexes without a second thought. What is refused is what pprof refuses (`CheckValid` in its
//! `profile/profile.go`), and a profile that has no sample types.

use std::collections::HashMap;

use super::{proto, sample_type::SampleType};

/// Why a profile cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidProfile {
    /// Nothing says what the values mean.
    #[error("profile has no sample types")]
    NoSampleTypes,
    /// The string table is empty or starts with something else than the empty string.
    #[error("string table does not start with the empty string")]
    StringTable,
    /// A string index that leads nowhere.
    #[error("{what} is string {index} of {count}")]
    StringIndex {
        /// What the string would be.
        what: &'static str,
        /// The index.
        index: i64,
        /// The number of strings.
        count: usize,
    },
    /// The id that means "none".
    #[error("a {what} has the reserved id 0")]
    ReservedId {
        /// The kind of entry.
        what: &'static str,
    },
    /// An id that two entries have.
    #[error("two {what}s have the id {id}")]
    DuplicateId {
        /// The kind of entry.
        what: &'static str,
        /// The id.
        id: u64,
    },
    /// An id that no entry has.
    #[error("{by} refers to {what} {id}, which does not exist")]
    Missing {
        /// The kind of entry that refers.
        by: &'static str,
        /// The kind of entry referred to.
        what: &'static str,
        /// The id.
        id: u64,
    },
    /// A sample with more or fewer values than there are sample types.
    #[error("sample {sample} has {found} values where the profile has {expected} sample types")]
    ValueCount {
        /// The sample's place in the profile, from 0.
        sample: usize,
        /// The number of sample types.
        expected: usize,
        /// The number of values.
        found: usize,
    },
}

/// A profile with consistent references.
#[derive(Debug, Clone)]
pub struct CheckedProfile {
    proto: proto::Profile,
    functions: HashMap<u64, usize>,
    locations: HashMap<u64, usize>,
    mappings: HashMap<u64, usize>,
    /// For each string the first index at which it stands: nothing forbids a table with duplicates.
    first_index: Vec<i64>,
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
        let first_index = first_indexes(&proto.string_table);
        Ok(Self { proto, functions, locations, mappings, first_index })
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

    /// Returns the tables that pruning shortens; what it leaves must still exist.
    pub(super) fn prunable(&mut self) -> (&mut [proto::Location], &mut [proto::Sample]) {
        (&mut self.proto.location, &mut self.proto.sample)
    }
}

fn check_strings(proto: &proto::Profile) -> Result<(), InvalidProfile> {
    let count = proto.string_table.len();
    if proto.string_table.first().is_none_or(|first| !first.is_empty()) {
        return Err(InvalidProfile::StringTable);
    }
    let check = |what, index: i64| match usize::try_from(index) {
        Ok(at) if at < count => Ok(()),
        _ => Err(InvalidProfile::StringIndex { what, index, count }),
    };
    for kind in proto.sample_type.iter().chain(&proto.period_type) {
        check("a value's type", kind.r#type)?;
        check("a value's unit", kind.unit)?;
    }
    for label in proto.sample.iter().flat_map(|sample| &sample.label) {
        check("a label's key", label.key)?;
        check("a label's text", label.str)?;
        check("a label's unit", label.num_unit)?;
    }
    for mapping in &proto.mapping {
        check("a mapping's file", mapping.filename)?;
        check("a mapping's build id", mapping.build_id)?;
    }
    for function in &proto.function {
        check("a function's name", function.name)?;
        check("a function's system name", function.system_name)?;
        check("a function's file", function.filename)?;
    }
    for &comment in &proto.comment {
        check("a comment", comment)?;
    }
    check("the pattern of frames to drop", proto.drop_frames)?;
    check("the pattern of frames to keep", proto.keep_frames)?;
    check("the default sample type", proto.default_sample_type)?;
    check("the documentation's address", proto.doc_url)
}

/// Returns where in its table each id stands.
fn index_by_id(
    what: &'static str,
    ids: impl Iterator<Item = u64>,
) -> Result<HashMap<u64, usize>, InvalidProfile> {
    let mut index = HashMap::with_capacity(ids.size_hint().0);
    for (at, id) in ids.enumerate() {
        if id == 0 {
            return Err(InvalidProfile::ReservedId { what });
        }
        if index.insert(id, at).is_some() {
            return Err(InvalidProfile::DuplicateId { what, id });
        }
    }
    Ok(index)
}

fn first_indexes(strings: &[String]) -> Vec<i64> {
    let mut first = HashMap::with_capacity(strings.len());
    (0..).zip(strings).map(|(index, text)| *first.entry(text.as_str()).or_insert(index)).collect()
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
    fn equal_strings_are_known_by_their_first_index() {
        let mut profile = fixture::server();
        let count = i64::try_from(profile.string_table.len()).unwrap();
        profile.string_table.push("main".to_owned());
        let profile = CheckedProfile::new(profile).unwrap();
        assert_eq!(profile.string(profile.first_index(count)), "main");
        assert!(profile.first_index(count) < count);
    }
}
