//! The launch code of `kernels/block_heads.cu`: the phases that only some block drafters have.

use super::draw::SamplingArgument;
use super::launch::{Arguments, Kernel, Kernels, Launch};
use super::layer;
use super::products::{
    MatrixArgument, NormArgument, RowCountArgument, THREADS, address_or_zero, grid,
};
use super::rows::{ColumnArgument, RowArrays};
use crate::backend::Stream;
use crate::backend::block_heads::{
    Convolve, MarkovCell, RateDrafts, Refine, ScoreCandidates, SelectCandidates, Selector, Slots,
    StepMarkov, WalkCandidates,
};
use crate::backend::phases::{Activation, GateUp, Linear};
use crate::error::Result;
use bytemuck::NoUninit;

/// Warps of a block.
const WARPS: usize = THREADS as usize / 32;

/// Threads of a block that selects the candidates of a row.
const SELECT_THREADS: u32 = 512;

#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
struct SlotsArgument {
    draft_rows: RowCountArgument,
    draft: RowArrays,
    len: u32,
    first_slot: u32,
    num_slots: u32,
    padding: u32,
}

impl From<&Slots> for SlotsArgument {
    fn from(slots: &Slots) -> Self {
        Self {
            draft_rows: (&slots.draft).into(),
            draft: slots.draft.into(),
            len: slots.len as u32,
            first_slot: slots.first_slot as u32,
            num_slots: slots.num_slots as u32,
            padding: 0,
        }
    }
}

#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
struct ConvolveArguments {
    rows: RowCountArgument,
    from: MatrixArgument,
    norm: NormArgument,
    base: MatrixArgument,
    coefficients: MatrixArgument,
    to: MatrixArgument,
    len: u32,
    adds: u32,
}

// SAFETY: the struct of kernels/block_heads.cu.
unsafe impl Arguments for ConvolveArguments {}

/// Enqueues the phase.
///
/// # Safety
///
/// The contract of [`crate::backend::Backend`], here and below.
pub unsafe fn convolve(kernels: &Kernels, stream: Stream, phase: &Convolve) -> Result<()> {
    let arguments = ConvolveArguments {
        rows: (&phase.rows).into(),
        from: (&phase.from).into(),
        norm: phase.norm.as_ref().into(),
        base: (&phase.base).into(),
        coefficients: (&phase.coefficients).into(),
        to: (&phase.to).into(),
        len: phase.len as u32,
        adds: phase.adds.into(),
    };
    // SAFETY: this function's contract.
    unsafe { kernels.launch(Kernel::Convolve, stream, &grid(phase.rows.len(), 1), &arguments) }
}

#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
struct MarkovArguments {
    rows: RowCountArgument,
    token: u64,
    embedding: MatrixArgument,
    weight: MatrixArgument,
    part: MatrixArgument,
    state: MatrixArgument,
    next_state: MatrixArgument,
    output: MatrixArgument,
    from: u64,
    rows_of_part: u32,
    cell: u32,
    is_first: u32,
    padding: u32,
}

// SAFETY: the struct of kernels/block_heads.cu.
unsafe impl Arguments for MarkovArguments {}

/// Enqueues the phase.
///
/// # Safety
///
/// As for [`convolve`].
pub unsafe fn step_markov(kernels: &Kernels, stream: Stream, phase: &StepMarkov) -> Result<()> {
    let (cell, weight, is_first) = match &phase.cell {
        MarkovCell::Vanilla => (0, None, true),
        MarkovCell::Gated { weight } => (1, Some(weight), true),
        MarkovCell::Recurrent { weight, is_first } => (2, Some(weight), *is_first),
    };
    let arguments = MarkovArguments {
        rows: (&phase.rows).into(),
        token: phase.rows.token.address(),
        embedding: (&phase.embedding).into(),
        weight: MatrixArgument::of(weight),
        part: (&phase.part).into(),
        state: (&phase.state).into(),
        next_state: (&phase.next_state).into(),
        output: (&phase.output).into(),
        from: address_or_zero(phase.from),
        rows_of_part: phase.rows_of_part as u32,
        cell,
        is_first: is_first.into(),
        padding: 0,
    };
    let shape = grid(phase.rows.len(), phase.output.columns.div_ceil(WARPS));
    // SAFETY: this function's contract.
    unsafe { kernels.launch(Kernel::StepMarkov, stream, &shape, &arguments) }
}

