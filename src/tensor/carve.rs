//! Cutting one block of memory into aligned pieces. The same code runs in counting mode, on no
//! memory at all, to tell how large the block has to be.

use super::{Dtype, Matrix, Span};

/// Every piece starts at a multiple of this many bytes: a cache line, and the widest vector.
pub const ALIGNMENT: usize = 64;

/// Cuts a block of memory into pieces, or only counts how many bytes the pieces take.
#[derive(Debug)]
pub struct Carver {
    base: u64,
    used: usize,
}

impl Carver {
    /// A carver that only counts; the addresses that it gives mean nothing.
    pub const fn counting() -> Self {
        Self { base: 0, used: 0 }
    }

    /// A carver of the block at `base`, which must be a multiple of [`ALIGNMENT`] and at least as
    /// large as the same calls on a counting carver told.
    pub fn of_block(base: u64) -> Self {
        assert!(base.is_multiple_of(ALIGNMENT as u64), "workspace is not aligned");
        Self { base, used: 0 }
    }

    /// The next piece, of `len` elements.
    pub fn span<T>(&mut self, len: usize) -> Span<T> {
        let bytes = len.saturating_mul(size_of::<T>());
        Span::new(self.take(bytes), len)
    }

    /// The next piece as a matrix with contiguous rows.
    pub fn matrix(&mut self, dtype: Dtype, rows: usize, columns: usize) -> Matrix {
        let bytes = rows.saturating_mul(columns).saturating_mul(dtype.size());
        Matrix { address: self.take(bytes), dtype, rows, columns, row_stride: columns }
    }

    /// The bytes taken so far; `usize::MAX` when the sum does not fit.
    pub const fn used(&self) -> usize {
        self.used
    }

    fn take(&mut self, bytes: usize) -> u64 {
        let address = self.base.wrapping_add(self.used as u64);
        let rounded = bytes.checked_next_multiple_of(ALIGNMENT).unwrap_or(usize::MAX);
        self.used = self.used.saturating_add(rounded);
        address
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counting_and_carving_agree_and_pieces_are_aligned() {
        let pieces = |carver: &mut Carver| {
            (carver.span::<u8>(1), carver.matrix(Dtype::Bf16, 3, 5), carver.span::<u64>(9))
        };
        let mut counting = Carver::counting();
        pieces(&mut counting);
        let mut carver = Carver::of_block(4096);
        let (bytes, matrix, words) = pieces(&mut carver);
        assert_eq!(counting.used(), carver.used());
        assert_eq!(carver.used(), 64 + 64 + 128);
        assert_eq!([bytes.address(), matrix.address, words.address()], [4096, 4160, 4224]);
    }

    #[test]
    fn an_absurd_size_saturates_instead_of_wrapping() {
        let mut carver = Carver::counting();
        carver.span::<u64>(usize::MAX / 2);
        carver.span::<u64>(usize::MAX / 2);
        assert_eq!(carver.used(), usize::MAX);
    }
}
