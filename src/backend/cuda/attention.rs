//! The launch code of `kernels/attention.cu`.

use super::device::Facts;
use super::launch::{Arguments, Kernel, Kernels, Launch};
use super::paging::PagingArgument;
use super::products::{RowCountArgument, address_or_zero};
use crate::backend::Stream;
use crate::backend::phases::{Attend, AttentionHeads};
use crate::error::Result;
use crate::tensor::{Dtype, Matrix};
use bytemuck::NoUninit;

/// Threads of a block.
const THREADS: usize = 256;

/// Query heads that share one pass over the keys, at most.
const MOST_HEADS: usize = 8;

/// Bytes of a vector.
const VECTOR: usize = 16;

/// The most vectors of a tile of keys or of values: two of them, with what stands beside, fit the
/// shared memory of every device, and three blocks' that of the largest ones.
const TILE_VECTORS: usize = 2048;

/// Positions of a tile.
const TILES: std::ops::RangeInclusive<usize> = 16..=128;

/// Positions that chunks are made of, and the most chunks of a row.
const CHUNK_STEP: usize = 256;
const MOST_CHUNKS: usize = 64;

/// With more groups of heads of rows than this, there are blocks enough without sharing out the
/// chunks of each.
const MOST_SHARED: usize = 2048;

/// How many blocks there should be for each multiprocessor.
const BLOCKS_PER_MULTIPROCESSOR: usize = 16;

/// Chunks that there is room for, unless a few groups need more.
const ROOM: usize = 16384;

/// `AttentionArguments` of the kernel.
#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
struct AttentionArguments {
    rows: RowCountArgument,
    paging: PagingArgument,
    sequence: u64,
    position: u64,
    context_begin: u64,
    query: u64,
    output: u64,
    query_stride: u64,
    output_stride: u64,
    counters: u64,
    partials: u64,
    scale: f32,
    window: u32,
    window_from_block: u32,
    sees_block: u32,
    num_heads: u32,
    groups: u32,
    group_heads: u32,
    chunks: u32,
    tile: u32,
    key_threads: u32,
    vectors: u32,
    phases: u32,
    tile_bytes: u32,
    has_vectors: u32,
}

// SAFETY: the struct of kernels/attention.cuh.
unsafe impl Arguments for AttentionArguments {}

/// How the query heads of a kv head are split into groups.
#[derive(Clone, Copy, Debug)]
struct Groups {
    /// Groups of each kv head.
    count: usize,
    /// Heads of each, the last one excepted.
    heads: usize,
}

impl Groups {
    fn of(heads: &AttentionHeads) -> Self {
        let queries = heads.num_heads / heads.num_kv_heads;
        let count = queries.div_ceil(MOST_HEADS);
        Self { count, heads: queries.div_ceil(count) }
    }
}

/// The groups of heads of all rows, which are the units of work.
fn units(rows: usize, heads: &AttentionHeads) -> usize {
    rows.saturating_mul(heads.num_kv_heads * Groups::of(heads).count)
}

/// Bytes of what a chunk of a unit comes to.
fn chunk_bytes(heads: &AttentionHeads) -> usize {
    Groups::of(heads).heads * (heads.head_dim + 2) * size_of::<f32>()
}

/// Bytes of the counters of units that are shared out, at the beginning of the scratch.
const COUNTER_BYTES: usize = MOST_SHARED * size_of::<u32>();

/// Bytes of scratch for at most `rows` rows that see `positions` positions.
pub fn scratch_bytes(rows: usize, heads: &AttentionHeads, positions: usize) -> usize {
    let chunks = positions.div_ceil(CHUNK_STEP).min(MOST_CHUNKS);
    let room = units(rows, heads).saturating_mul(chunks).min(ROOM);
    COUNTER_BYTES + room * chunk_bytes(heads)
}

/// How many blocks share the chunks of a unit, at most, and how many chunks of each there is room
/// for.
fn sharing(phase: &Attend, facts: &Facts) -> (usize, usize) {
    let units = units(phase.rows.len(), &phase.heads);
    let bytes = phase.scratch.len().saturating_sub(COUNTER_BYTES);
    let room = bytes / chunk_bytes(&phase.heads) / units.max(1);
    let chunks = room.min(MOST_CHUNKS);
    if units > MOST_SHARED || chunks < 2 {
        return (1, 0);
    }
    let blocks = facts.multiprocessors as usize * BLOCKS_PER_MULTIPROCESSOR;
    (blocks.div_ceil(units.max(1)).min(chunks), chunks)
}

