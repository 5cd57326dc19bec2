//! The launch code of `kernels/mlp.cu`: steps of MLP speculators.

use super::launch::{Arguments, Kernel, Kernels};
use super::layer;
use super::products::{MatrixArgument, NormArgument, RowCountArgument, grid};
use crate::backend::Stream;
use crate::backend::phases::{Linear, Norm, StateSource, StepMlp};
use crate::error::Result;
use bytemuck::NoUninit;

#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
struct StateArguments {
    rows: RowCountArgument,
    source: u64,
    committed: u64,
    from: MatrixArgument,
    to: MatrixArgument,
    norm: NormArgument,
    is_feature: u32,
    padding: u32,
}

// SAFETY: the struct of kernels/mlp.cu.
unsafe impl Arguments for StateArguments {}

#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
struct MlpArguments {
    rows: RowCountArgument,
    token: u64,
    embedding: MatrixArgument,
    norm: NormArgument,
    bias: MatrixArgument,
    state: MatrixArgument,
    embedding_scale: f32,
    padding: u32,
}

// SAFETY: the struct of kernels/mlp.cu.
unsafe impl Arguments for MlpArguments {}

/// Enqueues the phase. The state before is copied first, as the product writes where it stands.
///
/// # Safety
///
/// The contract of [`crate::backend::Backend`].
pub unsafe fn step_mlp(kernels: &Kernels, stream: Stream, phase: &StepMlp) -> Result<()> {
    let (from, committed, is_scaled) = match &phase.from {
        StateSource::Feature { feature, committed, is_scaled } => {
            (feature, Some(committed), *is_scaled)
        }
        StateSource::Rows => (&phase.state, None, false),
    };
    let scale = Norm { weight: None, ..phase.norm };
    let read = StateArguments {
        rows: (&phase.rows).into(),
        source: phase.rows.source.address(),
        committed: committed.map_or(0, |committed| committed.address()),
        from: from.into(),
        to: (&phase.input).into(),
        norm: is_scaled.then_some(&scale).into(),
        is_feature: committed.is_some().into(),
        padding: 0,
    };
    let finish = MlpArguments {
        rows: (&phase.rows).into(),
        token: phase.rows.token.address(),
        embedding: (&phase.embedding).into(),
        norm: (&phase.norm).into(),
        bias: (&phase.bias).into(),
        state: (&phase.state).into(),
        embedding_scale: phase.embedding_scale,
        padding: 0,
    };
    let (shape, map) = (grid(phase.rows.len(), 1), Linear::unbiased(phase.projection));
    // SAFETY: this function's contract.
    unsafe {
        kernels.launch(Kernel::ReadStates, stream, &shape, &read)?;
        layer::linear(kernels, stream, &phase.rows, &phase.input, &map, &phase.state, false)?;
        kernels.launch(Kernel::FinishMlp, stream, &shape, &finish)
    }
}
