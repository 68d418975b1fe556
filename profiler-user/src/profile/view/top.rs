//! The functions or lines that allocate most, as `go tool pprof -top` has them.

use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet},
};

use super::{
    FrameTable, Granularity, cutoff,
    graph::{Graph, Node},
    total,
};
use crate::profile::{checked::CheckedProfile, frame::Frame};

/// Calls below this part of the total do not decide whether a function counts as inlined, unless
/// nothing is left out.
const EDGE_FRACTION: f64 = 0.001;

/// What is left out of a view.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    /// The number of rows; 0 for all.
    pub max_rows: usize,
    /// The part of the total that a row must reach.
    pub min_fraction: f64,
}

impl Default for Cut {
    /// Returns pprof's defaults.
    fn default() -> Self {
        Self { max_rows: 0, min_fraction: 0.005 }
    }
}

impl Cut {
    /// Leaves nothing out.
    pub const NONE: Self = Self { max_rows: 0, min_fraction: 0.0 };
}

/// Whether a function's calls were inlined into the callers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inlined {
    /// None was.
    Never,
    /// Some were.
    Partly,
    /// All were.
    Always,
}

/// One function or line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// The function or line.
    pub frame: Frame,
    /// What it allocated itself.
    pub flat: i64,
    /// What it and all it called allocated.
    pub cum: i64,
    /// Whether it was inlined.
    pub inlined: Inlined,
}

/// The rows that are shown, and what is needed to say what is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Top {
    /// The largest `flat` first.
    pub rows: Vec<Row>,
    /// What percentages refer to: see [`total`].
    pub total: i64,
    /// The number of rows left out because they were small.
    pub dropped_rows: usize,
    /// How small, in the values' unit.
    pub dropped_below: i64,
    /// The number of rows there would be without a limit on it.
    pub rows_without_limit: usize,
}

/// Returns the functions or lines that allocate most.
pub fn top(profile: &CheckedProfile, sample_index: usize, granularity: Granularity, cut: Cut) -> Top {
    let table = FrameTable::new(profile, granularity);
    let build = |kept: Option<&HashSet<usize>>| Graph::new(profile, &table, sample_index, kept);
    let mut graph = build(None);
    let (all_rows, flat_sum) = (graph.nodes.len(), graph.flat_sum());

    let smallest = cutoff(flat_sum, cut.min_fraction);
    let large = |node: &Node| node.cum.saturating_abs() >= smallest;
    let kept: HashSet<_> =
        graph.nodes.iter().filter(|(_, node)| large(node)).map(|(&frame, _)| frame).collect();
    let dropped_rows = all_rows.saturating_sub(kept.len());
    if dropped_rows > 0 {
        graph = build(Some(&kept));
    }

    let rows_without_limit = graph.nodes.len();
    let mut order = sorted(profile, &table, &graph);
    if cut.max_rows > 0 && order.len() > cut.max_rows {
        order.truncate(cut.max_rows);
        graph = build(Some(&order.iter().copied().collect()));
    }

    let edge_fraction = EDGE_FRACTION.min(cut.min_fraction);
    let inlined = inlined(&graph, cutoff(flat_sum, edge_fraction));
    let rows = order.iter().filter_map(|frame| {
        let Node { flat, cum } = *graph.nodes.get(frame)?;
        let inlined = inlined.get(frame).copied().unwrap_or(Inlined::Never);
        Some(Row { frame: table.frame(*frame), flat, cum, inlined })
    });
    let total = total(profile, sample_index);
    let rows = rows.collect();
    Top { rows, total, dropped_rows, dropped_below: cutoff(total, cut.min_fraction), rows_without_limit }
}

/// Returns the frames, the largest `flat` first, then by name, then the largest `cum`.
fn sorted(profile: &CheckedProfile, table: &FrameTable, graph: &Graph) -> Vec<usize> {
    let mut order: Vec<_> = graph.nodes.iter().map(|(&frame, node)| (frame, *node)).collect();
    order.sort_unstable_by(|(a, x), (b, y)| {
        let by_size = Reverse(x.flat.saturating_abs()).cmp(&Reverse(y.flat.saturating_abs()));
        by_size.then_with(|| profile.compare(table.frame(*a), table.frame(*b)))
    });
    order.into_iter().map(|(frame, _)| frame).collect()
}

