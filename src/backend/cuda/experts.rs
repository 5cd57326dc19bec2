//! The launch code of `kernels/experts.cu`: mixtures of experts.

use super::launch::{Arguments, Kernel, Kernels};
use super::layer;
use super::products::{MatrixArgument, RowCountArgument, THREADS, activation_number, grid};
use crate::backend::Stream;
use crate::backend::experts::MixExperts;
use crate::backend::phases::{GateUp, Linear};
use crate::error::Result;
use crate::tensor::Matrix;
use bytemuck::NoUninit;

/// Warps of a block, each with a row where experts are chosen.
const WARPS: usize = THREADS as usize / 32;

/// Columns of a block of the experts' products.
const COLUMNS: usize = 4 * WARPS;

#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
struct ChooseArguments {
    rows: RowCountArgument,
    scores: MatrixArgument,
    experts: u64,
    weights: MatrixArgument,
    renormalizes: u32,
    padding: u32,
}

// SAFETY: the struct of kernels/experts.cu.
unsafe impl Arguments for ChooseArguments {}

#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
struct ExpertArguments {
    rows: RowCountArgument,
    experts: u64,
    weight: MatrixArgument,
    input: MatrixArgument,
    output: MatrixArgument,
    chosen: u32,
    activation: u32,
}

// SAFETY: the struct of kernels/experts.cu.
unsafe impl Arguments for ExpertArguments {}

#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
struct AddArguments {
    rows: RowCountArgument,
    weights: MatrixArgument,
    made: MatrixArgument,
    shared: MatrixArgument,
    shared_score: MatrixArgument,
    hidden: MatrixArgument,
}

// SAFETY: the struct of kernels/experts.cu.
unsafe impl Arguments for AddArguments {}

/// Enqueues the phase. Nothing is sorted: of the pairs of rows and experts, the first of each expert takes
/// all others along.
///
/// # Safety
///
/// The contract of [`crate::backend::Backend`].
pub unsafe fn mix_experts(kernels: &Kernels, stream: Stream, phase: &MixExperts) -> Result<()> {
    // SAFETY: this function's contract.
    unsafe {
        layer::norm_rows(kernels, stream, &phase.rows, (&phase.hidden, &phase.norm), &phase.input)?;
        run_shared(kernels, stream, phase)?;
        choose(kernels, stream, phase)?;
        run_chosen(kernels, stream, phase)?;
        add(kernels, stream, phase)
    }
}

/// The shared expert, and its score.
unsafe fn run_shared(kernels: &Kernels, stream: Stream, phase: &MixExperts) -> Result<()> {
    let MixExperts { rows, input, weights, scratch, .. } = phase;
    let gated = GateUp {
        rows: *rows,
        hidden: *input,
        norm: None,
        gate: Linear::unbiased(weights.shared_gate),
        up: Linear::unbiased(weights.shared_up),
        activation: phase.activation,
        input: *input,
        output: phase.shared_inner,
    };
    let router = Linear::unbiased(weights.shared_router);
    let (inner, down) = (&phase.shared_inner, Linear::unbiased(weights.shared_down));
    // SAFETY: as for `mix_experts`.
    unsafe {
        layer::linear(kernels, stream, rows, input, &router, &scratch.shared_score, false)?;
        layer::gate_up(kernels, stream, &gated)?;
        layer::linear(kernels, stream, rows, inner, &down, &scratch.shared, false)
    }
}

/// The experts of each row, and what they weigh.
unsafe fn choose(kernels: &Kernels, stream: Stream, phase: &MixExperts) -> Result<()> {
    let MixExperts { rows, input, weights, scratch, .. } = phase;
    let arguments = ChooseArguments {
        rows: rows.into(),
        scores: (&scratch.scores).into(),
        experts: scratch.experts.address(),
        weights: (&scratch.weights).into(),
        renormalizes: weights.renormalizes.into(),
        padding: 0,
    };
    let (router, shape) = (Linear::unbiased(weights.router), grid(rows.len().div_ceil(WARPS), 1));
    // SAFETY: as for `mix_experts`.
    unsafe {
        layer::linear(kernels, stream, rows, input, &router, &scratch.scores, false)?;
        kernels.launch(Kernel::ChooseExperts, stream, &shape, &arguments)
    }
}

/// What the chosen experts make of their rows.
unsafe fn run_chosen(kernels: &Kernels, stream: Stream, phase: &MixExperts) -> Result<()> {
    let MixExperts { rows, weights, scratch, .. } = phase;
    let arguments = |weight: &Matrix, input: &Matrix, output: &Matrix| ExpertArguments {
        rows: rows.into(),
        experts: scratch.experts.address(),
        weight: weight.into(),
        input: input.into(),
        output: output.into(),
        chosen: weights.chosen as u32,
        activation: activation_number(phase.activation),
    };
    let gate_up = arguments(&weights.gate_up, &phase.input, &scratch.inner);
    let down = arguments(&weights.down, &scratch.inner, &scratch.sorted);
    let shape =
        |output: &Matrix| grid(rows.len() * weights.chosen, output.columns.div_ceil(COLUMNS));
    // SAFETY: as for `mix_experts`.
    unsafe {
        kernels.launch(Kernel::ExpertsGateUp, stream, &shape(&scratch.inner), &gate_up)?;
        kernels.launch(Kernel::ExpertsDown, stream, &shape(&scratch.sorted), &down)
    }
}

/// The weighed sum.
unsafe fn add(kernels: &Kernels, stream: Stream, phase: &MixExperts) -> Result<()> {
    let scratch = &phase.scratch;
    let arguments = AddArguments {
        rows: (&phase.rows).into(),
        weights: (&scratch.weights).into(),
        made: (&scratch.sorted).into(),
        shared: (&scratch.shared).into(),
        shared_score: (&scratch.shared_score).into(),
        hidden: (&phase.hidden).into(),
    };
    // SAFETY: as for `mix_experts`.
    unsafe { kernels.launch(Kernel::AddExperts, stream, &grid(phase.rows.len(), 1), &arguments) }
}
