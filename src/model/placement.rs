//! Where a model's weights go: one block of the context's memory, cut in the same order when it is
//! counted and when it is filled.

use super::Lent;
use crate::backend::Backend;
use crate::backend::phases::{Linear, Norm};
use crate::checkpoint::{self, RowSource, Tensor};
use crate::error::Result;
use crate::tensor::{Carver, Dtype, Matrix, Span};
use std::any::Any;
use std::sync::Arc;

type Mapping = Arc<dyn Any + Send + Sync>;

/// Gives each weight its place, and fills it unless it only counts.
pub struct Placement<'a> {
    carver: Carver,
    backend: Option<&'a dyn Backend>,
    lent: &'a Lent,
    mapped: Mapped,
}

/// The weights that are used where their files are mapped.
#[derive(Default)]
pub struct Mapped {
    /// Where they lie.
    pub memory: Vec<Span<u8>>,
    /// What keeps the files mapped.
    mappings: Vec<Mapping>,
}

impl<'a> Placement<'a> {
    /// A placement that only counts.
    pub fn counting(lent: &'a Lent) -> Self {
        Self { carver: Carver::counting(), backend: None, lent, mapped: Mapped::default() }
    }

    /// A placement in the block at `address`, as large as counting told.
    pub fn filling(lent: &'a Lent, address: u64, backend: &'a dyn Backend) -> Self {
        let carver = Carver::of_block(address);
        Self { carver, backend: Some(backend), lent, mapped: Mapped::default() }
    }

    /// The bytes of the block.
    pub fn bytes(&self) -> usize {
        self.carver.used()
    }

    /// What must live as long as the weights.
    pub fn into_mapped(self) -> Mapped {
        self.mapped
    }

    /// A tensor: where its file is mapped, or copied into the block.
    pub fn tensor(&mut self, tensor: &Tensor) -> Result<Matrix> {
        if let Some(address) = tensor.mapped_address() {
            let matrix = Matrix { address, ..shape(tensor, tensor.rows) };
            self.mapped.memory.push(memory(&matrix));
            self.mapped.mappings.extend(tensor.mapping());
            return Ok(matrix);
        }
        let matrix = self.carver.matrix(tensor.dtype, tensor.rows, tensor.columns);
        let row_bytes = tensor.row_bytes();
        self.fill(memory(&matrix), row_bytes, &mut |offset, bytes| {
            tensor.read_into(offset / row_bytes, bytes.len() / row_bytes, bytes)
        })?;
        Ok(matrix)
    }

    /// The gain of a norm.
    pub fn norm(&mut self, tensor: &Tensor, epsilon: f32) -> Result<Norm> {
        Ok(Norm { weight: Some(self.tensor(tensor)?), epsilon })
    }

    /// A norm that a network may not have.
    pub fn optional_norm(&mut self, tensor: Option<&Tensor>, epsilon: f32) -> Result<Option<Norm>> {
        tensor.map(|tensor| self.norm(tensor, epsilon)).transpose()
    }

    /// A linear map.
    pub fn linear(&mut self, linear: &checkpoint::Linear) -> Result<Linear> {
        let weight = self.tensor(&linear.weight)?;
        let bias = linear.bias.as_ref().map(|bias| self.tensor(bias)).transpose()?;
        Ok(Linear { weight, bias })
    }

    /// The token embedding. Tokens of the target that a stored table has no rows for are zeros.
    pub fn embedding(&mut self, source: &RowSource, vocabulary: usize) -> Result<Vec<Matrix>> {
        match source {
            RowSource::Lent | RowSource::LentRows => {
                Ok(self.lent.embedding.clone().unwrap_or_default())
            }
            RowSource::Tensor(tensor) | RowSource::TensorRows { tensor } => {
                let table = self.tensor(tensor)?;
                let missing = vocabulary.saturating_sub(table.rows);
                if missing == 0 {
                    return Ok(vec![table]);
                }
                Ok(vec![table, self.zeros(missing, &table)?])
            }
            RowSource::Embedding => unreachable!("only a head is tied to the embedding"),
        }
    }

    /// Rows of zeros beside those of a table; all of them are the same memory.
    fn zeros(&mut self, rows: usize, table: &Matrix) -> Result<Matrix> {
        let row = self.carver.matrix(table.dtype, 1, table.columns);
        self.fill(memory(&row), table.dtype.size(), &mut |_, bytes| {
            bytes.fill(0);
            Ok(())
        })?;
        Ok(Matrix { rows, row_stride: 0, ..row })
    }

