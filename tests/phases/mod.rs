//! Phases on CUDA against the same ones on the CPU: the data that they work on, in the memory of either.

use crate::device::backend::{cpu, cuda};
use crate::device::buffer::Buffer;
use crate::device::memory::Memory;
use crate::device::stream::Stream as HostStream;
use crate::device::{self, Device};
use crate::random::Random;
use half::{bf16, f16};
use speculators::backend::phases::{Linear, Norm, Rows};
use speculators::backend::verify::SamplingArrays;
use speculators::backend::{Backend, Stream};
use speculators::tensor::{Dtype, Matrix, Span};

pub const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

// ---- Memory -------------------------------------------------------------------------------------

/// Memory that one phase works on, on one device.
pub struct Place {
    pub device: Device,
    pub bytes: Vec<Buffer<u8>>,
    pub scratch: Vec<(Memory, usize)>,
}

/// How a matrix lies in memory.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Elements before the first row, which begins at a multiple of 16 bytes without them.
    pub offset: usize,
    /// Elements between rows.
    pub gap: usize,
}

pub const COMPACT: Layout = Layout { offset: 0, gap: 0 };

impl Layout {
    /// Mostly one that kernels can read in vectors.
    pub fn random(random: &mut Random) -> Self {
        match random.below(4) {
            0 => Self { offset: random.below(9), gap: random.below(9) },
            1 => Self { offset: 8 * random.below(3), gap: 8 * random.below(3) },
            _ => COMPACT,
        }
    }
}

/// Numbers that belong into a matrix.
#[derive(Clone, Debug)]
pub struct Values {
    pub rows: usize,
    pub columns: usize,
    pub dtype: Dtype,
    pub layout: Layout,
    pub elements: Vec<f32>,
}

pub fn encode(dtype: Dtype, value: f32, bytes: &mut Vec<u8>) {
    match dtype {
        Dtype::F32 => bytes.extend(value.to_ne_bytes()),
        Dtype::F16 => bytes.extend(f16::from_f32(value).to_ne_bytes()),
        Dtype::Bf16 => bytes.extend(bf16::from_f32(value).to_ne_bytes()),
    }
}

pub fn decode(dtype: Dtype, bytes: &[u8]) -> f32 {
    match dtype {
        Dtype::F32 => f32::from_ne_bytes(bytes.try_into().unwrap()),
        Dtype::F16 => f16::from_ne_bytes(bytes.try_into().unwrap()).to_f32(),
        Dtype::Bf16 => bf16::from_ne_bytes(bytes.try_into().unwrap()).to_f32(),
    }
}

impl Values {
    pub fn random(
        random: &mut Random,
        (rows, columns): (usize, usize),
        dtype: Dtype,
        scale: f32,
    ) -> Self {
        let elements = (0..rows * columns).map(|_| random.normal() * scale).collect();
        Self { rows, columns, dtype, layout: Layout::random(random), elements }
    }

    /// Gains lie around one.
    pub fn gain(random: &mut Random, columns: usize) -> Self {
        let dtype = DTYPES[random.below(3)];
        let mut values = Self::random(random, (1, columns), dtype, 0.3);
        values.elements.iter_mut().for_each(|value| *value += 1.0);
        values
    }

    /// Numbers as F32, one row after the other.
    pub fn compact(elements: Vec<f32>, columns: usize) -> Self {
        let rows = elements.len() / columns;
        Self { rows, columns, dtype: Dtype::F32, layout: COMPACT, elements }
    }

    /// The rows `first .. first + rows` alone.
    pub fn rows(&self, first: usize, rows: usize) -> Self {
        let elements = self.elements[first * self.columns..][..rows * self.columns].to_vec();
        Self { rows, elements, ..self.clone() }
    }
}

impl Place {
    pub fn on(device: Device) -> Self {
        Self { device, bytes: Vec::new(), scratch: Vec::new() }
    }

    pub fn lend(&mut self, bytes: Vec<u8>) -> u64 {
        self.bytes.push(Buffer::on(self.device, bytes));
        self.bytes.last().unwrap().as_ptr() as u64
    }

    pub fn matrix(&mut self, values: &Values) -> Matrix {
        let Values { rows, columns, dtype, layout, .. } = *values;
        let row_stride = columns + layout.gap;
        // The CPU's memory is aligned by hand; what is not part of the matrix is NaN.
        let mut bytes = Vec::new();
        (0..layout.offset).for_each(|_| encode(dtype, f32::NAN, &mut bytes));
        for row in values.elements.chunks(columns) {
            row.iter().for_each(|&value| encode(dtype, value, &mut bytes));
            (0..layout.gap).for_each(|_| encode(dtype, f32::NAN, &mut bytes));
        }
        let size = dtype.size();
        // Nothing may be read beyond the last row.
        let end = bytes.len() - if rows > 0 { layout.gap * size } else { 0 };
        bytes.truncate(end);
        let mut padded = vec![0; 16];
        padded.append(&mut bytes);
        let start = self.lend(padded);
        let address = self.aligned(start) + (layout.offset * size) as u64;
        Matrix { address, dtype, rows, columns, row_stride }
    }

