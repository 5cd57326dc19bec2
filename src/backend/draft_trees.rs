//! The plain data of the phases that draft trees. The rows of a level of all trees are one run of the
//! network: as many for each drafting sequence, in the order of the drafting rows. Each row has a law, the
//! logits that its children are chosen from; where a law does not depend on the path, the rows of a level of
//! a tree share one.

use super::phases::{DraftBatch, Plan, Rows};
use crate::tensor::{Matrix, Span};
use crate::tree::{Inner, Topology};

/// The most children of a node.
pub const CHILDREN_MAX: usize = 256;

/// How many numbers of each node [`Plan::shape`] has room for.
pub const SHAPE_TABLES: usize = 7;

/// What trees a call drafts, the same for all sequences.
#[derive(Clone, Copy, Debug)]
pub enum TreeShape<'a> {
    /// A tree by level that is given.
    Fixed {
        /// The tree.
        topology: &'a Topology,
        /// Whether siblings are drawn one after the other, without replacement, where a sequence does
        /// not sample greedily; otherwise they are the most probable tokens.
        is_drawn: bool,
    },
    /// EAGLE-2 (Li et al., 2024, "EAGLE-2: Faster Inference of Language Models with Dynamic Draft
    /// Trees"): of all candidates those that are reached with the largest probability.
    Dynamic {
        /// Nodes of a tree, the root among them.
        nodes: usize,
        /// Levels below the root.
        depth: usize,
        /// Children of a node that are looked at, and nodes of a level that are expanded.
        width: usize,
    },
}

impl TreeShape<'_> {
    /// How many drafts lie no deeper than this, at most.
    pub fn drafts_within(&self, depth: usize) -> usize {
        match self {
            Self::Fixed { topology, .. } => {
                topology.depth().partition_point(|&other| other as usize <= depth) - 1
            }
            Self::Dynamic { nodes, .. } => {
                if depth > 0 {
                    nodes - 1
                } else {
                    0
                }
            }
        }
    }
}

/// The keys and values of the rows of trees, which never enter the pool: each row has a slot. What a row
/// sees of its tree is its own path, which continues the positions of the context.
#[derive(Clone, Copy, Debug)]
pub struct TreeKv {
    /// Pages like those of the pool, all layers, whose places are the slots.
    pub pages: Matrix,
    /// For each row the slots of the nodes from below the root to itself, `depth` of them.
    pub paths: Span<i32>,
    /// Elements from one row's path to the next.
    pub stride: usize,
    /// Edges from the root to the rows' nodes.
    pub depth: usize,
}

/// The rows of a level of all trees.
#[derive(Clone, Copy, Debug)]
pub struct TreeLevel {
    /// The rows. Where the level is laid out, `source` becomes the place of the parent's row among those of
    /// the level above.
    pub rows: Rows,
    /// Rows of each tree.
    pub width: usize,
    /// Rows that share a law, one after the other: 1, or all of a tree.
    pub shared: usize,
    /// Edges from the root to their nodes.
    pub depth: usize,
    /// As [`TreeKv`] says; none for the roots.
    pub paths: Span<i32>,
    /// Elements from one row's path to the next. 0: rows have no keys and values, and no paths.
    pub stride: usize,
    /// Slots of each tree.
    pub slots: usize,
    /// The slot of a tree's first row of the level, among its own.
    pub first_slot: usize,
}

impl TreeLevel {
    /// The slot of a tree's row among all slots.
    pub fn slot(&self, tree: usize, row: usize) -> usize {
        tree * self.slots + self.first_slot + row
    }

    /// The law of a row.
    pub fn law(&self, row: usize) -> usize {
        row / self.shared
    }

    /// The most laws of the level.
    pub fn laws(&self) -> usize {
        self.rows.len() / self.shared
    }
}

/// The level of a tree whose shape is given: its rows are the nodes with children.
#[derive(Clone, Copy, Debug)]
pub struct FixedLevel<'a> {
    /// The rows.
    pub level: TreeLevel,
    /// The tree.
    pub inner: &'a Inner<'a>,
    /// The call.
    pub batch: DraftBatch<'a>,
    /// Its rows.
    pub plan: Plan,
}

impl FixedLevel<'_> {
    /// The node of a row.
    pub fn node(&self, row: usize) -> usize {
        self.inner.node(self.inner.level(self.level.depth).start + row % self.level.width)
    }
}

/// What tokens the columns of laws are: those of a table.
#[derive(Clone, Copy, Debug)]
pub struct ColumnTokens {
    /// The tables.
    pub ids: Span<i32>,
    /// Elements from one table to the next; 0: there is one, for all laws.
    pub stride: usize,
    /// Laws that share a table, one after the other.
    pub laws: usize,
}

impl ColumnTokens {
    /// One table for all laws.
    pub fn of_all(ids: Span<i32>) -> Self {
        Self { ids, stride: 0, laws: 1 }
    }

    /// Where the table of a law begins.
    pub fn table(&self, law: usize) -> usize {
        law / self.laws * self.stride
    }
}

/// Gives the host the logits of each row whose node has children, and rounds them as the host gets them;
/// where laws have candidates of their own, their ids as well. Each only if it is wanted.
#[derive(Clone, Copy, Debug)]
pub struct TellLogits<'a> {
    /// The level.
    pub level: FixedLevel<'a>,
    /// `[laws, columns]`.
    pub logits: Matrix,
    /// What the columns are, if these are candidates.
    pub candidates: Option<ColumnTokens>,
}

