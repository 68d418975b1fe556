//! Readable names of C++ and Rust functions.

/// Mangled names longer than this are left as they are: real ones stay far below, and a crafted one could keep the
/// demangler busy.
const LIMIT_BYTES: usize = 16 << 10;

/// The readable form of a mangled name; `None` where it is not mangled.
pub(super) fn demangle(name: &str) -> Option<String> {
    if name.len() > LIMIT_BYTES {
        return None;
    }
    if let Ok(demangled) = rustc_demangle::try_demangle(name) {
        // The alternative form leaves the hash out.
        return Some(format!("{demangled:#}"));
    }
    if !name.starts_with("_Z") {
        return None;
    }
    let symbol = cpp_demangle::Symbol::new(name).ok()?;
    symbol.demangle().ok()
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
}