#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
struct RateArguments {
    slots: SlotsArgument,
    block_token: u64,
    num_drafts: u64,
    draft_tokens: u64,
    draft_tokens_stride: u64,
    num_proposed: u64,
    confidence: u64,
    part: MatrixArgument,
    embedding: MatrixArgument,
    weight: MatrixArgument,
    min_confidence: f32,
    max_drafts: u32,
    padding_token: i32,
    padding: u32,
}

// SAFETY: the struct of kernels/block_heads.cu.
unsafe impl Arguments for RateArguments {}

/// Enqueues the phase.
///
/// # Safety
///
/// As for [`convolve`].
pub unsafe fn rate_drafts(kernels: &Kernels, stream: Stream, phase: &RateDrafts<'_>) -> Result<()> {
    let batch = &phase.batch;
    let token = phase.token.as_ref();
    let arguments = RateArguments {
        slots: (&phase.slots).into(),
        block_token: phase.blocks.token.address(),
        num_drafts: phase.num_drafts.address(),
        draft_tokens: batch.draft_tokens.span.address(),
        draft_tokens_stride: batch.draft_tokens.stride as u64,
        num_proposed: address_or_zero(batch.num_proposed),
        confidence: address_or_zero(batch.confidence),
        part: (&phase.part).into(),
        embedding: MatrixArgument::of(token.map(|(embedding, _)| embedding)),
        weight: MatrixArgument::of(token.map(|(_, weight)| weight)),
        min_confidence: batch.min_confidence,
        max_drafts: batch.max_drafts as u32,
        padding_token: batch.padding,
        padding: 0,
    };
    let shape = grid(phase.slots.draft.len(), 1);
    // SAFETY: this function's contract.
    unsafe { kernels.launch(Kernel::RateDrafts, stream, &shape, &arguments) }
}

#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
struct SelectArguments {
    rows: RowCountArgument,
    logits: MatrixArgument,
    ids: u64,
    values: MatrixArgument,
}

// SAFETY: the struct of kernels/block_heads.cu.
unsafe impl Arguments for SelectArguments {}

/// Enqueues the phase.
///
/// # Safety
///
/// As for [`convolve`].
pub unsafe fn select_candidates(
    kernels: &Kernels,
    stream: Stream,
    phase: &SelectCandidates,
) -> Result<()> {
    let arguments = SelectArguments {
        rows: (&phase.rows).into(),
        logits: (&phase.logits).into(),
        ids: phase.ids.address(),
        values: (&phase.values).into(),
    };
    let shape = Launch { threads: SELECT_THREADS, ..grid(phase.rows.len(), 1) };
    // SAFETY: this function's contract.
    unsafe { kernels.launch(Kernel::SelectCandidates, stream, &shape, &arguments) }
}

/// `Selector` of the kernels.
#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
struct SelectorArgument {
    predecessors: MatrixArgument,
    successors: MatrixArgument,
}

impl From<&Selector> for SelectorArgument {
    fn from(selector: &Selector) -> Self {
        Self {
            predecessors: (&selector.predecessors).into(),
            successors: (&selector.successors).into(),
        }
    }
}

#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
struct WalkArguments {
    slots: SlotsArgument,
    num_drafts: u64,
    draft_tokens: u64,
    draft_tokens_stride: u64,
    draft_candidates: u64,
    sampling: SamplingArgument,
    ids: u64,
    draft_logits: MatrixArgument,
    values: MatrixArgument,
    projected: MatrixArgument,
    selector: SelectorArgument,
    max_drafts: u32,
    padding: u32,
}

// SAFETY: the struct of kernels/block_heads.cu.
unsafe impl Arguments for WalkArguments {}

