//! Attention of single rows over paged keys and values.
//!
//! Positions are taken in blocks of 64 and partitions of 1024, both at absolute positions, with a
//! running maximum in each partition; partitions are combined in their order. So a row's result
//! depends on the keys that it sees alone: not on pages, batch, or how work is split.

use super::matmul::{Bf16, Element, F16, F32, dots};
use super::memory::{elements, elements_mut, row, store};
use super::simd::{Isa, LANES, Lanes, dispatched};
use super::threads::Pool;
use super::vector::exp;
use crate::backend::phases::{
    Attend, AttentionHeads, BlockKv, KvPool, MAX_HEAD_DIM, Mask, OwnKv, Paging, Rows,
};
use crate::tensor::{Dtype, Matrix, Span};
use std::ops::Range;

/// Query heads that share one pass over the keys.
const GROUP: usize = 8;
const BLOCK: usize = 64;
const PARTITION: usize = 1024;
/// With more units than this, each unit's partitions stay in one task.
const SPLIT_UNITS: usize = 16;

/// What a partition of one group of heads comes to.
#[derive(Clone, Copy)]
struct Partial {
    maximum: [f32; GROUP],
    total: [f32; GROUP],
}

impl Partial {
    const EMPTY: Self = Self { maximum: [f32::NEG_INFINITY; GROUP], total: [0.0; GROUP] };
}

/// Floats that a stored partial takes: its sums, maxima and totals.
const fn partial_len(head_dim: usize) -> usize {
    GROUP * (head_dim + 2)
}

/// The heads of a row that one task works on.
fn units_per_row(heads: &AttentionHeads) -> usize {
    heads.num_kv_heads * (heads.num_heads / heads.num_kv_heads).div_ceil(GROUP)
}

/// Bytes of scratch for at most `rows` rows that see `positions` positions.
pub fn scratch_bytes(rows: usize, heads: &AttentionHeads, positions: usize) -> usize {
    let units = rows.saturating_mul(units_per_row(heads)).min(SPLIT_UNITS);
    let partitions = positions.div_ceil(PARTITION);
    units.saturating_mul(partitions).saturating_mul(partial_len(heads.head_dim) * size_of::<f32>())
}

/// The positions of a row that do not lie in the pool.
#[derive(Clone, Copy)]
struct RowKv<'a> {
    /// The first of them.
    begin: usize,
    kv: Own<'a>,
}

#[derive(Clone, Copy)]
enum Own<'a> {
    /// The block that the row belongs to, with its first page.
    Block(BlockKv, usize),
    /// The slots of the nodes from below the root of a tree to the row's own, and the slots' pages.
    Path(&'a [i32], Matrix),
}

/// Where keys and values of one sequence's positions are, seen by one of its rows.
#[derive(Clone, Copy)]
struct Places<'a> {
    paging: &'a Paging,
    sequence: usize,
    own: Option<RowKv<'a>>,
}

impl<'a> Places<'a> {
    fn of(paging: &'a Paging, row: usize, sequence: usize, position: usize) -> Self {
        let own = paging.own.as_ref().map(|own| match own {
            OwnKv::Block(kv) => {
                let first_page = row / kv.len * kv.pages_per_block(paging.pool.page_size);
                RowKv { begin: position - row % kv.len, kv: Own::Block(*kv, first_page) }
            }
            OwnKv::Tree(kv) => {
                // SAFETY: the phase that laid the row out has written its path.
                let path = unsafe { elements(kv.paths.slice(row * kv.stride, kv.depth)) };
                RowKv { begin: position + 1 - kv.depth, kv: Own::Path(path, kv.pages) }
            }
        });
        Self { paging, sequence, own }
    }

    /// The block that the row belongs to, and the position of its first row.
    fn block(&self) -> Option<(usize, BlockKv)> {
        self.own.map(|own| own.begin).zip(self.paging.block())
    }

    /// Where a head's keys or values of a position lie.
    fn address(&self, position: usize, head: usize, value: bool) -> u64 {
        self.plane_address(position, usize::from(value) * self.paging.pool.num_kv_heads + head)
    }