fn inlined(graph: &Graph, smallest: i64) -> HashMap<usize, Inlined> {
    let mut inlined = HashMap::new();
    for (&(_, callee), edge) in &graph.edges {
        if edge.weight.saturating_abs() < smallest {
            continue;
        }
        let this = if edge.inlined { Inlined::Always } else { Inlined::Never };
        inlined
            .entry(callee)
            .and_modify(|all| {
                if *all != this {
                    *all = Inlined::Partly;
                }
            })
            .or_insert(this);
    }
    inlined
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::fixture;

    /// Returns rows as `name flat cum`.
    fn rows(profile: &CheckedProfile, granularity: Granularity, cut: Cut) -> Vec<String> {
        let top = top(profile, 0, granularity, cut);
        let show = |row: &Row| format!("{} {} {}", profile.show(row.frame), row.flat, row.cum);
        top.rows.iter().map(show).collect()
    }

    #[test]
    fn flat_belongs_to_the_leaf_and_cum_to_all_above() {
        let profile = fixture::stacks(&[("main;parse;grow", 70), ("main;parse", 20), ("main;log", 10)]);
        assert_eq!(
            rows(&profile, Granularity::Functions, Cut::NONE),
            ["grow 70 70", "parse 20 90", "log 10 10", "main 0 100"]
        );
    }

    #[test]
    fn a_recursion_counts_once() {
        let profile = fixture::stacks(&[("main;walk;walk;visit;walk", 5)]);
        assert_eq!(rows(&profile, Granularity::Functions, Cut::NONE), ["walk 5 5", "main 0 5", "visit 0 5"]);
    }

    #[test]
    fn lines_of_one_function_are_told_apart() {
        let profile = fixture::stacks(&[("main:3;parse:7", 5), ("main:4;parse:7", 1), ("main:3;parse:9", 1)]);
        assert_eq!(
            rows(&profile, Granularity::Lines, Cut::NONE),
            ["parse parse.c:7 6 6", "parse parse.c:9 1 1", "main main.c:3 0 6", "main main.c:4 0 1"]
        );
    }

    #[test]
    fn inlined_functions_have_rows_and_are_marked() {
        let profile = fixture::stacks(&[("main;push<parse", 6), ("main;push", 4), ("main;get<read", 1)]);
        let top = top(&profile, 0, Granularity::Functions, Cut::NONE);
        let inlined = |name: &str| {
            let row = top.rows.iter().find(|row| profile.show(row.frame).to_string() == name);
            row.map(|row| (row.flat, row.cum, row.inlined)).unwrap()
        };
        assert_eq!(inlined("push"), (10, 10, Inlined::Partly));
        assert_eq!(inlined("get"), (1, 1, Inlined::Always));
        assert_eq!(inlined("parse"), (0, 6, Inlined::Never));
    }

    #[test]
    fn a_difference_is_sorted_by_size_and_counted_by_size() {
        let profile = fixture::stacks(&[("main;grew", 30), ("main;shrank", -70)]);
        assert_eq!(
            rows(&profile, Granularity::Functions, Cut::NONE),
            ["shrank -70 -70", "grew 30 30", "main 0 -40"]
        );
        assert_eq!(total(&profile, 0), 100);
    }

    #[test]
    fn small_rows_are_left_out_and_counted() {
        let profile = fixture::stacks(&[("main;big", 990), ("main;mid", 6), ("main;small", 4)]);
        let top = top(&profile, 0, Granularity::Functions, Cut::default());
        assert_eq!((top.dropped_rows, top.dropped_below, top.rows_without_limit), (1, 5, 3));
        let cut = Cut { max_rows: 1, ..Cut::default() };
        assert_eq!(rows(&profile, Granularity::Functions, cut), ["big 990 990"]);
    }
}
