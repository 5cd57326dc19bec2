//! The launch code of `kernels/project.cu`: the way into an attention.

use super::embedding::EmbeddingArgument;
use super::launch::{Arguments, Kernel, Kernels};
use super::paging::PagingArgument;
use super::products::{
    Kind, MatrixArgument, NormArgument, RowCountArgument, Size, Variants, grid, most_last_blocks,
    shape,
};
use crate::backend::Stream;
use crate::backend::phases::{
    AttentionHeads, KvProjection, Linear, Norm, Project, QueryProjection, Rotary,
};
use crate::error::Result;
use crate::tensor::{ALIGNMENT, Matrix};
use bytemuck::{NoUninit, Pod, Zeroable};

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct HeadMapArgument {
    weight: MatrixArgument,
    bias: MatrixArgument,
    output: MatrixArgument,
    norm: NormArgument,
    heads: u32,
    is_normed: u32,
}

impl HeadMapArgument {
    fn new(linear: &Linear, norm: Option<&Norm>, output: &Matrix, head_dim: usize) -> Self {
        Self {
            weight: (&linear.weight).into(),
            bias: MatrixArgument::of(linear.bias.as_ref()),
            output: output.into(),
            norm: norm.map_or(NormArgument::zeroed(), Into::into),
            heads: (linear.weight.rows / head_dim) as u32,
            is_normed: norm.is_some().into(),
        }
    }

    /// The maps to queries, keys and values.
    fn all(phase: &Project<'_>) -> [Self; 3] {
        let head_dim = phase.paging.pool.head_dim;
        let query = phase.query.as_ref().map(|QueryProjection { linear, norm, output }| {
            Self::new(linear, norm.as_ref(), output, head_dim)
        });
        let kv = phase.kv.as_ref().map(|KvProjection { key, value, key_norm, scratch }| {
            let width = key.weight.rows;
            let address = scratch.address + (width * scratch.dtype.size()) as u64;
            let keys = Matrix { columns: width, ..*scratch };
            let values = Matrix { address, ..keys };
            let key = Self::new(key, key_norm.as_ref(), &keys, head_dim);
            (key, Self::new(value, None, &values, head_dim))
        });
        let (key, value) = kv.unwrap_or((Self::zeroed(), Self::zeroed()));
        [query.unwrap_or(Self::zeroed()), key, value]
    }
}

#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
struct RotaryArgument {
    inverse_frequency: u64,
    long_inverse_frequency: u64,
    long_from: i64,
    half: u32,
    scale: f32,
}

impl From<&Rotary> for RotaryArgument {
    fn from(rotary: &Rotary) -> Self {
        Self {
            inverse_frequency: rotary.inverse_frequency.address(),
            long_inverse_frequency: rotary.long_inverse_frequency.address(),
            long_from: i64::try_from(rotary.long_from).unwrap_or(i64::MAX),
            half: rotary.inverse_frequency.len() as u32,
            scale: rotary.scale,
        }
    }
}

#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
struct ProjectArguments {
    rows: RowCountArgument,
    sequence: u64,
    position: u64,
    rope_position: u64,
    token: u64,
    counters: u64,
    inverse_rms: u64,
    hidden: MatrixArgument,
    norm: NormArgument,
    embedding: EmbeddingArgument,
    maps: [HeadMapArgument; 3],
    rotary: RotaryArgument,
    paging: PagingArgument,
    embedded: MatrixArgument,
    head_dim: u32,
    residual_is_normed: u32,
    most_last_blocks: u32,
    padding: u32,
}

// SAFETY: the struct of kernels/project.cu.
unsafe impl Arguments for ProjectArguments {}

const PROJECT: Variants = Variants {
    bf16: [Kernel::ProjectBf16Sixteen, Kernel::ProjectBf16ThirtyTwo, Kernel::ProjectBf16Many],
    f16: [Kernel::ProjectF16Sixteen, Kernel::ProjectF16ThirtyTwo, Kernel::ProjectF16Many],
    any: [Kernel::ProjectAnySixteen, Kernel::ProjectAnyThirtyTwo, Kernel::ProjectAnyMany],
};

