//! The launch code of `kernels/propose.cu`: norm, head and choice of draft tokens.

use super::MAX_ROW_SEGMENTS;
use super::draw::SamplingArgument;
use super::embedding::segment_arguments;
use super::launch::{Arguments, Kernel, Kernels};
use super::products::{
    Kind, MatrixArgument, NormArgument, RowCountArgument, Size, Variants, address_or_zero,
    most_last_blocks, shape,
};
use crate::backend::Stream;
use crate::backend::phases::{Choice, Propose};
use crate::backend::verify::SamplingArrays;
use crate::error::Result;
use crate::tensor::ALIGNMENT;
use bytemuck::NoUninit;

#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
struct ProposeArguments {
    rows: RowCountArgument,
    sequence: u64,
    position: u64,
    rope_position: u64,
    token: u64,
    num_drafts: u64,
    target_ids: u64,
    draft_tokens: u64,
    draft_tokens_stride: u64,
    scratch: u64,
    record_bytes: u64,
    sampling: SamplingArgument,
    hidden: MatrixArgument,
    norm: NormArgument,
    segments: [MatrixArgument; MAX_ROW_SEGMENTS],
    base: MatrixArgument,
    draft_logits: MatrixArgument,
    logits: MatrixArgument,
    num_segments: u32,
    columns: u32,
    step: u32,
    slots: u32,
    max_drafts: u32,
    keeps_logits: u32,
    feeds_back_normed: u32,
    most_last_blocks: u32,
    distance: u32,
    rows_of_base: u32,
}

// SAFETY: the struct of kernels/propose.cu.
unsafe impl Arguments for ProposeArguments {}

/// Many rows are taken 32 at a time.
const PROPOSE: Variants = Variants {
    bf16: [Kernel::ProposeBf16Sixteen, Kernel::ProposeBf16ThirtyTwo, Kernel::ProposeBf16ThirtyTwo],
    f16: [Kernel::ProposeF16Sixteen, Kernel::ProposeF16ThirtyTwo, Kernel::ProposeF16ThirtyTwo],
    any: [Kernel::ProposeAnySixteen, Kernel::ProposeAnyThirtyTwo, Kernel::ProposeAnyThirtyTwo],
};

/// Logits that a draw looks at as a whole: `tile_logits` of `kernels/law.cuh`.
const TILE_LOGITS: usize = 256;

/// Bytes of scratch of a row: its largest logit and a group's counters, then a weight and a logit for
/// each tile.
pub(super) fn record_bytes(columns: usize) -> usize {
    let tiles = columns.div_ceil(TILE_LOGITS);
    let bytes = (2 * size_of::<u64>())
        .saturating_add(tiles.saturating_mul(size_of::<u64>() + size_of::<f32>()));
    bytes.checked_next_multiple_of(ALIGNMENT).unwrap_or(usize::MAX)
}

/// Bytes of scratch for at most `rows` rows of `columns` logits.
pub fn scratch_bytes(rows: usize, columns: usize) -> usize {
    rows.saturating_mul(record_bytes(columns))
}

/// Enqueues the phase.
///
/// # Safety
///
/// The contract of [`crate::backend::Backend`].
pub unsafe fn propose(kernels: &Kernels, stream: Stream, phase: &Propose<'_>) -> Result<()> {
    let batch = &phase.batch;
    // Tokens that are only kept are those with the largest logits, which the host does not get.
    let (is_proposed, sampling, wanted) = match phase.choice {
        Choice::Proposed => (true, batch.sampling, batch.draft_logits.as_ref()),
        Choice::Kept { .. } => (false, SamplingArrays::default(), None),
    };
    let segments = phase.head.segments;
    let columns = segments.iter().map(|segment| segment.rows).sum();
    let arguments = ProposeArguments {
        rows: (&phase.rows).into(),
        sequence: phase.rows.sequence.address(),
        position: phase.rows.position.address(),
        rope_position: phase.rows.rope_position.address(),
        token: phase.rows.token.address(),
        num_drafts: if is_proposed { phase.num_drafts.address() } else { 0 },
        target_ids: address_or_zero(phase.target_ids),
        draft_tokens: batch.draft_tokens.span.address(),
        draft_tokens_stride: batch.draft_tokens.stride as u64,
        scratch: phase.scratch.address(),
        record_bytes: record_bytes(columns) as u64,
        sampling: (&sampling).into(),
        hidden: (&phase.hidden).into(),
        norm: phase.norm.as_ref().into(),
        segments: segment_arguments(segments),
        base: MatrixArgument::of(phase.base.as_ref()),
        draft_logits: MatrixArgument::of(wanted),
        logits: (&phase.logits).into(),
        num_segments: segments.len() as u32,
        columns: columns as u32,
        step: phase.step as u32,
        slots: phase.slots as u32,
        max_drafts: batch.max_drafts as u32,
        keeps_logits: (phase.choice == Choice::Kept { with_logits: true }).into(),
        feeds_back_normed: phase.feed_back_normed.into(),
        most_last_blocks: most_last_blocks(kernels),
        distance: phase.distance as u32,
        rows_of_base: phase.rows_of_base as u32,
    };
    let others = std::iter::once(&phase.hidden)
        .chain(phase.norm.iter().filter_map(|norm| norm.weight.as_ref()));
    let rows = phase.rows.len();
    let size = if rows <= 16 { Size::Sixteen } else { Size::ThirtyTwo };
    let kernel = PROPOSE.kernel(Kind::of(segments, others), size);
    let shape = shape(rows, size, columns.div_ceil(32));
    // SAFETY: this function's contract.
    unsafe { kernels.launch(kernel, stream, &shape, &arguments) }
}
