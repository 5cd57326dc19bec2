//! The host's tensors and arrays as checked plain data.

use super::boundary::within;
use super::types::{
    SPEC_DEVICE_CPU, SPEC_DEVICE_CUDA, SPEC_DEVICE_CUDA_HOST, SPEC_DTYPE_BFLOAT, SPEC_DTYPE_FLOAT,
    spec_row_range, spec_sampling, spec_tensor,
};
use crate::context::{Context, Description, DeviceType};
use crate::error::{Error, Result};
use crate::session::{Column, SamplingArrays};
use crate::tensor::{Dtype, Matrix, Span};
use std::fmt::Display;

/// The element type of DLPack codes.
pub fn dtype(what: &dyn Display, code: u8, bits: u8, lanes: u16) -> Result<Dtype> {
    match (code, bits, lanes) {
        (SPEC_DTYPE_FLOAT, 32, 1) => Ok(Dtype::F32),
        (SPEC_DTYPE_FLOAT, 16, 1) => Ok(Dtype::F16),
        (SPEC_DTYPE_BFLOAT, 16, 1) => Ok(Dtype::Bf16),
        _ => Err(Error::invalid(format!(
            "{what}: expected the dtype F32, F16 or BF16, found code {code}, {bits} bits, {lanes} lanes"
        ))),
    }
}

/// The device that tensors of a call must be on.
#[derive(Clone, Copy, Debug)]
pub struct Home(Description);

impl Home {
    /// The device of a context.
    pub fn of(context: &Context) -> Self {
        Self(context.description())
    }

    fn check(self, what: &dyn Display, tensor: &spec_tensor) -> Result<()> {
        let (found, id) = (tensor.device_type, tensor.device_id);
        let is_here = match self.0.device_type {
            DeviceType::Cpu => (found, id) == (SPEC_DEVICE_CPU, 0),
            DeviceType::Cuda => {
                (found, id) == (SPEC_DEVICE_CUDA, self.0.device_id)
                    || found == SPEC_DEVICE_CUDA_HOST
            }
        };
        if is_here {
            return Ok(());
        }
        let expected = match self.0.device_type {
            DeviceType::Cpu => "device type 1 (CPU), device 0".to_owned(),
            DeviceType::Cuda => {
                let id = self.0.device_id;
                format!("device type 2 (CUDA), device {id}, or type 3 (page-locked host memory)")
            }
        };
        Err(Error::invalid(format!(
            "{what}: expected memory of {expected}, found type {found}, device {id}"
        )))
    }
}

/// A tensor of two dimensions at `home`. `rows` is the least number of rows and `columns` the exact number
/// of columns that it must have.
pub fn matrix(
    what: &dyn Display,
    home: Home,
    tensor: &spec_tensor,
    rows: usize,
    columns: Option<usize>,
) -> Result<Matrix> {
    let dtype = dtype(what, tensor.dtype_code, tensor.dtype_bits, tensor.dtype_lanes)?;
    home.check(what, tensor)?;
    if tensor.ndim != 2 {
        return Err(Error::invalid(format!(
            "{what}: expected 2 dimensions, found {}",
            tensor.ndim
        )));
    }
    let [found_rows, found_columns, ..] = tensor.shape;
    let sizes = 0..1 << 40;
    if !sizes.contains(&found_rows) || !sizes.contains(&found_columns) {
        return Err(Error::invalid(format!(
            "{what}: expected sizes from 0 to 2^40, found {found_rows} x {found_columns}"
        )));
    }
    let (found_rows, found_columns) = (found_rows as usize, found_columns as usize);
    if found_rows < rows || columns.is_some_and(|columns| columns != found_columns) {
        let columns = columns.map_or_else(|| "any".to_owned(), |columns| columns.to_string());
        return Err(Error::invalid(format!(
            "{what}: expected at least {rows} rows of {columns} columns, found {found_rows} of {found_columns}"
        )));
    }
    let row_stride = row_stride(what, tensor, found_columns)?;
    let last = row_stride.checked_mul(found_rows).and_then(|all| all.checked_mul(dtype.size()));
    if last.is_none_or(|bytes| bytes > isize::MAX as usize) {
        return Err(Error::invalid(format!(
            "{what}: {found_rows} rows of stride {row_stride} do not fit the address space"
        )));
    }
    let address = tensor.data as u64;
    if address == 0 && found_rows * found_columns > 0 {
        return Err(Error::invalid(format!("{what}: expected data, found NULL")));
    }
    if !address.is_multiple_of(dtype.size() as u64) {
        return Err(Error::invalid(format!(
            "{what}: expected data aligned to its element, found {address:#x}"
        )));
    }
    Ok(Matrix { address, dtype, rows: found_rows, columns: found_columns, row_stride })
}

