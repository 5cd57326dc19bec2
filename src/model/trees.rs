//! What networks that draft one token after the other need for trees: memory for the rows of a level, and
//! for keys and values that never enter the pool.

use super::decoder::{Decoder, RowLimits, Step};
use super::heads::Heads;
use super::sequential::Sequential;
use crate::backend::block_heads::SelectCandidates;
use crate::backend::draft_trees::{CHILDREN_MAX, CandidatePool, ChildTokens, TreeKv, TreeLevel};
use crate::backend::phases::{Gather, KvPool, OwnKv, Rows};
use crate::error::Result;
use crate::tensor::{Carver, Dtype, Matrix, Span};

/// How large the trees of a session may be.
#[derive(Clone, Copy, Debug)]
pub struct TreeLimits {
    /// Nodes of a level that are run.
    pub width: usize,
    /// Levels below the root.
    pub depth: usize,
}

impl TreeLimits {
    /// Nodes of a tree that are run, the root apart: those of the last level never are.
    pub fn slots(&self) -> usize {
        self.width.saturating_mul(self.depth - 1)
    }

    /// Candidates of a dynamic tree with this width and depth.
    pub fn candidates(&self) -> usize {
        self.width.saturating_add(self.slots().saturating_mul(self.width))
    }
}

/// A session's memory for trees.
#[derive(Clone, Copy, Debug)]
pub struct TreeScratch {
    limits: TreeLimits,
    /// Levels take turns.
    levels: [LevelScratch; 2],
    /// The keys and values of all rows.
    pages: Matrix,
    /// The children of a level's rows, and their logits.
    ids: Span<i32>,
    values: Span<f32>,
    tokens: Span<i32>,
    scores: Span<f32>,
    expanded: Span<i32>,
    order: Span<i32>,
    best: Span<f32>,
}

/// The rows of a level.
#[derive(Clone, Copy, Debug)]
struct LevelScratch {
    rows: Rows,
    hidden: Matrix,
    paths: Span<i32>,
}

impl TreeScratch {
    /// Cuts the memory, if the session drafts trees.
    pub(super) fn carve(
        carver: &mut Carver,
        pool: &KvPool,
        limits: &RowLimits,
        decoder: &Decoder,
    ) -> Option<Self> {
        let tree = limits.tree?;
        let rows = limits.draft_rows();
        let per_tree = |count: usize| limits.sequences.saturating_mul(count);
        let mut level = || LevelScratch {
            rows: Rows::carve(carver, rows),
            hidden: carver.matrix(Dtype::F32, rows, decoder.hidden_size()),
            paths: carver.span(rows.saturating_mul(tree.depth)),
        };
        let levels = [level(), level()];
        let pages = per_tree(tree.slots()).div_ceil(pool.page_size);
        let children = limits.drafts.max(tree.width).min(CHILDREN_MAX);
        let children = rows.saturating_mul(children.min(decoder.draft_vocabulary()));
        Some(Self {
            limits: tree,
            levels,
            pages: carver.matrix(pool.pages.dtype, pages, pool.pages.columns),
            ids: carver.span(children),
            values: carver.span(children),
            tokens: carver.span(per_tree(tree.candidates())),
            scores: carver.span(per_tree(tree.candidates())),
            expanded: carver.span(per_tree(tree.slots())),
            order: carver.span(per_tree(tree.candidates())),
            best: carver.span(rows),
        })
    }

    /// The candidates of dynamic trees of a width.
    fn pool(&self, trees: usize, width: usize) -> CandidatePool {
        CandidatePool {
            width,
            stride: self.limits.candidates(),
            tokens: self.tokens,
            scores: self.scores,
            expanded: self.expanded,
            order: self.order,
            best: compact(self.best, trees, width),
        }
    }
}

/// The beginning of a piece of memory as a matrix.
fn compact(span: Span<f32>, rows: usize, columns: usize) -> Matrix {
    let address = span.slice(0, rows * columns).address();
    Matrix { address, dtype: Dtype::F32, rows, columns, row_stride: columns }
}

/// A network that drafts one token after the other.
#[derive(Clone, Copy)]
pub enum Stepwise<'n> {
    /// The same network in each step.
    Sequential(&'n Sequential),
    /// A head for each step.
    Heads(&'n Heads),
}

/// The rows of a level that have passed the network.
#[derive(Clone, Copy)]
pub struct LevelRun<'a> {
    /// The call; its rows are the level's.
    pub step: Step<'a>,
    /// The level.
    pub level: TreeLevel,
    hidden: Matrix,
}

