//! What a caller hands to the builder: names and numbers, before they become table entries.

/// A file mapped into the process.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mapping<'a> {
    /// The first address.
    pub start: u64,
    /// The address after the last.
    pub limit: u64,
    /// Where in the file `start` lies, in bytes.
    pub file_offset_bytes: u64,
    /// The file's path.
    pub file: &'a str,
    /// The file's build id in hexadecimal, or empty.
    pub build_id: &'a str,
    /// Whether the symbolizer looked for inlined frames in this file.
    pub looked_for_inlined: bool,
}

/// A source line of a location; what is not known is empty or 0.
#[derive(Debug, Clone, Copy, Default)]
pub struct Line<'a> {
    /// The function's name for people.
    pub function: &'a str,
    /// The function's name in the symbol table.
    pub system_name: &'a str,
    /// The source file.
    pub filename: &'a str,
    /// The line on which the function starts.
    pub start_line: i64,
    /// The line.
    pub line: i64,
}

/// Something else that is known about a sample.
#[derive(Debug, Clone, Copy)]
pub enum Label<'a> {
    /// A text, such as `comm: redis-server`.
    Text {
        /// The key.
        key: &'a str,
        /// The text.
        value: &'a str,
    },
    /// A number, such as `bytes: 64 bytes`.
    Number {
        /// The key.
        key: &'a str,
        /// The number.
        value: i64,
        /// The number's unit, or empty.
        unit: &'a str,
    },
}
