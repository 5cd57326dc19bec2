//! The launch code of `kernels/draft_trees.cu`: the phases that draft trees.

use super::draw::SamplingArgument;
use super::launch::{Arguments, Kernel, Kernels, Launch};
use super::products::{MatrixArgument, RowCountArgument, THREADS, address_or_zero, grid};
use super::propose;
use super::rows::{ColumnArgument, RowArrays};
use crate::backend::Stream;
use crate::backend::draft_trees::{
    BranchRows, CandidatePool, ChildTokens, DescribeTree, DrawSiblings, DynamicLevel, ExpandBest,
    FixedLevel, RankCandidates, SHAPE_TABLES, ScoreChildren, TellLogits, TreeLevel, TreeShape,
};
use crate::backend::phases::Plan;
use crate::error::Result;
use crate::tensor::{Matrix, Span};
use crate::tree::{Links, NODES_MAX, Topology};
use bytemuck::NoUninit;

/// Warps of a block.
const WARPS: usize = THREADS as usize / 32;

/// Logits of a row that a thread tells the host.
const LOGITS_OF_THREAD: usize = 16;

#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
struct ShapeArguments {
    tables: u64,
    nodes: u32,
    stride: u32,
    parents: [u16; NODES_MAX],
}

// SAFETY: the struct of kernels/draft_trees.cu.
unsafe impl Arguments for ShapeArguments {}

/// Enqueues the writing of what follows from the parents of a tree, for the phases of a call.
///
/// # Safety
///
/// The contract of [`crate::backend::Backend`], here and below.
pub unsafe fn store_shape(
    kernels: &Kernels,
    stream: Stream,
    topology: &Topology,
    plan: &Plan,
) -> Result<()> {
    let mut parents = [0; NODES_MAX];
    for (place, &parent) in parents.iter_mut().zip(topology.parents()) {
        *place = parent as u16;
    }
    let nodes = topology.num_nodes();
    let ShapeArgument { first: tables, stride, .. } = ShapeArgument::of(plan);
    let arguments = ShapeArguments { tables, nodes: nodes as u32, stride, parents };
    let threads = nodes.next_multiple_of(32) as u32;
    let shape = Launch { threads, ..grid(1, 1) };
    // SAFETY: this function's contract.
    unsafe { kernels.launch(Kernel::StoreShape, stream, &shape, &arguments) }
}

/// `Shape` of the kernels.
#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
struct ShapeArgument {
    first: u64,
    stride: u32,
    padding: u32,
}

impl ShapeArgument {
    fn of(plan: &Plan) -> Self {
        let stride = (plan.shape.len() / SHAPE_TABLES) as u32;
        Self { first: plan.shape.address(), stride, padding: 0 }
    }
}

/// Where the table of how many drafts lie no deeper than a depth stands.
pub fn drafts_within(plan: &Plan) -> Span<i32> {
    let stride = plan.shape.len() / SHAPE_TABLES;
    plan.shape.slice(6 * stride, stride)
}

/// `Level` of the kernels.
#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
struct LevelArgument {
    rows: RowCountArgument,
    of: RowArrays,
    paths: u64,
    width: u32,
    depth: u32,
    stride: u32,
    slots: u32,
    first_slot: u32,
    shared: u32,
}

impl From<&TreeLevel> for LevelArgument {
    fn from(level: &TreeLevel) -> Self {
        Self {
            rows: (&level.rows).into(),
            of: level.rows.into(),
            paths: level.paths.address(),
            width: level.width as u32,
            depth: level.depth as u32,
            stride: level.stride as u32,
            slots: level.slots as u32,
            first_slot: level.first_slot as u32,
            shared: level.shared as u32,
        }
    }
}

/// `FixedLevel` of the kernels.
#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
struct FixedArgument {
    level: LevelArgument,
    shape: ShapeArgument,
    num_drafts: u64,
    drafting: u64,
    draft_tokens: u64,
    draft_tokens_stride: u64,
    first_number: u32,
    max_drafts: u32,
}

impl From<&FixedLevel<'_>> for FixedArgument {
    fn from(fixed: &FixedLevel<'_>) -> Self {
        let FixedLevel { level, inner, batch, plan } = fixed;
        Self {
            level: level.into(),
            shape: ShapeArgument::of(plan),
            num_drafts: plan.num_drafts.address(),
            drafting: plan.drafting.address(),
            draft_tokens: batch.draft_tokens.span.address(),
            draft_tokens_stride: batch.draft_tokens.stride as u64,
            first_number: inner.level(level.depth).start as u32,
            max_drafts: batch.max_drafts as u32,
        }
    }
}

/// `ChildTokens` of the kernels.
#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
struct ChildArgument {
    ids: u64,
    values: MatrixArgument,
    tokens: ColumnArgument,
}

impl From<&ChildTokens> for ChildArgument {
    fn from(children: &ChildTokens) -> Self {
        Self {
            ids: children.ids.address(),
            values: (&children.values).into(),
            tokens: children.tokens.as_ref().into(),
        }
    }
}