/// Bytes of scratch for at most `rows` rows: the counters of at most two groups of rows, which stay
/// zero between phases, and at the end one number for each row of a phase with many.
pub fn scratch_bytes(rows: usize, heads: &AttentionHeads) -> usize {
    let counters = heads.num_heads + 2 * heads.num_kv_heads + 2;
    let bytes = (2 * counters * size_of::<u32>()).next_multiple_of(ALIGNMENT);
    bytes.saturating_add(rows.saturating_mul(size_of::<f32>()))
}

/// Enqueues the phase.
///
/// # Safety
///
/// The contract of [`crate::backend::Backend`].
pub unsafe fn project(kernels: &Kernels, stream: Stream, phase: &Project<'_>) -> Result<()> {
    let (rows, head_dim) = (phase.rows.len(), phase.paging.pool.head_dim);
    let maps = HeadMapArgument::all(phase);
    let numbers = phase.scratch.len() - rows * size_of::<f32>();
    let arguments = ProjectArguments {
        rows: (&phase.rows).into(),
        sequence: phase.rows.sequence.address(),
        position: phase.rows.position.address(),
        rope_position: phase.rows.rope_position.address(),
        token: phase.rows.token.address(),
        counters: phase.scratch.address(),
        inverse_rms: phase.scratch.address() + numbers as u64,
        hidden: (&phase.hidden).into(),
        norm: phase.norm.as_ref().into(),
        embedding: EmbeddingArgument::of(phase.embedding.as_ref()),
        maps,
        rotary: (&phase.rotary).into(),
        paging: (&phase.paging).into(),
        embedded: MatrixArgument::of(embedded_rows(phase).as_ref()),
        head_dim: head_dim as u32,
        residual_is_normed: phase.residual_is_normed.into(),
        most_last_blocks: most_last_blocks(kernels),
        padding: 0,
    };
    if embedded_rows(phase).is_some() {
        // SAFETY: this function's contract, here and below.
        unsafe { kernels.launch(Kernel::EmbedRows, stream, &grid(rows, 1), &arguments)? };
    }
    let size = Size::of(rows);
    let kernel = PROJECT.kernel(kind(phase), size);
    let heads = maps.iter().map(|map| map.heads as usize);
    let blocks = match size {
        Size::Sixteen => heads.clone().sum::<usize>() * head_dim.div_ceil(16),
        Size::ThirtyTwo => heads.clone().sum::<usize>() * head_dim.div_ceil(32),
        Size::Many => heads.clone().map(|heads| (heads * head_dim).div_ceil(128)).sum(),
    };
    // SAFETY: as above.
    unsafe { kernels.launch(kernel, stream, &shape(rows, size, blocks), &arguments)? };
    if size != Size::Many {
        return Ok(());
    }
    let warps = heads.sum::<usize>().div_ceil(8);
    // SAFETY: as above.
    unsafe { kernels.launch(Kernel::FinishProjection, stream, &grid(rows, warps), &arguments) }
}

/// Where the rows of the embedding are brought together before the products. So they are where keys
/// and values alone are asked for: only rows to commit may have embeddings of the host, and for them a
/// launch more does not count.
fn embedded_rows(phase: &Project<'_>) -> Option<Matrix> {
    let embedding = phase.embedding.as_ref()?;
    let is_commit = phase.query.is_none() && embedding.embeddings.is_some();
    is_commit.then_some(Matrix { columns: phase.hidden.columns, ..phase.input })
}

fn kind(phase: &Project<'_>) -> Kind {
    let query = phase.query.iter().map(|query| &query.linear.weight);
    let kv = phase.kv.iter().flat_map(|kv| [&kv.key.weight, &kv.value.weight]);
    let norms = phase.norm.iter().chain(phase.embedding.iter().flat_map(|half| &half.norm));
    let gains = norms.filter_map(|norm| norm.weight.as_ref());
    let others = std::iter::once(&phase.hidden).chain(gains);
    Kind::of(query.chain(kv), others)
}
