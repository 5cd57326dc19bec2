//! The launch code of `kernels/features.cu`: features to hidden state.

use super::launch::{Arguments, Kernel, Kernels};
use super::layer;
use super::products::{MatrixArgument, NormArgument, RowCountArgument, dtype_number, grid};
use crate::backend::Stream;
use crate::backend::phases::{FeatureNorm, FuseFeatures, Norm};
use crate::error::Result;
use crate::tensor::Matrix;
use bytemuck::{NoUninit, Pod, Zeroable};

/// The most features of a launch.
const MAX_FEATURES: usize = 64;

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct FeatureArgument {
    address: u64,
    row_stride: u64,
    norm: NormArgument,
    dtype: u32,
    columns: u32,
    first_column: u32,
    padding: u32,
}

impl FeatureArgument {
    fn new(feature: &Matrix, first_column: usize, norm: Option<&Norm>) -> Self {
        Self {
            address: feature.address,
            row_stride: feature.row_stride as u64,
            norm: norm.into(),
            dtype: dtype_number(feature.dtype),
            columns: feature.columns as u32,
            first_column: first_column as u32,
            padding: 0,
        }
    }
}

#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
struct FeaturesArguments {
    rows: RowCountArgument,
    source: u64,
    output: MatrixArgument,
    gain: MatrixArgument,
    epsilon: f32,
    padding: u32,
    features: [FeatureArgument; MAX_FEATURES],
}

// SAFETY: the struct of kernels/features.cu.
unsafe impl Arguments for FeaturesArguments {}

/// Enqueues the phase. The features come side by side first, widened and normed: they may lie in
/// memory of the host, which every block of the product would read again.
///
/// # Safety
///
/// The contract of [`crate::backend::Backend`].
pub unsafe fn fuse_features(
    kernels: &Kernels,
    stream: Stream,
    phase: &FuseFeatures<'_>,
) -> Result<()> {
    let mut arguments = FeaturesArguments {
        rows: (&phase.rows).into(),
        source: phase.rows.source.address(),
        output: (&phase.input).into(),
        gain: MatrixArgument::zeroed(),
        epsilon: 0.0,
        padding: 0,
        features: [FeatureArgument::zeroed(); MAX_FEATURES],
    };
    let (rows, mut column) = (phase.rows.len(), 0);
    for (chunk, features) in phase.features.chunks(MAX_FEATURES).enumerate() {
        for (index, feature) in features.iter().enumerate() {
            let norm = match phase.norm {
                FeatureNorm::Each(norms) => Some(&norms[chunk * MAX_FEATURES + index]),
                _ => None,
            };
            arguments.features[index] = FeatureArgument::new(feature, column, norm);
            column += feature.columns;
        }
        let shape = grid(rows, features.len());
        // SAFETY: this function's contract, here and below.
        unsafe { kernels.launch(Kernel::GatherFeatures, stream, &shape, &arguments)? };
    }
    if let FeatureNorm::Joint(norm) = &phase.norm {
        arguments.gain = MatrixArgument::of(norm.weight.as_ref());
        arguments.epsilon = norm.epsilon;
        // SAFETY: as above.
        unsafe { kernels.launch(Kernel::NormFeatures, stream, &grid(rows, 1), &arguments)? };
    }
    // SAFETY: as above.
    unsafe {
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