    /// The head of `rows` tokens; of a whole vocabulary's rows only those of `ids`, if the source
    /// says so.
    pub fn head(&mut self, source: &RowSource, rows: usize, ids: &[i32]) -> Result<Vec<Matrix>> {
        match source {
            RowSource::Tensor(tensor) => Ok(vec![self.tensor(tensor)?]),
            RowSource::Lent => Ok(first_rows(self.lent.head.as_deref().unwrap_or_default(), rows)),
            RowSource::TensorRows { tensor } => Ok(vec![self.stored_rows(tensor, ids)?]),
            RowSource::LentRows => {
                let segments = self.lent.head.clone().unwrap_or_default();
                Ok(self.lent_rows(&segments, ids)?.into_iter().collect())
            }
            RowSource::Embedding => unreachable!("the decoder takes the rows of its embedding"),
        }
    }

    fn stored_rows(&mut self, tensor: &Tensor, ids: &[i32]) -> Result<Matrix> {
        let matrix = self.carver.matrix(tensor.dtype, ids.len(), tensor.columns);
        let row_bytes = tensor.row_bytes();
        self.fill(memory(&matrix), row_bytes, &mut |offset, bytes| {
            let rows = bytes.chunks_exact_mut(row_bytes);
            let ids = &ids[offset / row_bytes..];
            rows.zip(ids).try_for_each(|(row, &id)| tensor.read_into(id as usize, 1, row))
        })?;
        Ok(matrix)
    }

    /// Copies rows out of the host's segments; the ids rise.
    fn lent_rows(&mut self, segments: &[Matrix], ids: &[i32]) -> Result<Option<Matrix>> {
        let Some(first) = segments.first() else { return Ok(None) };
        let matrix = self.carver.matrix(first.dtype, ids.len(), first.columns);
        let Some(backend) = self.backend else { return Ok(Some(matrix)) };
        let (mut first_row, mut done) = (0, 0);
        for segment in segments {
            let end = first_row + segment.rows;
            let len = ids[done..].partition_point(|&id| (id as usize) < end);
            let local: Vec<i32> =
                ids[done..done + len].iter().map(|&id| id - first_row as i32).collect();
            backend.copy_rows(segment, &local, &matrix.row_range(done, len))?;
            (first_row, done) = (end, done + len);
        }
        Ok(Some(matrix))
    }

    /// A row of numbers, which are computed only where there is something to fill.
    pub fn row(
        &mut self,
        columns: usize,
        values: impl FnOnce() -> Result<Vec<f32>>,
    ) -> Result<Matrix> {
        let matrix = self.carver.matrix(Dtype::F32, 1, columns);
        if self.backend.is_some() {
            self.fill_with(memory(&matrix), &values()?)?;
        }
        Ok(matrix)
    }

    /// A table of numbers.
    pub fn table<T: bytemuck::Pod>(&mut self, values: &[T]) -> Result<Span<T>> {
        let span = self.carver.span(values.len());
        self.fill_with(Span::new(span.address(), size_of_val(values)), values)?;
        Ok(span)
    }

    fn fill_with<T: bytemuck::Pod>(&self, memory: Span<u8>, values: &[T]) -> Result<()> {
        self.fill(memory, size_of::<T>(), &mut |offset, to| {
            let values: &[u8] = bytemuck::cast_slice(values);
            to.copy_from_slice(&values[offset..offset + to.len()]);
            Ok(())
        })
    }

    fn fill(
        &self,
        memory: Span<u8>,
        granule: usize,
        source: &mut dyn FnMut(usize, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        self.backend.map_or(Ok(()), |backend| backend.fill(memory, granule, source))
    }
}

/// The segments without the rows from `rows` on. A lent table may be padded, and each row of a
/// head makes a column of logits.
pub fn first_rows(segments: &[Matrix], rows: usize) -> Vec<Matrix> {
    let mut left = rows;
    let clipped = segments.iter().map(|segment| {
        let rows = segment.rows.min(left);
        left -= rows;
        segment.row_range(0, rows)
    });
    clipped.filter(|segment| segment.rows > 0).collect()
}

fn shape(tensor: &Tensor, rows: usize) -> Matrix {
    let Tensor { dtype, columns, .. } = *tensor;
    Matrix { address: 0, dtype, rows, columns, row_stride: columns }
}

fn memory(matrix: &Matrix) -> Span<u8> {
    Span::new(matrix.address, matrix.rows * matrix.columns * matrix.dtype.size())
}
