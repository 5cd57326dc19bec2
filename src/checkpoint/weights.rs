//! Handles of weights, and the account of which tensors of a checkpoint were taken.

use super::files::{Bytes, StoredTensor};
use super::header::ElementType;
use super::report::{Report, describe};
use crate::error::{Error, Result};
use crate::tensor::Dtype;
use half::{bf16, f16};
use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where a matrix or vector of weights can be read. Nothing is held in memory but, if the files
/// are mapped, address space.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// The element type.
    pub dtype: Dtype,
    /// The number of rows; 1 for a vector.
    pub rows: usize,
    /// The number of elements of a row.
    pub columns: usize,
    name: Arc<str>,
    data: Data,
}

#[derive(Clone, Debug)]
enum Data {
    Stored {
        bytes: Bytes,
    },
    /// A norm that the configuration asks for and whose weights are not stored.
    Ones {
        asked_by: Arc<Path>,
    },
    /// Gains of which the file holds, in another type, the distance from 1.
    OnePlus {
        stored: Box<Tensor>,
    },
    /// One of two tensors whose elements alternate in the file: `run` bytes of one, as many of the other.
    Alternate {
        bytes: Bytes,
        /// Where the first run begins.
        first: usize,
        run: usize,
    },
}

impl Tensor {
    /// The stored tensor, which must have float elements; all dimensions but the last count rows.
    pub(super) fn of(stored: &StoredTensor) -> Result<Self> {
        let ElementType::Float(dtype) = *stored.element() else {
            let name = stored.element().name();
            let text = format!("tensor {:?}: expected F32, F16 or BF16, found {name}", stored.name);
            let path = stored.path().display();
            return Err(Error::unsupported(format!("{path}: {text}")));
        };
        let Some((&columns, outer)) = stored.shape().split_last() else {
            return Err(stored.wrong("expected at least one dimension, found a single number"));
        };
        let rows = outer.iter().product();
        let data = Data::Stored { bytes: stored.bytes.clone() };
        Ok(Self { dtype, rows, columns, name: stored.name.as_str().into(), data })
    }

    /// A vector of ones that `asked_by` needs.
    pub(super) fn ones(name: &str, len: usize, asked_by: &Path) -> Self {
        let data = Data::Ones { asked_by: asked_by.into() };
        Self { dtype: Dtype::F32, rows: 1, columns: len, name: name.into(), data }
    }

    /// The gains, each the sum of 1 and what is stored, rounded to F32 as those who wrote it do.
    pub(super) fn one_plus(self) -> Self {
        let data = Data::OnePlus { stored: Box::new(self.clone()) };
        Self { dtype: Dtype::F32, data, ..self }
    }

    /// The two tensors of half as many outputs that this one, stored as a whole, is made of: `run` outputs
    /// of one, as many of the other, and so on. An output is a row, or an element if there is only one row.
    pub(super) fn alternating(self, run: usize) -> [Self; 2] {
        let Data::Stored { bytes } = &self.data else {
            unreachable!("only stored tensors are taken apart")
        };
        let is_vector = self.rows == 1;
        let output_bytes = if is_vector { self.dtype.size() } else { self.row_bytes() };
        let (outputs, run_bytes) =
            (if is_vector { self.columns } else { self.rows }, run * output_bytes);
        assert!(outputs.is_multiple_of(2 * run), "two tensors of whole runs");
        [0, run_bytes].map(|first| {
            let data = Data::Alternate { bytes: bytes.clone(), first, run: run_bytes };
            let (rows, columns) =
                if is_vector { (1, outputs / 2) } else { (outputs / 2, self.columns) };
            Self { rows, columns, data, name: self.name.clone(), dtype: self.dtype }
        })
    }

    /// The tensor without its rows from `rows` on.
    pub(super) fn first_rows(self, rows: usize) -> Self {
        assert!(rows <= self.rows, "more rows than the tensor has");
        Self { rows, ..self }
    }

    /// The name in the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that holds the data, or the one that asks for a tensor that is not stored.
    pub fn path(&self) -> &Path {
        match &self.data {
            Data::Stored { bytes } | Data::Alternate { bytes, .. } => bytes.file().path(),
            Data::Ones { asked_by } => asked_by,
            Data::OnePlus { stored } => stored.path(),
        }
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.columns * self.dtype.size()
    }

    /// Bytes of all rows.
    pub fn bytes_len(&self) -> usize {
        self.rows * self.row_bytes()
    }