    /// The same by a head's number among the heads of keys and values, from the layer's first on.
    fn plane_address(&self, position: usize, plane: usize) -> u64 {
        let KvPool { pages, page_size, num_kv_heads, head_dim, .. } = self.paging.pool;
        let (pages, page, place, layer) = match self.own {
            Some(own) if position >= own.begin => match own.kv {
                Own::Block(kv, first_page) => {
                    let place = position - own.begin;
                    (kv.pages, first_page + place / page_size, place % page_size, 0)
                }
                Own::Path(path, pages) => {
                    let slot = path[position - own.begin] as usize;
                    (pages, slot / page_size, slot % page_size, self.paging.layer)
                }
            },
            _ => {
                // SAFETY: plan_rows has filled page_row and checked the pages of all positions of
                // its rows.
                let page = unsafe {
                    let first = elements(self.paging.page_row)[self.sequence] as usize;
                    elements(self.paging.table)[first + position / page_size] as usize
                };
                (pages, page, position % page_size, self.paging.layer)
            }
        };
        let plane = layer * 2 * num_kv_heads + plane;
        let offset = (plane * page_size + place) * head_dim;
        pages.row_address(page) + (offset * pages.dtype.size()) as u64
    }

    /// The positions that a row at `position` sees, of those that have keys from `context` on.
    fn seen(&self, mask: &Mask, context: usize, position: usize) -> Range<usize> {
        let next = position + 1;
        // A window that moves with the row may leave the beginning of its block out; one that ends
        // before the block never does.
        let block = self.block();
        let (window_end, kept) = match block {
            Some((begin, _)) if mask.window_from_block => (begin, begin),
            _ => (next, position),
        };
        let end = match block {
            Some((begin, kv)) if mask.sees_block => begin + kv.len,
            _ => next,
        };
        let window = mask.window.map_or(0, |window| window_end.saturating_sub(window));
        context.max(window).min(kept)..end
    }
}

/// Writes a row's keys and values, `[layers, 2, kv_heads, head_dim]`, given its place among the phase's
/// rows, its sequence and its position.
///
/// # Safety
///
/// The contract of [`crate::backend::Backend`]; the row was laid out by the phase that made it.
pub unsafe fn append(
    paging: &Paging,
    (row, sequence, position): (usize, usize, usize),
    keys_and_values: &[f32],
) {
    let KvPool { head_dim, pages, .. } = paging.pool;
    let places = Places::of(paging, row, sequence, position);
    for (plane, head) in keys_and_values.chunks_exact(head_dim).enumerate() {
        let address = places.plane_address(position, plane);
        // SAFETY: inside of the page, as this function's contract.
        unsafe { store(head, address, pages.dtype) };
    }
}

/// One group of query heads of one row.
struct Unit<'a> {
    phase: &'a Attend,
    row: usize,
    places: Places<'a>,
    kv_head: usize,
    first_head: usize,
    heads: usize,
    begin: usize,
    end: usize,
}

impl<'a> Unit<'a> {
    /// # Safety
    ///
    /// The contract of [`crate::backend::Backend`].
    unsafe fn new(phase: &'a Attend, index: usize) -> Self {
        let heads = &phase.heads;
        let per_row = units_per_row(heads);
        let queries = heads.num_heads / heads.num_kv_heads;
        let groups = queries.div_ceil(GROUP);
        let (row, unit) = (index / per_row, index % per_row);
        let (kv_head, group) = (unit / groups, unit % groups);
        let Rows { sequence, position, .. } = phase.rows;
        // SAFETY: as this function's contract.
        let (sequence, position, begin) = unsafe {
            let sequence = elements(sequence)[row] as usize;
            let begin = phase.context_begin.map_or(0, |begin| elements(begin)[sequence].max(0));
            (sequence, elements(position)[row] as usize, begin as usize)
        };
        let places = Places::of(&phase.paging, row, sequence, position);
        let seen = places.seen(&phase.mask, begin, position);
        Self {
            phase,
            row,
            places,
            kv_head,
            first_head: kv_head * queries + group * GROUP,
            heads: GROUP.min(queries - group * GROUP),
            begin: seen.start,
            end: seen.end,
        }
    }

    fn partitions(&self) -> Range<usize> {
        self.begin / PARTITION..self.end.div_ceil(PARTITION)
    }

    /// The unit's own heads of its own row, which no other unit writes.
    fn output(&self) -> Span<f32> {
        let head_dim = self.phase.heads.head_dim;
        let row = Span::new(self.phase.output.row_address(self.row), self.phase.output.columns);
        row.slice(self.first_head * head_dim, self.heads * head_dim)
    }

    fn queries(&self) -> &[f32] {
        let head_dim = self.phase.heads.head_dim;
        // SAFETY: the contract of Backend.
        let row = unsafe { row(&self.phase.query, self.row) };
        &row[self.first_head * head_dim..][..self.heads * head_dim]
    }

