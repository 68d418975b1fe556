//! What changed between two profiles.
//!
//! Samples are the same if their frames have the same names: addresses differ from one run to the next.
//! Frames without a name are the same if they lie at the same offset in the same file. Labels are left
//! out, for they hold what also differs, such as process ids.

use std::collections::HashMap;

use super::{
    builder::{BuildError, LocationId, MappingId, ProfileBuilder},
    changes::{Change, Changes},
    checked::CheckedProfile,
    entry::{Line, Mapping},
    frame::FrameName,
    proto,
    sample_type::{self, SampleType},
    validity::InvalidProfile,
};

/// Why two profiles cannot be compared.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiffError {
    /// The base does not have the type of value that is asked for.
    #[error("base profile has no values of type {name}/{unit}; it has {available}")]
    NotInBase {
        /// The type of value.
        name: String,
        /// Its unit.
        unit: String,
        /// The types that the base has.
        available: String,
    },
    /// The new profile does not have that many types of value.
    #[error("sample index {index} is out of range")]
    SampleIndex {
        /// The number.
        index: usize,
    },
    /// A sample of the difference does not fit its types.
    #[error("difference cannot be built")]
    Build {
        /// What does not fit.
        #[from]
        source: BuildError,
    },
    /// The difference refers to what it does not have.
    #[error("difference is inconsistent")]
    Invalid {
        /// What is missing.
        #[from]
        source: InvalidProfile,
    },
}

/// A profile of differences.
#[derive(Debug)]
pub struct Difference {
    /// New minus base, without what did not change, with the new profile's times and comments.
    ///
    /// It has the sample types that both profiles have. Its addresses are offsets in files.
    pub profile: CheckedProfile,
    /// Where the type that was asked for stands among them.
    pub sample_index: usize,
}

/// Returns `new` minus `base`; `sample_index` is the type of value in `new` that has to be in both.
///
/// # Errors
///
/// Fails if the base lacks that type, or has it in another unit.
pub fn subtract(
    new: &CheckedProfile,
    base: &CheckedProfile,
    sample_index: usize,
) -> Result<Difference, DiffError> {
    let in_base = |kind: SampleType<'_>| base.sample_types().position(|other| other == kind);
    // For each common type: its place in the new profile and in the base.
    let common: Vec<(usize, usize)> =
        new.sample_types().enumerate().filter_map(|(at, kind)| Some((at, in_base(kind)?))).collect();
    let Some(common_index) = common.iter().position(|&(at, _)| at == sample_index) else {
        let kind = new.sample_types().nth(sample_index);
        let kind = kind.ok_or(DiffError::SampleIndex { index: sample_index })?;
        let available = sample_type::available(base);
        return Err(DiffError::NotInBase {
            name: kind.name.to_owned(),
            unit: kind.unit.to_owned(),
            available,
        });
    };

    let mut changes = Changes::default();
    changes.add(new, common.iter().map(|&(at, _)| at), i64::saturating_add);
    changes.add(base, common.iter().map(|&(_, at)| at), i64::saturating_sub);

    let types: Vec<_> = common.iter().filter_map(|&(at, _)| new.sample_types().nth(at)).collect();
    let mut builder = headed(new, &types);
    let mut added = HashMap::new();
    for Change { profile, stack, values } in changes.list() {
        if values.iter().all(|value| *value == 0) {
            continue;
        }
        let locations = stack.iter().filter_map(|&id| {
            // The two profiles' ids are unrelated.
            let key = (std::ptr::eq(*profile, new), id);
            let location = profile.location(id)?;
            Some(*added.entry(key).or_insert_with(|| add_location(&mut builder, profile, location)))
        });
        let stack: Vec<_> = locations.collect();
        builder.sample(&stack, values, &[])?;
    }
    let profile = CheckedProfile::new(builder.finish())?;
    Ok(Difference { profile, sample_index: common_index })
}

