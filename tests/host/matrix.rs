//! Tensors of two dimensions that the host owns.

use crate::device::Device;
use crate::device::buffer::Buffer;
use crate::device::memory::Memory;
use half::{bf16, f16};
use speculators::capi::{SPEC_DTYPE_BFLOAT, SPEC_DTYPE_FLOAT, spec_tensor};
use std::ffi::c_void;

/// The element types that tensors may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    F32,
    F16,
    Bf16,
}

impl Dtype {
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Bf16];

    /// The DLPack code and the bits.
    pub fn codes(self) -> (u8, u8) {
        match self {
            Self::F32 => (SPEC_DTYPE_FLOAT, 32),
            Self::F16 => (SPEC_DTYPE_FLOAT, 16),
            Self::Bf16 => (SPEC_DTYPE_BFLOAT, 16),
        }
    }

    /// `value` as this type holds it.
    pub fn round(self, value: f32) -> f32 {
        match self {
            Self::F32 => value,
            Self::F16 => f16::from_f32(value).to_f32(),
            Self::Bf16 => bf16::from_f32(value).to_f32(),
        }
    }

    /// Appends `value` in this type, in the byte order of the machine.
    pub fn encode(self, value: f32, bytes: &mut Vec<u8>) {
        match self {
            Self::F32 => bytes.extend(value.to_ne_bytes()),
            Self::F16 => bytes.extend(f16::from_f32(value).to_ne_bytes()),
            Self::Bf16 => bytes.extend(bf16::from_f32(value).to_ne_bytes()),
        }
    }

    /// The value of one element.
    pub fn decode(self, bytes: &[u8]) -> f32 {
        match self {
            Self::F32 => f32::from_ne_bytes(bytes.try_into().expect("4 bytes")),
            Self::F16 => f16::from_ne_bytes(bytes.try_into().expect("2 bytes")).to_f32(),
            Self::Bf16 => bf16::from_ne_bytes(bytes.try_into().expect("2 bytes")).to_f32(),
        }
    }

    pub fn size(self) -> usize {
        usize::from(self.codes().1 / 8)
    }
}

/// Rows of numbers. What lies between the end of one row and the next is NaN, so that a reader
/// who goes too far is found out.
#[derive(Clone, Debug)]
pub struct Matrix {
    pub rows: usize,
    pub columns: usize,
    pub row_stride: usize,
    pub dtype: Dtype,
    /// Words, so that every element is aligned.
    words: Buffer<u32>,
}

impl Matrix {
    pub fn filled(rows: usize, columns: usize, dtype: Dtype, value: f32) -> Self {
        Self::with_rows(rows, columns, columns, dtype, |_| vec![value; columns])
    }

    /// Compact rows of F32.
    pub fn new(rows: usize, columns: usize, elements: &[f32]) -> Self {
        assert_eq!(elements.len(), rows * columns);
        Self::with_rows(rows, columns, columns, Dtype::F32, |row| {
            elements[row * columns..][..columns].to_vec()
        })
    }

    fn with_rows(
        rows: usize,
        columns: usize,
        row_stride: usize,
        dtype: Dtype,
        row: impl Fn(usize) -> Vec<f32>,
    ) -> Self {
        let mut bytes = Vec::with_capacity(rows * row_stride * dtype.size());
        for index in 0..rows {
            let gap = std::iter::repeat_n(f32::NAN, row_stride - columns);
            row(index).into_iter().chain(gap).for_each(|value| dtype.encode(value, &mut bytes));
        }
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        let words = bytes.chunks_exact(4).map(|four| u32::from_ne_bytes(four.try_into().unwrap()));
        Self { rows, columns, row_stride, dtype, words: words.collect() }
    }

    /// The same numbers in another type and with another row stride.
    pub fn converted(&self, dtype: Dtype, row_stride: usize) -> Self {
        Self::with_rows(self.rows, self.columns, row_stride, dtype, |row| self.row(row))
    }

    pub fn row(&self, row: usize) -> Vec<f32> {
        let size = self.dtype.size();
        bytemuck::cast_slice::<u32, u8>(&self.words)[row * self.row_stride * size..]
            [..self.columns * size]
            .chunks_exact(size)
            .map(|element| self.dtype.decode(element))
            .collect()
    }

    /// Replaces a row of an F32 matrix.
    pub fn set_row(&mut self, row: usize, elements: &[f32]) {
        assert_eq!((elements.len(), self.dtype), (self.columns, Dtype::F32));
        for (index, value) in elements.iter().enumerate() {
            self.words[row * self.row_stride + index] = value.to_bits();
        }
    }

    /// The view that a call on the device of this process gets. Calls write only to tensors that are
    /// documented as outputs.
    pub fn tensor(&self) -> spec_tensor {
        self.tensor_for(Device::chosen())
    }

    /// The view that a call on a device gets.
    pub fn tensor_for(&self, device: Device) -> spec_tensor {
        let (dtype_code, dtype_bits) = self.dtype.codes();
        let compact = self.row_stride == self.columns;
        let data = if self.words.is_empty() {
            std::ptr::null_mut()
        } else {
            self.words.as_ptr().cast_mut().cast::<c_void>()
        };
        spec_tensor {
            data,
            device_type: device.buffer_type(),
            device_id: 0,
            dtype_code,
            dtype_bits,
            dtype_lanes: 1,
            ndim: 2,
            shape: [self.rows as i64, self.columns as i64, 0, 0],
            strides: if compact { [0; 4] } else { [self.row_stride as i64, 1, 0, 0] },
        }
    }

    /// A copy in memory of the device itself.
    pub fn on_device(&self) -> DeviceMatrix {
        let bytes: &[u8] = bytemuck::cast_slice(&self.words);
        let memory = Memory::of(bytes);
        let data = if bytes.is_empty() { std::ptr::null_mut() } else { memory.address() };
        let device_type = Device::chosen().context_type();
        DeviceMatrix { tensor: spec_tensor { data, device_type, ..self.tensor() }, memory }
    }

    /// The rows that a copy has now.
    pub fn read(&mut self, copy: &DeviceMatrix) {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut self.words);
        bytes.copy_from_slice(&copy.memory.read(0..bytes.len()));
    }

    /// The view of a tensor that the call writes.
    pub fn output_tensor(&mut self, device: Device) -> spec_tensor {
        let data = self.words.as_mut_ptr().cast();
        spec_tensor { data, ..self.tensor_for(device) }
    }
}

/// A matrix in memory of the device.
pub struct DeviceMatrix {
    memory: Memory,
    tensor: spec_tensor,
}

impl DeviceMatrix {
    pub fn tensor(&self) -> spec_tensor {
        self.tensor
    }
}
