//! The launch code of `kernels/token.cu`: token, with or without hidden state, to hidden state.

use super::embedding::EmbeddingArgument;
use super::launch::{Arguments, Kernel, Kernels};
use super::layer;
use super::products::{MatrixArgument, NormArgument, RowCountArgument, grid};
use crate::backend::Stream;
use crate::backend::phases::{EmbedTokens, FuseToken, HiddenSource};
use crate::error::Result;
use bytemuck::{NoUninit, Zeroable};

#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
struct TokenArguments {
    rows: RowCountArgument,
    token: u64,
    source: u64,
    from: MatrixArgument,
    output: MatrixArgument,
    norm: NormArgument,
    embedding: EmbeddingArgument,
}

// SAFETY: the struct of kernels/token.cu.
unsafe impl Arguments for TokenArguments {}

/// Enqueues the phase. Both halves come side by side first, widened and normed, so that the product may
/// overwrite the hidden state that it comes from.
///
/// # Safety
///
/// The contract of [`crate::backend::Backend`].
pub unsafe fn fuse_token(kernels: &Kernels, stream: Stream, phase: &FuseToken<'_>) -> Result<()> {
    let (source, from) = match &phase.from {
        HiddenSource::Feature(feature) => (phase.rows.source.address(), feature),
        HiddenSource::Rows(rows) => (0, rows),
    };
    let arguments = TokenArguments {
        rows: (&phase.rows).into(),
        token: phase.rows.token.address(),
        source,
        from: from.into(),
        output: (&phase.input).into(),
        norm: phase.norm.as_ref().into(),
        embedding: EmbeddingArgument::of(Some(&phase.embedding)),
    };
    let shape = grid(phase.rows.len(), 2);
    // SAFETY: this function's contract, here and below.
    unsafe {
        kernels.launch(Kernel::GatherToken, stream, &shape, &arguments)?;
        layer::linear(
            kernels,
            stream,
            &phase.rows,
            &phase.input,
            &phase.linear,
            &phase.hidden,
            false,
        )
    }
}

/// Enqueues the phase: the kernel's first half, whose rows are then as long as the hidden state's.
///
/// # Safety
///
/// The contract of [`crate::backend::Backend`].
pub unsafe fn embed_tokens(
    kernels: &Kernels,
    stream: Stream,
    phase: &EmbedTokens<'_>,
) -> Result<()> {
    let arguments = TokenArguments {
        rows: (&phase.rows).into(),
        token: phase.rows.token.address(),
        source: 0,
        from: (&phase.hidden).into(),
        output: (&phase.hidden).into(),
        norm: NormArgument::zeroed(),
        embedding: EmbeddingArgument::of(Some(&phase.embedding)),
    };
    let shape = grid(phase.rows.len(), 1);
    // SAFETY: this function's contract.
    unsafe { kernels.launch(Kernel::GatherToken, stream, &shape, &arguments) }
}
