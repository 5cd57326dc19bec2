//! Plain data about memory: element types, where memory lies, and views of it. Nothing here
//! dereferences an address; only the backends do.

mod carve;

pub use carve::{ALIGNMENT, Carver};

use std::marker::PhantomData;

/// The element types that tensors of a checkpoint or of a host can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of IEEE single precision.
    Bf16,
}

impl Dtype {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// The name used in messages and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
        }
    }
}

/// `len` elements of type `T` at an address of the device that the owner of the span computes on.
///
/// A span is an address, not a borrow: whoever hands one to a backend promises that the memory is
/// valid, and not written by anybody else, until the work that uses it is done.
#[derive(Debug)]
pub struct Span<T> {
    address: u64,
    len: usize,
    element: PhantomData<fn() -> T>,
}

impl<T> Clone for Span<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Span<T> {}

impl<T> Span<T> {
    /// The span of `len` elements at `address`.
    pub const fn new(address: u64, len: usize) -> Self {
        Self { address, len, element: PhantomData }
    }

    /// The elements of memory of the host, which are read there.
    pub fn of(elements: &[T]) -> Self {
        Self::new(elements.as_ptr() as u64, elements.len())
    }

    /// The address of the first element.
    pub const fn address(&self) -> u64 {
        self.address
    }

    /// The number of elements.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements `start .. start + len`, which must lie inside.
    pub fn slice(&self, start: usize, len: usize) -> Self {
        assert!(start <= self.len && len <= self.len - start, "slice outside of its span");
        Self::new(self.address + (start * size_of::<T>()) as u64, len)
    }
}

/// One `i32` per sequence, `stride` elements apart: a column of a table of records.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// All elements from the first used one to the last.
    pub span: Span<i32>,
    /// Elements from one sequence to the next.
    pub stride: usize,
}

/// A matrix of floating-point elements: `rows` rows of `columns` contiguous elements,
/// `row_stride` elements apart. The lifetime rules are those of [`Span`].
#[derive(Clone, Copy, Debug)]
pub struct Matrix {
    /// The address of element (0, 0).
    pub address: u64,
    /// The element type.
    pub dtype: Dtype,
    /// The number of rows.
    pub rows: usize,
    /// The number of elements of a row.
    pub columns: usize,
    /// Elements from one row to the next.
    pub row_stride: usize,
}

impl Matrix {
    /// Rows of single precision without gaps between them.
    pub const fn contiguous(address: u64, rows: usize, columns: usize) -> Self {
        Self { address, dtype: Dtype::F32, rows, columns, row_stride: columns }
    }

    /// The address of the first element of `row`.
    pub fn row_address(&self, row: usize) -> u64 {
        self.address + (row * self.row_stride * self.dtype.size()) as u64
    }

    /// The rows `first .. first + rows`, which must lie inside.
    pub fn row_range(&self, first: usize, rows: usize) -> Self {
        assert!(first <= self.rows && rows <= self.rows - first, "rows outside of their matrix");
        Self { address: self.row_address(first), rows, ..*self }
    }

    /// Every `step`-th row from `first` on, `rows` of them, which must lie inside.
    pub fn every(&self, step: usize, first: usize, rows: usize) -> Self {
        let inside = rows == 0 || first + (rows - 1) * step < self.rows;
        assert!(inside, "rows outside of their matrix");
        let address = self.row_address(if rows == 0 { 0 } else { first });
        Self { address, rows, row_stride: step * self.row_stride, ..*self }
    }

    /// The columns `first .. first + columns`, which must lie inside.
    pub fn column_range(&self, first: usize, columns: usize) -> Self {
        let inside = first <= self.columns && columns <= self.columns - first;
        assert!(inside, "columns outside of their matrix");
        let address = self.address + (first * self.dtype.size()) as u64;
        Self { address, columns, ..*self }
    }
}
