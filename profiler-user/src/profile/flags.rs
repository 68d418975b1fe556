//! The `has_*` flags of mappings, by which a viewer decides whether to look for names itself.

use std::collections::HashMap;

use super::proto;

/// Makes the `has_*` flags of every mapping true statements about its locations.
///
/// A mapping without locations claims nothing but what the symbolizer said about inlining: pprof takes
/// the flags as "no need to look for names here".
pub(super) fn set_flags(profile: &mut proto::Profile) {
    let functions: HashMap<u64, &proto::Function> = profile.function.iter().map(|f| (f.id, f)).collect();
    let mut flags: HashMap<u64, (bool, bool, bool)> = HashMap::new();
    for location in &profile.location {
        let all =
            |has: &dyn Fn(&proto::Line) -> bool| !location.line.is_empty() && location.line.iter().all(has);
        let function = |line: &proto::Line| functions.get(&line.function_id);
        let named = all(&|line| function(line).is_some_and(|f| f.name != 0));
        let filed = all(&|line| function(line).is_some_and(|f| f.filename != 0));
        let lined = all(&|line| line.line != 0);
        let entry = flags.entry(location.mapping_id).or_insert((true, true, true));
        *entry = (entry.0 && named, entry.1 && filed, entry.2 && lined);
    }
    for mapping in &mut profile.mapping {
        let (named, filed, lined) = flags.get(&mapping.id).copied().unwrap_or_default();
        mapping.has_functions = named;
        mapping.has_filenames = filed;
        mapping.has_line_numbers = lined;
    }
}

#[cfg(test)]
mod tests {
    use crate::profile::{
        builder::ProfileBuilder,
        entry::{Line, Mapping},
        proto,
        sample_type::HEAP_SAMPLE_TYPES,
    };

    /// Returns the mapping of a profile with one sample per list of lines.
    fn mapping_with(locations: &[&[Line<'_>]]) -> proto::Mapping {
        let mut builder = ProfileBuilder::new(&HEAP_SAMPLE_TYPES);
        let mapping = Mapping { file: "a", looked_for_inlined: true, ..Mapping::default() };
        let mapping = builder.mapping(&mapping);
        for (address, lines) in (1..).zip(locations) {
            let location = builder.location(address, Some(mapping), lines);
            builder.sample(&[location], &[1, 1, 1, 1], &[]).unwrap();
        }
        builder.finish().mapping.remove(0)
    }

    const FULL: Line<'_> = Line { function: "f", system_name: "f", filename: "f.c", start_line: 1, line: 2 };
    const NAME_ONLY: Line<'_> = Line { filename: "", line: 0, ..FULL };

    #[test]
    fn all_flags_are_set_when_everything_is_known() {
        let mapping = mapping_with(&[&[FULL, FULL], &[FULL]]);
        assert!(mapping.has_functions && mapping.has_filenames && mapping.has_line_numbers);
        assert!(mapping.has_inline_frames);
    }

    #[test]
    fn one_location_without_lines_takes_the_lines_flag_away() {
        let mapping = mapping_with(&[&[FULL], &[FULL, NAME_ONLY]]);
        assert!(mapping.has_functions);
        assert!(!mapping.has_filenames && !mapping.has_line_numbers);
    }

    #[test]
    fn one_location_without_a_name_takes_all_flags_away() {
        let mapping = mapping_with(&[&[FULL], &[]]);
        assert!(!mapping.has_functions && !mapping.has_filenames && !mapping.has_line_numbers);
    }

    #[test]
    fn a_mapping_without_samples_claims_no_names() {
        assert!(!mapping_with(&[]).has_functions);
    }
}