    /// Moves the bytes of the last buffer to an address that is a multiple of 16.
    pub fn aligned(&mut self, start: u64) -> u64 {
        let shift = (16 - start % 16) as usize;
        let buffer = self.bytes.last_mut().unwrap();
        buffer.copy_within(16.., shift);
        start + shift as u64
    }

    pub fn norm(&mut self, gain: &Option<Values>) -> Norm {
        Norm { weight: gain.as_ref().map(|gain| self.matrix(gain)), epsilon: 1e-5 }
    }

    pub fn linear(&mut self, weight: &Values, bias: &Option<Values>) -> Linear {
        let weight = self.matrix(weight);
        Linear { weight, bias: bias.as_ref().map(|bias| self.matrix(bias)) }
    }

    /// A matrix of F32 that is to be written, full of a number that no result is.
    pub fn output(&mut self, rows: usize, columns: usize) -> Matrix {
        self.matrix(&Values::compact(vec![UNWRITTEN; rows * columns], columns))
    }

    pub fn array<T: bytemuck::NoUninit>(&mut self, elements: &[T]) -> Span<T> {
        let mut padded = vec![0; 16];
        padded.extend_from_slice(bytemuck::cast_slice(elements));
        let start = self.lend(padded);
        Span::new(self.aligned(start), elements.len())
    }

    /// An array that a call may go without.
    pub fn optional<T: bytemuck::NoUninit>(
        &mut self,
        elements: &Option<Vec<T>>,
    ) -> Option<Span<T>> {
        elements.as_ref().map(|elements| self.array(elements))
    }

    /// Scratch as sessions prepare it, of whole zeros.
    pub fn scratch(&mut self, bytes: usize) -> Span<u8> {
        let memory = Memory::filled_on(self.device, bytes as u64, 0);
        let address = memory.address() as u64;
        self.scratch.push((memory, bytes));
        Span::new(address, bytes)
    }

    pub fn scratch_bytes(&self) -> Vec<u8> {
        self.scratch.iter().flat_map(|(memory, bytes)| memory.read(0..*bytes)).collect()
    }

    /// Runs a phase and waits for it.
    pub fn run<T>(&self, phase: impl FnOnce(&dyn Backend, Stream) -> T) -> T {
        match self.device {
            Device::Cpu => phase(cpu(), Stream::NONE),
            Device::Cuda => {
                let stream = HostStream::on(Device::Cuda);
                let _scope = cuda().enter().unwrap();
                let result = phase(cuda(), Stream(stream.handle() as u64));
                stream.synchronize();
                result
            }
        }
    }
}

/// Exact in all types.
pub const UNWRITTEN: f32 = -12288.0;

pub fn bytes_at<'a>(address: u64, len: usize) -> &'a [u8] {
    // SAFETY: the callers' matrices and arrays are buffers of a place that is alive.
    unsafe { std::slice::from_raw_parts(address as *const u8, len) }
}

pub fn read(matrix: &Matrix) -> Vec<f32> {
    let size = matrix.dtype.size();
    (0..matrix.rows)
        .flat_map(|row| bytes_at(matrix.row_address(row), matrix.columns * size).chunks(size))
        .map(|element| decode(matrix.dtype, element))
        .collect()
}

