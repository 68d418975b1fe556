//! The call tree as text: callers above what they call, indented.

use std::io;

use super::{
    header::{Subject, write_header},
    unit::{Percentage, ValueFormat},
};
use crate::profile::view::tree::{CallTree, Line};

/// Beyond this depth lines are not moved further to the right: a file may claim any depth.
const MAX_INDENT: usize = 100;

/// Writes the tree with the lines above it; calls below `min_fraction` of the total are summed up.
///
/// # Errors
///
/// Fails if `out` does.
pub fn write_tree(
    out: &mut dyn io::Write,
    subject: Subject<'_>,
    tree: &CallTree,
    min_fraction: f64,
) -> io::Result<()> {
    let total = tree.total();
    let lines = tree.lines(subject.profile, min_fraction);
    let values = lines.iter().map(|line| match *line {
        Line::Call { flat: 0, cum, .. } | Line::Hidden { cum, .. } => cum,
        Line::Call { flat, .. } => flat,
    });
    let format = ValueFormat::of_table(values, total, subject.unit());
    write_header(out, subject, total, &format)?;
    writeln!(out, "Total: {}", format.show(total))?;
    writeln!(out, "{:>10} {:>5}% {:>10} {:>5}%", "cum", "cum", "flat", "flat")?;
    for line in &lines {
        match *line {
            Line::Call { depth, frame, flat, cum } => writeln!(
                out,
                "{:>10} {} {:>10} {}  {:indent$}{}",
                format.show(cum),
                Percentage { value: cum, total },
                format.show(flat),
                Percentage { value: flat, total },
                "",
                subject.profile.show(frame),
                indent = indent(depth)
            )?,
            Line::Hidden { depth, calls, cum } => writeln!(
                out,
                "{:>10} {} {:>10} {:>6}  {:indent$}… {calls} smaller",
                format.show(cum),
                Percentage { value: cum, total },
                "",
                "",
                "",
                indent = indent(depth)
            )?,
        }
    }
    Ok(())
}

fn indent(depth: usize) -> usize {
    depth.min(MAX_INDENT).saturating_mul(2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{fixture, view::Granularity};

    #[test]
    fn small_calls_are_summed_up_in_their_place() {
        let profile = fixture::stacks(&[
            ("main;handle;parse", 1_200_000),
            ("main;handle", 300_000),
            ("main;log", 3000),
            ("main;init", 2000),
        ]);
        let tree = CallTree::new(&profile, 0, Granularity::Functions);
        let mut text = Vec::new();
        write_tree(&mut text, Subject { profile: &profile, sample_index: 0 }, &tree, 0.005).unwrap();
        assert_eq!(
            String::from_utf8(text).unwrap(),
            "Type: inuse_space
Total: 1469.73kB
       cum   cum%       flat  flat%
 1469.73kB   100%          0     0%  main
 1464.84kB 99.67%   292.97kB 19.93%    handle
 1171.88kB 79.73%  1171.88kB 79.73%      parse
    4.88kB  0.33%                      … 2 smaller
"
        );
    }
}
