//! A second reader of pprof profiles, which shares nothing with heaptap's own.
//!
//! It knows the fields that the tests look at. The numbers are those of
//! <https://github.com/google/pprof/blob/main/proto/profile.proto>.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Read;
use std::path::Path;

use flate2::read::GzDecoder;
use prost::Message;

use crate::ledger::Values;

/// The messages.
pub mod proto {
    /// A profile.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Profile {
        /// What the values of a sample are.
        #[prost(message, repeated, tag = "1")]
        pub sample_type: Vec<ValueType>,
        /// The samples.
        #[prost(message, repeated, tag = "2")]
        pub sample: Vec<Sample>,
        /// What is mapped.
        #[prost(message, repeated, tag = "3")]
        pub mapping: Vec<Mapping>,
        /// The places in the code.
        #[prost(message, repeated, tag = "4")]
        pub location: Vec<Location>,
        /// The functions.
        #[prost(message, repeated, tag = "5")]
        pub function: Vec<Function>,
        /// All strings; the first is empty.
        #[prost(string, repeated, tag = "6")]
        pub string_table: Vec<String>,
        /// Free text, as indices of strings.
        #[prost(int64, repeated, tag = "13")]
        pub comment: Vec<i64>,
        /// The index of the string that names the preferred sample type.
        #[prost(int64, tag = "14")]
        pub default_sample_type: i64,
    }

    /// A name and a unit, as indices of strings.
    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub struct ValueType {
        /// The name.
        #[prost(int64, tag = "1")]
        pub r#type: i64,
        /// The unit.
        #[prost(int64, tag = "2")]
        pub unit: i64,
    }

    /// Values of a stack.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Sample {
        /// The stack, leaf first.
        #[prost(uint64, repeated, tag = "1")]
        pub location_id: Vec<u64>,
        /// One value for each sample type.
        #[prost(int64, repeated, tag = "2")]
        pub value: Vec<i64>,
        /// What else is known of them.
        #[prost(message, repeated, tag = "3")]
        pub label: Vec<Label>,
    }

    /// A key and its value, a text or a number.
    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub struct Label {
        /// The index of the key's string.
        #[prost(int64, tag = "1")]
        pub key: i64,
        /// The index of the text's string.
        #[prost(int64, tag = "2")]
        pub str: i64,
    }

    /// A file that is mapped.
    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub struct Mapping {
        /// The index of the string that names it.
        #[prost(int64, tag = "5")]
        pub filename: i64,
    }

    /// A place in the code.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Location {
        /// Its number.
        #[prost(uint64, tag = "1")]
        pub id: u64,
        /// Its functions, the innermost inlined one first.
        #[prost(message, repeated, tag = "4")]
        pub line: Vec<Line>,
    }

    /// A function at a place.
    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub struct Line {
        /// The function's number.
        #[prost(uint64, tag = "1")]
        pub function_id: u64,
        /// The line in its source.
        #[prost(int64, tag = "2")]
        pub line: i64,
    }

    /// A function.
    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub struct Function {
        /// Its number.
        #[prost(uint64, tag = "1")]
        pub id: u64,
        /// The index of the string that names it.
        #[prost(int64, tag = "2")]
        pub name: i64,
    }
}

/// The sample types of every heap profile, in order.
const SAMPLE_TYPES: [(&str, &str); 4] = [
    ("alloc_objects", "count"),
    ("alloc_space", "bytes"),
    ("inuse_objects", "count"),
    ("inuse_space", "bytes"),
];

/// A stack with its values.
#[derive(Clone, Debug, Default)]
pub struct Stack {
    /// Function names, leaf first, inlined ones too. A place without a name is an empty string.
    pub functions: Vec<String>,
    /// Locations on the stack, each of which may be several functions.
    pub depth: usize,
    /// What was counted.
    pub values: Values,
    /// Its labels that are texts.
    pub labels: BTreeMap<String, String>,
}

