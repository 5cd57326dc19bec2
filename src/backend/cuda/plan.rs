//! The launch code of `kernels/plan.cu` and `kernels/gather.cu`.

use super::draft_trees;
use super::launch::{Arguments, Kernel, Kernels, Launch};
use super::products::{RowCountArgument, address_or_zero};
use super::rows::RowArrays;
use crate::backend::Stream;
use crate::backend::draft_trees::TreeShape;
use crate::backend::phases::{self, DraftBatch, Gather, KvPool, Limits, Plan};
use crate::error::Result;
use bytemuck::NoUninit;

/// The most threads of the one block that lays out rows.
const MOST_THREADS: usize = 1024;

/// Enough that few rows and pages are shared out, few enough that they soon meet.
const FEWEST_THREADS: usize = 128;

/// Pages of a sequence that a thread may check.
const PAGES_OF_THREAD: usize = 8;

/// More than any tree is deep.
const MOST_DEPTH: usize = 1 << 16;

/// Threads of a block that copies a row.
const GATHER_THREADS: u32 = 256;

/// `Column` of the kernel.
#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
struct Column {
    first: u64,
    stride: u64,
}

impl Column {
    const NONE: Self = Self { first: 0, stride: 0 };
}

impl From<phases::Column> for Column {
    fn from(column: phases::Column) -> Self {
        Self { first: column.span.address(), stride: column.stride as u64 }
    }
}

/// `PlanArguments` of the kernel.
#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
struct PlanArguments {
    position: Column,
    row_count: Column,
    next_token: Column,
    row_index: Column,
    block_table: Column,
    draft_tokens: Column,
    row_begin: u64,
    wanted_drafts: u64,
    limit: u64,
    context_begin: u64,
    slot: u64,
    slot_pages: u64,
    tokens: u64,
    rope_position: u64,
    num_proposed: u64,
    commit: RowArrays,
    draft: RowArrays,
    drafting: u64,
    num_drafts: u64,
    page_row: u64,
    fault: u64,
    num_sequences: u32,
    num_rows: u32,
    most_rows: u32,
    max_drafts: u32,
    most_drafts: u32,
    max_position: u32,
    vocabulary: u32,
    num_slots: u32,
    pages_per_slot: u32,
    num_pages: u32,
    page_size: u32,
    padding_token: i32,
    has_embeddings: u32,
    drafts_in_pages: u32,
    reads_own_tokens: u32,
    tree_nodes: u32,
    tree_depth: u32,
    most_depth: u32,
    depth: u64,
    within: u64,
}

// SAFETY: the struct of kernels/plan.cu.
unsafe impl Arguments for PlanArguments {}

