//! How networks draft trees, level by level. Those that draft one token after the other run the rows of a
//! level, and need memory for keys and values that never enter the pool. A block runs once, and what it
//! tells of a slot is the law of all nodes of a depth, or what a head makes laws of.

use super::block::{Block, BlockRun};
use super::decoder::{Decoder, RowLimits, Step};
use super::heads::Heads;
use super::sequential::Sequential;
use crate::backend::block_heads::SelectCandidates;
use crate::backend::draft_trees::{
    CHILDREN_MAX, CandidatePool, ChildTokens, ColumnTokens, TreeKv, TreeLevel,
};
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
    /// Whether all rows of a level of a tree have the law of a slot.
    shares_laws: bool,
    /// Levels take turns.
    levels: [LevelScratch; 2],
    /// Elements from one row's path to the next; 0 where rows have no keys and values.
    stride: usize,
    /// The keys and values of all rows.
    pages: Matrix,
    /// The children below a level's laws, and their logits.
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
    /// Cuts the memory for rows that run through a decoder, if the session drafts trees.
    pub(super) fn carve(
        carver: &mut Carver,
        pool: &KvPool,
        limits: &RowLimits,
        decoder: &Decoder,
    ) -> Option<Self> {
        let tree = limits.tree?;
        let (width, laws) = (decoder.hidden_size(), limits.draft_rows());
        Some(Self::cut(carver, pool, (limits, tree), decoder, (width, tree.depth, laws)))
    }

    /// Cuts the memory for rows that have no keys and values, below blocks with so many slots. They may share
    /// the laws of these.
    pub(super) fn carve_of_blocks(
        carver: &mut Carver,
        pool: &KvPool,
        limits: &RowLimits,
        decoder: &Decoder,
        (slots, shares_laws): (usize, bool),
    ) -> Option<Self> {
        let tree = limits.tree?;
        let tree = TreeLimits { depth: tree.depth.min(slots), ..tree };
        let laws = if shares_laws { limits.sequences } else { limits.draft_rows() };
        let scratch = Self::cut(carver, pool, (limits, tree), decoder, (0, 0, laws));
        Some(Self { shares_laws, ..scratch })
    }

    /// Cuts memory for rows with hidden states and paths so wide, and so many laws.
    fn cut(
        carver: &mut Carver,
        pool: &KvPool,
        (limits, tree): (&RowLimits, TreeLimits),
        decoder: &Decoder,
        (width, stride, laws): (usize, usize, usize),
    ) -> Self {
        let rows = limits.draft_rows();
        let per_tree = |count: usize| limits.sequences.saturating_mul(count);
        let mut level = || LevelScratch {
            rows: Rows::carve(carver, rows),
            hidden: carver.matrix(Dtype::F32, rows, width),
            paths: carver.span(rows.saturating_mul(stride)),
        };
        let levels = [level(), level()];
        let slots = if stride == 0 { 0 } else { per_tree(tree.slots()) };
        let pages = slots.div_ceil(pool.page_size);
        let children = limits.drafts.max(tree.width).min(CHILDREN_MAX);
        let children = laws.saturating_mul(children.min(decoder.draft_vocabulary()));
        Self {
            limits: tree,
            shares_laws: false,
            levels,
            stride,
            pages: carver.matrix(pool.pages.dtype, pages, pool.pages.columns),
            ids: carver.span(children),
            values: carver.span(children),
            tokens: carver.span(per_tree(tree.candidates())),
            scores: carver.span(per_tree(tree.candidates())),
            expanded: carver.span(per_tree(tree.slots())),
            order: carver.span(per_tree(tree.candidates())),
            best: carver.span(rows),
        }
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
    Matrix::contiguous(span.slice(0, rows * columns).address(), rows, columns)
}

