//! Numbers with units, written as pprof writes them.
//!
//! The rules are those of pprof's `internal/measurement/measurement.go`: 1024 bytes are 1kB, two
//! decimals unless both are zero, and one unit for a whole table.

use std::fmt;

/// Units of one kind: name and size, the smallest first.
type Scale = &'static [(&'static str, f64)];

const BYTES: Scale = &[
    ("B", 1.0),
    ("kB", 1024.0),
    ("MB", 1_048_576.0),
    ("GB", 1_073_741_824.0),
    ("TB", 1_099_511_627_776.0),
    ("PB", 1_125_899_906_842_624.0),
];

const TIME: Scale = &[("ns", 1.0), ("us", 1e3), ("ms", 1e6), ("s", 1e9), ("hrs", 3.6e12)];

/// How the values of a table are written.
#[derive(Debug, Clone, PartialEq)]
pub struct ValueFormat {
    /// What a value is multiplied with.
    factor: f64,
    unit: String,
}

impl ValueFormat {
    /// Returns the format that suits one value best.
    pub fn of_value(value: i64, unit: &str) -> Self {
        let Some((scale, from)) = scale_of(unit) else {
            return Self { factor: 1.0, unit: plain_unit(unit).to_owned() };
        };
        let (name, size) = largest_within(scale, to_f64(value.saturating_abs()) * from);
        Self { factor: from / size, unit: name.to_owned() }
    }

    /// Returns the format for a table of these values, among which percentages refer to `total`.
    ///
    /// The smallest value decides, but may be written as little as 0.01 if others are much larger.
    pub fn of_table(values: impl Iterator<Item = i64>, total: i64, unit: &str) -> Self {
        let smallest = values.map(i64::saturating_abs).filter(|value| *value > 0).min().unwrap_or(total);
        let (small, large) = (Self::of_value(smallest, unit), Self::of_value(total, unit));
        let raised = smallest.saturating_mul(100);
        if small != large && raised < total { Self::of_value(raised, unit) } else { small }
    }

    /// Returns a value as it is written.
    pub fn show(&self, value: i64) -> String {
        let number = format!("{:.2}", to_f64(value) * self.factor);
        match number.strip_suffix(".00").unwrap_or(&number) {
            "0" | "-0" => "0".to_owned(),
            number => format!("{number}{}", self.unit),
        }
    }
}

/// A part of a total as a percentage of at least five characters; the sign is left out.
#[derive(Debug, Clone, Copy)]
pub struct Percentage {
    /// The part.
    pub value: i64,
    /// The whole.
    pub total: i64,
}

impl fmt::Display for Percentage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { value, total } = *self;
        let percent = if total == 0 { 0.0 } else { (to_f64(value) / to_f64(total)).abs() * 100.0 };
        if (99.95..=100.05).contains(&percent) {
            f.write_str("  100%")
        } else if percent >= 1.0 {
            write!(f, "{percent:5.2}%")
        } else {
            write!(f, "{:>5}%", two_digits(percent))
        }
    }
}

/// Returns a number below 1 with two digits that count, as C's `%.2g` does.
fn two_digits(number: f64) -> String {
    let scientific = format!("{number:.1e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if number == 0.0 {
        return "0".to_owned();
    }
    if exponent < -4 {
        let digits = digits.strip_suffix(".0").unwrap_or(digits);
        return format!("{digits}e-{:02}", exponent.unsigned_abs());
    }
    let decimals = usize::try_from(1_i32.saturating_sub(exponent)).unwrap_or(0);
    let fixed = format!("{number:.decimals$}");
    fixed.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Returns the scale that a profile's unit belongs to, and the unit's size in it.
fn scale_of(unit: &str) -> Option<(Scale, f64)> {
    let unit = unit.to_lowercase();
    let singular = if unit.len() > 2 { unit.strip_suffix('s').unwrap_or(&unit) } else { &unit };
    let (scale, name) = match singular {
        "b" | "byte" => (BYTES, "B"),
        "kb" | "kbyte" | "kilobyte" => (BYTES, "kB"),
        "mb" | "mbyte" | "megabyte" => (BYTES, "MB"),
        "gb" | "gbyte" | "gigabyte" => (BYTES, "GB"),
        "tb" | "tbyte" | "terabyte" => (BYTES, "TB"),
        "pb" | "pbyte" | "petabyte" => (BYTES, "PB"),
        "ns" | "nanosecond" => (TIME, "ns"),
        "us" | "μs" | "microsecond" => (TIME, "us"),
        "ms" | "millisecond" => (TIME, "ms"),
        "s" | "sec" | "second" => (TIME, "s"),
        "hr" | "hour" => (TIME, "hrs"),
        _ => return None,
    };
    scale.iter().find(|(known, _)| *known == name).map(|(_, size)| (scale, *size))
}

fn largest_within(scale: Scale, value: f64) -> (&'static str, f64) {
    let within = scale.iter().rev().find(|(_, size)| value >= *size);
    within.or(scale.first()).copied().unwrap_or(("", 1.0))
}

/// Returns what is written behind a number of this unit: nothing for counts.
fn plain_unit(unit: &str) -> &str {
    match unit {
        "count" | "sample" | "unit" | "minimum" | "auto" => "",
        unit => unit,
    }
}

#[expect(clippy::cast_precision_loss, reason = "two decimals of a value above 2^53 are not missed")]
fn to_f64(value: i64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(value: i64, unit: &str) -> String {
        ValueFormat::of_value(value, unit).show(value)
    }

    fn percent(value: i64, total: i64) -> String {
        Percentage { value, total }.to_string()
    }

    #[test]
    fn values_have_the_largest_unit_below_them() {
        assert_eq!(show(512, "bytes"), "512B");
        assert_eq!(show(524_800, "bytes"), "512.50kB");
        assert_eq!(show(1 << 20, "bytes"), "1MB");
        assert_eq!(show(-3 << 30, "bytes"), "-3GB");
        assert_eq!(show(0, "bytes"), "0");
        assert_eq!(show(1234, "count"), "1234");
        assert_eq!(show(5, "objects"), "5objects");
        assert_eq!(show(30_000_000_000, "nanoseconds"), "30s");
    }

    #[test]
    fn a_table_has_one_unit() {
        let show = |values: &[i64], total| {
            let format = ValueFormat::of_table(values.iter().copied(), total, "bytes");
            values.iter().map(|value| format.show(*value)).collect::<Vec<_>>()
        };
        assert_eq!(show(&[1 << 20, 600], 1 << 21), ["1024kB", "0.59kB"]);
        assert_eq!(show(&[2048, 512], 2560), ["2048B", "512B"]);
        assert_eq!(show(&[1 << 30, 1 << 20], 1 << 31), ["1024MB", "1MB"]);
    }

    #[test]
    fn percentages_have_two_digits_that_count() {
        assert_eq!(percent(1, 3), "33.33%");
        assert_eq!(percent(-1, 3), "33.33%");
        assert_eq!(percent(9999, 10_000), "  100%");
        assert_eq!(percent(1, 256), " 0.39%");
        assert_eq!(percent(1, 10_000), " 0.01%");
        assert_eq!(percent(123, 1_000_000), "0.012%");
        assert_eq!(percent(1, 100_000_000), "1e-06%");
        assert_eq!(percent(999, 100_000), "    1%");
        assert_eq!(percent(0, 5), "    0%");
        assert_eq!(percent(5, 0), "    0%");
    }
}
