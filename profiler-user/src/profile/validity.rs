//! What makes a profile unusable, and the checks that need no more than its tables.

use std::collections::HashMap;

use super::proto;

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
    /// Stacks that would keep a viewer busy for hours.
    #[error("the stacks have more than {limit} frames in all")]
    TooManyFrames {
        /// The limit.
        limit: usize,
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

/// Checks that all string indexes lead into the table, and that the table starts as it must.
pub(super) fn check_strings(proto: &proto::Profile) -> Result<(), InvalidProfile> {
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
pub(super) fn index_by_id(
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