pub fn read_array<T: bytemuck::AnyBitPattern>(span: Span<T>) -> Vec<T> {
    let bytes = bytes_at(span.address(), span.len() * size_of::<T>());
    bytes.chunks(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
}

// ---- Rows ---------------------------------------------------------------------------------------

/// The rows of a phase; what the phase does not look at may be empty.
#[derive(Clone, Debug, Default)]
pub struct RowValues {
    /// How many there are of `most`.
    pub count: usize,
    pub most: usize,
    /// Before the first one of the view.
    pub first: usize,
    /// Those of all views together, as far as they are laid out.
    pub total: usize,
    pub sequence: Vec<i32>,
    pub position: Vec<i32>,
    pub rope_position: Vec<i32>,
    pub token: Vec<i32>,
    pub source: Vec<i32>,
}

impl RowValues {
    pub fn new(count: usize, most: usize, first: usize) -> Self {
        Self { count, most, first, total: first + count, ..Self::default() }
    }

    pub fn lend(&self, place: &mut Place) -> Rows {
        let mut column = |values: &Vec<i32>| {
            let mut values = values.clone();
            values.resize(self.most, i32::MIN);
            place.array(&values)
        };
        let [sequence, position, rope_position, token, source] =
            [&self.sequence, &self.position, &self.rope_position, &self.token, &self.source]
                .map(&mut column);
        let count = place.array(&[self.total as i32]);
        Rows { count, first: self.first, sequence, position, rope_position, token, source }
    }
}

/// The count of rows, then sequence, position, RoPE position, token and source of those that exist.
pub fn rows_of(rows: &Rows) -> Vec<Vec<i32>> {
    let count = read_array(rows.count)[0];
    let columns = [rows.sequence, rows.position, rows.rope_position, rows.token, rows.source];
    let columns = columns.map(|column| read_array(column)[..count.max(0) as usize].to_vec());
    std::iter::once(vec![count]).chain(columns).collect()
}

/// Row counts of all kernels: none, few, some in two groups, many in several groups.
pub fn random_rows(random: &mut Random) -> RowValues {
    let most = match random.below(6) {
        0 => 1 + random.below(3),
        1 => 1 + random.below(16),
        2 => 17 + random.below(16),
        3 => 33 + random.below(32),
        _ => 65 + random.below(66),
    };
    let count = if random.chance(0.3) { random.below(most + 1) } else { most };
    let first = if random.chance(0.3) { random.below(100) } else { 0 };
    let mut rows = RowValues::new(count, most, first);
    // Views behind a full one may have rows, and views before an empty one may lack some.
    if count == most && random.chance(0.3) {
        rows.total += random.below(100);
    } else if count == 0 && first > 0 {
        rows.total = random.below(first);
    }
    rows
}

pub const WIDTHS: [usize; 10] = [8, 36, 40, 50, 72, 80, 160, 256, 264, 520];

pub fn optional<T>(random: &mut Random, value: impl FnOnce(&mut Random) -> T) -> Option<T> {
    random.chance(0.5).then(|| value(random))
}

pub fn bias(random: &mut Random, columns: usize) -> Option<Values> {
    let dtype = DTYPES[random.below(3)];
    optional(random, |random| Values::random(random, (1, columns), dtype, 1.0))
}

/// Rows agree as f32 sums do, and what is not a row stays as it was.
#[track_caller]
pub fn assert_close(found: &[f32], expected: &[f32], columns: usize, tolerance: f32, what: &str) {
    assert_eq!(found.len(), expected.len());
    for (row, (found, expected)) in found.chunks(columns).zip(expected.chunks(columns)).enumerate()
    {
        let largest = expected.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        for (column, (found, expected)) in found.iter().zip(expected).enumerate() {
            let same = found == expected || (found - expected).abs() <= tolerance * largest;
            assert!(same, "{what}: row {row} column {column}: {found} for {expected}");
        }
    }
}

#[track_caller]
pub fn assert_same_bits(found: &[f32], expected: &[f32], what: &str) {
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    assert!(bits(found) == bits(expected), "{what}: {found:?} for {expected:?}");
}

/// What remains of the products of 16-bit weights with inputs in two parts.
pub const TOLERANCE: f32 = 1.5e-5;

/// Cases of a test: one by its number if `SPEC_TEST_CASE` names it.
pub fn cases(count: u64) -> impl Iterator<Item = (u64, Random)> {
    let named = std::env::var("SPEC_TEST_CASE").ok().map(|number| number.parse().unwrap());
    let numbers = named.map_or(0..count, |number: u64| number..number + 1);
    numbers.map(|number| (number, Random::new(number)))
}

/// How many cases a test has, in full and on a simulated device.
pub fn test_cases(full: u64, simulated: u64) -> u64 {
    let count = device::amount(full, simulated);
    std::env::var("SPEC_TEST_CASES").map_or(count, |count| count.parse().unwrap())
}

// ---- Calls --------------------------------------------------------------------------------------

/// How the tokens of each sequence are drawn.
#[derive(Clone, Debug)]
pub struct SamplingValues {
    temperature: Vec<f32>,
    top_k: Option<Vec<i32>>,
    top_p: Option<Vec<f32>>,
    min_p: Option<Vec<f32>>,
    seed: Option<Vec<u64>>,
}

impl SamplingValues {
    pub fn random(random: &mut Random, sequences: usize) -> Self {
        fn all<T>(random: &mut Random, len: usize, value: impl Fn(&mut Random) -> T) -> Vec<T> {
            (0..len).map(|_| value(random)).collect()
        }
        Self {
            temperature: all(random, sequences, |r| [0.0, 0.7, 1.0, 2.0, f32::NAN][r.below(5)]),
            top_k: optional(random, |random| all(random, sequences, |r| r.below(50) as i32)),
            top_p: optional(random, |random| all(random, sequences, |r| r.below(10) as f32 / 9.0)),
            min_p: optional(random, |random| all(random, sequences, |r| r.below(3) as f32 / 20.0)),
            seed: optional(random, |random| all(random, sequences, |r| r.bits())),
        }
    }

    pub fn lend(&self, place: &mut Place) -> SamplingArrays {
        SamplingArrays {
            temperature: Some(place.array(&self.temperature)),
            top_k: place.optional(&self.top_k),
            top_p: place.optional(&self.top_p),
            min_p: place.optional(&self.min_p),
            seed: place.optional(&self.seed),
        }
    }
}