fn row_stride(what: &dyn Display, tensor: &spec_tensor, columns: usize) -> Result<usize> {
    if tensor.strides == [0; 4] {
        return Ok(columns);
    }
    let [row, column, ..] = tensor.strides;
    if column != 1 && columns > 1 {
        return Err(Error::invalid(format!(
            "{what}: expected stride 1 in the last dimension, found {column}"
        )));
    }
    if row < columns as i64 || row >= 1 << 40 {
        return Err(Error::invalid(format!(
            "{what}: expected a row stride of at least the {columns} columns, found {row}"
        )));
    }
    Ok(row as usize)
}

/// An array that must be there if it has elements.
pub fn span<T>(what: &str, pointer: *const T, len: usize) -> Result<Span<T>> {
    optional_span(what, pointer, len)?.map_or_else(
        || {
            if len == 0 {
                return Ok(Span::new(0, 0));
            }
            Err(Error::invalid(format!("{what}: expected {len} elements, found NULL")))
        },
        Ok,
    )
}

/// An array that may be NULL.
pub fn optional_span<T>(what: &str, pointer: *const T, len: usize) -> Result<Option<Span<T>>> {
    if pointer.is_null() {
        return Ok(None);
    }
    if !pointer.is_aligned() {
        return Err(Error::invalid(format!(
            "{what}: expected an aligned array, found {pointer:p}"
        )));
    }
    Ok(Some(Span::new(pointer as u64, len)))
}

/// One row of `width` elements per sequence, or one element where `width` is 1, `stride` elements
/// apart; a stride of 0 is `width`.
pub fn column(
    what: &str,
    pointer: *const i32,
    sequences: usize,
    stride: i32,
    width: usize,
) -> Result<Column> {
    let stride = match stride {
        0 => width,
        stride if stride >= width as i32 => stride as usize,
        found => {
            return Err(Error::invalid(format!(
                "{what}: expected a stride of at least {width}, found {found}"
            )));
        }
    };
    let len = if sequences == 0 || width == 0 { 0 } else { (sequences - 1) * stride + width };
    Ok(Column { span: span(what, pointer, len)?, stride })
}

/// An array of rows that may be NULL; its stride says how long the rows are.
pub fn optional_column(
    what: &str,
    pointer: *const i32,
    sequences: usize,
    stride: i32,
) -> Result<Option<Column>> {
    if pointer.is_null() {
        return Ok(None);
    }
    // Places in the array are kept as 32-bit numbers.
    let most = i64::from(i32::MAX - 1) / sequences.max(1) as i64;
    let width = within(what, stride.into(), 1, most).map_err(|failure| failure.within("stride"))?;
    let span = span(what, pointer, sequences * width)?;
    Ok(Some(Column { span, stride: width }))
}

/// The sampling arrays of `sequences` sequences; nothing is greedy.
pub fn sampling(sampling: Option<&spec_sampling>, sequences: usize) -> Result<SamplingArrays> {
    let Some(sampling) = sampling else { return Ok(SamplingArrays::default()) };
    super::boundary::reserved("sampling.reserved", i64::from(sampling.reserved))?;
    Ok(SamplingArrays {
        temperature: optional_span("temperature", sampling.temperature, sequences)?,
        top_k: optional_span("top_k", sampling.top_k, sequences)?,
        top_p: optional_span("top_p", sampling.top_p, sequences)?,
        min_p: optional_span("min_p", sampling.min_p, sequences)?,
        seed: optional_span("seed", sampling.seed, sequences)?,
    })
}

/// The pieces of a lent tensor, which must cover all rows in order.
///
/// # Safety
///
/// `ranges` is NULL or points to `count` ranges.
pub unsafe fn row_ranges(
    what: &str,
    home: Home,
    ranges: *const spec_row_range,
    count: i32,
) -> Result<Option<Vec<Matrix>>> {
    if ranges.is_null() {
        if count != 0 {
            return Err(Error::invalid(format!("{what}: expected {count} ranges, found NULL")));
        }
        return Ok(None);
    }
    if count < 1 || !ranges.is_aligned() {
        return Err(Error::invalid(format!("{what}: expected at least 1 range, found {count}")));
    }
    // SAFETY: as this function's contract; the pointer is aligned.
    let ranges = unsafe { std::slice::from_raw_parts(ranges, count as usize) };
    let mut next = 0;
    let mut matrices: Vec<Matrix> = Vec::with_capacity(ranges.len());
    for (index, range) in ranges.iter().enumerate() {
        let columns = matrices.first().map(|first| first.columns);
        let name = format!("{what}[{index}]");
        let piece = matrix(&name, home, &range.tensor, 1, columns)?;
        if range.first_row != next {
            return Err(Error::invalid(format!(
                "{name}.first_row: expected {next}, found {}",
                range.first_row
            )));
        }
        if let Some(first) = matrices.first().filter(|first| first.dtype != piece.dtype) {
            return Err(Error::invalid(format!(
                "{name}: expected the dtype of the first range, {}, found {}",
                first.dtype.name(),
                piece.dtype.name()
            )));
        }
        next += piece.rows as i64;
        matrices.push(piece);
    }
    Ok(Some(matrices))
}
