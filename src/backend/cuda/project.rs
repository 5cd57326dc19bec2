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
    AttentionHeads, KvProjection, Linear, Norm, Paging, Project, QueryProjection, Rotary,
};
use crate::error::Result;
use crate::tensor::{ALIGNMENT, Matrix};
use bytemuck::{NoUninit, Pod, Zeroable};

/// Layers that a launch has keys and values of: as many as the arguments hold.
const MAX_LAYERS: usize = 8;

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct HeadMapArgument {
    weight: MatrixArgument,
    bias: MatrixArgument,
    norm: NormArgument,
}

impl HeadMapArgument {
    fn new(linear: &Linear, norm: Option<&Norm>) -> Self {
        Self {
            weight: (&linear.weight).into(),
            bias: MatrixArgument::of(linear.bias.as_ref()),
            norm: norm.into(),
        }
    }

    /// The map to queries, and those to keys and values of at most [`MAX_LAYERS`] layers.
    fn all(phase: &Project<'_>) -> [Self; 1 + 2 * MAX_LAYERS] {
        let mut maps = [Self::zeroed(); 1 + 2 * MAX_LAYERS];
        if let Some(QueryProjection { linear, norm, .. }) = &phase.query {
            maps[0] = Self::new(linear, norm.as_ref());
        }
        let layers = maps[1..].as_chunks_mut::<2>().0;
        for (layer, KvProjection { key, value, key_norm }) in layers.iter_mut().zip(phase.kv) {
            *layer = [Self::new(key, key_norm.as_ref()), Self::new(value, None)];
        }
        maps
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
    maps: [HeadMapArgument; 1 + 2 * MAX_LAYERS],
    queries: MatrixArgument,
    kv: MatrixArgument,
    rotary: RotaryArgument,
    paging: PagingArgument,
    embedded: MatrixArgument,
    num_heads: u32,
    num_layers: u32,
    residual_is_normed: u32,
    most_last_blocks: u32,
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
    let counters = heads.num_heads + MAX_LAYERS * 2 * heads.num_kv_heads + 2;
    let bytes = (2 * counters * size_of::<u32>()).next_multiple_of(ALIGNMENT);
    bytes.saturating_add(rows.saturating_mul(size_of::<f32>()))
}

impl ProjectArguments {
    fn new(kernels: &Kernels, phase: &Project<'_>, embedded: Option<&Matrix>) -> Self {
        let numbers = phase.scratch.len() - phase.rows.len() * size_of::<f32>();
        Self {
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
            maps: HeadMapArgument::all(phase),
            queries: MatrixArgument::of(phase.query.as_ref().map(|query| &query.output)),
            kv: (&phase.kv_scratch).into(),
            rotary: (&phase.rotary).into(),
            paging: (&phase.paging).into(),
            embedded: MatrixArgument::of(embedded),
            num_heads: num_heads(phase) as u32,
            num_layers: phase.kv.len() as u32,
            residual_is_normed: phase.residual_is_normed.into(),
            most_last_blocks: most_last_blocks(kernels),
        }
    }
}

fn num_heads(phase: &Project<'_>) -> usize {
    phase.query.map_or(0, |query| query.linear.weight.rows / phase.paging.pool.head_dim)
}

/// Enqueues the phase, with a launch of the products for every [`MAX_LAYERS`] layers.
///
/// # Safety
///
/// The contract of [`crate::backend::Backend`].
pub unsafe fn project(kernels: &Kernels, stream: Stream, phase: &Project<'_>) -> Result<()> {
    // By the whole phase, so that a layer's results do not depend on the launch that it is in.
    let (kind, embedded) = (kind(phase), embedded_rows(phase));
    let launches = phase.kv.len().div_ceil(MAX_LAYERS).max(1);
    for index in 0..launches {
        let part = part(phase, index, index + 1 == launches);
        let arguments = ProjectArguments::new(kernels, &part, embedded.as_ref());
        if index == 0 && embedded.is_some() {
            let shape = grid(phase.rows.len(), 1);
            // SAFETY: this function's contract, here and below.
            unsafe { kernels.launch(Kernel::EmbedRows, stream, &shape, &arguments)? };
        }
        // SAFETY: as above.
        unsafe { project_part(kernels, stream, (&part, kind), &arguments)? };
    }
    Ok(())
}

/// What one launch has of a phase: the first one the queries, the last one the residual stream, which
/// those before it read as it was.
fn part<'a>(phase: &Project<'a>, index: usize, is_last: bool) -> Project<'a> {
    let Project { kv, kv_scratch, paging, .. } = *phase;
    let first = index * MAX_LAYERS;
    let columns = kv_scratch.columns / kv.len().max(1);
    let layers = (kv.len() - first).min(MAX_LAYERS);
    Project {
        query: phase.query.filter(|_| index == 0),
        residual_is_normed: phase.residual_is_normed && is_last,
        kv: &kv[first..first + layers],
        kv_scratch: kv_scratch.column_range(first * columns, layers * columns),
        paging: Paging { layer: paging.layer + first, ..paging },
        ..*phase
    }
}

/// Enqueues the products, and the heads by themselves where there are many rows.
///
/// # Safety
///
/// The contract of [`crate::backend::Backend`].
unsafe fn project_part(
    kernels: &Kernels,
    stream: Stream,
    (phase, kind): (&Project<'_>, Kind),
    arguments: &ProjectArguments,
) -> Result<()> {
    let (rows, size, head_dim) =
        (phase.rows.len(), Size::of(phase.rows.len()), phase.paging.pool.head_dim);
    let (num_heads, kv_heads) = (num_heads(phase), phase.paging.pool.num_kv_heads);
    let kv_maps = 2 * phase.kv.len();
    let heads = num_heads + kv_maps * kv_heads;
    let many = |heads: usize| (heads * head_dim).div_ceil(128);
    let blocks = match size {
        Size::Sixteen => heads * head_dim.div_ceil(16),
        Size::ThirtyTwo => heads * head_dim.div_ceil(32),
        Size::Many => many(num_heads) + kv_maps * many(kv_heads),
    };
    let shape = shape(rows, size, blocks);
    // SAFETY: this function's contract.
    unsafe { kernels.launch(PROJECT.kernel(kind, size), stream, &shape, arguments)? };
    if size != Size::Many {
        return Ok(());
    }
    let shape = grid(rows, heads.div_ceil(8));
    // SAFETY: as above.
    unsafe { kernels.launch(Kernel::FinishProjection, stream, &shape, arguments) }
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