/// A heap profile.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    /// Its stacks.
    pub stacks: Vec<Stack>,
    /// The names of the files that were mapped.
    pub files: Vec<String>,
    /// Its comments.
    pub comments: Vec<String>,
}

impl Profile {
    /// Reads a gzip-compressed profile.
    #[track_caller]
    pub fn read(path: &Path) -> Self {
        let compressed = fs::read(path).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
        Self::decode(&compressed, &path.display().to_string())
    }

    /// Reads a gzip-compressed profile from memory; `what` it is goes into messages.
    #[track_caller]
    pub fn decode(compressed: &[u8], what: &str) -> Self {
        let mut bytes = Vec::new();
        GzDecoder::new(compressed)
            .read_to_end(&mut bytes)
            .unwrap_or_else(|err| panic!("{what} is not gzip: {err}"));
        let raw = proto::Profile::decode(bytes.as_slice())
            .unwrap_or_else(|err| panic!("{what} is not a profile: {err}"));
        Self::from_raw(&raw)
    }

    /// Checks and resolves the messages.
    #[track_caller]
    pub fn from_raw(raw: &proto::Profile) -> Self {
        let text = |index: i64| raw.string_table[usize::try_from(index).expect("no negative index")].as_str();
        let types: Vec<_> = raw.sample_type.iter().map(|kind| (text(kind.r#type), text(kind.unit))).collect();
        assert_eq!(types, SAMPLE_TYPES, "sample types");
        assert_eq!(text(raw.default_sample_type), "inuse_space", "default sample type");
        let functions: HashMap<u64, &str> =
            raw.function.iter().map(|function| (function.id, text(function.name))).collect();
        let locations: HashMap<u64, Vec<String>> =
            raw.location.iter().map(|location| (location.id, names(location, &functions))).collect();
        let stacks = raw
            .sample
            .iter()
            .map(|sample| Stack {
                functions: sample.location_id.iter().flat_map(|id| locations[id].clone()).collect(),
                depth: sample.location_id.len(),
                values: Values::from_sample(&sample.value),
                labels: sample
                    .label
                    .iter()
                    .filter(|label| label.str != 0)
                    .map(|label| (text(label.key).to_owned(), text(label.str).to_owned()))
                    .collect(),
            })
            .collect();
        let files = raw.mapping.iter().map(|mapping| text(mapping.filename).to_owned()).collect();
        Self { stacks, files, comments: raw.comment.iter().map(|&index| text(index).to_owned()).collect() }
    }

    /// The sum over all stacks.
    pub fn total(&self) -> Values {
        self.stacks.iter().map(|stack| stack.values).sum()
    }

    /// Allocations by how the walk up their stack ended, as the comments `allocations: N END` say.
    pub fn allocations_by_end(&self) -> BTreeMap<&str, u64> {
        let ends = self.comments.iter().filter_map(|comment| {
            let (number, end) = comment.strip_prefix("allocations: ")?.split_once(' ')?;
            Some((end, number.parse().expect("a count is a number")))
        });
        ends.collect()
    }

    /// Panics unless at least so many allocations were seen, and no more than so many in a thousand have a stack that
    /// does not reach its thread's start.
    #[track_caller]
    pub fn assert_whole(&self, at_least: u64, broken_per_thousand: u64) {
        let total = u64::try_from(self.total().alloc_objects).expect("no negative count");
        assert!(total >= at_least, "only {total} allocations, not {at_least}: {:#?}", self.comments);
        let ends = self.allocations_by_end();
        let told: u64 = ends.values().sum();
        assert_eq!(told, total, "allocations whose stack's end is told: {:#?}", self.comments);
        let whole = ends.get("whole").copied().unwrap_or(0);
        let allowed = total * broken_per_thousand / 1000;
        assert!(total - whole <= allowed, "{whole} of {total} are whole: {:#?}", self.comments);
    }

    /// Panics unless nothing is said to be lost.
    #[track_caller]
    pub fn assert_lossless(&self) {
        let losses: Vec<&String> =
            self.comments.iter().filter(|comment| comment.starts_with("loss: ")).collect();
        assert!(losses.is_empty(), "{losses:#?}");
    }

    /// The number in a comment `memory: … NAME=N …`; `None` where there is none.
    pub fn memory(&self, name: &str) -> Option<u64> {
        Some(self.pair("memory: ", name)?.parse().expect("a size is a number"))
    }

    /// The number in a comment `cost: … NAME=N …`; `None` where there is none.
    pub fn cost(&self, name: &str) -> Option<f64> {
        Some(self.pair("cost: ", name)?.parse().expect("a cost is a number"))
    }

    /// What stands behind `NAME=` in a comment that begins so.
    fn pair(&self, beginning: &str, name: &str) -> Option<&str> {
        let comments = self.comments.iter().filter_map(|comment| comment.strip_prefix(beginning));
        let mut pairs = comments.flat_map(str::split_whitespace).filter_map(|pair| pair.split_once('='));
        pairs.find_map(|(found, value)| (found == name).then_some(value))
    }

    /// The value of one of heaptap's counters, 0 where no comment speaks of it.
    pub fn counter(&self, name: &str) -> i64 {
        self.comments.iter().find_map(|comment| counter_in(comment, name)).unwrap_or(0)
    }
}

/// The number in `loss: NAME = N: help` or `counter: NAME = N: help`.
fn counter_in(comment: &str, name: &str) -> Option<i64> {
    let rest = comment.strip_prefix("loss: ").or_else(|| comment.strip_prefix("counter: "))?;
    let (found, rest) = rest.split_once(" = ")?;
    let digits = rest.split_once(':').map_or(rest, |(digits, _)| digits);
    if found == name { Some(digits.parse().expect("a counter is a number")) } else { None }
}

fn names(location: &proto::Location, functions: &HashMap<u64, &str>) -> Vec<String> {
    if location.line.is_empty() {
        return vec![String::new()];
    }
    location.line.iter().map(|line| functions[&line.function_id].to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commented(alloc_objects: i64, comments: &[&str]) -> Profile {
        let values = Values { alloc_objects, ..Values::default() };
        Profile {
            stacks: vec![Stack { values, ..Stack::default() }],
            comments: comments.iter().map(|&text| text.to_owned()).collect(),
            ..Profile::default()
        }
    }

    #[test]
    fn one_broken_stack_in_a_thousand_is_borne() {
        let ends = ["allocations: 999 whole", "allocations: 1 broken: not learned yet", "x: 3 y"];
        let profile = commented(1000, &ends);
        assert_eq!(profile.allocations_by_end()["broken: not learned yet"], 1);
        profile.assert_whole(1000, 1);
    }

    #[test]
    #[should_panic(expected = "998 of 1000 are whole")]
    fn two_are_not() {
        commented(1000, &["allocations: 998 whole", "allocations: 2 cut at the depth limit"])
            .assert_whole(1, 1);
    }

    #[test]
    #[should_panic(expected = "allocations whose stack's end is told")]
    fn a_profile_that_does_not_say_is_not_whole() {
        commented(5, &["stacks: 5 whole"]).assert_whole(1, 1);
    }

    #[test]
    #[should_panic(expected = "only 5 allocations, not 6")]
    fn too_few_prove_nothing() {
        commented(5, &["allocations: 5 whole"]).assert_whole(6, 1);
    }

    #[test]
    fn counters_are_found_by_their_whole_name() {
        let comment = "loss: live_full_bytes = 12: bytes missing: from inuse_*";
        assert_eq!(counter_in(comment, "live_full_bytes"), Some(12));
        assert_eq!(counter_in(comment, "live_full"), None);
        assert_eq!(counter_in("counter: unknown_frees = 3: frees", "unknown_frees"), Some(3));
        assert_eq!(counter_in("unknown_frees = 3", "unknown_frees"), None);
    }
}
