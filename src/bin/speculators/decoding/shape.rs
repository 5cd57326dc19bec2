//! What is proposed in each round: a chain, or a tree.

use super::Sampling;
use serde_json::{Value, json};
use speculators::model::Model;
use speculators::session::{CHILDREN_MAX, TreeLimits, TreeShape};
use speculators::tree::{Limits, NODES_MAX, Topology};
use std::str::FromStr;

/// Levels of a dynamic tree, and nodes that are looked at below each and expanded on each level, where the
/// command line does not say: what EAGLE-2 takes of few nodes.
const DEPTH: usize = 8;
const WIDTH: usize = 4;

/// A tree as the command line names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TreeArgument {
    /// The most probable tokens below each node, in a tree of this many nodes that is always the same.
    Static(usize),
    /// The same tree of tokens that are drawn.
    Stochastic(usize),
    /// Whatever tree of so many nodes is the most probable.
    Dynamic { nodes: usize, depth: usize, width: usize },
}

impl FromStr for TreeArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(':');
        let kind = parts.next().unwrap_or_default();
        let numbers: Vec<usize> = parts
            .map(|part| {
                let number = part.parse().ok().filter(|number| (1..=NODES_MAX).contains(number));
                number.ok_or(format!("{part}: expected a number from 1 to {NODES_MAX}"))
            })
            .collect::<Result<_, _>>()?;
        match (kind, numbers[..].first().filter(|&&nodes| nodes > 1), &numbers[..]) {
            ("static", Some(&nodes), [_]) => Ok(Self::Static(nodes)),
            ("stochastic", Some(&nodes), [_]) => Ok(Self::Stochastic(nodes)),
            ("dynamic", Some(&nodes), rest) if rest.len() <= 3 => Ok(Self::Dynamic {
                nodes,
                // More levels or nodes of a level than the tree has nodes change nothing.
                depth: rest.get(1).copied().unwrap_or(DEPTH).min(nodes - 1),
                width: rest.get(2).copied().unwrap_or(WIDTH).min(nodes - 1).min(CHILDREN_MAX),
            }),
            _ => Err(
                "expected static:NODES, stochastic:NODES or dynamic:NODES[:DEPTH[:WIDTH]], with \
                      2 nodes at least, the root among them"
                    .into(),
            ),
        }
    }
}

/// What is proposed in each round.
#[derive(Clone, Debug)]
pub enum Shape {
    /// So many tokens, one behind the other.
    Chain(usize),
    /// A tree that is always the same.
    Fixed { topology: Box<Topology>, is_drawn: bool },
    /// A tree that depends on what is probable.
    Dynamic { nodes: usize, depth: usize, width: usize },
}

impl Shape {
    /// The tree that the command line names, as far as the speculator drafts levels.
    pub fn of(tree: TreeArgument, model: &Model) -> Self {
        let levels = model.most_levels().unwrap_or(usize::MAX);
        match tree {
            TreeArgument::Static(nodes) => {
                Self::Fixed { topology: Box::new(likely_tree(nodes, levels)), is_drawn: false }
            }
            TreeArgument::Stochastic(nodes) => {
                Self::Fixed { topology: Box::new(likely_tree(nodes, levels)), is_drawn: true }
            }
            TreeArgument::Dynamic { nodes, depth, width } => {
                let depth = depth.min(levels);
                let candidates = TreeLimits { width, depth }.candidates();
                Self::Dynamic { nodes: nodes.min(candidates + 1), depth, width }
            }
        }
    }

    /// The most drafts of a round.
    pub fn drafts(&self) -> usize {
        match self {
            Self::Chain(drafts) => *drafts,
            Self::Fixed { topology, .. } => topology.num_nodes() - 1,
            Self::Dynamic { nodes, .. } => nodes - 1,
        }
    }

    /// Whether drafts are drawn by the drafter's law, so that verification can go by it.
    pub fn is_drawn(&self) -> bool {
        matches!(self, Self::Chain(_) | Self::Fixed { is_drawn: true, .. })
    }

    /// Whether a text with such drafts is the one without them, and not only one of the same law.
    pub fn follows(&self, sampling: &Sampling) -> bool {
        sampling.is_greedy() || !self.is_drawn()
    }

