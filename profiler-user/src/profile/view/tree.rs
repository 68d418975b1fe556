//! The call tree: who called whom, from the program's start down to the allocations.

use std::{cmp::Reverse, collections::HashMap};

use super::{FrameTable, Granularity, cutoff, total, value};
use crate::profile::{checked::CheckedProfile, frame::Frame};

/// A frame as it was called from one chain of callers.
#[derive(Debug, Clone)]
struct Node {
    frame: usize,
    flat: i64,
    cum: i64,
    children: Vec<usize>,
}

/// All chains of calls that ended in an allocation.
#[derive(Debug)]
pub struct CallTree {
    table: FrameTable,
    /// In the order in which they were met: a caller stands before what it called.
    nodes: Vec<Node>,
    roots: Vec<usize>,
    total: i64,
}

/// A line of the tree as it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// A call.
    Call {
        /// The number of callers above.
        depth: usize,
        /// What was called.
        frame: Frame,
        /// What it allocated itself, in this place.
        flat: i64,
        /// What it and all it called allocated, in this place.
        cum: i64,
    },
    /// Calls from one place that are too small to be shown.
    Hidden {
        /// The number of callers above.
        depth: usize,
        /// How many calls.
        calls: usize,
        /// What they and all they called allocated.
        cum: i64,
    },
}

impl CallTree {
    /// Returns the tree of one type of value.
    pub fn new(profile: &CheckedProfile, sample_index: usize, granularity: Granularity) -> Self {
        let table = FrameTable::new(profile, granularity);
        let mut nodes: Vec<Node> = Vec::new();
        let mut roots = Vec::new();
        let mut by_call: HashMap<(Option<usize>, usize), usize> = HashMap::new();
        for sample in &profile.proto().sample {
            let value = value(sample, sample_index);
            if value == 0 {
                continue;
            }
            let mut parent: Option<usize> = None;
            for (frame, _) in table.stack(sample) {
                let next = nodes.len();
                let this = *by_call.entry((parent, frame)).or_insert(next);
                if this == next {
                    nodes.push(Node { frame, flat: 0, cum: 0, children: Vec::new() });
                    match parent.and_then(|parent| nodes.get_mut(parent)) {
                        Some(parent) => parent.children.push(this),
                        None => roots.push(this),
                    }
                }
                if let Some(node) = nodes.get_mut(this) {
                    node.cum = node.cum.saturating_add(value);
                }
                parent = Some(this);
            }
            if let Some(leaf) = parent.and_then(|leaf| nodes.get_mut(leaf)) {
                leaf.flat = leaf.flat.saturating_add(value);
            }
        }
        Self { table, nodes, roots, total: total(profile, sample_index) }
    }

    /// Returns what percentages refer to: see [`total`].
    pub fn total(&self) -> i64 {
        self.total
    }

    /// Returns the lines from top to bottom: the largest calls first, the small ones summed up.
    ///
    /// A call is small if it is below `min_fraction` of the total.
    pub fn lines(&self, profile: &CheckedProfile, min_fraction: f64) -> Vec<Line> {
        let smallest = cutoff(self.total, min_fraction);
        let mut lines = Vec::new();
        // A stack of our own: the depth of a tree is what a file says it is.
        let mut pending = Vec::new();
        self.push_calls(profile, &self.roots, 0, smallest, &mut pending);
        while let Some((line, node)) = pending.pop() {
            lines.push(line);
            if let (Line::Call { depth, .. }, Some(node)) = (line, node.and_then(|node| self.nodes.get(node)))
            {
                self.push_calls(profile, &node.children, depth.saturating_add(1), smallest, &mut pending);
            }
        }
        lines
    }

    /// Adds the lines of some calls in reverse, since the last is taken first.
    fn push_calls(
        &self,
        profile: &CheckedProfile,
        calls: &[usize],
        depth: usize,
        smallest: i64,
        pending: &mut Vec<(Line, Option<usize>)>,
    ) {
        let calls = calls.iter().filter_map(|&at| Some((at, self.nodes.get(at)?)));
        let (mut shown, hidden): (Vec<_>, Vec<_>) =
            calls.partition(|(_, node)| node.cum.saturating_abs() >= smallest);
        if !hidden.is_empty() {
            let cum = hidden.iter().map(|(_, node)| node.cum).fold(0, i64::saturating_add);
            pending.push((Line::Hidden { depth, calls: hidden.len(), cum }, None));
        }
        shown.sort_unstable_by(|(_, a), (_, b)| {
            let by_size = Reverse(a.cum.saturating_abs()).cmp(&Reverse(b.cum.saturating_abs()));
            by_size.then_with(|| profile.compare(self.table.frame(a.frame), self.table.frame(b.frame)))
        });
        pending.extend(shown.into_iter().rev().map(|(at, node)| {
            let Node { frame, flat, cum, children: _ } = *node;
            (Line::Call { depth, frame: self.table.frame(frame), flat, cum }, Some(at))
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::fixture;

    fn lines(stacks: &[(&str, i64)], min_fraction: f64) -> Vec<String> {
        let profile = fixture::stacks(stacks);
        let tree = CallTree::new(&profile, 0, Granularity::Functions);
        let show = |line: &Line| match *line {
            Line::Call { depth, frame, flat, cum } => {
                format!("{}{} {flat} {cum}", "-".repeat(depth), profile.show(frame))
            }
            Line::Hidden { depth, calls, cum } => format!("{}({calls} hidden) {cum}", "-".repeat(depth)),
        };
        tree.lines(&profile, min_fraction).iter().map(show).collect()
    }

    #[test]
    fn callers_stand_above_what_they_call_and_large_calls_first() {
        assert_eq!(
            lines(&[("main;log", 10), ("main;parse;grow", 70), ("main;parse", 20), ("start", 5)], 0.0),
            ["main 0 100", "-parse 20 90", "--grow 70 70", "-log 10 10", "start 5 5"]
        );
    }

    #[test]
    fn small_calls_are_summed_up_in_their_place() {
        assert_eq!(
            lines(&[("main;parse;grow", 90), ("main;a", 4), ("main;b;c", 3), ("x", 3)], 0.05),
            ["main 0 97", "-parse 0 90", "--grow 90 90", "-(2 hidden) 7", "(1 hidden) 3"]
        );
    }

    #[test]
    fn a_recursion_is_shown_as_deep_as_it_was() {
        assert_eq!(lines(&[("walk;walk", 4), ("walk", 1)], 0.0), ["walk 1 5", "-walk 4 4"]);
    }

    #[test]
    fn a_very_deep_stack_is_no_danger() {
        let stack = vec!["f"; 100_000].join(";");
        let profile = fixture::stacks(&[(stack.as_str(), 1)]);
        let tree = CallTree::new(&profile, 0, Granularity::Functions);
        assert_eq!(tree.lines(&profile, 0.0).len(), 100_000);
    }
}