/// What tokens the children of the rows of each law are: the columns with the largest logits and these
/// logits, as [`super::block_heads::SelectCandidates`] says.
#[derive(Clone, Copy, Debug)]
pub struct ChildTokens {
    /// `[laws, count]`.
    pub ids: Span<i32>,
    /// `[laws, count]`; -inf is no candidate.
    pub values: Matrix,
    /// The target's ids of the columns; `None` is the identity.
    pub tokens: Option<ColumnTokens>,
}

impl ChildTokens {
    /// How many each law has.
    pub fn count(&self) -> usize {
        self.values.columns
    }
}

/// Draws the children of each row of a sequence that does not sample greedily, one after the other without
/// replacement, in place of the most probable tokens. Where no candidate is left, the logit is -inf. Rows
/// with one law have the same children, as far as each has any: a path has one of the rows, so that what is
/// drawn along it is independent all the same.
#[derive(Clone, Copy, Debug)]
pub struct DrawSiblings<'a> {
    /// The level.
    pub level: FixedLevel<'a>,
    /// `[laws, columns]`.
    pub logits: Matrix,
    /// The children, written.
    pub children: ChildTokens,
    /// Positions from a row to its children.
    pub distance: usize,
    /// Scratch of [`super::Backend::proposal_scratch`] bytes, prepared.
    pub scratch: Span<u8>,
}

/// Proposes the children of each row, and lays out the rows of the next level. A child for whose rank there
/// is no candidate is -1, and so is what is below it; but the first child is column 0 in this case, as in
/// a chain.
#[derive(Clone, Copy, Debug)]
pub struct BranchRows<'a> {
    /// The level.
    pub level: FixedLevel<'a>,
    /// The children.
    pub children: ChildTokens,
    /// The next level, written, its count as well; its rows go with a token 0 where there is none.
    pub next: Option<TreeLevel>,
}

/// The candidates of dynamic trees, for each tree `stride` of them: first the children of the root, then
/// level by level those of the expanded nodes, `width` of each.
#[derive(Clone, Copy, Debug)]
pub struct CandidatePool {
    /// Children of a node that are looked at, and nodes of a level that are expanded.
    pub width: usize,
    /// Candidates of a tree that there is room for.
    pub stride: usize,
    /// The token of each candidate.
    pub tokens: Span<i32>,
    /// The logarithm of the probability with which it is reached, to base 2; -inf is no candidate.
    pub scores: Span<f32>,
    /// Which candidate the node of each slot is, among those of its tree.
    pub expanded: Span<i32>,
    /// Scratch for the order of the candidates.
    pub order: Span<i32>,
    /// Scratch for the best ones, `[trees, width]`.
    pub best: Matrix,
}

impl CandidatePool {
    /// Where the candidates of a depth, at least 1, begin among those of their tree.
    pub fn first(&self, depth: usize) -> usize {
        match depth {
            1 => 0,
            _ => self.width + (depth - 2) * self.width * self.width,
        }
    }

    /// How many candidates of a depth there are.
    pub fn len(&self, depth: usize) -> usize {
        if depth == 1 { self.width } else { self.width * self.width }
    }
}

/// A level of dynamic trees.
#[derive(Clone, Copy, Debug)]
pub struct DynamicLevel<'a> {
    /// The rows.
    pub level: TreeLevel,
    /// The candidates.
    pub pool: CandidatePool,
    /// The call.
    pub batch: DraftBatch<'a>,
    /// Its rows.
    pub plan: Plan,
}

/// Puts the children of each row among the candidates: a child's score is that of its parent and the
/// logarithm of its probability after its logits. The sum of the weights at temperature 1 is an integer,
/// and what follows is in single precision, step by step: so equal logits have equal scores everywhere.
#[derive(Clone, Copy, Debug)]
pub struct ScoreChildren<'a> {
    /// The level.
    pub level: DynamicLevel<'a>,
    /// `[laws, columns]`.
    pub logits: Matrix,
    /// The children.
    pub children: ChildTokens,
    /// Scratch of [`super::Backend::proposal_scratch`] bytes, prepared.
    pub scratch: Span<u8>,
}

/// Lays out the next level: the best candidates below this one, the best first, of equal ones the first.
#[derive(Clone, Copy, Debug)]
pub struct ExpandBest<'a> {
    /// The level.
    pub level: DynamicLevel<'a>,
    /// The next one, written, its count as well.
    pub next: TreeLevel,
}

/// Makes the trees: of all candidates the best, as many as a sequence proposes, of equal ones the first, in
/// the order of their levels. Writes proposals, their number and the trees.
#[derive(Clone, Copy, Debug)]
pub struct RankCandidates<'a> {
    /// The last level that was scored.
    pub level: DynamicLevel<'a>,
}

/// Tells the host the trees of all sequences, as far as their proposals reach: a chain, or what the call's
/// shape says; of dynamic trees only the roots. What lies beyond is -1.
#[derive(Clone, Copy, Debug)]
pub struct DescribeTree<'a> {
    /// The call.
    pub batch: DraftBatch<'a>,
    /// Its rows.
    pub plan: Plan,
}