/// The kernel for elements of this type and groups of so many heads, and the heads that it is made
/// for.
fn kernel(dtype: Dtype, heads: usize) -> (Kernel, usize) {
    use Kernel::*;
    let made_for = heads.next_power_of_two();
    let of_dtype = match dtype {
        Dtype::F32 => [AttendF32By1, AttendF32By2, AttendF32By4, AttendF32By8],
        Dtype::F16 => [AttendF16By1, AttendF16By2, AttendF16By4, AttendF16By8],
        Dtype::Bf16 => [AttendBf16By1, AttendBf16By2, AttendBf16By4, AttendBf16By8],
    };
    (of_dtype[made_for.ilog2() as usize], made_for)
}

/// Whether a head's keys or values of each position begin at multiples of a vector, and end there.
fn has_vectors(pages: &Matrix, head_dim: usize) -> bool {
    let row_bytes = (head_dim | pages.row_stride) * pages.dtype.size();
    (pages.address as usize | row_bytes).is_multiple_of(VECTOR)
}

/// Enqueues the attention of all rows.
///
/// # Safety
///
/// The contract of [`crate::backend::Backend`].
pub unsafe fn attend(
    kernels: &Kernels,
    facts: &Facts,
    stream: Stream,
    phase: &Attend,
) -> Result<()> {
    let AttentionHeads { num_heads, num_kv_heads, head_dim } = phase.heads;
    let groups = Groups::of(&phase.heads);
    let pages = phase.paging.pool.pages;
    let dtype = pages.dtype;
    let vectors = (head_dim * dtype.size()).div_ceil(VECTOR);
    let elements = VECTOR / dtype.size();
    let tile = 1 << (TILE_VECTORS / vectors).ilog2();
    let tile = tile.clamp(*TILES.start(), *TILES.end());
    // The tile of values serves to add up the sums of all threads for a head, too.
    let tile_bytes = (tile * vectors * VECTOR).max(THREADS * elements * size_of::<f32>());
    let (kernel, made_for) = kernel(dtype, groups.heads);
    let query_floats = vectors * (made_for * elements + 4);
    let shared = 2 * tile_bytes + (query_floats + tile * made_for) * size_of::<f32>();
    let (blocks, chunks) = sharing(phase, facts);
    let is_of_blocks = phase.paging.block().is_some();
    let own_pages = phase.paging.own_pages();
    let counters = phase.scratch.address();
    let arguments = AttentionArguments {
        rows: (&phase.rows).into(),
        paging: (&phase.paging).into(),
        sequence: phase.rows.sequence.address(),
        position: phase.rows.position.address(),
        context_begin: address_or_zero(phase.context_begin),
        query: phase.query.address,
        output: phase.output.address,
        query_stride: phase.query.row_stride as u64,
        output_stride: phase.output.row_stride as u64,
        counters,
        partials: counters + COUNTER_BYTES as u64,
        scale: phase.scale * std::f32::consts::LOG2_E,
        window: phase.mask.window.map_or(u32::MAX, |window| window.min(u32::MAX as usize) as u32),
        window_from_block: (phase.mask.window_from_block && is_of_blocks).into(),
        sees_block: (phase.mask.sees_block && is_of_blocks).into(),
        num_heads: num_heads as u32,
        groups: groups.count as u32,
        group_heads: groups.heads as u32,
        chunks: chunks as u32,
        tile: tile as u32,
        key_threads: (THREADS / tile) as u32,
        vectors: vectors as u32,
        phases: (THREADS / vectors) as u32,
        tile_bytes: tile_bytes as u32,
        has_vectors: std::iter::once(&pages)
            .chain(own_pages.as_ref())
            .all(|pages| has_vectors(pages, head_dim))
            .into(),
    };
    let grid = [phase.rows.len() as u32, (num_kv_heads * groups.count) as u32, blocks as u32];
    let shape = Launch { grid, threads: THREADS as u32, shared: shared as u32, cooperative: false };
    // SAFETY: this function's contract.
    unsafe { kernels.launch(kernel, stream, &shape, &arguments) }
}
