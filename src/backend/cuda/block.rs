//! The launch code of `kernels/block.cu`: the rows of blocks, and what enters the first layer with them.

use super::embedding::EmbeddingArgument;
use super::launch::{Arguments, Kernel, Kernels};
use super::products::{MatrixArgument, RowCountArgument, grid};
use super::rows::RowArrays;
use crate::backend::Stream;
use crate::backend::phases::{BlockInput, StartBlock};
use crate::error::Result;
use crate::tensor::Matrix;
use bytemuck::NoUninit;

#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
struct StartArguments {
    draft_rows: RowCountArgument,
    draft: RowArrays,
    rows: RowArrays,
    slots: RowArrays,
    embedding: EmbeddingArgument,
    first: MatrixArgument,
    others: MatrixArgument,
    hidden: MatrixArgument,
    len: u32,
    distance: u32,
    mask_token: i32,
    first_slot: u32,
    num_slots: u32,
    padding: u32,
}

// SAFETY: the struct of kernels/block.cu.
unsafe impl Arguments for StartArguments {}

/// Enqueues the phase.
///
/// # Safety
///
/// The contract of [`crate::backend::Backend`].
pub unsafe fn start_block(kernels: &Kernels, stream: Stream, phase: &StartBlock<'_>) -> Result<()> {
    let (embedding, hidden): (_, Option<(&Matrix, &Matrix)>) = match &phase.input {
        BlockInput::Embedding(embedding) => (Some(embedding), None),
        BlockInput::Hidden { first, others } => (None, Some((first, others))),
    };
    let arguments = StartArguments {
        draft_rows: (&phase.draft).into(),
        draft: phase.draft.into(),
        rows: phase.rows.into(),
        slots: phase.slots.into(),
        embedding: EmbeddingArgument::of(embedding),
        first: MatrixArgument::of(hidden.map(|(first, _)| first)),
        others: MatrixArgument::of(hidden.map(|(_, others)| others)),
        hidden: (&phase.hidden).into(),
        len: phase.len as u32,
        distance: phase.distance as u32,
        mask_token: phase.mask_token,
        first_slot: phase.first_slot as u32,
        num_slots: phase.num_slots as u32,
        padding: 0,
    };
    // SAFETY: this function's contract.
    unsafe {
        kernels.launch(Kernel::StartBlock, stream, &grid(phase.draft.len(), phase.len), &arguments)
    }
}