/// `RowScratch` of the kernels: that of proposals from the same logits.
#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
struct ScratchArgument {
    first: u64,
    row_bytes: u64,
}

impl ScratchArgument {
    fn of(scratch: Span<u8>, logits: &Matrix) -> Self {
        let row_bytes = propose::record_bytes(logits.columns) as u64;
        Self { first: scratch.address(), row_bytes }
    }
}

#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
struct TellArguments {
    fixed: FixedArgument,
    draft_logits: MatrixArgument,
    logits: MatrixArgument,
    candidates: ColumnArgument,
    draft_candidates: u64,
}

// SAFETY: the struct of kernels/draft_trees.cu.
unsafe impl Arguments for TellArguments {}

/// Enqueues the phase.
///
/// # Safety
///
/// As for [`store_shape`].
pub unsafe fn tell_logits(kernels: &Kernels, stream: Stream, phase: &TellLogits<'_>) -> Result<()> {
    let batch = &phase.level.batch;
    let arguments = TellArguments {
        fixed: (&phase.level).into(),
        draft_logits: MatrixArgument::of(batch.draft_logits.as_ref()),
        logits: (&phase.logits).into(),
        candidates: phase.candidates.as_ref().into(),
        draft_candidates: address_or_zero(batch.draft_candidates),
    };
    let blocks = phase.logits.columns.div_ceil(THREADS as usize * LOGITS_OF_THREAD);
    let shape = grid(phase.level.level.laws(), blocks);
    // SAFETY: this function's contract.
    unsafe { kernels.launch(Kernel::TellLogits, stream, &shape, &arguments) }
}

#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
struct DrawArguments {
    fixed: FixedArgument,
    sampling: SamplingArgument,
    logits: MatrixArgument,
    children: ChildArgument,
    scratch: ScratchArgument,
    distance: u32,
    padding: u32,
}

// SAFETY: the struct of kernels/draft_trees.cu.
unsafe impl Arguments for DrawArguments {}

/// Enqueues the phase.
///
/// # Safety
///
/// As for [`store_shape`].
pub unsafe fn draw_siblings(
    kernels: &Kernels,
    stream: Stream,
    phase: &DrawSiblings<'_>,
) -> Result<()> {
    let arguments = DrawArguments {
        fixed: (&phase.level).into(),
        sampling: (&phase.level.batch.sampling).into(),
        logits: (&phase.logits).into(),
        children: (&phase.children).into(),
        scratch: ScratchArgument::of(phase.scratch, &phase.logits),
        distance: phase.distance as u32,
        padding: 0,
    };
    let shape = grid(phase.level.level.laws(), 1);
    // SAFETY: this function's contract.
    unsafe { kernels.launch(Kernel::DrawSiblings, stream, &shape, &arguments) }
}

#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
struct BranchArguments {
    fixed: FixedArgument,
    children: ChildArgument,
    next: LevelArgument,
    first_child: u32,
    last_child: u32,
    first_grandchild: u32,
    next_number: u32,
}

// SAFETY: the struct of kernels/draft_trees.cu.
unsafe impl Arguments for BranchArguments {}

/// Enqueues the phase.
///
/// # Safety
///
/// As for [`store_shape`].
pub unsafe fn branch_rows(kernels: &Kernels, stream: Stream, phase: &BranchRows<'_>) -> Result<()> {
    let FixedLevel { level, inner, .. } = &phase.level;
    let nodes = inner.topology().level(level.depth + 1);
    // Of width 0, it is not looked at.
    let none = TreeLevel { width: 0, ..*level };
    let arguments = BranchArguments {
        fixed: (&phase.level).into(),
        children: (&phase.children).into(),
        next: phase.next.as_ref().unwrap_or(&none).into(),
        first_child: nodes.start as u32,
        last_child: nodes.end as u32 - 1,
        first_grandchild: nodes.end as u32,
        next_number: inner.level(level.depth + 1).start as u32,
    };
    let shape = grid(level.rows.len().div_ceil(WARPS), 1);
    // SAFETY: this function's contract.
    unsafe { kernels.launch(Kernel::BranchRows, stream, &shape, &arguments) }
}

/// `Pool` of the kernels.
#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
struct PoolArgument {
    tokens: u64,
    scores: u64,
    expanded: u64,
    order: u64,
    width: u32,
    stride: u32,
}

impl From<&CandidatePool> for PoolArgument {
    fn from(pool: &CandidatePool) -> Self {
        Self {
            tokens: pool.tokens.address(),
            scores: pool.scores.address(),
            expanded: pool.expanded.address(),
            order: pool.order.address(),
            width: pool.width as u32,
            stride: pool.stride as u32,
        }
    }
}

#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
struct ScoreArguments {
    level: LevelArgument,
    pool: PoolArgument,
    depth: u64,
    logits: MatrixArgument,
    children: ChildArgument,
    scratch: ScratchArgument,
}

// SAFETY: the struct of kernels/draft_trees.cu.
unsafe impl Arguments for ScoreArguments {}

