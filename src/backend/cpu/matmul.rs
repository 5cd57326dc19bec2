//! Products of `f32` rows with weight matrices in the weights' own type.
//!
//! Every output is one dot product with one order of summation: sixteen lanes take the elements in
//! turn, with fused multiply-add, and are added up by the tree of [`Lanes::sum`]. How rows and
//! outputs are grouped into blocks and tasks never changes it.

use super::memory::{element, elements_mut};
use super::simd::{Isa, LANES, Lanes, dispatched};
use super::threads::Pool;
use super::vector;
use crate::backend::phases::{Activation, Linear};
use crate::tensor::{Dtype, Matrix, Span};

/// What happens to a product.
#[derive(Clone, Copy, Debug)]
pub enum Sink<'a> {
    /// Written.
    Store,
    /// Added to what is there.
    Add,
    /// Written through the activation and multiplied by a second product.
    Gate(Activation, &'a Linear),
}

/// The product of the first rows of a matrix with a weight.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a> {
    /// `[outputs, inputs]`, in pieces.
    pub weight: &'a [Matrix],
    /// One row of `outputs`.
    pub bias: Option<Matrix>,
    /// `[rows, outputs]`, F32.
    pub output: Matrix,
    /// What happens to the product.
    pub sink: Sink<'a>,
}

/// Products of the same rows, to be gone through as often as need be.
pub trait Products<'a>: IntoIterator<Item = Product<'a>> + Clone + Sync {}

impl<'a, T: IntoIterator<Item = Product<'a>> + Clone + Sync> Products<'a> for T {}

/// Weights of one task: small enough for a core's second-level cache, so that they are read from
/// memory once however many rows there are.
const TILE_BYTES: usize = 128 << 10;

/// Below this many bytes of weights, waking other threads costs more than it saves.
const INLINE_BYTES: usize = 96 << 10;

impl<'a> Product<'a> {
    /// The product with a weight in one piece, without a bias.
    pub fn of(weight: &'a Matrix, output: Matrix, sink: Sink<'a>) -> Self {
        Self { weight: std::slice::from_ref(weight), bias: None, output, sink }
    }
}

impl Product<'_> {
    fn bytes(&self) -> usize {
        self.weight.iter().map(|piece| piece.rows * piece.columns * piece.dtype.size()).sum()
    }
}

/// The weight rows of one task.
fn tile_rows(piece: &Matrix) -> usize {
    // A multiple of four, so that the blocks of the kernel are full.
    (TILE_BYTES / (piece.columns * piece.dtype.size()).max(1)).next_multiple_of(4).max(4)
}

/// Multiplies the first `rows` rows of `input` (F32) with all weights, on all threads.
///
/// # Safety
///
/// The contract of [`crate::backend::Backend`] for all matrices; the inputs have as many columns as
/// the weights, and the outputs as many as the weights have rows.
pub unsafe fn multiply<'a>(
    pool: &Pool,
    isa: Isa,
    input: &Matrix,
    rows: usize,
    products: impl Products<'a>,
) {
    if rows == 0 {
        return;
    }
    let tasks = products
        .clone()
        .into_iter()
        .flat_map(|product| product.weight)
        .map(|piece| piece.rows.div_ceil(tile_rows(piece)))
        .sum();
    let run = |task: usize| {
        // SAFETY: as this function's contract; tiles of different tasks write different columns.
        unsafe { multiply_task(isa, input, rows, products.clone(), task) };
    };
    let bytes: usize = products.clone().into_iter().map(|product| product.bytes()).sum();
    spread(pool, tasks, bytes.saturating_mul(rows), &run);
}

/// Runs tasks that take so many bytes of weights through the processor.
fn spread(pool: &Pool, tasks: usize, bytes: usize, run: &(dyn Fn(usize) + Sync)) {
    if bytes <= INLINE_BYTES {
        (0..tasks).for_each(run);
    } else {
        pool.run(tasks, run);
    }
}

/// Runs a task for each tile of `count` products of different weights with the shape of `weight`, on
/// `rows` rows in all: `run` gets the product's number and the tile's.
pub fn run_tiles(
    pool: &Pool,
    (count, rows): (usize, usize),
    weight: &Matrix,
    run: &(dyn Fn(usize, usize) + Sync),
) {
    let tiles = weight.rows.div_ceil(tile_rows(weight));
    let bytes = (weight.rows * weight.columns * weight.dtype.size()).saturating_mul(rows);
    spread(pool, count * tiles, bytes, &|task| run(task / tiles, task % tiles));
}