/// Enqueues the phase.
///
/// # Safety
///
/// As for [`convolve`].
pub unsafe fn walk_candidates(
    kernels: &Kernels,
    stream: Stream,
    phase: &WalkCandidates<'_>,
) -> Result<()> {
    let batch = &phase.batch;
    let arguments = WalkArguments {
        slots: (&phase.slots).into(),
        num_drafts: phase.num_drafts.address(),
        draft_tokens: batch.draft_tokens.span.address(),
        draft_tokens_stride: batch.draft_tokens.stride as u64,
        draft_candidates: address_or_zero(batch.draft_candidates),
        sampling: (&batch.sampling).into(),
        ids: phase.ids.address(),
        draft_logits: MatrixArgument::of(batch.draft_logits.as_ref()),
        values: (&phase.values).into(),
        projected: (&phase.projected).into(),
        selector: (&phase.selector).into(),
        max_drafts: batch.max_drafts as u32,
        padding: 0,
    };
    let shape = grid(phase.slots.draft.len(), 1);
    // SAFETY: this function's contract.
    unsafe { kernels.launch(Kernel::WalkCandidates, stream, &shape, &arguments) }
}

#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
struct ScoreArguments {
    rows: RowCountArgument,
    token: u64,
    candidates: ColumnArgument,
    values: MatrixArgument,
    projected: MatrixArgument,
    selector: SelectorArgument,
    weights: MatrixArgument,
    scores: MatrixArgument,
}

// SAFETY: the struct of kernels/block_heads.cu.
unsafe impl Arguments for ScoreArguments {}

/// Enqueues the phase.
///
/// # Safety
///
/// As for [`convolve`].
pub unsafe fn score_candidates(
    kernels: &Kernels,
    stream: Stream,
    phase: &ScoreCandidates,
) -> Result<()> {
    let arguments = ScoreArguments {
        rows: (&phase.rows).into(),
        token: phase.rows.token.address(),
        candidates: Some(&phase.candidates).into(),
        values: (&phase.values).into(),
        projected: (&phase.projected).into(),
        selector: (&phase.selector).into(),
        weights: (&phase.weights).into(),
        scores: (&phase.scores).into(),
    };
    let shape = grid(phase.rows.len(), 1);
    // SAFETY: this function's contract.
    unsafe { kernels.launch(Kernel::ScoreCandidates, stream, &shape, &arguments) }
}

#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
struct RefineArguments {
    slots: SlotsArgument,
    slot_token: u64,
    commit_source: u64,
    tokens: u64,
    features: MatrixArgument,
    embedding: MatrixArgument,
    input: MatrixArgument,
    mixed: MatrixArgument,
    mix: MatrixArgument,
    output: MatrixArgument,
}

// SAFETY: the struct of kernels/block_heads.cu.
unsafe impl Arguments for RefineArguments {}

/// Enqueues the phase: what stands between its products is too little for launches of many blocks, and the
/// products are those of the layers.
///
/// # Safety
///
/// As for [`convolve`].
pub unsafe fn refine(kernels: &Kernels, stream: Stream, phase: &Refine<'_>) -> Result<()> {
    let Refine { slots, weights, .. } = phase;
    let arguments = RefineArguments {
        slots: slots.into(),
        slot_token: phase.rows.token.address(),
        commit_source: phase.commit.source.address(),
        tokens: phase.batch.tokens.address(),
        features: (&phase.features).into(),
        embedding: (&weights.embedding).into(),
        input: (&phase.input).into(),
        mixed: (&phase.mixed).into(),
        mix: (&weights.mix).into(),
        output: (&phase.output).into(),
    };
    let blocks = slots.draft.len();
    let gated = GateUp {
        rows: phase.rows,
        hidden: phase.output,
        norm: None,
        gate: Linear::unbiased(weights.gate),
        up: Linear::unbiased(weights.up),
        activation: Activation::Silu,
        input: phase.inner,
        output: phase.inner,
    };
    let (input, down) = (Linear::unbiased(weights.input), Linear::unbiased(weights.down));
    // SAFETY: this function's contract.
    unsafe {
        kernels.launch(Kernel::RefinerInput, stream, &grid(blocks, slots.len), &arguments)?;
        let (from, to) = (&phase.input, &phase.mixed);
        layer::linear(kernels, stream, &phase.block_rows, from, &input, to, false)?;
        kernels.launch(Kernel::RefinerMix, stream, &grid(blocks, slots.num_slots), &arguments)?;
        layer::gate_up(kernels, stream, &gated)?;
        layer::linear(kernels, stream, &phase.rows, &phase.inner, &down, &phase.output, true)
    }
}
