//! The call graph: for every frame what was allocated in it and below it, and who called it.
//!
//! Counted as in pprof (`newGraph` in its `internal/graph/graph.go`).

use std::collections::{HashMap, HashSet};

use super::{FrameTable, value};
use crate::profile::checked::CheckedProfile;

/// The values of one frame.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Node {
    /// What was allocated by the frame itself.
    pub(super) flat: i64,
    /// What was allocated by the frame and by all it called.
    pub(super) cum: i64,
}

/// A call from one frame to another.
#[derive(Debug, Clone, Copy)]
pub(super) struct Edge {
    /// What was allocated below the call.
    pub(super) weight: i64,
    /// Whether all such calls were inlined.
    pub(super) inlined: bool,
}

/// The frames of one profile with their values, by frame number.
#[derive(Debug, Default)]
pub(super) struct Graph {
    pub(super) nodes: HashMap<usize, Node>,
    /// By caller and callee.
    pub(super) edges: HashMap<(usize, usize), Edge>,
}

impl Graph {
    /// Returns the graph of the frames in `kept`, or of all.
    ///
    /// What a frame that is not kept allocated itself is nobody's: its caller did not allocate it.
    pub(super) fn new(
        profile: &CheckedProfile,
        table: &FrameTable,
        sample_index: usize,
        kept: Option<&HashSet<usize>>,
    ) -> Self {
        let mut graph = Self::default();
        let mut seen_nodes = HashSet::new();
        let mut seen_edges = HashSet::new();
        for sample in &profile.proto().sample {
            let value = value(sample, sample_index);
            if value == 0 {
                continue;
            }
            seen_nodes.clear();
            seen_edges.clear();
            let mut parent = None;
            let mut leaf = None;
            for (frame, inlined) in table.stack(sample) {
                if kept.is_some_and(|kept| !kept.contains(&frame)) {
                    leaf = None;
                    continue;
                }
                // A function that calls itself counts once.
                if seen_nodes.insert(frame) {
                    let node = graph.nodes.entry(frame).or_default();
                    node.cum = node.cum.saturating_add(value);
                }
                if let Some(parent) = parent
                    && parent != frame
                    && seen_edges.insert((parent, frame))
                {
                    graph.add_edge((parent, frame), value, inlined);
                }
                parent = Some(frame);
                leaf = parent;
            }
            if let Some(node) = leaf.and_then(|leaf| graph.nodes.get_mut(&leaf)) {
                node.flat = node.flat.saturating_add(value);
            }
        }
        // In a difference a frame may have ended where it began.
        graph.nodes.retain(|_, node| node.flat != 0 || node.cum != 0);
        graph
    }

    /// Returns the sum of what the frames themselves allocated.
    pub(super) fn flat_sum(&self) -> i64 {
        self.nodes.values().map(|node| node.flat).fold(0, i64::saturating_add)
    }

    fn add_edge(&mut self, call: (usize, usize), value: i64, inlined: bool) {
        let edge = self.edges.entry(call).or_insert(Edge { weight: 0, inlined: true });
        edge.weight = edge.weight.saturating_add(value);
        edge.inlined &= inlined;
    }
}
