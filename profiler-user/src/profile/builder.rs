//! Builds a profile: gives every string, function, location and mapping one entry, however often it is
//! named.

use std::collections::{HashMap, HashSet};

use super::{
    entry::{Label, Line, Mapping},
    flags::set_flags,
    proto,
    sample_type::SampleType,
    strings::StringTable,
};

/// A mapping of the profile that gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MappingId(u64);

/// A location of the profile that gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LocationId(u64);

/// Why a sample does not fit the profile.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// Not one value for each sample type.
    #[error("sample has {found} values where the profile has {expected} sample types")]
    ValueCount {
        /// The number of sample types.
        expected: usize,
        /// The number of values.
        found: usize,
    },
}

type FunctionKey = (i64, i64, i64, i64);
type LocationKey = (u64, u64, Vec<proto::Line>);
type SampleKey = (Vec<u64>, Vec<proto::Label>);
type MappingKey = (u64, u64, u64, i64, i64);

/// A profile under construction.
///
/// The ids it gives are its own: they mean nothing to another builder.
#[derive(Debug)]
pub struct ProfileBuilder {
    profile: proto::Profile,
    strings: StringTable,
    functions: HashMap<FunctionKey, u64>,
    locations: HashMap<LocationKey, u64>,
    mappings: HashMap<MappingKey, u64>,
    samples: HashMap<SampleKey, usize>,
    main: Option<MappingId>,
}

