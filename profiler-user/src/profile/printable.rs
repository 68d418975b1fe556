//! Names from other people's files, fit for a terminal and for one line.

use std::fmt;

/// A text that is shown with `�` for every control character.
///
/// A symbol name may hold anything, also the sequences that reprogram a terminal.
#[derive(Debug, Clone, Copy)]
pub struct Printable<'a>(pub &'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut pieces = self.0.split(char::is_control);
        if let Some(first) = pieces.next() {
            f.write_str(first)?;
        }
        pieces.try_for_each(|piece| write!(f, "{}{piece}", char::REPLACEMENT_CHARACTER))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_replaced() {
        assert_eq!(Printable("a\x1b[31m\nb").to_string(), "a\u{fffd}[31m\u{fffd}b");
        assert_eq!(Printable("größe::<T>").to_string(), "größe::<T>");
    }
}