/// A network that tells below each node which tokens its children may be.
#[derive(Clone, Copy)]
pub enum Branching<'n> {
    /// The same network in each step.
    Sequential(&'n Sequential),
    /// A head for each step.
    Heads(&'n Heads),
    /// One pass for all levels.
    Block(&'n Block),
}

/// The rows of a level that have passed the network.
#[derive(Clone, Copy)]
pub struct LevelRun<'a> {
    /// The call; its rows are the level's.
    pub step: Step<'a>,
    /// The level.
    pub level: TreeLevel,
    hidden: Matrix,
    /// The pass that tells of all levels.
    block: Option<BlockRun<'a>>,
}

impl LevelRun<'_> {
    fn scratch(&self) -> &TreeScratch {
        let Some(scratch) = &self.step.scratch.tree else {
            unreachable!("calls that draft trees are refused by sessions without memory for them")
        };
        scratch
    }

    /// The logits of the level's laws, once the network has mapped them.
    pub fn logits(&self) -> Matrix {
        match &self.block {
            None => self.step.scratch.logits,
            Some(block) => block.level_logits(&self.level),
        }
    }

    /// What the columns of the logits are, if these are candidates.
    pub fn candidates(&self) -> Option<ColumnTokens> {
        self.block.as_ref().and_then(|block| block.level_candidates(&self.level))
    }

    /// As many rows as there are laws.
    fn law_rows(&self) -> Rows {
        match &self.block {
            Some(block) if self.scratch().shares_laws => block.step.rows,
            _ => self.level.rows,
        }
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
            shared: if scratch.shares_laws { width } else { 1 },
            depth,
            paths,
            stride: scratch.stride,
            slots: scratch.limits.slots(),
            first_slot,
        }
    }

    /// The candidates of dynamic trees of a width.
    pub fn pool(&self, width: usize) -> CandidatePool {
        self.scratch().pool(self.step.batch.num_sequences, width)
    }
}

impl<'n> Branching<'n> {
    fn decoder(&self) -> &'n Decoder {
        match self {
            Self::Sequential(network) => &network.decoder,
            Self::Heads(network) => &network.decoder,
            Self::Block(network) => &network.decoder,
        }
    }

    /// Commits the step's rows.
    pub fn commit(&self, step: &Step<'_>) -> Result<()> {
        match self {
            Self::Sequential(network) => network.commit(step),
            Self::Heads(_) => Ok(()),
            Self::Block(network) => network.commit(step),
        }
    }

    /// Runs the roots of trees with so many levels below: the step's rows, which are those that go on
    /// drafting.
    pub fn start<'a>(&self, step: Step<'a>, levels: usize) -> Result<LevelRun<'a>> {
        let none = Span::new(0, 0);
        let level = TreeLevel {
            rows: step.rows,
            width: 1,
            shared: 1,
            depth: 0,
            paths: none,
            stride: 0,
            slots: 0,
            first_slot: 0,
        };
        let hidden = step.scratch.draft_hidden;
        let mut run = LevelRun { step, level, hidden, block: None };
        run.level.slots = run.scratch().limits.slots();
        match self {
            Self::Sequential(network) => network.continue_from_commit(&step)?,
            Self::Heads(network) => network.advance(&step, 0, run.hidden)?,
            Self::Block(network) => run.block = Some(network.run(&step, levels)?),
        }
        Ok(run)
    }

    /// Runs the next level, which was laid out.
    pub fn advance<'a>(&self, run: &LevelRun<'a>, next: TreeLevel) -> Result<LevelRun<'a>> {
        if let Self::Block(_) = self {
            let step = Step { rows: next.rows, ..run.step };
            return Ok(LevelRun { step, level: next, ..*run });
        }
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
            Self::Block(_) => {}
        }
        Ok(LevelRun { step, level: next, hidden, block: None })
    }

    /// Positions from a row to the tokens below it.
    pub fn distance(&self) -> usize {
        match self {
            Self::Sequential(network) => network.distance(),
            Self::Heads(_) | Self::Block(_) => 2,
        }
    }

    /// Maps the rows to logits, if they were not mapped with those of a level above.
    pub fn map_to_logits(&self, run: &LevelRun<'_>) -> Result<()> {
        match self {
            Self::Sequential(network) => network.map_to_logits(&run.step, run.hidden),
            Self::Heads(network) => network.map_to_logits(&run.step, run.level.depth, run.hidden),
            Self::Block(network) => match &run.block {
                Some(block) => network.map_level(block, &run.level, run.logits()),
                None => unreachable!("the roots have run the block"),
            },
        }
    }

    /// Selects the most probable tokens of each law, at most so many.
    pub fn select(&self, run: &LevelRun<'_>, most: usize) -> Result<ChildTokens> {
        let (scratch, logits) = (run.scratch(), run.logits());
        let (rows, count) = (run.law_rows(), most.min(logits.columns));
        let children = ChildTokens {
            ids: scratch.ids.slice(0, rows.len() * count),
            values: compact(scratch.values, rows.len(), count),
            tokens: run
                .candidates()
                .or_else(|| self.decoder().target_ids().map(ColumnTokens::of_all)),
        };
        let select = SelectCandidates { rows, logits, ids: children.ids, values: children.values };
        run.step.backend.select_candidates(run.step.stream, &select)?;
        Ok(children)
    }
}