impl ProfileBuilder {
    /// Returns an empty profile whose samples will have these values.
    pub fn new(sample_types: &[SampleType<'_>]) -> Self {
        let mut strings = StringTable::new();
        let sample_type = sample_types.iter().map(|kind| value_type(&mut strings, *kind)).collect();
        Self {
            profile: proto::Profile { sample_type, ..proto::Profile::default() },
            strings,
            functions: HashMap::new(),
            locations: HashMap::new(),
            mappings: HashMap::new(),
            samples: HashMap::new(),
            main: None,
        }
    }

    /// Names the value that viewers show first.
    pub fn default_sample_type(&mut self, name: &str) {
        self.profile.default_sample_type = self.strings.index(name);
    }

    /// Says how far apart sampled events lie: `period` units of `kind`.
    pub fn period(&mut self, kind: SampleType<'_>, period: i64) {
        self.profile.period_type = Some(value_type(&mut self.strings, kind));
        self.profile.period = period;
    }

    /// Says when the profile was taken (nanoseconds since 1970) and how long was measured.
    pub fn time(&mut self, unix_time_ns: i64, duration_ns: i64) {
        self.profile.time_nanos = unix_time_ns;
        self.profile.duration_nanos = duration_ns;
    }

    /// Sets the patterns of function names to drop with all that they call, and to keep all the same.
    ///
    /// Both must match a whole name; an empty one matches nothing.
    pub fn drop_frames(&mut self, drop: &str, keep: &str) {
        self.profile.drop_frames = self.strings.index(drop);
        self.profile.keep_frames = self.strings.index(keep);
    }

    /// Says where this kind of profile is explained.
    pub fn doc_url(&mut self, url: &str) {
        self.profile.doc_url = self.strings.index(url);
    }

    /// Adds a remark about the whole profile.
    pub fn comment(&mut self, text: &str) {
        let index = self.strings.index(text);
        self.profile.comment.push(index);
    }

    /// Returns the id of a mapping, which is added if it is new.
    pub fn mapping(&mut self, mapping: &Mapping<'_>) -> MappingId {
        let Mapping { start, limit, file_offset_bytes, file, build_id, looked_for_inlined } = *mapping;
        let (filename, build_id) = (self.strings.index(file), self.strings.index(build_id));
        let next = id_after(self.profile.mapping.len());
        let id = *self.mappings.entry((start, limit, file_offset_bytes, filename, build_id)).or_insert(next);
        if id == next {
            self.profile.mapping.push(proto::Mapping {
                id,
                memory_start: start,
                memory_limit: limit,
                file_offset: file_offset_bytes,
                filename,
                build_id,
                has_inline_frames: looked_for_inlined,
                ..proto::Mapping::default()
            });
        }
        MappingId(id)
    }

    /// Says which mapping is the main binary, whose name viewers put above the profile.
    pub fn main_mapping(&mut self, id: MappingId) {
        self.main = Some(id);
    }

    /// Returns the id of a location, which is added if it is new.
    ///
    /// `lines` holds the innermost inlined function first and the function it all was inlined into
    /// last; it is empty if the address has no name.
    pub fn location(&mut self, address: u64, mapping: Option<MappingId>, lines: &[Line<'_>]) -> LocationId {
        let line: Vec<_> = lines.iter().map(|line| self.line(line)).collect();
        let mapping_id = mapping.map_or(0, |MappingId(id)| id);
        let next = id_after(self.profile.location.len());
        let id = *self.locations.entry((address, mapping_id, line.clone())).or_insert(next);
        if id == next {
            self.profile.location.push(proto::Location { id, mapping_id, address, line, is_folded: false });
        }
        LocationId(id)
    }

    /// Adds a stack, leaf first, with one value for each sample type.
    ///
    /// A stack that is already there with the same labels has the values added to its own.
    ///
    /// # Errors
    ///
    /// Fails if there are more or fewer values than sample types.
    pub fn sample(
        &mut self,
        stack: &[LocationId],
        values: &[i64],
        labels: &[Label<'_>],
    ) -> Result<(), BuildError> {
        let expected = self.profile.sample_type.len();
        if values.len() != expected {
            return Err(BuildError::ValueCount { expected, found: values.len() });
        }
        let location_id: Vec<_> = stack.iter().map(|&LocationId(id)| id).collect();
        let label: Vec<_> = labels.iter().map(|label| self.label(label)).collect();
        let next = self.profile.sample.len();
        let at = *self.samples.entry((location_id.clone(), label.clone())).or_insert(next);
        match self.profile.sample.get_mut(at) {
            Some(sample) => {
                for (sum, value) in sample.value.iter_mut().zip(values) {
                    *sum = sum.saturating_add(*value);
                }
            }
            None => self.profile.sample.push(proto::Sample { location_id, value: values.to_vec(), label }),
        }
        Ok(())
    }

    /// Returns the profile, without the locations that no sample refers to.
    pub fn finish(self) -> proto::Profile {
        let Self { mut profile, strings, main, functions: _, locations: _, mappings: _, samples } = self;
        let used: HashSet<u64> = samples.into_keys().flat_map(|(stack, _)| stack).collect();
        profile.location.retain(|location| used.contains(&location.id));
        if let Some(MappingId(main)) = main {
            // The sort is stable: all others keep their order.
            profile.mapping.sort_by_key(|mapping| mapping.id != main);
        }
        set_flags(&mut profile);
        profile.string_table = strings.into_strings();
        profile
    }

    fn line(&mut self, line: &Line<'_>) -> proto::Line {
        let Line { function, system_name, filename, start_line, line } = *line;
        let name = self.strings.index(function);
        let system_name = self.strings.index(system_name);
        let filename = self.strings.index(filename);
        let next = id_after(self.profile.function.len());
        let id = *self.functions.entry((name, system_name, filename, start_line)).or_insert(next);
        if id == next {
            self.profile.function.push(proto::Function { id, name, system_name, filename, start_line });
        }
        proto::Line { function_id: id, line, column: 0 }
    }

    fn label(&mut self, label: &Label<'_>) -> proto::Label {
        match *label {
            Label::Text { key, value } => proto::Label {
                key: self.strings.index(key),
                str: self.strings.index(value),
                ..proto::Label::default()
            },
            Label::Number { key, value, unit } => proto::Label {
                key: self.strings.index(key),
                num: value,
                num_unit: self.strings.index(unit),
                ..proto::Label::default()
            },
        }
    }
}

fn value_type(strings: &mut StringTable, kind: SampleType<'_>) -> proto::ValueType {
    proto::ValueType { r#type: strings.index(kind.name), unit: strings.index(kind.unit) }
}

/// Returns the id of the entry that would follow `len` others; ids start at 1.
fn id_after(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX).saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::sample_type::HEAP_SAMPLE_TYPES;

    fn line(function: &str) -> Line<'_> {
        Line { function, filename: "a.c", line: 7, ..Line::default() }
    }

    #[test]
    fn equal_entries_are_stored_once() {
        let mut builder = ProfileBuilder::new(&HEAP_SAMPLE_TYPES);
        let mapping = Mapping { start: 0x1000, limit: 0x2000, file: "/bin/a", ..Mapping::default() };
        let first = builder.mapping(&mapping);
        assert_eq!(builder.mapping(&mapping), first);
        let leaf = builder.location(0x1010, Some(first), &[line("leaf")]);
        assert_eq!(builder.location(0x1010, Some(first), &[line("leaf")]), leaf);
        let other = builder.location(0x1020, Some(first), &[line("leaf")]);
        assert_ne!(leaf, other);
        builder.sample(&[leaf], &[1, 10, 1, 10], &[]).unwrap();
        builder.sample(&[leaf], &[1, 10, 0, 0], &[]).unwrap();
        builder.sample(&[leaf], &[1, 5, 1, 5], &[Label::Text { key: "comm", value: "a" }]).unwrap();
        let profile = builder.finish();
        assert_eq!(profile.function.len(), 1);
        assert_eq!(profile.location.len(), 1, "a location without samples is left out");
        let values: Vec<_> = profile.sample.iter().map(|sample| sample.value.clone()).collect();
        assert_eq!(values, [[2, 20, 1, 10], [1, 5, 1, 5]]);
        assert_eq!(profile.string_table[0], "");
    }

    #[test]
    fn the_main_binary_comes_first() {
        let mut builder = ProfileBuilder::new(&HEAP_SAMPLE_TYPES);
        builder.mapping(&Mapping { start: 1, file: "libc.so.6", ..Mapping::default() });
        builder.mapping(&Mapping { start: 2, file: "ld.so", ..Mapping::default() });
        let main = builder.mapping(&Mapping { start: 3, file: "server", ..Mapping::default() });
        builder.main_mapping(main);
        let starts: Vec<_> = builder.finish().mapping.iter().map(|mapping| mapping.memory_start).collect();
        assert_eq!(starts, [3, 1, 2]);
    }

    #[test]
    fn a_sample_needs_a_value_for_every_type() {
        let mut builder = ProfileBuilder::new(&HEAP_SAMPLE_TYPES);
        let error = builder.sample(&[], &[1, 2], &[]).unwrap_err();
        assert_eq!(error, BuildError::ValueCount { expected: 4, found: 2 });
    }
}
