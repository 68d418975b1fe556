//! The messages of pprof's `profile.proto`.
//!
//! Written by hand after <https://github.com/google/pprof/blob/main/proto/profile.proto>, so that
//! building heaptap needs no `protoc`. Field names are the format's. A field that names a string holds
//! its index in [`Profile::string_table`]; a field that names a function, location or mapping holds its
//! `id`, where 0 stands for "none".

/// A whole profile: samples and the tables they refer to.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Profile {
    /// What the values of each sample mean, in their order.
    #[prost(message, repeated, tag = "1")]
    pub sample_type: Vec<ValueType>,
    /// The measurements.
    #[prost(message, repeated, tag = "2")]
    pub sample: Vec<Sample>,
    /// Address ranges and the files behind them; the first is the main binary.
    #[prost(message, repeated, tag = "3")]
    pub mapping: Vec<Mapping>,
    /// The places in code that stacks are made of.
    #[prost(message, repeated, tag = "4")]
    pub location: Vec<Location>,
    /// The functions that locations lie in.
    #[prost(message, repeated, tag = "5")]
    pub function: Vec<Function>,
    /// All strings; the first is always empty.
    #[prost(string, repeated, tag = "6")]
    pub string_table: Vec<String>,
    /// A regular expression of function names to drop (string index).
    #[prost(int64, tag = "7")]
    pub drop_frames: i64,
    /// A regular expression of names to keep although `drop_frames` matches (string index).
    #[prost(int64, tag = "8")]
    pub keep_frames: i64,
    /// When the profile was taken, in nanoseconds since 1970-01-01 UTC.
    #[prost(int64, tag = "9")]
    pub time_nanos: i64,
    /// How long was measured, in nanoseconds.
    #[prost(int64, tag = "10")]
    pub duration_nanos: i64,
    /// What `period` counts.
    #[prost(message, optional, tag = "11")]
    pub period_type: Option<ValueType>,
    /// How many units of `period_type` lie between two sampled events.
    #[prost(int64, tag = "12")]
    pub period: i64,
    /// Free text about the profile (string indexes).
    #[prost(int64, repeated, tag = "13")]
    pub comment: Vec<i64>,
    /// The type of the values to show first (string index).
    #[prost(int64, tag = "14")]
    pub default_sample_type: i64,
    /// Where the profile is explained (string index of a URL).
    #[prost(int64, tag = "15")]
    pub doc_url: i64,
}

/// The meaning of a number, such as `inuse_space` in `bytes`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct ValueType {
    /// What is measured (string index).
    #[prost(int64, tag = "1")]
    pub r#type: i64,
    /// In which unit (string index).
    #[prost(int64, tag = "2")]
    pub unit: i64,
}

/// One call stack and what was measured there.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Sample {
    /// The stack as location ids, leaf first.
    #[prost(uint64, repeated, tag = "1")]
    pub location_id: Vec<u64>,
    /// One value for each of [`Profile::sample_type`].
    #[prost(int64, repeated, tag = "2")]
    pub value: Vec<i64>,
    /// What else is known about the sample.
    #[prost(message, repeated, tag = "3")]
    pub label: Vec<Label>,
}

/// A key with either a text or a number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Label {
    /// The key (string index).
    #[prost(int64, tag = "1")]
    pub key: i64,
    /// The text (string index), or 0 for a number.
    #[prost(int64, tag = "2")]
    pub str: i64,
    /// The number.
    #[prost(int64, tag = "3")]
    pub num: i64,
    /// The unit of the number (string index).
    #[prost(int64, tag = "4")]
    pub num_unit: i64,
}

/// A range of memory and the file mapped there.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Mapping {
    /// The mapping's own id, not 0.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// The first address.
    #[prost(uint64, tag = "2")]
    pub memory_start: u64,
    /// The address after the last.
    #[prost(uint64, tag = "3")]
    pub memory_limit: u64,
    /// Where in the file `memory_start` lies, in bytes.
    #[prost(uint64, tag = "4")]
    pub file_offset: u64,
    /// The file's path (string index).
    #[prost(int64, tag = "5")]
    pub filename: i64,
    /// The file's build id in hexadecimal (string index).
    #[prost(int64, tag = "6")]
    pub build_id: i64,
    /// Whether all locations here have function names.
    #[prost(bool, tag = "7")]
    pub has_functions: bool,
    /// Whether all locations here have file names.
    #[prost(bool, tag = "8")]
    pub has_filenames: bool,
    /// Whether all locations here have line numbers.
    #[prost(bool, tag = "9")]
    pub has_line_numbers: bool,
    /// Whether inlined frames, where there are any, are included.
    #[prost(bool, tag = "10")]
    pub has_inline_frames: bool,
}

/// A place in code: an address and the source lines it belongs to.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Location {
    /// The location's own id, not 0.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// The mapping around `address`.
    #[prost(uint64, tag = "2")]
    pub mapping_id: u64,
    /// The address in the process.
    #[prost(uint64, tag = "3")]
    pub address: u64,
    /// The innermost inlined function first, the one it was all inlined into last.
    #[prost(message, repeated, tag = "4")]
    pub line: Vec<Line>,
    /// Whether a linker folded equal functions, so that the name may be another's.
    #[prost(bool, tag = "5")]
    pub is_folded: bool,
}

/// A line of source code within a function.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Line {
    /// The function.
    #[prost(uint64, tag = "1")]
    pub function_id: u64,
    /// The line in the function's file, from 1; 0 if not known.
    #[prost(int64, tag = "2")]
    pub line: i64,
    /// The column, from 1; 0 if not known.
    #[prost(int64, tag = "3")]
    pub column: i64,
}

/// A function.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Function {
    /// The function's own id, not 0.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// The name for people (string index).
    #[prost(int64, tag = "2")]
    pub name: i64,
    /// The name in the symbol table, such as a mangled C++ name (string index).
    #[prost(int64, tag = "3")]
    pub system_name: i64,
    /// The source file (string index).
    #[prost(int64, tag = "4")]
    pub filename: i64,
    /// The line on which the function starts; 0 if not known.
    #[prost(int64, tag = "5")]
    pub start_line: i64,
}
