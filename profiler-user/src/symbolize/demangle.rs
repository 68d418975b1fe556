//! Readable names of C++ and Rust functions.

use std::fmt::{self, Write};

use cpp_demangle::DemangleOptions;

/// Mangled names longer than this are left as they are: real ones stay far below, and a crafted one could keep the
/// demangler busy.
const LIMIT_BYTES: usize = 16 << 10;

/// Names that become longer than this stay mangled. Each part of a mangled name may stand for two of an earlier one:
/// 240 bytes become 280 MB, and every ten more double that.
pub(super) const READABLE_LIMIT_BYTES: usize = 64 << 10;

/// The readable form of a mangled name; `None` where it is not mangled.
pub(super) fn demangle(name: &str) -> Option<String> {
    if name.len() > LIMIT_BYTES {
        return None;
    }
    let mut readable = Bounded::default();
    if let Ok(demangled) = rustc_demangle::try_demangle(name) {
        // The alternative form leaves the hash out.
        write!(readable, "{demangled:#}").ok()?;
    } else if name.starts_with("_Z") {
        let symbol = cpp_demangle::Symbol::new(name).ok()?;
        symbol.structured_demangle(&mut readable, &DemangleOptions::new()).ok()?;
    } else {
        return None;
    }
    Some(readable.0)
}

/// Text that does not become longer than [`READABLE_LIMIT_BYTES`].
#[derive(Default)]
struct Bounded(String);

impl Write for Bounded {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        if self.0.len().saturating_add(part.len()) > READABLE_LIMIT_BYTES {
            return Err(fmt::Error);
        }
        self.0.push_str(part);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpp_and_rust_names_become_readable_and_others_stay() {
        assert_eq!(demangle("_ZN3foo3barEi").as_deref(), Some("foo::bar(int)"));
        assert_eq!(
            demangle("_ZN4core3fmt9Formatter9write_fmt17h0123456789abcdefE").as_deref(),
            Some("core::fmt::Formatter::write_fmt")
        );
        assert_eq!(demangle("_RNvC6_123foo3bar").as_deref(), Some("123foo::bar"));
        assert_eq!(demangle("parse_metrics"), None);
        assert_eq!(demangle("_ZN"), None);
        assert_eq!(demangle(&format!("_Z{}", "N".repeat(1 << 20))), None);
    }

    #[test]
    fn a_name_that_doubles_with_every_part_stays_mangled() {
        let mut name = String::from("_Z1f1AIiiE");
        for part in ('0'..='9').chain('A'..='Z') {
            name += &format!("S_IS{part}_S{part}_E");
        }
        assert!(demangle(&name).is_none());
        // The same as a Rust name: a tuple of two of the tuple before it, by its place in the name.
        let mut name = String::from("_RIC1aTmmE");
        let mut last = "4".to_owned();
        for _ in 0..24 {
            let place = name.len() - "_R".len();
            name += &format!("TB{last}_B{last}_E");
            last = base_62(place - 1);
        }
        name.push('E');
        assert!(rustc_demangle::try_demangle(&name).is_ok(), "{name}");
        assert!(demangle(&name).is_none());
    }

    /// A place in a Rust name (RFC 2603).
    fn base_62(number: usize) -> String {
        const DIGITS: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
        let digit = |number: usize| char::from(DIGITS[number % 62]);
        if number < 62 {
            digit(number).to_string()
        } else {
            base_62(number / 62) + &digit(number).to_string()
        }
    }
}
