//! The launch code of `kernels/layer.cu`: linear maps that stand alone, with their norms, and the first
//! half of a gated MLP.

use super::launch::{Arguments, Kernel, Kernels};
use super::products::{
    Kind, MatrixArgument, NormArgument, RowCountArgument, Size, Variants, activation_number, grid,
    shape,
};
use crate::backend::Stream;
use crate::backend::phases::{AddProjection, GateRows, GateUp, Linear, MapRows, Norm, Rows};
use crate::error::Result;
use crate::tensor::Matrix;
use bytemuck::NoUninit;

#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
struct LinearArguments {
    rows: RowCountArgument,
    weight: MatrixArgument,
    bias: MatrixArgument,
    input: MatrixArgument,
    output: MatrixArgument,
    adds: u32,
    padding: u32,
}

// SAFETY: the struct of kernels/layer.cu.
unsafe impl Arguments for LinearArguments {}

const LINEAR: Variants = Variants {
    bf16: [Kernel::LinearBf16Sixteen, Kernel::LinearBf16ThirtyTwo, Kernel::LinearBf16Many],
    f16: [Kernel::LinearF16Sixteen, Kernel::LinearF16ThirtyTwo, Kernel::LinearF16Many],
    any: [Kernel::LinearAnySixteen, Kernel::LinearAnyThirtyTwo, Kernel::LinearAnyMany],
};

/// Enqueues a linear map of rows, which is added to `output` if `adds`.
///
/// # Safety
///
/// The contract of [`crate::backend::Backend`].
pub unsafe fn linear(
    kernels: &Kernels,
    stream: Stream,
    rows: &Rows,
    input: &Matrix,
    linear: &Linear,
    output: &Matrix,
    adds: bool,
) -> Result<()> {
    let arguments = LinearArguments {
        rows: rows.into(),
        weight: (&linear.weight).into(),
        bias: MatrixArgument::of(linear.bias.as_ref()),
        input: input.into(),
        output: output.into(),
        adds: adds.into(),
        padding: 0,
    };
    let size = Size::of(rows.len());
    let kernel = LINEAR.kernel(Kind::of([&linear.weight], [input]), size);
    let columns = linear.weight.rows.div_ceil(size.choose([16, 32, 128]));
    // SAFETY: this function's contract.
    unsafe { kernels.launch(kernel, stream, &shape(rows.len(), size, columns), &arguments) }
}

/// Enqueues the phase.
///
/// # Safety
///
/// The contract of [`crate::backend::Backend`].
pub unsafe fn add_projection(
    kernels: &Kernels,
    stream: Stream,
    phase: &AddProjection,
) -> Result<()> {
    let AddProjection { rows, input, linear: map, hidden } = phase;
    // SAFETY: this function's contract.
    unsafe { linear(kernels, stream, rows, input, map, hidden, true) }
}

#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
struct NormArguments {
    rows: RowCountArgument,
    from: MatrixArgument,
    norm: NormArgument,
    to: MatrixArgument,
}

// SAFETY: the struct of kernels/layer.cu.
unsafe impl Arguments for NormArguments {}

/// Enqueues the norm of rows.
///
/// # Safety
///
/// The contract of [`crate::backend::Backend`].
pub unsafe fn norm_rows(
    kernels: &Kernels,
    stream: Stream,
    rows: &Rows,
    (from, norm): (&Matrix, &Norm),
    to: &Matrix,
) -> Result<()> {
    let arguments =
        NormArguments { rows: rows.into(), from: from.into(), norm: norm.into(), to: to.into() };
    // SAFETY: this function's contract.
    unsafe { kernels.launch(Kernel::NormRows, stream, &grid(rows.len(), 1), &arguments) }
}

#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
struct GateRowsArguments {
    rows: RowCountArgument,
    gates: MatrixArgument,
    values: MatrixArgument,
}

// SAFETY: the struct of kernels/layer.cu.
unsafe impl Arguments for GateRowsArguments {}

/// Enqueues the phase.
///
/// # Safety
///
/// The contract of [`crate::backend::Backend`].
pub unsafe fn gate_rows(kernels: &Kernels, stream: Stream, phase: &GateRows) -> Result<()> {
    let arguments = GateRowsArguments {
        rows: (&phase.rows).into(),
        gates: (&phase.gates).into(),
        values: (&phase.values).into(),
    };
    // SAFETY: this function's contract.
    unsafe { kernels.launch(Kernel::GateRows, stream, &grid(phase.rows.len(), 1), &arguments) }
}

/// Enqueues the phase: the norm, if there is one, and a product for each piece of the map.
///
/// # Safety
///
/// The contract of [`crate::backend::Backend`].
pub unsafe fn map_rows(kernels: &Kernels, stream: Stream, phase: &MapRows<'_>) -> Result<()> {
    let mut input = &phase.from;
    if let Some(norm) = &phase.norm {
        // SAFETY: this function's contract, here and below.
        unsafe { norm_rows(kernels, stream, &phase.rows, (input, norm), &phase.input)? };
        input = &phase.input;
    }
    let mut first = 0;
    for &weight in phase.weight.segments {
        let bias = phase.bias.map(|bias| bias.column_range(first, weight.rows));
        let to = phase.to.column_range(first, weight.rows);
        first += weight.rows;
        // SAFETY: as above.
        unsafe {
            linear(kernels, stream, &phase.rows, input, &Linear { weight, bias }, &to, false)?
        };
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
struct GateUpArguments {
    rows: RowCountArgument,
    hidden: MatrixArgument,
    norm: NormArgument,
    gate: MatrixArgument,
    gate_bias: MatrixArgument,
    up: MatrixArgument,
    up_bias: MatrixArgument,
    output: MatrixArgument,
    activation: u32,
    padding: u32,
}

// SAFETY: the struct of kernels/layer.cu.
unsafe impl Arguments for GateUpArguments {}

const GATE_UP: Variants = Variants {
    bf16: [Kernel::GateUpBf16Sixteen, Kernel::GateUpBf16ThirtyTwo, Kernel::GateUpBf16Many],
    f16: [Kernel::GateUpF16Sixteen, Kernel::GateUpF16ThirtyTwo, Kernel::GateUpF16Many],
    any: [Kernel::GateUpAnySixteen, Kernel::GateUpAnyThirtyTwo, Kernel::GateUpAnyMany],
};

/// Enqueues the phase.
///
/// # Safety
///
/// The contract of [`crate::backend::Backend`].
pub unsafe fn gate_up(kernels: &Kernels, stream: Stream, phase: &GateUp) -> Result<()> {
    let arguments = GateUpArguments {
        rows: (&phase.rows).into(),
        hidden: (&phase.hidden).into(),
        norm: phase.norm.as_ref().into(),
        gate: (&phase.gate.weight).into(),
        gate_bias: MatrixArgument::of(phase.gate.bias.as_ref()),
        up: (&phase.up.weight).into(),
        up_bias: MatrixArgument::of(phase.up.bias.as_ref()),
        output: (&phase.output).into(),
        activation: activation_number(phase.activation),
        padding: 0,
    };
    let inputs = std::iter::once(&phase.hidden)
        .chain(phase.norm.iter().filter_map(|norm| norm.weight.as_ref()));
    let size = Size::of(phase.rows.len());
    let kernel = GATE_UP.kernel(Kind::of([&phase.gate.weight, &phase.up.weight], inputs), size);
    let columns = phase.gate.weight.rows.div_ceil(size.choose([16, 16, 64]));
    let shape = shape(phase.rows.len(), size, columns);
    // SAFETY: this function's contract.
    unsafe { kernels.launch(kernel, stream, &shape, &arguments) }
}