/// Multiplies the first `rows` rows of `input` (F32) with one tile of a product's weight.
///
/// # Safety
///
/// As for [`multiply`]; no other task multiplies the same tile.
pub unsafe fn multiply_tile(isa: Isa, input: &Matrix, rows: usize, product: &Product, tile: usize) {
    // SAFETY: as this function's contract.
    unsafe { multiply_task(isa, input, rows, [*product], tile) };
}

/// One of the tasks of [`multiply`].
unsafe fn multiply_task<'a>(
    isa: Isa,
    input: &Matrix,
    rows: usize,
    products: impl Products<'a>,
    task: usize,
) {
    let (product, weight, first) = find(products, task);
    let Product { bias, output, sink, .. } = product;
    let tile = Tile { input, rows, weight, bias, output, first, mode: Mode::Store };
    // SAFETY: the contract of `multiply`; no other task has this number.
    unsafe { tile.multiply(isa, &sink) };
}

/// The product, the rows of its weight and the output column of the first of them that a task is.
fn find<'a>(products: impl Products<'a>, task: usize) -> (Product<'a>, Matrix, usize) {
    let mut task = task;
    for product in products {
        let mut first = 0;
        for piece in product.weight {
            let rows = tile_rows(piece);
            let tiles = piece.rows.div_ceil(rows);
            if task < tiles {
                let start = task * rows;
                let weight = piece.row_range(start, rows.min(piece.rows - start));
                return (product, weight, first + start);
            }
            task -= tiles;
            first += piece.rows;
        }
    }
    unreachable!("multiply makes as many tasks as there are tiles")
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Store,
    Add,
    Multiply,
}

/// Rows of a weight against all rows of the input.
#[derive(Clone, Copy)]
struct Tile<'a> {
    input: &'a Matrix,
    rows: usize,
    weight: Matrix,
    /// Of all rows of the whole weight.
    bias: Option<Matrix>,
    output: Matrix,
    /// The column of the output and the bias that belongs to the first weight row.
    first: usize,
    mode: Mode,
}

impl Tile<'_> {
    /// # Safety
    ///
    /// The contract of `multiply`; no other task writes the columns of this tile.
    unsafe fn multiply(&self, isa: Isa, sink: &Sink<'_>) {
        // SAFETY: as this function's contract.
        unsafe {
            match sink {
                Sink::Store => run_tile(isa, self),
                Sink::Add => run_tile(isa, &Self { mode: Mode::Add, ..*self }),
                Sink::Gate(activation, up) => {
                    run_tile(isa, self);
                    for row in 0..self.rows {
                        let gate = Span::new(self.place(row, 0) as u64, self.weight.rows);
                        vector::activate(isa, elements_mut(gate), *activation);
                    }
                    let weight = up.weight.row_range(self.first, self.weight.rows);
                    let up = Self { weight, bias: up.bias, mode: Mode::Multiply, ..*self };
                    run_tile(isa, &up);
                }
            }
        }
    }

    /// Where the product of an input row with a weight row goes.
    fn place(&self, row: usize, weight_row: usize) -> *mut f32 {
        (self.output.row_address(row) as *mut f32).wrapping_add(self.first + weight_row)
    }

    fn input(&self, row: usize) -> *const f32 {
        self.input.row_address(row) as *const f32
    }

    fn weight(&self, row: usize) -> *const u8 {
        self.weight.row_address(row) as *const u8
    }
}

dispatched! {
    unsafe fn run_tile(tile: &Tile<'_>) = tile_in
}

#[inline(always)]
unsafe fn tile_in<L: Lanes>(tile: &Tile<'_>) {
    // SAFETY: the contract of `multiply`.
    unsafe {
        match tile.weight.dtype {
            Dtype::F32 => tile.sweep_rows::<L, F32>(),
            Dtype::F16 => tile.sweep_rows::<L, F16>(),
            Dtype::Bf16 => tile.sweep_rows::<L, Bf16>(),
        }
    }
}

/// An element type of weights.
///
/// # Safety
///
/// `load` reads sixteen elements of `SIZE` bytes.
pub unsafe trait Element {
    /// Bytes of an element.
    const SIZE: usize;
    /// Sixteen elements.
    unsafe fn load<L: Lanes>(from: *const u8) -> L;
}

/// [`Dtype::F32`].
pub struct F32;
/// [`Dtype::F16`].
pub struct F16;
/// [`Dtype::Bf16`].
pub struct Bf16;

// SAFETY: sixteen elements of four bytes.
unsafe impl Element for F32 {
    const SIZE: usize = 4;
    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const u8) -> L {
        // SAFETY: as the trait's contract.
        unsafe { L::load(from.cast()) }
    }
}

