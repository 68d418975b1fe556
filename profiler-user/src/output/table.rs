//! The table of what allocates most, laid out like `go tool pprof -top`.

use std::io;

use super::{
    header::{Subject, write_header},
    unit::{Percentage, ValueFormat},
};
use crate::profile::view::top::{Inlined, Row, Top};

/// Writes the table with the lines above it.
///
/// # Errors
///
/// Fails if `out` does.
pub fn write_top(out: &mut dyn io::Write, subject: Subject<'_>, top: &Top) -> io::Result<()> {
    let Top { rows, total, dropped_rows, dropped_below, rows_without_limit } = top;
    let total = *total;
    // A row without an own value still has to show the one it has.
    let values = rows.iter().map(|row| if row.flat == 0 { row.cum } else { row.flat });
    let format = ValueFormat::of_table(values, total, subject.unit());

    write_header(out, subject, total, &format)?;
    let shown = rows.iter().map(|row| row.flat).fold(0, i64::saturating_add);
    writeln!(
        out,
        "Showing nodes accounting for {}, {} of {} total",
        format.show(shown),
        Percentage { value: shown, total }.to_string().trim_start(),
        format.show(total)
    )?;
    if *dropped_rows > 0 {
        let nodes = if *dropped_rows == 1 { "node" } else { "nodes" };
        writeln!(out, "Dropped {dropped_rows} {nodes} (cum <= {})", format.show(*dropped_below))?;
    }
    if rows.len() < *rows_without_limit {
        writeln!(out, "Showing top {} nodes out of {rows_without_limit}", rows.len())?;
    }

    writeln!(out, "{:>10} {:>5}% {:>5}% {:>10} {:>5}%", "flat", "flat", "sum", "cum", "cum")?;
    let mut sum = 0_i64;
    for Row { frame, flat, cum, inlined } in rows {
        sum = sum.saturating_add(*flat);
        let mark = match inlined {
            Inlined::Never => "",
            Inlined::Partly => " (partial-inline)",
            Inlined::Always => " (inline)",
        };
        writeln!(
            out,
            "{:>10} {} {} {:>10} {}  {}{mark}",
            format.show(*flat),
            Percentage { value: *flat, total },
            Percentage { value: sum, total },
            format.show(*cum),
            Percentage { value: *cum, total },
            subject.profile.show(*frame)
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{
        fixture,
        view::{
            Granularity,
            top::{Cut, top},
        },
    };

    fn table(stacks: &[(&str, i64)], cut: Cut) -> String {
        let profile = fixture::stacks(stacks);
        let top = top(&profile, 0, Granularity::Functions, cut);
        let mut text = Vec::new();
        write_top(&mut text, Subject { profile: &profile, sample_index: 0 }, &top).unwrap();
        String::from_utf8(text).unwrap()
    }

    /// The numbers and the layout were compared with `go tool pprof -top` of the same profile.
    #[test]
    fn the_table_is_the_one_of_pprof() {
        let stacks =
            [("main;handle;parse_metrics", 11_010_048), ("main;push<handle", 2_097_152), ("main;log", 1024)];
        assert_eq!(
            table(&stacks, Cut::default()),
            "Type: inuse_space
Showing nodes accounting for 12.50MB, 100% of 12.50MB total
Dropped 1 node (cum <= 0.06MB)
      flat  flat%   sum%        cum   cum%
   10.50MB 83.99% 83.99%    10.50MB 83.99%  parse_metrics
       2MB 16.00%   100%        2MB 16.00%  push (inline)
         0     0%   100%    12.50MB   100%  handle
         0     0%   100%    12.50MB   100%  main
"
        );
    }

    #[test]
    fn a_limit_on_rows_is_said() {
        let text = table(&[("a", 3), ("b", 2)], Cut { max_rows: 1, ..Cut::NONE });
        assert_eq!(
            text,
            "Type: inuse_space
Showing nodes accounting for 3B, 60.00% of 5B total
Showing top 1 nodes out of 2
      flat  flat%   sum%        cum   cum%
        3B 60.00% 60.00%         3B 60.00%  a
"
        );
    }

    #[test]
    fn an_empty_profile_has_an_empty_table() {
        let text = table(&[("a", 0)], Cut::default());
        assert!(text.contains("Showing nodes accounting for 0, 0% of 0 total\n"), "{text}");
    }
}