    fn addresses(&self, block: usize, value: bool) -> ([*const u8; BLOCK], Range<usize>) {
        let start = (block * BLOCK).max(self.begin);
        let end = ((block + 1) * BLOCK).min(self.end);
        let mut addresses = [std::ptr::null(); BLOCK];
        for (address, position) in addresses.iter_mut().zip(start..end) {
            *address = self.places.address(position, self.kv_head, value) as *const u8;
        }
        (addresses, 0..end.saturating_sub(start))
    }
}

/// Attends all rows of the phase.
///
/// # Safety
///
/// The contract of [`crate::backend::Backend`].
pub unsafe fn attend(pool: &Pool, isa: Isa, phase: &Attend, rows: usize) {
    let units = rows * units_per_row(&phase.heads);
    let unit = |index| {
        // SAFETY: as this function's contract.
        unsafe { Unit::new(phase, index) }
    };
    let partitions = (0..units).map(|index| unit(index).partitions().len()).max().unwrap_or(0);
    let len = partial_len(phase.heads.head_dim);
    let scratch: Span<f32> =
        Span::new(phase.scratch.address(), phase.scratch.len() / size_of::<f32>());
    if units > SPLIT_UNITS || partitions <= 1 || units * partitions * len > scratch.len() {
        pool.run(units, &|index| {
            // SAFETY: as this function's contract.
            unsafe { whole(isa, &unit(index)) };
        });
        return;
    }
    let place = |unit: usize, partition: usize| {
        // SAFETY: the scratch has room, as was checked; each partition has its own.
        unsafe { elements_mut(scratch.slice((unit * partitions + partition) * len, len)) }
    };
    pool.run(units * partitions, &|task| {
        let (index, partition) = (task / partitions, task % partitions);
        let unit = unit(index);
        let range = unit.partitions();
        if partition < range.len() {
            let (sums, numbers) = place(index, partition).split_at_mut(len - 2 * GROUP);
            let sums = &mut sums[..unit.queries().len()];
            // SAFETY: as this function's contract.
            let partial = unsafe { one(isa, &unit, range.start + partition, sums) };
            numbers[..GROUP].copy_from_slice(&partial.maximum);
            numbers[GROUP..].copy_from_slice(&partial.total);
        }
    });
    for index in 0..units {
        let unit = unit(index);
        // SAFETY: the unit's own output; the other tasks are done.
        let output = unsafe { elements_mut(unit.output()) };
        let mut state = Partial::EMPTY;
        for partition in 0..unit.partitions().len() {
            let (sums, numbers) = place(index, partition).split_at_mut(len - 2 * GROUP);
            let mut partial = Partial::EMPTY;
            partial.maximum.copy_from_slice(&numbers[..GROUP]);
            partial.total.copy_from_slice(&numbers[GROUP..]);
            combine(&mut state, output, &partial, sums, phase.heads.head_dim);
        }
        finish(&state, output, phase.heads.head_dim);
    }
}

/// All partitions of a unit, one after the other.
unsafe fn whole(isa: Isa, unit: &Unit<'_>) {
    let head_dim = unit.phase.heads.head_dim;
    let mut buffer = [0.0_f32; GROUP * MAX_HEAD_DIM];
    let sums = &mut buffer[..unit.heads * head_dim];
    // SAFETY: the unit's own output, which no other task writes.
    let output = unsafe { elements_mut(unit.output()) };
    let mut state = Partial::EMPTY;
    for partition in unit.partitions() {
        // SAFETY: the contract of `attend`.
        let partial = unsafe { one(isa, unit, partition, sums) };
        combine(&mut state, output, &partial, sums, head_dim);
    }
    finish(&state, output, head_dim);
}

/// Adds a partition to the ones before it. The first one is taken as it is.
fn combine(state: &mut Partial, output: &mut [f32], next: &Partial, sums: &[f32], head_dim: usize) {
    for (head, (output, sums)) in
        output.chunks_exact_mut(head_dim).zip(sums.chunks_exact(head_dim)).enumerate()
    {
        if state.maximum[head] == f32::NEG_INFINITY {
            output.copy_from_slice(sums);
            (state.maximum[head], state.total[head]) = (next.maximum[head], next.total[head]);
            continue;
        }
        let maximum = state.maximum[head].max(next.maximum[head]);
        let old = (state.maximum[head] - maximum).exp();
        let new = (next.maximum[head] - maximum).exp();
        for (output, sum) in output.iter_mut().zip(sums) {
            *output = *output * old + sum * new;
        }
        state.total[head] = state.total[head] * old + next.total[head] * new;
        state.maximum[head] = maximum;
    }
}

