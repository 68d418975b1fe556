//! The lines above a report: which program, what is counted, when it was measured.

use std::io;

use super::unit::{Percentage, ValueFormat};
use crate::profile::{checked::CheckedProfile, frame::base_name, printable::Printable};

/// What a report shows of which profile.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'p> {
    /// The profile.
    pub profile: &'p CheckedProfile,
    /// The type of value.
    pub sample_index: usize,
}

impl<'p> Subject<'p> {
    /// Returns the name of the type of value.
    pub fn type_name(self) -> &'p str {
        self.profile.sample_types().nth(self.sample_index).map_or("", |kind| kind.name)
    }

    /// Returns the unit of the values.
    pub fn unit(self) -> &'p str {
        self.profile.sample_types().nth(self.sample_index).map_or("", |kind| kind.unit)
    }
}

/// Writes the lines that pprof too has above its reports, as far as the profile has something to say.
pub(super) fn write_header(
    out: &mut dyn io::Write,
    subject: Subject<'_>,
    total: i64,
    format: &ValueFormat,
) -> io::Result<()> {
    let profile = subject.profile;
    let proto = profile.proto();
    if let Some(main) = proto.mapping.first() {
        let (file, build_id) = (profile.string(main.filename), profile.string(main.build_id));
        if !file.is_empty() {
            writeln!(out, "File: {}", Printable(base_name(file)))?;
        }
        if !build_id.is_empty() {
            writeln!(out, "Build ID: {}", Printable(build_id))?;
        }
    }
    writeln!(out, "Type: {}", Printable(subject.type_name()))?;
    if proto.time_nanos != 0 {
        writeln!(out, "Time: {}", utc(proto.time_nanos))?;
    }
    if proto.duration_nanos != 0 {
        let duration_ns = proto.duration_nanos;
        let duration = ValueFormat::of_value(duration_ns, "nanoseconds").show(duration_ns);
        write!(out, "Duration: {duration}, Total samples = {}", format.show(total))?;
        if subject.unit() == "nanoseconds" && total != 0 {
            write!(out, " ({})", Percentage { value: total, total: duration_ns })?;
        }
        writeln!(out)?;
    }
    Ok(())
}

/// Writes what the profile says about its own losses, which a reader of any number should know, and about its cost.
pub fn write_losses(out: &mut dyn io::Write, profile: &CheckedProfile) -> io::Result<()> {
    for comment in profile.comments().filter(|comment| told(comment)) {
        writeln!(out, "comment: {}", Printable(comment))?;
    }
    Ok(())
}

fn told(comment: &str) -> bool {
    comment.starts_with("loss:") || comment.starts_with("cost:")
}

/// Returns nanoseconds since 1970 as `2006-01-02 15:04:05 UTC`.
///
/// The date is computed as in <https://howardhinnant.github.io/date_algorithms.html#civil_from_days>.
fn utc(unix_time_ns: i64) -> String {
    let seconds = unix_time_ns.div_euclid(1_000_000_000);
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days since 0000-03-01: a year that starts in March ends with its leap day.
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_dates() {
        assert_eq!(utc(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(utc(1_709_164_799_999_999_999), "2024-02-28 23:59:59 UTC");
        assert_eq!(utc(1_709_164_800_000_000_000), "2024-02-29 00:00:00 UTC");
        assert_eq!(utc(-1), "1969-12-31 23:59:59 UTC");
        assert_eq!(utc(i64::MAX), "2262-04-11 23:47:16 UTC");
        assert_eq!(utc(i64::MIN), "1677-09-21 00:12:43 UTC");
    }
}
