//! The string table of a profile under construction: every string once, the first one empty.

use std::collections::HashMap;

/// Strings and the indexes by which the profile refers to them.
#[derive(Debug)]
pub(super) struct StringTable {
    indexes: HashMap<String, i64>,
}

impl StringTable {
    /// Returns a table that holds the empty string at index 0, as the format demands.
    pub(super) fn new() -> Self {
        Self { indexes: HashMap::from([(String::new(), 0)]) }
    }

    /// Returns the index of `text`, which is added if it is new.
    pub(super) fn index(&mut self, text: &str) -> i64 {
        if let Some(&index) = self.indexes.get(text) {
            return index;
        }
        let index = i64::try_from(self.indexes.len()).unwrap_or(i64::MAX);
        self.indexes.insert(text.to_owned(), index);
        index
    }

    /// Returns the strings in the order of their indexes.
    pub(super) fn into_strings(self) -> Vec<String> {
        let mut strings: Vec<_> = self.indexes.into_iter().collect();
        strings.sort_unstable_by_key(|&(_, index)| index);
        strings.into_iter().map(|(text, _)| text).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_strings_share_an_index_and_the_first_is_empty() {
        let mut table = StringTable::new();
        assert_eq!(table.index("a"), 1);
        assert_eq!(table.index("b"), 2);
        assert_eq!(table.index("a"), 1);
        assert_eq!(table.index(""), 0);
        assert_eq!(table.into_strings(), ["", "a", "b"]);
    }
}