    /// Reads the rows `first .. first + rows` into `out`, which they must fill.
    pub fn read_into(&self, first: usize, rows: usize, out: &mut [u8]) -> Result<()> {
        let inside = first.checked_add(rows).is_some_and(|end| end <= self.rows);
        if !inside || out.len() != rows * self.row_bytes() {
            return Err(Error::internal(format!(
                "tensor {:?}: expected rows of {} bytes within {}, found {first} + {rows} for {} bytes",
                self.name,
                self.row_bytes(),
                self.rows,
                out.len()
            )));
        }
        match &self.data {
            Data::Stored { bytes } => bytes.read(first * self.row_bytes(), out),
            Data::Ones { .. } => {
                let (ones, _) = out.as_chunks_mut();
                ones.fill(1.0_f32.to_ne_bytes());
                Ok(())
            }
            Data::OnePlus { stored } => {
                let (gains, _) = out.as_chunks_mut();
                let distances = stored.values(first, rows)?;
                for (gain, distance) in gains.iter_mut().zip(distances) {
                    *gain = (1.0 + distance).to_ne_bytes();
                }
                Ok(())
            }
            Data::Alternate { bytes, first: start, run } => {
                let (mut place, mut out) = (first * self.row_bytes(), out);
                while !out.is_empty() {
                    let (runs, inside) = (place / run, place % run);
                    let (piece, rest) = out.split_at_mut((run - inside).min(out.len()));
                    bytes.read(start + 2 * runs * run + inside, piece)?;
                    (place, out) = (place + piece.len(), rest);
                }
                Ok(())
            }
        }
    }

    /// The elements of the rows `first .. first + rows`.
    pub(super) fn values(&self, first: usize, rows: usize) -> Result<Vec<f32>> {
        let mut bytes = vec![0; rows * self.row_bytes()];
        self.read_into(first, rows, &mut bytes)?;
        Ok(match self.dtype {
            Dtype::F32 => {
                bytes.as_chunks().0.iter().map(|&four| f32::from_le_bytes(four)).collect()
            }
            Dtype::F16 => {
                bytes.as_chunks().0.iter().map(|&two| f16::from_le_bytes(two).to_f32()).collect()
            }
            Dtype::Bf16 => {
                bytes.as_chunks().0.iter().map(|&two| bf16::from_le_bytes(two).to_f32()).collect()
            }
        })
    }

    /// Where the data lie in memory: `None` if the file is not mapped, if they do not lie together there, or
    /// if the address is no multiple of the element size. Valid as long as [`Self::mapping`] is kept.
    pub fn mapped_address(&self) -> Option<u64> {
        let Data::Stored { bytes } = &self.data else { return None };
        let (file, offset) = bytes.together()?;
        let bytes = file.mapping()?.get(offset, self.bytes_len())?;
        let address = bytes.as_ptr() as u64;
        address.is_multiple_of(self.dtype.size() as u64).then_some(address)
    }

    /// What keeps [`Self::mapped_address`] valid.
    pub fn mapping(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        let Data::Stored { bytes } = &self.data else { return None };
        let (file, _) = bytes.together()?;
        Some(file.mapping()?.clone())
    }
}

/// A linear map `y = x Wᵀ + b`; the weight is stored as (outputs, inputs).
#[derive(Clone, Debug)]
pub struct Linear {
    /// One row for each output.
    pub weight: Tensor,
    /// One element for each output.
    pub bias: Option<Tensor>,
}

impl Linear {
    /// The two maps whose outputs alternate in this one, `run` of one, as many of the other, and so on.
    pub(super) fn alternating(self, run: usize) -> [Self; 2] {
        let mut biases = self.bias.map(|bias| bias.alternating(run).map(Some)).unwrap_or_default();
        let mut biases = biases.iter_mut().map(Option::take);
        self.weight.alternating(run).map(|weight| Self { weight, bias: biases.next().flatten() })
    }
}

/// The tensors of a checkpoint, and which of them were taken.
#[derive(Debug)]
pub(super) struct Weights {
    pub(super) directory: PathBuf,
    /// By the name that the format gives them today.
    stored: BTreeMap<String, StoredTensor>,
    taken: BTreeSet<String>,
}

/// What the names end with of tensors that take the place of `….weight` where that is quantized, or stand
/// beside it.
const QUANTIZED: [&str; 9] = [
    ".qweight",
    ".qzeros",
    ".scales",
    ".weight_g_idx",
    ".weight_packed",
    ".weight_scale",
    ".weight_scale_2",
    ".weight_scale_inv",
    ".weight_zero_point",
];

/// Whether a tensor is one of a quantized matrix.
pub(super) fn is_quantized(name: &str) -> bool {
    QUANTIZED.iter().any(|end| name.ends_with(end))
}