    /// Levels and width of its trees, if it has any.
    pub fn tree_size(&self) -> Option<(usize, usize)> {
        match self {
            Self::Chain(_) => None,
            Self::Fixed { topology, .. } => {
                let widest = (0..=topology.levels()).map(|depth| topology.level(depth).len()).max();
                Some((topology.levels(), widest.unwrap_or(1)))
            }
            Self::Dynamic { depth, width, .. } => Some((*depth, *width)),
        }
    }

    /// For a session's call.
    pub fn of_call(&self) -> Option<TreeShape<'_>> {
        match self {
            Self::Chain(_) => None,
            Self::Fixed { topology, is_drawn } => {
                Some(TreeShape::Fixed { topology, is_drawn: *is_drawn })
            }
            &Self::Dynamic { nodes, depth, width } => {
                Some(TreeShape::Dynamic { nodes, depth, width })
            }
        }
    }

    /// For people.
    pub fn name(&self) -> String {
        match self {
            Self::Chain(drafts) => format!("chain of {drafts}"),
            Self::Fixed { topology, is_drawn } => {
                let kind = if *is_drawn { "stochastic" } else { "static" };
                format!("{kind} tree of {}", topology.num_nodes())
            }
            &Self::Dynamic { nodes, depth, width } => {
                let usual = (DEPTH.min(nodes - 1), WIDTH.min(nodes - 1));
                match (depth, width) == usual {
                    true => format!("dynamic tree of {nodes}"),
                    false => format!("dynamic tree of {nodes}:{depth}:{width}"),
                }
            }
        }
    }

    /// For programs.
    pub fn json(&self) -> Value {
        match self {
            Self::Chain(drafts) => json!({"kind": "chain", "drafts": drafts}),
            Self::Fixed { topology, is_drawn } => json!({
                "kind": if *is_drawn { "stochastic" } else { "static" },
                "drafts": self.drafts(),
                "parents": topology.parents(),
            }),
            Self::Dynamic { depth, width, .. } => json!({
                "kind": "dynamic", "drafts": self.drafts(), "depth": depth, "width": width,
            }),
        }
    }
}

/// How probably the most probable token of a drafter is what the target says, the second one, and so on:
/// typical of trained speculators. Only the order that follows of it matters.
const LIKELY: [f64; 8] = [0.65, 0.12, 0.05, 0.03, 0.02, 0.015, 0.01, 0.01];

/// The tree of so many nodes that is most accepted from on average, if children are accepted by [`LIKELY`],
/// whatever was accepted before (Chen et al., 2024, "Sequoia: Scalable and Robust Speculative Decoding").
fn likely_tree(nodes: usize, levels: usize) -> Topology {
    // Each node: its parent, its rank, its depth, and how probably it is reached.
    let mut chosen: Vec<(usize, usize, usize, f64)> = vec![(0, 0, 0, 1.0)];
    let mut open: Vec<(usize, usize, usize, f64)> = Vec::new();
    let mut newest = 0;
    while chosen.len() < nodes {
        let (parent, rank, depth, likely) = chosen[newest];
        if depth < levels {
            open.push((newest, 0, depth + 1, likely * LIKELY[0]));
        }
        if newest > 0 && rank + 1 < LIKELY.len() {
            open.push((parent, rank + 1, depth, likely / LIKELY[rank] * LIKELY[rank + 1]));
        }
        let best = (0..open.len()).max_by(|&a, &b| open[a].3.total_cmp(&open[b].3));
        let Some(best) = best else { break };
        newest = chosen.len();
        chosen.push(open.swap_remove(best));
    }
    by_level(&chosen)
}

/// A tree of nodes that come after their parents, in the order of their levels.
fn by_level(nodes: &[(usize, usize, usize, f64)]) -> Topology {
    let mut order: Vec<usize> = (0..nodes.len()).collect();
    order.sort_by_key(|&node| nodes[node].2);
    let mut places = vec![0; nodes.len()];
    order.iter().enumerate().for_each(|(place, &node)| places[node] = place);
    let parents: Vec<i32> = order
        .iter()
        .map(|&node| if node == 0 { -1 } else { places[nodes[node].0] as i32 })
        .collect();
    // Every node stands behind its parent.
    Topology::from_parents(&parents, &Limits::LARGEST).unwrap_or(Topology::ROOT)
}