/// Enqueues the phase.
///
/// # Safety
///
/// As for [`store_shape`].
pub unsafe fn score_children(
    kernels: &Kernels,
    stream: Stream,
    phase: &ScoreChildren<'_>,
) -> Result<()> {
    let DynamicLevel { level, pool, plan, .. } = &phase.level;
    let arguments = ScoreArguments {
        level: level.into(),
        pool: pool.into(),
        depth: plan.depth.address(),
        logits: (&phase.logits).into(),
        children: (&phase.children).into(),
        scratch: ScratchArgument::of(phase.scratch, &phase.logits),
    };
    let shape = grid(level.laws(), 1);
    // SAFETY: this function's contract.
    unsafe { kernels.launch(Kernel::ScoreChildren, stream, &shape, &arguments) }
}

#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
struct ExpandArguments {
    level: LevelArgument,
    next: LevelArgument,
    pool: PoolArgument,
}

// SAFETY: the struct of kernels/draft_trees.cu.
unsafe impl Arguments for ExpandArguments {}

/// Enqueues the phase.
///
/// # Safety
///
/// As for [`store_shape`].
pub unsafe fn expand_best(kernels: &Kernels, stream: Stream, phase: &ExpandBest<'_>) -> Result<()> {
    let DynamicLevel { level, pool, .. } = &phase.level;
    let arguments =
        ExpandArguments { level: level.into(), next: (&phase.next).into(), pool: pool.into() };
    let shape = grid(level.rows.len() / level.width, 1);
    // SAFETY: this function's contract.
    unsafe { kernels.launch(Kernel::ExpandBest, stream, &shape, &arguments) }
}

/// `Links` of the kernels.
#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
struct LinksArgument {
    parents: u64,
    first_child: u64,
    next_sibling: u64,
    depth: u64,
    position: u64,
    stride: u64,
}

impl From<Option<&Links>> for LinksArgument {
    fn from(links: Option<&Links>) -> Self {
        let of = |array: fn(&Links) -> Option<Span<i32>>| address_or_zero(links.and_then(array));
        Self {
            parents: of(|links| links.parents),
            first_child: of(|links| links.first_child),
            next_sibling: of(|links| links.next_sibling),
            depth: of(|links| links.depth),
            position: of(|links| links.position),
            stride: links.map_or(0, |links| links.stride as u64),
        }
    }
}

#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
struct RankArguments {
    level: LevelArgument,
    pool: PoolArgument,
    num_drafts: u64,
    num_proposed: u64,
    draft_tokens: u64,
    draft_tokens_stride: u64,
    position: u64,
    position_stride: u64,
    links: LinksArgument,
    max_drafts: u32,
    padding: u32,
}

// SAFETY: the struct of kernels/draft_trees.cu.
unsafe impl Arguments for RankArguments {}

/// Enqueues the phase.
///
/// # Safety
///
/// As for [`store_shape`].
pub unsafe fn rank_candidates(
    kernels: &Kernels,
    stream: Stream,
    phase: &RankCandidates<'_>,
) -> Result<()> {
    let DynamicLevel { level, pool, batch, plan } = &phase.level;
    let arguments = RankArguments {
        level: level.into(),
        pool: pool.into(),
        num_drafts: plan.num_drafts.address(),
        num_proposed: address_or_zero(batch.num_proposed),
        draft_tokens: batch.draft_tokens.span.address(),
        draft_tokens_stride: batch.draft_tokens.stride as u64,
        position: batch.position.span.address(),
        position_stride: batch.position.stride as u64,
        links: batch.links.as_ref().into(),
        max_drafts: batch.max_drafts as u32,
        padding: 0,
    };
    let shape = grid(level.rows.len() / level.width, 1);
    // SAFETY: this function's contract.
    unsafe { kernels.launch(Kernel::RankCandidates, stream, &shape, &arguments) }
}

#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
struct DescribeArguments {
    shape: ShapeArgument,
    num_drafts: u64,
    position: u64,
    position_stride: u64,
    links: LinksArgument,
    max_drafts: u32,
    what: u32,
}

// SAFETY: the struct of kernels/draft_trees.cu.
unsafe impl Arguments for DescribeArguments {}

/// Enqueues the phase.
///
/// # Safety
///
/// As for [`store_shape`].
pub unsafe fn describe_tree(
    kernels: &Kernels,
    stream: Stream,
    phase: &DescribeTree<'_>,
) -> Result<()> {
    let DescribeTree { batch, plan } = phase;
    let arguments = DescribeArguments {
        shape: ShapeArgument::of(plan),
        num_drafts: plan.num_drafts.address(),
        position: batch.position.span.address(),
        position_stride: batch.position.stride as u64,
        links: batch.links.as_ref().into(),
        max_drafts: batch.max_drafts as u32,
        what: match batch.shape {
            None => 0,
            Some(TreeShape::Fixed { .. }) => 1,
            Some(TreeShape::Dynamic { .. }) => 2,
        },
    };
    // SAFETY: this function's contract.
    unsafe {
        kernels.launch(Kernel::DescribeTree, stream, &grid(batch.num_sequences, 1), &arguments)
    }
}