/// Returns a builder with what the new profile says about itself.
fn headed(new: &CheckedProfile, types: &[SampleType<'_>]) -> ProfileBuilder {
    let proto = new.proto();
    let mut builder = ProfileBuilder::new(types);
    builder.default_sample_type(new.string(proto.default_sample_type));
    builder.time(proto.time_nanos, proto.duration_nanos);
    builder.drop_frames(new.string(proto.drop_frames), new.string(proto.keep_frames));
    builder.doc_url(new.string(proto.doc_url));
    if let Some(kind) = proto.period_type {
        let kind = SampleType { name: new.string(kind.r#type), unit: new.string(kind.unit) };
        builder.period(kind, proto.period);
    }
    new.comments().for_each(|comment| builder.comment(comment));
    if let Some(main) = proto.mapping.first() {
        let main = add_mapping(&mut builder, new, main);
        builder.main_mapping(main);
    }
    builder
}

fn add_mapping(builder: &mut ProfileBuilder, from: &CheckedProfile, mapping: &proto::Mapping) -> MappingId {
    builder.mapping(&Mapping {
        // The whole file, at address 0: an address is then an offset in it.
        start: 0,
        limit: u64::MAX,
        file_offset_bytes: 0,
        file: from.string(mapping.filename),
        build_id: from.string(mapping.build_id),
        looked_for_inlined: mapping.has_inline_frames,
    })
}

fn add_location(
    builder: &mut ProfileBuilder,
    from: &CheckedProfile,
    location: &proto::Location,
) -> LocationId {
    let unnamed = from.frames(location).find_map(|frame| match frame.name {
        FrameName::Function(_) => None,
        FrameName::Module { offset_bytes, .. } => Some(offset_bytes),
        FrameName::Address(address) => Some(address),
    });
    let lines = location.line.iter().map(|line| {
        let function = from.function(line.function_id).copied().unwrap_or_default();
        Line {
            function: from.string(function.name),
            system_name: from.string(function.system_name),
            filename: from.string(function.filename),
            start_line: function.start_line,
            line: line.line,
        }
    });
    let mapping = from.mapping(location.mapping_id).map(|mapping| add_mapping(builder, from, mapping));
    builder.location(unnamed.unwrap_or(0), mapping, &lines.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{
        fixture,
        sample_type::resolve_sample_index,
        view::{Granularity, folded::FoldedStacks},
    };

    fn folded(profile: &CheckedProfile, sample_index: usize) -> String {
        let mut text = Vec::new();
        FoldedStacks::new(profile, sample_index, Granularity::Lines).write(&mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn what_did_not_change_is_gone() {
        let base = fixture::stacks(&[("main;a:1", 5), ("main;b:1", 5), ("main;gone:1", 3)]);
        let new = fixture::stacks(&[("main;a:1", 9), ("main;b:1", 5), ("main;a:2", 1)]);
        let difference = subtract(&new, &base, 0).unwrap();
        assert_eq!(
            folded(&difference.profile, 0),
            "main main.c;a a.c:1 4\nmain main.c;a a.c:2 1\nmain main.c;gone gone.c:1 -3\n"
        );
    }

    /// Another run: everything is mapped elsewhere, and ids are other ones.
    #[test]
    fn addresses_do_not_matter() {
        let base = CheckedProfile::new(fixture::server()).unwrap();
        let mut moved = fixture::server();
        for mapping in &mut moved.mapping {
            mapping.memory_start += 0x1000;
            mapping.memory_limit += 0x1000;
        }
        for location in &mut moved.location {
            location.address += 0x1000;
            location.id += 100;
        }
        for sample in &mut moved.sample {
            sample.location_id.iter_mut().for_each(|id| *id += 100);
            sample.label.clear();
        }
        // The stack with the frame that has no name: its bytes allocated.
        moved.sample[1].value[1] += 64;
        let new = CheckedProfile::new(moved).unwrap();
        let difference = subtract(&new, &base, 1).unwrap();
        assert_eq!(
            folded(&difference.profile, difference.sample_index),
            "main server.c:10;server+0x1030;malloc 64\n"
        );
        let comments: Vec<_> = difference.profile.comments().collect();
        assert_eq!(comments, ["loss: 3 stacks were cut short"]);
        assert_eq!(difference.profile.mapping(1).map(|main| main.has_inline_frames), Some(true));
    }

    #[test]
    fn types_are_matched_by_name_and_unit() {
        let new = CheckedProfile::new(fixture::server()).unwrap();
        let base = fixture::stacks(&[("main:10", 0)]);
        let space = resolve_sample_index(&new, Some("inuse_space")).unwrap();
        let difference = subtract(&new, &base, space).unwrap();
        assert_eq!(difference.sample_index, 0);
        assert_eq!(difference.profile.sample_types().len(), 1);
        let error = subtract(&new, &base, 0).unwrap_err();
        assert_eq!(
            error.to_string(),
            "base profile has no values of type alloc_objects/count; it has inuse_space"
        );
    }
}