impl LevelRun<'_> {
    fn scratch(&self) -> &TreeScratch {
        let Some(scratch) = &self.step.scratch.tree else {
            unreachable!("calls that draft trees are refused by sessions without memory for them")
        };
        scratch
    }

    /// The logits of the rows, once the network has mapped them.
    pub fn logits(&self) -> Matrix {
        self.step.scratch.logits
    }

    /// Scratch of the phases that read logits, prepared.
    pub fn proposal_scratch(&self) -> Span<u8> {
        self.step.scratch.proposal_scratch
    }

    /// The next level, with so many rows of each tree, which lie from a slot on.
    pub fn next(&self, width: usize, first_slot: usize) -> TreeLevel {
        let scratch = self.scratch();
        let depth = self.level.depth + 1;
        let LevelScratch { rows, paths, .. } = scratch.levels[depth % 2];
        TreeLevel {
            rows: rows.slice(0, self.step.batch.num_sequences * width),
            width,
            depth,
            paths,
            stride: scratch.limits.depth,
            slots: scratch.limits.slots(),
            first_slot,
        }
    }

    /// The candidates of dynamic trees of a width.
    pub fn pool(&self, width: usize) -> CandidatePool {
        self.scratch().pool(self.step.batch.num_sequences, width)
    }
}

impl<'n> Stepwise<'n> {
    fn decoder(&self) -> &'n Decoder {
        match self {
            Self::Sequential(network) => &network.decoder,
            Self::Heads(network) => &network.decoder,
        }
    }

    /// Commits the step's rows.
    pub fn commit(&self, step: &Step<'_>) -> Result<()> {
        match self {
            Self::Sequential(network) => network.commit(step),
            Self::Heads(_) => Ok(()),
        }
    }

    /// Runs the roots: the step's rows, which are those that go on drafting.
    pub fn start<'a>(&self, step: Step<'a>) -> Result<LevelRun<'a>> {
        let none = Span::new(0, 0);
        let level = TreeLevel {
            rows: step.rows,
            width: 1,
            depth: 0,
            paths: none,
            stride: 0,
            slots: 0,
            first_slot: 0,
        };
        let mut run = LevelRun { step, level, hidden: step.scratch.draft_hidden };
        run.level.slots = run.scratch().limits.slots();
        match self {
            Self::Sequential(network) => network.continue_from_commit(&step)?,
            Self::Heads(network) => network.advance(&step, 0, run.hidden)?,
        }
        Ok(run)
    }

    /// Runs the next level, which was laid out.
    pub fn advance<'a>(&self, run: &LevelRun<'a>, next: TreeLevel) -> Result<LevelRun<'a>> {
        let scratch = run.scratch();
        let hidden = scratch.levels[next.depth % 2].hidden;
        let gather = Gather {
            rows: next.rows,
            from: run.hidden,
            first: 0,
            len: run.level.rows.len(),
            to: hidden,
        };
        run.step.backend.gather(run.step.stream, &gather)?;
        let kv = TreeKv {
            pages: scratch.pages,
            paths: next.paths,
            stride: next.stride,
            depth: next.depth,
        };
        let step = Step { rows: next.rows, own: Some(OwnKv::Tree(kv)), ..run.step };
        match self {
            Self::Sequential(network) => network.forward(&step, hidden)?,
            Self::Heads(network) => network.advance(&step, next.depth, hidden)?,
        }
        Ok(LevelRun { step, level: next, hidden })
    }

    /// Positions from a row to the tokens below it.
    pub fn distance(&self) -> usize {
        match self {
            Self::Sequential(network) => network.distance(),
            Self::Heads(_) => 2,
        }
    }

    /// Maps the rows to logits.
    pub fn map_to_logits(&self, run: &LevelRun<'_>) -> Result<()> {
        match self {
            Self::Sequential(network) => network.map_to_logits(&run.step, run.hidden),
            Self::Heads(network) => network.map_to_logits(&run.step, run.level.depth, run.hidden),
        }
    }

    /// Selects the most probable tokens below each row, at most so many.
    pub fn select(&self, run: &LevelRun<'_>, most: usize) -> Result<ChildTokens> {
        let (scratch, decoder) = (run.scratch(), self.decoder());
        let (rows, count) = (run.level.rows, most.min(decoder.draft_vocabulary()));
        let children = ChildTokens {
            ids: scratch.ids.slice(0, rows.len() * count),
            values: compact(scratch.values, rows.len(), count),
            target_ids: decoder.target_ids(),
        };
        let logits = run.logits();
        let select = SelectCandidates { rows, logits, ids: children.ids, values: children.values };
        run.step.backend.select_candidates(run.step.stream, &select)?;
        Ok(children)
    }
}
