//! What the numbers of a heap profile mean, and which of them a user wants to see.

use super::checked::CheckedProfile;

/// The name and the unit of one value of every sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SampleType<'a> {
    /// What is measured, such as `inuse_space`.
    pub name: &'a str,
    /// Its unit, such as `bytes`.
    pub unit: &'a str,
}

/// The values of a heaptap profile in their order, which is the one of Go's heap profiles.
pub const HEAP_SAMPLE_TYPES: [SampleType<'static>; 4] = [
    SampleType { name: "alloc_objects", unit: "count" },
    SampleType { name: "alloc_space", unit: "bytes" },
    SampleType { name: "inuse_objects", unit: "count" },
    SampleType { name: "inuse_space", unit: "bytes" },
];

/// The value that viewers show first.
pub const DEFAULT_SAMPLE_TYPE: &str = "inuse_space";

/// What one call stack has allocated and freed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HeapCount {
    /// Blocks allocated.
    pub alloc_objects: i64,
    /// Bytes allocated.
    pub alloc_bytes: i64,
    /// Blocks among them that were freed.
    pub freed_objects: i64,
    /// Bytes among them that were freed.
    pub freed_bytes: i64,
}

impl HeapCount {
    /// Returns the values of a sample in the order of [`HEAP_SAMPLE_TYPES`].
    ///
    /// This is the one place that says `inuse = alloc − freed`.
    pub fn values(self) -> [i64; 4] {
        let Self { alloc_objects, alloc_bytes, freed_objects, freed_bytes } = self;
        [
            alloc_objects,
            alloc_bytes,
            alloc_objects.saturating_sub(freed_objects),
            alloc_bytes.saturating_sub(freed_bytes),
        ]
    }
}

/// Why a sample type cannot be chosen.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SampleIndexError {
    /// A number past the last sample type.
    #[error("sample index {index} is out of range; the profile has 0 to {last}: {available}")]
    OutOfRange {
        /// The number that was asked for.
        index: usize,
        /// The highest number there is.
        last: usize,
        /// The names there are.
        available: String,
    },
    /// A name that the profile does not have.
    #[error("the profile has no sample type `{wanted}`; it has {available}")]
    Unknown {
        /// The name that was asked for.
        wanted: String,
        /// The names there are.
        available: String,
    },
}

/// Returns the index of the sample type that `wanted` names.
///
/// `wanted` is a name or a number. Without it, the profile's default is taken, or else the last type. A
/// leading `inuse_` may stand before names that lack it, as in Go's oldest profiles. All this is what
/// pprof does (`SampleIndexByName` in its `profile/index.go`).
///
/// # Errors
///
/// Fails with the list of what there is if the profile has no such type.
pub fn resolve_sample_index(
    profile: &CheckedProfile,
    wanted: Option<&str>,
) -> Result<usize, SampleIndexError> {
    let last = profile.proto().sample_type.len().saturating_sub(1);
    let position = |name: &str| profile.sample_types().position(|kind| kind.name == name);
    let Some(wanted) = wanted.filter(|wanted| !wanted.is_empty()) else {
        let default = profile.string(profile.proto().default_sample_type);
        let default = if default.is_empty() { None } else { position(default) };
        return Ok(default.unwrap_or(last));
    };
    if let Ok(index) = wanted.parse::<usize>() {
        if index <= last {
            return Ok(index);
        }
        return Err(SampleIndexError::OutOfRange { index, last, available: available(profile) });
    }
    let short = wanted.strip_prefix("inuse_").unwrap_or(wanted);
    profile
        .sample_types()
        .position(|kind| kind.name == wanted || kind.name == short)
        .ok_or_else(|| SampleIndexError::Unknown { wanted: wanted.to_owned(), available: available(profile) })
}

/// Returns the names of the sample types for an error message.
///
/// Real profiles have one to four; the bound is for files made to be a nuisance.
pub(super) fn available(profile: &CheckedProfile) -> String {
    profile.sample_types().take(16).map(|kind| kind.name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::builder::ProfileBuilder;

    fn heap() -> CheckedProfile {
        let mut builder = ProfileBuilder::new(&HEAP_SAMPLE_TYPES);
        builder.default_sample_type(DEFAULT_SAMPLE_TYPE);
        CheckedProfile::new(builder.finish()).unwrap()
    }

    #[test]
    fn what_was_freed_is_no_longer_in_use() {
        let count = HeapCount { alloc_objects: 5, alloc_bytes: 500, freed_objects: 2, freed_bytes: 120 };
        assert_eq!(count.values(), [5, 500, 3, 380]);
    }

    #[test]
    fn a_type_is_found_by_name_and_by_number() {
        assert_eq!(resolve_sample_index(&heap(), Some("alloc_space")), Ok(1));
        assert_eq!(resolve_sample_index(&heap(), Some("2")), Ok(2));
        assert_eq!(resolve_sample_index(&heap(), None), Ok(3));
        assert_eq!(resolve_sample_index(&heap(), Some("")), Ok(3));
    }

    #[test]
    fn without_a_default_the_last_type_is_shown() {
        let types =
            [SampleType { name: "objects", unit: "count" }, SampleType { name: "space", unit: "bytes" }];
        let profile = CheckedProfile::new(ProfileBuilder::new(&types).finish()).unwrap();
        assert_eq!(resolve_sample_index(&profile, None), Ok(1));
        assert_eq!(resolve_sample_index(&profile, Some("inuse_objects")), Ok(0));
    }

    #[test]
    fn an_unknown_type_is_answered_with_what_there_is() {
        let error = resolve_sample_index(&heap(), Some("cpu")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the profile has no sample type `cpu`; it has alloc_objects, alloc_space, inuse_objects, inuse_space"
        );
        let error = resolve_sample_index(&heap(), Some("4")).unwrap_err();
        assert!(error.to_string().starts_with("sample index 4 is out of range; the profile has 0 to 3"));
    }
}