// SAFETY: sixteen elements of two bytes.
unsafe impl Element for F16 {
    const SIZE: usize = 2;
    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const u8) -> L {
        // SAFETY: as the trait's contract.
        unsafe { L::load_f16(from.cast()) }
    }
}

// SAFETY: sixteen elements of two bytes.
unsafe impl Element for Bf16 {
    const SIZE: usize = 2;
    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const u8) -> L {
        // SAFETY: as the trait's contract.
        unsafe { L::load_bf16(from.cast()) }
    }
}

/// With this many columns of at most four rows of input, these stay in the first-level cache while
/// weight rows pass by.
const BLOCK_COLUMNS: usize = 1024;

/// Weight rows whose unfinished sums are kept while the columns are taken block by block.
const BLOCK_ROWS: usize = 8;

impl Tile<'_> {
    #[inline(always)]
    unsafe fn sweep_rows<L: Lanes, E: Element>(&self) {
        let long = self.weight.columns > BLOCK_COLUMNS;
        let mut row = 0;
        // SAFETY: the contract of `multiply`; blocks stay inside of rows and weight rows.
        unsafe {
            while row < self.rows {
                row += match self.rows - row {
                    1 => self.sweep::<L, E, 1, 2>(row),
                    2 => self.sweep::<L, E, 2, 2>(row),
                    3 if long => self.sweep_blocks::<L, E, 3>(row),
                    3 => self.sweep::<L, E, 3, 1>(row),
                    _ if long => self.sweep_blocks::<L, E, 4>(row),
                    _ => self.sweep::<L, E, 4, 1>(row),
                };
            }
        }
    }

    /// [`Tile::sweep`] for inputs that are too long for the first-level cache: block by block of
    /// the columns, with the lanes' sums put aside in between. They are the same sums.
    #[inline(always)]
    unsafe fn sweep_blocks<L: Lanes, E: Element, const M: usize>(&self, row: usize) -> usize {
        let inputs: [*const f32; M] = std::array::from_fn(|m| self.input(row + m));
        let columns = self.weight.columns;
        // SAFETY: the contract of `multiply`; the sums of BLOCK_ROWS weight rows fit.
        unsafe {
            for first in (0..self.weight.rows).step_by(BLOCK_ROWS) {
                let len = BLOCK_ROWS.min(self.weight.rows - first);
                let mut sums = [[L::splat(0.0); M]; BLOCK_ROWS];
                let mut ahead = self.weight(first + len);
                for start in (0..columns).step_by(BLOCK_COLUMNS) {
                    let width = BLOCK_COLUMNS.min(columns - start);
                    let inputs: [*const f32; M] = std::array::from_fn(|m| inputs[m].add(start));
                    for (n, sums) in sums[..len].iter_mut().enumerate() {
                        let weights = [self.weight(first + n).add(start * E::SIZE)];
                        let before = sums.map(|sum| [sum]);
                        let after =
                            add_dots::<L, E, M, 1, true>(&inputs, &weights, width, ahead, before);
                        *sums = after.map(|[sum]| sum);
                        ahead = ahead.wrapping_add(width * E::SIZE);
                    }
                }
                for (n, sums) in sums[..len].iter().enumerate() {
                    self.sink(row, first + n, &sums.map(|sum| [sum.sum()]));
                }
            }
        }
        M
    }

    /// `M` rows of the input, from `row` on, against all weight rows, `N` at a time.
    #[inline(always)]
    unsafe fn sweep<L: Lanes, E: Element, const M: usize, const N: usize>(
        &self,
        row: usize,
    ) -> usize {
        let columns = self.weight.columns;
        let inputs: [*const f32; M] = std::array::from_fn(|m| self.input(row + m));
        let full = self.weight.rows / N * N;
        // SAFETY: the contract of `multiply`.
        unsafe {
            for n in (0..full).step_by(N) {
                let weights = std::array::from_fn(|j| self.weight(n + j));
                let (ahead, zero) = (self.weight(n + N), [[L::splat(0.0); N]; M]);
                let sums = add_dots::<L, E, M, N, true>(&inputs, &weights, columns, ahead, zero);
                self.sink(row, n, &sums.map(|row| row.map(|sum| sum.sum())));
            }
            for n in full..self.weight.rows {
                self.sink(row, n, &dots::<L, E, M, 1>(&inputs, &[self.weight(n)], columns));
            }
        }
        M
    }

    #[inline(always)]
    unsafe fn sink<const M: usize, const N: usize>(
        &self,
        row: usize,
        n: usize,
        values: &[[f32; N]; M],
    ) {
        for (m, values) in values.iter().enumerate() {
            for (j, &value) in values.iter().enumerate() {
                // SAFETY: the bias has as many columns as the weight has rows, the output too.
                unsafe {
                    let bias = self.bias.map_or(0.0, |bias| {
                        let column = self.first + n + j;
                        element(bias.address + (column * bias.dtype.size()) as u64, bias.dtype)
                    });
                    let place = self.place(row + m, n + j);
                    match self.mode {
                        Mode::Store => place.write(value + bias),
                        Mode::Add => place.write(place.read() + (value + bias)),
                        Mode::Multiply => place.write(place.read() * (value + bias)),
                    }
                }
            }
        }
    }
}

