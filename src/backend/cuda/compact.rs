//! The launch code of `kernels/compact.cu`: accepted rows to the places behind their root.

use super::launch::{Arguments, Kernel, Kernels, Launch};
use super::products::address_or_zero;
use crate::backend::Stream;
use crate::error::Result;
use crate::tree::{CompactRows, Planes};
use bytemuck::NoUninit;

/// Threads of a block, each of which has a unit of a row.
const THREADS: usize = 128;

/// Planes of a launch, as in the kernel.
const MOST_PLANES: usize = 64;

/// The most blocks that share a row.
const MOST_BLOCKS: usize = 64;

/// `CompactArguments` of the kernel.
#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
struct CompactArguments {
    position: u64,
    row_count: u64,
    path: u64,
    table: u64,
    source: u64,
    destination: u64,
    flags: u64,
    position_stride: u64,
    row_count_stride: u64,
    path_stride: u64,
    table_stride: u64,
    lists_stride: u64,
    page_stride: u64,
    row_stride: u64,
    head_stride: u64,
    head_bytes: u64,
    max_nodes: u32,
    page_rows: u32,
    num_pages: u32,
    heads: u32,
    unit_bytes: u32,
    num_planes: u32,
    planes: [u64; MOST_PLANES],
}

// SAFETY: the struct of kernels/compact.cu.
unsafe impl Arguments for CompactArguments {}

/// Bytes of the largest unit in which all pieces of these planes can be moved.
fn unit_bytes(planes: &Planes<'_>, bases: &[u64]) -> usize {
    let strides = planes.page_stride | planes.row_stride | planes.head_stride | planes.head_bytes;
    let all = bases.iter().fold(strides as u64, |all, base| all | base);
    1 << all.trailing_zeros().min(4)
}

/// Enqueues the phase: a launch for each [`MOST_PLANES`] planes, the first of which writes the lists.
///
/// # Safety
///
/// The contract of [`crate::backend::Backend`].
pub unsafe fn compact_rows(
    kernels: &Kernels,
    stream: Stream,
    phase: &CompactRows<'_>,
) -> Result<()> {
    let planes = &phase.planes;
    for first in (0..planes.len().max(1)).step_by(MOST_PLANES) {
        let count = (planes.len() - first).min(MOST_PLANES);
        let mut bases = [0; MOST_PLANES];
        for (place, index) in bases.iter_mut().zip(first..first + count) {
            *place = planes.base(index);
        }
        let unit_bytes = unit_bytes(planes, &bases);
        let lists = |span| if first == 0 { address_or_zero(span) } else { 0 };
        let table = phase.placement.table;
        let arguments = CompactArguments {
            position: phase.position.span.address(),
            row_count: phase.row_count.span.address(),
            path: phase.path.span.address(),
            table: table.map_or(0, |table| table.span.address()),
            source: lists(phase.lists.source),
            destination: lists(phase.lists.destination),
            flags: lists(phase.flags),
            position_stride: phase.position.stride as u64,
            row_count_stride: phase.row_count.stride as u64,
            path_stride: phase.path.stride as u64,
            table_stride: phase.placement.pages_per_sequence() as u64,
            lists_stride: phase.lists.stride as u64,
            page_stride: planes.page_stride as u64,
            row_stride: planes.row_stride as u64,
            head_stride: planes.head_stride as u64,
            head_bytes: planes.head_bytes as u64,
            max_nodes: phase.max_nodes as u32,
            page_rows: phase.placement.page_rows as u32,
            num_pages: phase.placement.num_pages as u32,
            heads: planes.heads as u32,
            unit_bytes: unit_bytes as u32,
            num_planes: count as u32,
            planes: bases,
        };
        let units = planes.heads * (planes.head_bytes / unit_bytes);
        let blocks = units.div_ceil(THREADS).clamp(1, MOST_BLOCKS);
        let grid = [phase.num_sequences, count.max(1), blocks].map(|blocks| blocks as u32);
        let shape = Launch { grid, threads: THREADS as u32, shared: 0, cooperative: false };
        // SAFETY: this function's contract.
        unsafe { kernels.launch(Kernel::CompactRows, stream, &shape, &arguments)? };
    }
    Ok(())
}