/// Enqueues the layout of a call's rows. Returns how many there can be.
///
/// # Safety
///
/// The contract of [`crate::backend::Backend`].
pub unsafe fn plan_rows(
    kernels: &Kernels,
    stream: Stream,
    batch: &DraftBatch<'_>,
    limits: &Limits,
    pool: &KvPool,
    plan: &Plan,
) -> Result<usize> {
    let most_rows = limits.max_rows.min(batch.num_rows);
    let (tree_nodes, tree_depth, most_drafts) = match batch.shape {
        None => (0, 0, batch.max_drafts.min(limits.most_drafts)),
        Some(TreeShape::Fixed { topology, .. }) => (topology.num_nodes(), 0, batch.max_drafts),
        Some(TreeShape::Dynamic { nodes, depth, .. }) => (nodes, depth, batch.max_drafts),
    };
    if let Some(TreeShape::Fixed { topology, .. }) = batch.shape {
        // SAFETY: this function's contract.
        unsafe { draft_trees::store_shape(kernels, stream, topology, plan)? };
    }
    let arguments = PlanArguments {
        position: batch.position.into(),
        row_count: batch.row_count.into(),
        next_token: batch.next_token.into(),
        row_index: batch.row_index.map_or(Column::NONE, Column::from),
        block_table: batch.block_table.map_or(Column::NONE, Column::from),
        draft_tokens: batch.draft_tokens.into(),
        row_begin: address_or_zero(batch.row_begin),
        wanted_drafts: address_or_zero(batch.num_drafts),
        limit: address_or_zero(batch.limit),
        context_begin: address_or_zero(batch.context_begin),
        slot: address_or_zero(batch.slot),
        slot_pages: pool.slot_pages.address(),
        tokens: batch.tokens.address(),
        rope_position: address_or_zero(batch.rope_position),
        num_proposed: address_or_zero(batch.num_proposed),
        commit: plan.commit.into(),
        draft: plan.draft.into(),
        drafting: plan.drafting.address(),
        num_drafts: plan.num_drafts.address(),
        page_row: plan.page_row.address(),
        fault: plan.fault.address(),
        num_sequences: batch.num_sequences as u32,
        num_rows: batch.num_rows as u32,
        most_rows: most_rows as u32,
        max_drafts: batch.max_drafts as u32,
        most_drafts: most_drafts as u32,
        max_position: limits.max_position as u32,
        vocabulary: limits.vocabulary as u32,
        num_slots: limits.num_slots as u32,
        pages_per_slot: pool.pages_per_slot as u32,
        num_pages: pool.pages.rows as u32,
        page_size: pool.page_size as u32,
        padding_token: batch.padding,
        has_embeddings: batch.embeddings.is_some().into(),
        drafts_in_pages: limits.drafts_in_pages.into(),
        reads_own_tokens: limits.reads_own_tokens.into(),
        tree_nodes: tree_nodes as u32,
        tree_depth: tree_depth as u32,
        most_depth: limits.most_drafts.min(MOST_DEPTH) as u32,
        depth: plan.depth.address(),
        within: draft_trees::drafts_within(plan).address(),
    };
    // The kernel has a thread for each class of sequences that propose as many tokens.
    let work = [
        FEWEST_THREADS,
        batch.num_sequences,
        batch.max_drafts,
        most_rows,
        pool.pages_per_slot / PAGES_OF_THREAD,
    ];
    let threads = work.into_iter().fold(0, usize::max).min(MOST_THREADS).next_multiple_of(32);
    let shape = Launch { grid: [1, 1, 1], threads: threads as u32, shared: 0, cooperative: false };
    // SAFETY: this function's contract.
    unsafe { kernels.launch(Kernel::PlanRows, stream, &shape, &arguments)? };
    let adds_rows = limits.reads_own_tokens && batch.max_drafts > 0;
    Ok(most_rows + if adds_rows { batch.num_sequences } else { 0 })
}

/// `GatherArguments` of the kernel.
#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
struct GatherArguments {
    rows: RowCountArgument,
    source: u64,
    from: u64,
    to: u64,
    from_stride: u64,
    to_stride: u64,
    first: u32,
    len: u32,
    columns: u32,
    padding: u32,
}

// SAFETY: the struct of kernels/gather.cu.
unsafe impl Arguments for GatherArguments {}

/// Enqueues the copies of the rows that go on drafting.
///
/// # Safety
///
/// The contract of [`crate::backend::Backend`].
pub unsafe fn gather(kernels: &Kernels, stream: Stream, phase: &Gather) -> Result<()> {
    let arguments = GatherArguments {
        rows: (&phase.rows).into(),
        source: phase.rows.source.address(),
        from: phase.from.address,
        to: phase.to.address,
        from_stride: phase.from.row_stride as u64,
        to_stride: phase.to.row_stride as u64,
        first: phase.first as u32,
        len: phase.len as u32,
        columns: phase.to.columns as u32,
        padding: 0,
    };
    let grid = [phase.rows.len() as u32, 1, 1];
    let shape = Launch { grid, threads: GATHER_THREADS, shared: 0, cooperative: false };
    // SAFETY: this function's contract.
    unsafe { kernels.launch(Kernel::GatherRows, stream, &shape, &arguments) }
}