fn finish(state: &Partial, output: &mut [f32], head_dim: usize) {
    for (output, total) in output.chunks_exact_mut(head_dim).zip(state.total) {
        output.iter_mut().for_each(|value| *value /= total);
    }
}

dispatched! {
    unsafe fn one(unit: &Unit<'_>, partition: usize, sums: &mut [f32]) -> Partial = one_in
}

#[inline(always)]
unsafe fn one_in<L: Lanes>(unit: &Unit<'_>, partition: usize, sums: &mut [f32]) -> Partial {
    // SAFETY: the contract of `attend`.
    unsafe {
        match unit.phase.paging.pool.pages.dtype {
            Dtype::F32 => partition_of::<L, F32>(unit, partition, sums),
            Dtype::F16 => partition_of::<L, F16>(unit, partition, sums),
            Dtype::Bf16 => partition_of::<L, Bf16>(unit, partition, sums),
        }
    }
}

/// Scores, exponentials and weighted sums of the values of one partition.
#[inline(always)]
unsafe fn partition_of<L: Lanes, E: Element>(
    unit: &Unit<'_>,
    partition: usize,
    sums: &mut [f32],
) -> Partial {
    let head_dim = unit.phase.heads.head_dim;
    let queries = unit.queries();
    let mut state = Partial::EMPTY;
    sums.fill(0.0);
    let begin = (partition * PARTITION).max(unit.begin) / BLOCK;
    let end = ((partition + 1) * PARTITION).min(unit.end).div_ceil(BLOCK);
    let mut scores = [[0.0_f32; BLOCK]; GROUP];
    for block in begin..end {
        let (keys, positions) = unit.addresses(block, false);
        let (values, _) = unit.addresses(block, true);
        // SAFETY: the addresses are those of the block's keys and values; the score rows are
        // whole blocks, whose unused places are masked.
        unsafe {
            score::<L, E>(queries, head_dim, &keys[positions.clone()], &mut scores);
            for head in 0..unit.heads {
                let scores = &mut scores[head];
                scores[..positions.end].iter_mut().for_each(|s| *s *= unit.phase.scale);
                scores[positions.end..].fill(f32::NEG_INFINITY);
                let sums = &mut sums[head * head_dim..][..head_dim];
                rescale::<L>(&mut state, head, scores, positions.end, sums);
            }
            accumulate::<L, E>(&scores, unit.heads, &values[positions], sums, head_dim);
        }
    }
    state
}

/// `scores[head][position]` = the product of a query and a key.
#[inline(always)]
unsafe fn score<L: Lanes, E: Element>(
    queries: &[f32],
    head_dim: usize,
    keys: &[*const u8],
    scores: &mut [[f32; BLOCK]; GROUP],
) {
    let heads = queries.len() / head_dim;
    for (position, &key) in keys.iter().enumerate() {
        let mut head = 0;
        // SAFETY: queries and keys have head_dim elements.
        unsafe {
            while head + 4 <= heads {
                let rows = std::array::from_fn(|i| queries.as_ptr().add((head + i) * head_dim));
                let products = dots::<L, E, 4, 1>(&rows, &[key], head_dim);
                for (i, [product]) in products.into_iter().enumerate() {
                    scores[head + i][position] = product;
                }
                head += 4;
            }
            while head < heads {
                let row = [queries.as_ptr().add(head * head_dim)];
                let [[product]] = dots::<L, E, 1, 1>(&row, &[key], head_dim);
                scores[head][position] = product;
                head += 1;
            }
        }
    }
}

/// Turns a block's scores into exponentials below the running maximum, and what was summed so far
/// to the new maximum.
#[inline(always)]
unsafe fn rescale<L: Lanes>(
    state: &mut Partial,
    head: usize,
    scores: &mut [f32; BLOCK],
    len: usize,
    sums: &mut [f32],
) {
    let before = state.maximum[head];
    let maximum = scores[..len].iter().fold(before, |most, &score| most.max(score));
    if maximum > before && before > f32::NEG_INFINITY {
        let factor = (before - maximum).exp();
        sums.iter_mut().for_each(|sum| *sum *= factor);
        state.total[head] *= factor;
    }
    state.maximum[head] = maximum;
    // SAFETY: whole groups of lanes of the block.
    unsafe {
        let offset = L::splat(maximum);
        let mut total = L::splat(0.0);
        for chunk in scores.as_chunks_mut::<LANES>().0 {
            exp(L::load(chunk.as_ptr()).sub(offset)).store(chunk.as_mut_ptr());
        }
        scores[len..].fill(0.0);
        for chunk in scores.as_chunks::<LANES>().0 {
            total = total.add(L::load(chunk.as_ptr()));
        }
        state.total[head] += total.sum();
    }
}

/// Adds the values, weighted, to the sums.
#[inline(always)]
unsafe fn accumulate<L: Lanes, E: Element>(
    weights: &[[f32; BLOCK]; GROUP],
    heads: usize,
    values: &[*const u8],
    sums: &mut [f32],
    head_dim: usize,
) {
    let full = head_dim / LANES * LANES;
    for (head, weights) in weights.iter().enumerate().take(heads) {
        let sums = &mut sums[head * head_dim..][..head_dim];
        // SAFETY: sixteen elements from d on lie inside of the head.
        unsafe {
            for d in (0..full).step_by(LANES) {
                let mut sum = L::load(sums.as_ptr().add(d));
                for (&value, &weight) in values.iter().zip(weights) {
                    sum = L::splat(weight).fma(E::load::<L>(value.add(d * E::SIZE)), sum);
                }
                sum.store(sums.as_mut_ptr().add(d));
            }
        }
        for (d, sum) in sums.iter_mut().enumerate().skip(full) {
            for (&value, &weight) in values.iter().zip(weights) {
                let mut bytes = [0_u8; 4 * LANES];
                let mut lanes = [0.0; LANES];
                // SAFETY: element d lies inside of the head; the copy has room for sixteen.
                unsafe {
                    let from = value.add(d * E::SIZE);
                    from.copy_to_nonoverlapping(bytes.as_mut_ptr(), E::SIZE);
                    E::load::<L>(bytes.as_ptr()).store(lanes.as_mut_ptr());
                }
                *sum = weight.mul_add(lanes[0], *sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::threads::Threads;
    use super::*;

    const HEADS: AttentionHeads = AttentionHeads { num_heads: 20, num_kv_heads: 2, head_dim: 20 };

    /// One sequence of `len` positions in pages of any size, in an order that is not the memory's.
    struct Sequence {
        page_size: usize,
        dtype: Dtype,
        pages: Vec<u64>,
        table: Vec<i32>,
        /// What the scratch is made for.
        positions: usize,
    }

    fn number(seed: usize) -> f32 {
        ((seed as u32).wrapping_mul(2_654_435_761) >> 16) as f32 / 32768.0 - 1.0
    }

    fn key(position: usize, column: usize) -> f32 {
        half::f16::from_f32(3.0 * number(position * 97 + column)).to_f32()
    }

    fn value(position: usize, column: usize) -> f32 {
        half::f16::from_f32(number(position * 89 + column + 7)).to_f32()
    }

    impl Sequence {
        fn new(len: usize, page_size: usize, dtype: Dtype) -> Self {
            let count = len.div_ceil(page_size);
            let page_bytes = 2 * 2 * HEADS.num_kv_heads * HEADS.head_dim * page_size * dtype.size();
            let mut sequence = Self {
                page_size,
                dtype,
                pages: vec![0; (count * page_bytes).div_ceil(8)],
                table: (0..count as i32).rev().collect(),
                positions: len,
            };
            let width = HEADS.num_kv_heads * HEADS.head_dim;
            let first = [0];
            let paging = sequence.paging(&first);
            for position in 0..len {
                let keys = (0..width).map(|column| key(position, column));
                let values = (0..width).map(|column| value(position, column));
                let both: Vec<f32> = keys.chain(values).collect();
                // SAFETY: the pages have room for all positions.
                unsafe { append(&paging, (0, 0, position), &both) };
            }
            sequence
        }

        fn paging(&mut self, first: &[i32; 1]) -> Paging {
            let columns = 2 * 2 * HEADS.num_kv_heads * HEADS.head_dim * self.page_size;
            let pages = Matrix {
                address: self.pages.as_mut_ptr() as u64,
                dtype: self.dtype,
                rows: self.table.len(),
                columns,
                row_stride: columns,
            };
            let pool = KvPool {
                pages,
                page_size: self.page_size,
                num_kv_heads: HEADS.num_kv_heads,
                head_dim: HEADS.head_dim,
                slot_pages: Span::new(0, 0),
                pages_per_slot: 0,
            };
            let table = Span::new(self.table.as_ptr() as u64, self.table.len());
            let page_row = Span::new(first.as_ptr() as u64, 1);
            Paging { pool, table, page_row, layer: 1, own: None }
        }

        fn attend(&mut self, isa: Isa, threads: usize, position: i32, range: Seen) -> Vec<f32> {
            let pool = Pool::new(Threads::Own(threads)).unwrap();
            let width = HEADS.num_heads * HEADS.head_dim;
            let mut query: Vec<f32> = (0..width).map(number).collect();
            let mut output = vec![0.0; width];
            let (first, zero, position, begin) = ([0], [0], [position], [range.begin]);
            let mut scratch = vec![0_u64; scratch_bytes(1, &HEADS, self.positions).div_ceil(8)];
            let span = |array: &[i32; 1]| Span::new(array.as_ptr() as u64, 1);
            let matrix = |row: &mut Vec<f32>| Matrix {
                address: row.as_mut_ptr() as u64,
                dtype: Dtype::F32,
                rows: 1,
                columns: width,
                row_stride: width,
            };
            let phase = Attend {
                rows: Rows {
                    count: span(&zero),
                    first: 0,
                    sequence: span(&zero),
                    position: span(&position),
                    rope_position: span(&position),
                    token: span(&zero),
                    source: span(&zero),
                },
                heads: HEADS,
                query: matrix(&mut query),
                output: matrix(&mut output),
                paging: self.paging(&first),
                context_begin: Some(span(&begin)),
                mask: Mask { window: range.window, window_from_block: false, sees_block: false },
                scale: 0.3,
                scratch: Span::new(scratch.as_mut_ptr() as u64, scratch.len() * 8),
            };
            // SAFETY: everything lies in vectors and arrays of this function.
            unsafe { attend(&pool, isa, &phase, 1) };
            output
        }
    }

    #[derive(Clone, Copy)]
    struct Seen {
        begin: i32,
        window: Option<usize>,
    }

    fn exact(position: i32, range: Seen) -> Vec<f64> {
        let end = position as usize + 1;
        let begin = (range.begin as usize).max(range.window.map_or(0, |w| end.saturating_sub(w)));
        let mut output = Vec::new();
        for head in 0..HEADS.num_heads {
            let column = head / (HEADS.num_heads / HEADS.num_kv_heads) * HEADS.head_dim;
            let score = |position: usize| -> f64 {
                let products = (0..HEADS.head_dim).map(|d| {
                    f64::from(number(head * HEADS.head_dim + d))
                        * f64::from(key(position, column + d))
                });
                (0.3 * products.sum::<f64>()).exp()
            };
            let weights: Vec<f64> = (begin..end).map(score).collect();
            let total: f64 = weights.iter().sum();
            output.extend((0..HEADS.head_dim).map(|d| {
                let values = (begin..end).map(|position| f64::from(value(position, column + d)));
                weights.iter().zip(values).map(|(w, v)| w * v).sum::<f64>() / total
            }));
        }
        output
    }

    #[test]
    fn attention_is_the_softmax_average_of_the_positions_that_a_row_sees() {
        let mut sequence = Sequence::new(3000, 16, Dtype::F32);
        for (position, begin, window) in
            [(0, 0, None), (5, 0, None), (63, 0, None), (64, 3, None), (2999, 0, None)]
                .into_iter()
                .chain([(2999, 1100, None), (2999, 0, Some(1)), (2100, 0, Some(1500))])
        {
            let range = Seen { begin, window };
            let found = sequence.attend(Isa::Portable, 1, position, range);
            for (found, exact) in found.iter().zip(exact(position, range)) {
                assert!((f64::from(*found) - exact).abs() < 2e-5, "{position}: {found} {exact}");
            }
        }
    }

    #[test]
    fn attention_does_not_depend_on_pages_threads_or_instructions() {
        let range = Seen { begin: 70, window: None };
        let reference = Sequence::new(2600, 16, Dtype::F32).attend(Isa::Portable, 1, 2599, range);
        for (page_size, dtype) in [(7, Dtype::F32), (64, Dtype::F16), (2600, Dtype::F32)] {
            let mut sequence = Sequence::new(2600, page_size, dtype);
            for isa in Isa::available() {
                for (threads, positions) in [(1, 2600), (3, 2600), (3, 0)] {
                    sequence.positions = positions;
                    let found = sequence.attend(isa, threads, 2599, range);
                    assert_eq!(found, reference, "{page_size} {dtype:?} {isa:?} {threads}");
                }
            }
        }
    }
}
