//! Several measures of one thing.

use std::fmt;

/// The least, the middle and the most of several measures.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    least: f64,
    pub(crate) median: f64,
    most: f64,
}

impl Spread {
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        Self { least: at(0), median: at(values.len() / 2), most: at(values.len().saturating_sub(1)) }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { least, median, most } = self;
        let digits = match *median {
            median if median < 10.0 => 2,
            median if median < 100.0 => 1,
            _ => 0,
        };
        write!(f, "{median:.digits$} ({least:.digits$} to {most:.digits$})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_the_measures_is_shown_with_the_ends() {
        assert_eq!(Spread::of([0.5, 0.61, 0.42]).to_string(), "0.50 (0.42 to 0.61)");
        assert_eq!(Spread::of([12.0, 12.5, 8.0]).to_string(), "12.0 (8.0 to 12.5)");
        assert_eq!(Spread::of([3100.0, 2900.4, 3000.0]).to_string(), "3000 (2900 to 3100)");
    }
}
