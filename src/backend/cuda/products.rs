//! What the launches of matrix products share: arguments, and the choice among the kernels of a
//! product by the weights and by the number of rows (`kernels/products.cuh`).

use super::launch::{Kernel, Kernels, Launch};
use crate::backend::phases::{Activation, Norm, Rows};
use crate::tensor::{Dtype, Matrix, Span};
use bytemuck::{NoUninit, Pod, Zeroable};

/// Threads of a block.
pub const THREADS: u32 = 256;

/// `Matrix` of `kernels/tensor.cuh`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct MatrixArgument {
    address: u64,
    row_stride: u64,
    rows: u32,
    columns: u32,
    dtype: u32,
    padding: u32,
}

impl MatrixArgument {
    /// The matrix, if there is one.
    pub fn of(matrix: Option<&Matrix>) -> Self {
        matrix.map_or(Self::zeroed(), |matrix| Self {
            address: matrix.address,
            row_stride: matrix.row_stride as u64,
            rows: matrix.rows as u32,
            columns: matrix.columns as u32,
            dtype: dtype_number(matrix.dtype),
            padding: 0,
        })
    }
}

impl From<&Matrix> for MatrixArgument {
    fn from(matrix: &Matrix) -> Self {
        Self::of(Some(matrix))
    }
}

/// The number of an element type in kernels.
pub const fn dtype_number(dtype: Dtype) -> u32 {
    match dtype {
        Dtype::F32 => 0,
        Dtype::F16 => 1,
        Dtype::Bf16 => 2,
    }
}

/// The number of an activation in kernels.
pub const fn activation_number(activation: Activation) -> u32 {
    match activation {
        Activation::Silu => 0,
        Activation::GeluTanh => 1,
        Activation::Gelu => 2,
        Activation::Relu => 3,
    }
}

/// `RowCount` of `kernels/products.cuh`.
#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
pub struct RowCountArgument {
    count: u64,
    first: u32,
    most: u32,
}

impl From<&Rows> for RowCountArgument {
    fn from(rows: &Rows) -> Self {
        Self { count: rows.count.address(), first: rows.first as u32, most: rows.len() as u32 }
    }
}

/// `Norm` of `kernels/products.cuh`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct NormArgument {
    weight: MatrixArgument,
    epsilon: f32,
    padding: u32,
}

impl From<&Norm> for NormArgument {
    fn from(norm: &Norm) -> Self {
        let weight = MatrixArgument::of(norm.weight.as_ref());
        Self { weight, epsilon: norm.epsilon, padding: 0 }
    }
}

impl From<Option<&Norm>> for NormArgument {
    /// Without a norm, rows are taken as they are: the kernels know that by a negative epsilon.
    fn from(norm: Option<&Norm>) -> Self {
        norm.map_or(Self { epsilon: -1.0, ..Self::zeroed() }, Self::from)
    }
}

/// The address of an array that may not be there.
pub fn address_or_zero<T>(span: Option<Span<T>>) -> u64 {
    span.map_or(0, |span| span.address())
}

/// The kinds of weights that there are kernels for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// BF16 in vectors of 16 bytes, with inputs and gains in vectors too.
    Bf16,
    /// The same of F16.
    F16,
    /// Whatever else.
    Any,
}

impl Kind {
    /// The kind of weights of a product, given what else it reads in pieces of a row: gains and
    /// inputs.
    pub fn of<'a>(
        weights: impl IntoIterator<Item = &'a Matrix>,
        others: impl IntoIterator<Item = &'a Matrix>,
    ) -> Self {
        let kinds = weights.into_iter().map(|weight| match weight.dtype {
            Dtype::Bf16 if has_vectors(weight) => Self::Bf16,
            Dtype::F16 if has_vectors(weight) => Self::F16,
            _ => Self::Any,
        });
        let kind = kinds.reduce(|left, right| if left == right { left } else { Self::Any });
        let fits = others.into_iter().all(has_vectors);
        kind.filter(|_| fits).unwrap_or(Self::Any)
    }
}

/// Whether all rows are made of whole vectors of 16 bytes, eight elements at a time.
fn has_vectors(matrix: &Matrix) -> bool {
    const VECTOR: u64 = 16;
    let strides = matrix.rows <= 1
        || ((matrix.row_stride * matrix.dtype.size()) as u64).is_multiple_of(VECTOR);
    matrix.columns.is_multiple_of(8) && matrix.address.is_multiple_of(VECTOR) && strides
}

/// How many rows a product's kernel is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// Up to 16: each block has them all.
    Sixteen,
    /// Up to 32 in a block.
    ThirtyTwo,
    /// Tiles in shared memory, 64 rows in a block.
    Many,
}

impl Size {
    /// With more rows, reading the weights once for every 32 rows costs more than tiles do.
    const MOST_WITHOUT_TILES: usize = 64;

    /// For at most `rows` rows.
    pub fn of(rows: usize) -> Self {
        match rows {
            0..=16 => Self::Sixteen,
            17..=Self::MOST_WITHOUT_TILES => Self::ThirtyTwo,
            _ => Self::Many,
        }
    }

    /// Rows of a block.
    pub fn rows(self) -> usize {
        self.choose([16, 32, 64])
    }

    /// The one of a list in the order of the sizes.
    pub fn choose<T: Copy>(self, of: [T; 3]) -> T {
        of[self as usize]
    }
}

/// The kernels of a product: for each kind of weights, one for each size.
#[derive(Debug)]
pub struct Variants {
    /// [`Kind::Bf16`].
    pub bf16: [Kernel; 3],
    /// [`Kind::F16`].
    pub f16: [Kernel; 3],
    /// [`Kind::Any`].
    pub any: [Kernel; 3],
}

impl Variants {
    /// The kernel for a kind of weights and a size.
    pub fn kernel(&self, kind: Kind, size: Size) -> Kernel {
        size.choose(match kind {
            Kind::Bf16 => self.bf16,
            Kind::F16 => self.f16,
            Kind::Any => self.any,
        })
    }
}

/// A launch of blocks that have a group of rows and some columns each. Blocks with the same columns
/// stand together, so that they find the weights in the cache.
pub fn shape(rows: usize, size: Size, columns: usize) -> Launch {
    grid(rows.div_ceil(size.rows()), columns)
}

/// A launch of this many blocks in each dimension.
pub fn grid(x: usize, y: usize) -> Launch {
    Launch { grid: [x as u32, y as u32, 1], threads: THREADS, shared: 0, cooperative: false }
}

/// How many blocks of a launch may wait for its other blocks: fewer than the device holds at a time, as
/// each multiprocessor holds one at least.
pub fn most_last_blocks(kernels: &Kernels) -> u32 {
    const MOST: u32 = 16;
    (kernels.device().facts().multiprocessors / 2).clamp(1, MOST)
}