/// The dot products of `M` rows with `N` weight rows.
///
/// # Safety
///
/// All rows have `columns` elements.
#[inline(always)]
pub unsafe fn dots<L: Lanes, E: Element, const M: usize, const N: usize>(
    inputs: &[*const f32; M],
    weights: &[*const u8; N],
    columns: usize,
) -> [[f32; N]; M] {
    // SAFETY: as this function's contract; nothing is asked for ahead.
    unsafe {
        let (zero, ahead) = ([[L::splat(0.0); N]; M], std::ptr::null());
        let sums = add_dots::<L, E, M, N, false>(inputs, weights, columns, ahead, zero);
        sums.map(|row| row.map(|sum| sum.sum()))
    }
}

/// Adds the products of further columns to the lanes' sums. Only the last call for a row may have
/// a number of columns that is no multiple of the lanes. If `AHEAD`, as many bytes from `ahead` on
/// are asked for as are read here: memory is fast when it is read in its own order, which is not
/// the order of several rows at a time.
///
/// # Safety
///
/// All rows have `columns` elements; `ahead` may be any address.
#[inline(always)]
unsafe fn add_dots<L: Lanes, E: Element, const M: usize, const N: usize, const AHEAD: bool>(
    inputs: &[*const f32; M],
    weights: &[*const u8; N],
    columns: usize,
    ahead: *const u8,
    mut sums: [[L; N]; M],
) -> [[L; N]; M] {
    const LINE: usize = 64;
    // SAFETY: every load stays inside of the rows; the last, partial one reads copies.
    unsafe {
        let full = columns / LANES * LANES;
        let mut k = 0;
        while k < full {
            if AHEAD {
                for line in 0..(N * LANES * E::SIZE).div_ceil(LINE) {
                    L::prefetch(ahead.wrapping_add(k * N * E::SIZE + line * LINE));
                }
            }
            let w: [L; N] = std::array::from_fn(|j| E::load::<L>(weights[j].add(k * E::SIZE)));
            for m in 0..M {
                let x = L::load(inputs[m].add(k));
                for j in 0..N {
                    sums[m][j] = x.fma(w[j], sums[m][j]);
                }
            }
            k += LANES;
        }
        if full < columns {
            let rest = columns - full;
            let w: [L; N] = std::array::from_fn(|j| {
                let mut bytes = [0_u8; 4 * LANES];
                let from = weights[j].add(full * E::SIZE);
                from.copy_to_nonoverlapping(bytes.as_mut_ptr(), rest * E::SIZE);
                E::load::<L>(bytes.as_ptr())
            });
            for m in 0..M {
                let mut x = [0.0_f32; LANES];
                inputs[m].add(full).copy_to_nonoverlapping(x.as_mut_ptr(), rest);
                let x = L::load(x.as_ptr());
                for j in 0..N {
                    sums[m][j] = x.fma(w[j], sums[m][j]);
                }
            }
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::super::threads::Threads;
    use super::*;
    use half::{bf16, f16};

    fn numbers(seed: u32, len: usize) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..len).map(|_| bf16::from_f32(next()).to_f32()).collect()
    }

    fn f32_matrix(values: &[f32], rows: usize, columns: usize) -> Matrix {
        let address = values.as_ptr() as u64;
        Matrix { address, dtype: Dtype::F32, rows, columns, row_stride: columns }
    }

    fn written(values: &mut [f32], rows: usize, columns: usize) -> Matrix {
        let address = values.as_mut_ptr() as u64;
        Matrix { address, ..f32_matrix(values, rows, columns) }
    }

    fn product(isa: Isa, threads: usize, rows: usize, weight: &Matrix, input: &[f32]) -> Vec<f32> {
        let pool = Pool::new(Threads::Own(threads)).unwrap();
        let mut output = vec![0.0; rows * weight.rows];
        let sink = Sink::Store;
        let product = Product {
            weight: &[*weight],
            bias: None,
            output: written(&mut output, rows, weight.rows),
            sink,
        };
        let input = f32_matrix(input, rows, weight.columns);
        // SAFETY: all matrices are vectors of this function.
        unsafe { multiply(&pool, isa, &input, rows, [product]) };
        output
    }

    #[test]
    fn products_equal_exact_sums_and_are_the_same_for_any_rows_threads_and_instructions() {
        for (outputs, inputs) in [(1, 1), (5, 15), (7, 16), (67, 100), (300, 513), (70, 2100)] {
            let weights = numbers(7, outputs * inputs);
            let input = numbers(8, 9 * inputs);
            let weight = f32_matrix(&weights, outputs, inputs);
            let reference = product(Isa::Portable, 1, 9, &weight, &input);
            for (row, outputs_of_row) in reference.chunks(outputs).enumerate() {
                for (n, &value) in outputs_of_row.iter().enumerate() {
                    let exact: f64 = (0..inputs)
                        .map(|k| {
                            f64::from(input[row * inputs + k]) * f64::from(weights[n * inputs + k])
                        })
                        .sum();
                    assert!((f64::from(value) - exact).abs() < 2e-4, "{value} {exact}");
                }
            }
            for isa in Isa::available().into_iter().skip(1) {
                for rows in 1..=9 {
                    let found = product(isa, 3, rows, &weight, &input);
                    assert_eq!(found, reference[..rows * outputs], "{isa:?} {rows}");
                }
            }
        }
    }

    #[test]
    fn narrow_weights_give_what_their_exact_values_give_even_unaligned() {
        let (outputs, inputs) = (13, 37);
        let values = numbers(3, outputs * inputs);
        let input = numbers(4, 3 * inputs);
        let expected = product(Isa::Portable, 1, 3, &f32_matrix(&values, outputs, inputs), &input);
        let narrow: [(Dtype, Vec<u8>); 2] = [
            (Dtype::Bf16, values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect()),
            (Dtype::F16, values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect()),
        ];
        for (dtype, bytes) in narrow {
            let mut shifted = vec![0_u8];
            shifted.extend(bytes);
            let address = shifted.as_ptr() as u64 + 1;
            let weight =
                Matrix { address, dtype, rows: outputs, columns: inputs, row_stride: inputs };
            for isa in Isa::available().into_iter().skip(1) {
                assert_eq!(product(isa, 1, 3, &weight, &input), expected, "{dtype:?} {isa:?}");
            }
        }
    }

    #[test]
    fn biases_additions_and_gates_are_applied_to_each_output() {
        let (outputs, inputs) = (6, 10);
        let (a, b) = (numbers(1, outputs * inputs), numbers(2, outputs * inputs));
        let (bias_a, bias_b, input) =
            (numbers(5, outputs), numbers(6, outputs), numbers(9, inputs));
        let pool = Pool::new(Threads::Own(1)).unwrap();
        let weight = [f32_matrix(&a, outputs, inputs)];
        let up = Linear {
            weight: f32_matrix(&b, outputs, inputs),
            bias: Some(f32_matrix(&bias_b, 1, outputs)),
        };
        let plain = |weights: &[f32], bias: &[f32]| -> Vec<f32> {
            let weight = f32_matrix(weights, outputs, inputs);
            let products = product(Isa::Portable, 1, 1, &weight, &input);
            products.iter().zip(bias).map(|(p, b)| p + b).collect()
        };
        let (gate, upper) = (plain(&a, &bias_a), plain(&b, &bias_b));
        for (sink, expected) in [
            (Sink::Add, gate.iter().map(|g| 2.0 + g).collect::<Vec<_>>()),
            (
                Sink::Gate(Activation::Relu, &up),
                gate.iter().zip(&upper).map(|(g, u)| g.max(0.0) * u).collect(),
            ),
        ] {
            let mut output = vec![2.0; outputs];
            let product = Product {
                weight: &weight,
                bias: Some(f32_matrix(&bias_a, 1, outputs)),
                output: written(&mut output, 1, outputs),
                sink,
            };
            let rows = f32_matrix(&input, 1, inputs);
            // SAFETY: all matrices are vectors of this function.
            unsafe { multiply(&pool, Isa::detect(), &rows, 1, [product]) };
            assert_eq!(output, expected);
        }
    }
}
