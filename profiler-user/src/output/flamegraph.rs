//! A flame graph of a profile, drawn by inferno.

use std::io;

use inferno::flamegraph::{self, Options};

use crate::profile::view::folded::FoldedStacks;

/// A bound on the text that is drawn from, a thousand times what a large program's stacks take.
const LIMIT_BYTES: usize = 256 << 20;

/// Why there is no picture.
#[derive(Debug, thiserror::Error)]
pub enum FlamegraphError {
    /// Nothing was allocated, or everything shrank.
    #[error("no stack has a value above zero, so there is nothing to draw")]
    Empty,
    /// More stacks than anybody could look at.
    #[error("the stacks' names take more than {limit_bytes} bytes")]
    TooLarge {
        /// The limit.
        limit_bytes: usize,
    },
    /// The picture could not be drawn.
    #[error("flame graph cannot be drawn")]
    Draw {
        /// The reason.
        #[source]
        source: io::Error,
    },
}

/// Returns the picture as an SVG file's content; `unit` is what the widths count, such as `bytes`.
///
/// Stacks whose value is not above zero are left out: in a difference, those that shrank.
///
/// # Errors
///
/// Fails if no stack is left or if there are far too many.
pub fn draw(stacks: &FoldedStacks<'_>, title: &str, unit: &str) -> Result<Vec<u8>, FlamegraphError> {
    let lines = stacks.positive_lines(LIMIT_BYTES);
    let lines = lines.ok_or(FlamegraphError::TooLarge { limit_bytes: LIMIT_BYTES })?;
    if lines.is_empty() {
        return Err(FlamegraphError::Empty);
    }
    let mut options = Options::default();
    options.title = title.to_owned();
    options.count_name = unit.to_owned();
    options.name_type = "Function:".to_owned();
    // The same profile gives the same picture.
    options.deterministic = true;
    let mut svg = Vec::new();
    flamegraph::from_lines(&mut options, lines.iter().map(String::as_str), &mut svg)
        .map_err(|source| FlamegraphError::Draw { source })?;
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{fixture, view::Granularity};

    fn drawn(stacks: &[(&str, i64)]) -> Result<String, FlamegraphError> {
        let profile = fixture::stacks(stacks);
        let stacks = FoldedStacks::new(&profile, 0, Granularity::Functions);
        draw(&stacks, "a <heap>", "bytes").map(|svg| String::from_utf8(svg).unwrap())
    }

    #[test]
    fn frames_are_drawn_with_their_values() {
        let svg = drawn(&[("main;operator&", 64), ("main;log", 36)]).unwrap();
        assert!(svg.starts_with("<?xml"), "{svg}");
        assert!(svg.contains("log (36 bytes, 36.00%)"), "{svg}");
        assert!(svg.contains("operator&amp; (64 bytes"), "{svg}");
        assert!(svg.contains("a &lt;heap&gt;"), "{svg}");
    }

    #[test]
    fn nothing_to_draw_is_an_error() {
        assert!(matches!(drawn(&[("main", -5)]), Err(FlamegraphError::Empty)));
    }
}
