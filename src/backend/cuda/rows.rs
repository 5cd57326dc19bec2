//! Rows in the arguments of kernels, and the launch code of `kernels/rows.cu`.

use super::launch::{Arguments, Kernel, Kernels, Launch};
use super::products::address_or_zero;
use crate::backend::Stream;
use crate::backend::draft_trees::ColumnTokens;
use crate::backend::phases::Rows;
use crate::error::Result;
use crate::tensor::{Matrix, Span};
use bytemuck::NoUninit;

/// Threads of a block, which copies a row after the other.
const THREADS: u32 = 256;

/// The most blocks of a launch.
const MOST_BLOCKS: usize = 4096;

/// `RowArrays` of the kernels: rows as the plan lays them out.
#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
pub struct RowArrays {
    count: u64,
    sequence: u64,
    position: u64,
    rope_position: u64,
    token: u64,
    source: u64,
}

impl From<Rows> for RowArrays {
    fn from(rows: Rows) -> Self {
        Self {
            count: rows.count.address(),
            sequence: rows.sequence.address(),
            position: rows.position.address(),
            rope_position: rows.rope_position.address(),
            token: rows.token.address(),
            source: rows.source.address(),
        }
    }
}

/// `ColumnTokens` of the kernels.
#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
pub struct ColumnArgument {
    ids: u64,
    stride: u64,
    laws: u32,
    padding: u32,
}

impl From<Option<&ColumnTokens>> for ColumnArgument {
    fn from(tokens: Option<&ColumnTokens>) -> Self {
        Self {
            ids: address_or_zero(tokens.map(|tokens| tokens.ids)),
            stride: tokens.map_or(0, |tokens| tokens.stride as u64),
            laws: tokens.map_or(1, |tokens| tokens.laws as u32),
            padding: 0,
        }
    }
}

/// `CopyRowsArguments` of the kernel.
#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
struct CopyRowsArguments {
    from: u64,
    to: u64,
    ids: u64,
    /// Bytes from one row to the next.
    from_stride: u64,
    to_stride: u64,
    row_bytes: u64,
    from_rows: u32,
    to_rows: u32,
}

// SAFETY: the struct of kernels/rows.cu.
unsafe impl Arguments for CopyRowsArguments {}

/// Enqueues a copy of the rows of `from` with these ids to the first rows of `to`, of the same type
/// and width. Ids that are no rows leave theirs as they are.
///
/// # Safety
///
/// The matrices and the ids are valid on the device until the copy is done; the context is current.
pub unsafe fn copy_rows(
    kernels: &Kernels,
    stream: Stream,
    from: &Matrix,
    ids: Span<i32>,
    to: &Matrix,
) -> Result<()> {
    let size = from.dtype.size();
    let arguments = CopyRowsArguments {
        from: from.address,
        to: to.address,
        ids: ids.address(),
        from_stride: (from.row_stride * size) as u64,
        to_stride: (to.row_stride * size) as u64,
        row_bytes: (from.columns * size) as u64,
        from_rows: from.rows as u32,
        to_rows: ids.len() as u32,
    };
    let blocks = ids.len().min(MOST_BLOCKS) as u32;
    let shape = Launch { grid: [blocks, 1, 1], threads: THREADS, shared: 0, cooperative: false };
    // SAFETY: this function's contract.
    unsafe { kernels.launch(Kernel::CopyRows, stream, &shape, &arguments) }
}