impl Weights {
    /// The tensors of a checkpoint, none of which may be quantized.
    pub(super) fn new(directory: &Path, stored: BTreeMap<String, StoredTensor>) -> Result<Self> {
        if let Some(name) = stored.keys().find(|name| is_quantized(name)) {
            let text =
                format!("tensor {name:?}: expected unquantized weights, found quantized ones");
            return Err(Error::unsupported(format!("{}: {text}", directory.display())));
        }
        Ok(Self { directory: directory.into(), stored, taken: BTreeSet::new() })
    }

    /// Files `old…` under `new…`.
    pub(super) fn rename_prefix(
        &mut self,
        old: &str,
        new: &str,
        report: &mut Report,
    ) -> Result<()> {
        let renamed: Vec<_> =
            self.stored.keys().filter(|name| name.starts_with(old)).cloned().collect();
        if !renamed.is_empty() {
            report.correct(format!("tensors named {old}… are read as {new}…"));
        }
        for name in renamed {
            let Some(tensor) = self.stored.remove(&name) else { continue };
            if let Some(other) = self.stored.insert(format!("{new}{}", &name[old.len()..]), tensor)
            {
                return Err(other.wrong(format_args!("also stored as {name:?}")));
            }
        }
        Ok(())
    }

    /// The stored tensor called `name`, without taking it.
    pub(super) fn peek(&self, name: &str) -> Option<&StoredTensor> {
        self.stored.get(name)
    }

    /// Whether there is a tensor whose name `accept` accepts.
    pub(super) fn any(&self, accept: impl Fn(&str) -> bool) -> bool {
        self.stored.keys().any(|name| accept(name))
    }

    /// Takes the tensor called `name`, of any element type.
    pub(super) fn take(&mut self, name: &str, report: &mut Report) -> Option<StoredTensor> {
        let stored = self.stored.get(name)?.clone();
        if self.taken.insert(name.into()) {
            report.used.push(describe(&stored));
        }
        Some(stored)
    }

    /// Takes the weights called `name`, which must have the shape `shape` if they are there. All
    /// NaN is how writers of this format mark a tensor that was never filled: not there.
    pub(super) fn optional(
        &mut self,
        name: &str,
        shape: &[usize],
        report: &mut Report,
    ) -> Result<Option<Tensor>> {
        let Some(stored) = self.stored.get(name) else { return Ok(None) };
        let tensor = Tensor::of(stored)?;
        if stored.shape() != shape {
            let found = stored.shape();
            return Err(stored.wrong(format_args!("expected shape {shape:?}, found {found:?}")));
        }
        if never_filled(stored, tensor.dtype)? {
            return Ok(None);
        }
        self.take(name, report);
        Ok(Some(tensor))
    }

    /// Takes the weights called `name`, which must be there with the shape `shape`.
    pub(super) fn required(
        &mut self,
        name: &str,
        shape: &[usize],
        report: &mut Report,
    ) -> Result<Tensor> {
        let found = if self.stored.contains_key(name) { "only NaN" } else { "no such tensor" };
        self.optional(name, shape, report)?.ok_or_else(|| {
            let text = format!("tensor {name:?}: expected shape {shape:?}, found {found}");
            Error::format(&self.directory, text)
        })
    }

    /// Accounts for the tensors that were not taken: `reason` says why one is not needed, or that
    /// the format knows no such tensor.
    pub(super) fn finish(
        self,
        report: &mut Report,
        reason: impl Fn(&str) -> Option<&'static str>,
    ) -> Result<()> {
        for (name, stored) in &self.stored {
            report.files.insert(stored.file_name());
            if self.taken.contains(name) {
                continue;
            }
            let reason = match (reason(name), stored.element()) {
                (Some(reason), _) => reason,
                (None, ElementType::Float(dtype)) if never_filled(stored, *dtype)? => {
                    "all values are NaN: never filled"
                }
                (None, _) => {
                    report.warn(format!("tensor {:?} is not part of the model", stored.name));
                    "not part of the model"
                }
            };
            report.unused.push((stored.name.clone(), reason.into()));
        }
        Ok(())
    }
}

/// Whether all values are NaN. Stops reading at the first that is not.
pub(super) fn never_filled(stored: &StoredTensor, dtype: Dtype) -> Result<bool> {
    let mut only_nan = stored.bytes.len() > 0;
    stored.scan(|bytes| {
        only_nan = match dtype {
            Dtype::F32 => every(bytes, |bytes| f32::from_le_bytes(bytes).is_nan()),
            Dtype::F16 => every(bytes, |bytes| f16::from_le_bytes(bytes).is_nan()),
            Dtype::Bf16 => every(bytes, |bytes| bf16::from_le_bytes(bytes).is_nan()),
        };
        only_nan
    })?;
    Ok(only_nan)
}

fn every<const SIZE: usize>(bytes: &[u8], test: impl Fn([u8; SIZE]) -> bool) -> bool {
    bytes.as_chunks().0.iter().all(|&element| test(element))
}
