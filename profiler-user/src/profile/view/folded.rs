//! Folded stacks: one line for each distinct stack, which flame graph tools read.

use std::{collections::HashMap, io};

use super::{FrameTable, Granularity, value};
use crate::profile::checked::CheckedProfile;

/// The distinct stacks of a profile with their values.
#[derive(Debug)]
pub struct FoldedStacks<'p> {
    profile: &'p CheckedProfile,
    table: FrameTable,
    /// Root first, as numbers of frames, sorted by the frames' texts.
    stacks: Vec<(Vec<usize>, i64)>,
}

impl<'p> FoldedStacks<'p> {
    /// Returns the stacks of one type of value, without those whose values cancel out.
    pub fn new(profile: &'p CheckedProfile, sample_index: usize, granularity: Granularity) -> Self {
        let table = FrameTable::new(profile, granularity);
        let mut sums: HashMap<Vec<usize>, i64> = HashMap::new();
        for sample in &profile.proto().sample {
            let stack: Vec<_> = table.stack(sample).map(|(frame, _)| frame).collect();
            let sum = sums.entry(stack).or_default();
            *sum = sum.saturating_add(value(sample, sample_index));
        }
        sums.retain(|stack, sum| *sum != 0 && !stack.is_empty());
        let ranks = ranks(profile, &table);
        let mut stacks: Vec<_> = sums.into_iter().collect();
        let by_rank = |frame: &usize| ranks.get(*frame).copied();
        stacks.sort_unstable_by(|(a, _), (b, _)| a.iter().map(by_rank).cmp(b.iter().map(by_rank)));
        Self { profile, table, stacks }
    }

    /// Writes `root;caller;leaf value`, a line for each stack.
    ///
    /// # Errors
    ///
    /// Fails if `out` does.
    pub fn write(&self, out: &mut dyn io::Write) -> io::Result<()> {
        for (stack, value) in &self.stacks {
            for (depth, frame) in stack.iter().enumerate() {
                let separator = if depth == 0 { "" } else { ";" };
                write!(out, "{separator}{}", self.name(*frame))?;
            }
            writeln!(out, " {value}")?;
        }
        Ok(())
    }

    /// Returns the lines of the stacks that grew, or `None` if they take more than `limit_bytes`.
    pub fn positive_lines(&self, limit_bytes: usize) -> Option<Vec<String>> {
        let mut size_bytes = 0_usize;
        let mut lines = Vec::new();
        for (stack, value) in self.stacks.iter().filter(|(_, value)| *value > 0) {
            let mut line = String::new();
            for (depth, frame) in stack.iter().enumerate() {
                if depth > 0 {
                    line.push(';');
                }
                line.push_str(&self.name(*frame));
                if size_bytes.saturating_add(line.len()) > limit_bytes {
                    return None;
                }
            }
            line.push_str(&format!(" {value}"));
            size_bytes = size_bytes.saturating_add(line.len());
            lines.push(line);
        }
        Some(lines)
    }

    /// Returns a frame's text; a `;` in it would be taken for a separator.
    ///
    /// Made anew each time: a table of all texts could be far larger than the profile.
    fn name(&self, frame: usize) -> String {
        self.profile.show(self.table.frame(frame)).to_string().replace(';', ":")
    }
}

/// Returns the place of each frame in the order of the frames' texts.
fn ranks(profile: &CheckedProfile, table: &FrameTable) -> Vec<usize> {
    let mut order: Vec<_> = table.frames.iter().copied().enumerate().collect();
    order.sort_unstable_by(|(_, a), (_, b)| profile.compare(*a, *b));
    let mut ranked: Vec<_> = order.into_iter().map(|(frame, _)| frame).enumerate().collect();
    ranked.sort_unstable_by_key(|&(_, frame)| frame);
    ranked.into_iter().map(|(rank, _)| rank).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::fixture;

    fn folded(profile: &CheckedProfile, granularity: Granularity) -> String {
        let mut text = Vec::new();
        FoldedStacks::new(profile, 0, granularity).write(&mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn equal_stacks_are_one_line_and_lines_are_sorted() {
        let profile = fixture::stacks(&[("main;z:1", 1), ("main;a;b", 5), ("main;z:2", 2), ("gone", 0)]);
        assert_eq!(folded(&profile, Granularity::Functions), "main;a;b 5\nmain;z 3\n");
        assert_eq!(
            folded(&profile, Granularity::Lines),
            "main main.c;a a.c;b b.c 5\nmain main.c;z z.c:1 1\nmain main.c;z z.c:2 2\n"
        );
    }

    #[test]
    fn inlined_frames_stand_below_their_callers() {
        let profile = fixture::stacks(&[("main;push<parse;grow", 1)]);
        assert_eq!(folded(&profile, Granularity::Functions), "main;parse;push;grow 1\n");
    }

    #[test]
    fn what_shrank_is_not_drawn() {
        let profile = fixture::stacks(&[("a", -1), ("b", 1)]);
        let folded = FoldedStacks::new(&profile, 0, Granularity::Functions);
        assert_eq!(folded.positive_lines(1000).unwrap(), ["b 1"]);
        assert_eq!(folded.positive_lines(0), None);
    }
}
