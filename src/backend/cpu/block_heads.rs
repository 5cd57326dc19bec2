//! The phases that only some block drafters have.

use super::CpuBackend;
use super::drafting::{active, linear_product, row_scratch};
use super::matmul::{Product, Sink, multiply};
use super::memory::{elements, elements_mut, place, row, row_mut};
use super::vector;
use crate::backend::block_heads::{
    Convolve, MarkovCell, RateDrafts, Refine, ScoreCandidates, SelectCandidates, Selector,
    StepMarkov, WalkCandidates,
};
use crate::backend::phases::{Activation, Linear};
use crate::tensor::Matrix;

/// Weights that are widened at a time.
const PIECE: usize = 256;

pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// All of these: the contract of [`crate::backend::Backend`].
impl CpuBackend {
    pub(super) unsafe fn convolve_rows(&self, phase: &Convolve) {
        // SAFETY: the contract of Backend.
        unsafe {
            let rows = active(&phase.rows);
            self.norm_rows(&phase.from, &phase.input, rows, phase.norm.as_ref());
            self.pool.run(rows, &|index| self.convolve_row(phase, index));
        }
    }

    unsafe fn convolve_row(&self, phase: &Convolve, index: usize) {
        let (groups, base) = (phase.coefficients.columns / phase.base.rows, &phase.base);
        let group = base.columns / groups;
        // SAFETY: the row's own memory, as the contract of Backend says.
        unsafe {
            let to = row_mut(&phase.to, index);
            if !phase.adds {
                to.fill(0.0);
            }
            for tap in 0..base.rows.min(index % phase.len + 1) {
                let from = row(&phase.input, index - tap);
                let coefficients = &row(&phase.coefficients, index)[tap * groups..];
                self.each_piece(base, tap, |first, piece| {
                    for (column, &weight) in (first..).zip(piece) {
                        to[column] += (weight + coefficients[column / group]) * from[column];
                    }
                });
            }
        }
    }

    /// A row of weights, widened.
    unsafe fn widen_row(&self, matrix: &Matrix, row: usize, to: &mut [f32]) {
        // SAFETY: the callers' rows lie inside of their matrices, and are as wide as `to`.
        unsafe { vector::widen(self.isa, matrix.row_address(row), matrix.dtype, to) };
    }

    /// Hands out the elements of a row of weights, piece by piece, each with the place of its first.
    unsafe fn each_piece(
        &self,
        matrix: &Matrix,
        row: usize,
        mut use_piece: impl FnMut(usize, &[f32]),
    ) {
        let mut widened = [0.0; PIECE];
        for first in (0..matrix.columns).step_by(PIECE) {
            let piece = &mut widened[..PIECE.min(matrix.columns - first)];
            let columns = matrix.column_range(first, piece.len());
            // SAFETY: the callers' rows lie inside of their matrices.
            unsafe { self.widen_row(&columns, row, piece) };
            use_piece(first, piece);
        }
    }

    /// The product of a row with a row of weights, of the same width.
    unsafe fn dot(&self, row: &[f32], matrix: &Matrix, matrix_row: usize) -> f32 {
        let mut sum = 0.0;
        // SAFETY: as for `each_piece`.
        unsafe {
            self.each_piece(matrix, matrix_row, |first, piece| {
                sum += row[first..].iter().zip(piece).map(|(a, b)| a * b).sum::<f32>();
            });
        }
        sum
    }

    pub(super) unsafe fn step_markov_rows(&self, phase: &StepMarkov) {
        let rank = phase.embedding.columns;
        let embedded = phase.scratch.column_range(rank, rank);
        let gates = phase.scratch.column_range(2 * rank, 3 * rank);
        // SAFETY: the contract of Backend; proposals are tokens of the vocabulary.
        unsafe {
            let rows = active(&phase.rows);
            self.pool.run(rows, &|index| {
                let token = elements(phase.rows.token)[index] as usize;
                self.widen_row(&phase.embedding, token, row_mut(&embedded, index));
            });
            match phase.cell {
                MarkovCell::Vanilla => self.pool.run(rows, &|index| {
                    row_mut(&phase.output, index).copy_from_slice(row(&embedded, index));
                }),
                MarkovCell::Gated { weight } => {
                    let gates = gates.column_range(0, rank);
                    let products = [Product::of(&weight, gates, Sink::Store)];
                    multiply(&self.pool, self.isa, &embedded, rows, products);
                    self.pool.run(rows, &|index| {
                        let (gates, part) =
                            (row(&gates, index), row(&phase.part, index / phase.rows_of_part));
                        let embedded = row(&embedded, index);
                        for (c, to) in row_mut(&phase.output, index).iter_mut().enumerate() {
                            *to = sigmoid(gates[c] + part[c]) * embedded[c];
                        }
                    });
                }
                MarkovCell::Recurrent { weight, is_first } => {
                    let input = phase.scratch.column_range(0, 2 * rank);
                    let state = input.column_range(0, rank);
                    self.pool.run(rows, &|index| {
                        let state = row_mut(&state, index);
                        if is_first {
                            state.fill(0.0);
                        } else {
                            let from = phase.from.map(|from| elements(from)[index] as usize);
                            state.copy_from_slice(row(&phase.state, from.unwrap_or(index)));
                        }
                    });
                    let products = [Product::of(&weight, gates, Sink::Store)];
                    multiply(&self.pool, self.isa, &input, rows, products);
                    self.pool.run(rows, &|index| {
                        let (gates, part) =
                            (row(&gates, index), row(&phase.part, index / phase.rows_of_part));
                        let state = row(&state, index);
                        let (next_state, output) =
                            (row_mut(&phase.next_state, index), row_mut(&phase.output, index));
                        for c in 0..rank {
                            let gate = |at: usize| gates[at * rank + c] + part[at * rank + c];
                            let keep = sigmoid(gate(0));
                            next_state[c] = keep * state[c] + (1.0 - keep) * gate(1).tanh();
                            output[c] = gate(2).tanh();
                        }
                    });
                }
            }
        }
    }

    pub(super) unsafe fn rate_rows(&self, phase: &RateDrafts<'_>) {
        // SAFETY: the contract of Backend.
        let blocks = unsafe { active(&phase.slots.draft) };
        self.pool.run(blocks, &|block| {
            // SAFETY: the block's own proposals, as the contract of Backend says.
            unsafe { self.rate_block(phase, block) };
        });
    }

    unsafe fn rate_block(&self, phase: &RateDrafts<'_>, block: usize) {
        let RateDrafts { slots, batch, .. } = phase;
        // SAFETY: as for `rate_rows`; proposals are tokens of the vocabulary.
        unsafe {
            let sequence = elements(slots.draft.sequence)[block] as usize;
            let drafts = place(phase.num_drafts, sequence);
            let tokens = batch.draft_tokens;
            let proposal = |index: usize| place(tokens.span, sequence * tokens.stride + index);
            let mut reached = 1.0;
            for index in 0..*drafts as usize {
                let before = match index {
                    0 => elements(phase.blocks.token)[block * slots.len],
                    _ => *proposal(index - 1),
                };
                let part = block * slots.len + slots.first_slot + index;
                let mut score = row(&phase.part, part)[0];
                if let Some((embedding, weight)) = &phase.token {
                    self.each_piece(weight, 0, |first, piece| {
                        let embedding = embedding.column_range(first, piece.len());
                        score += self.dot(piece, &embedding, before as usize);
                    });
                }
                let confidence = sigmoid(score);
                if let Some(wanted) = batch.confidence {
                    *place(wanted, sequence * batch.max_drafts + index) = confidence;
                }
                reached *= confidence;
                if reached < batch.min_confidence {
                    (index..*drafts as usize).for_each(|index| *proposal(index) = batch.padding);
                    *drafts = index as i32;
                    if let Some(proposed) = batch.num_proposed {
                        *place(proposed, sequence) = index as i32;
                    }
                    break;
                }
            }
        }
    }

    pub(super) unsafe fn select_rows(&self, phase: &SelectCandidates) {
        let count = phase.values.columns;
        // SAFETY: the contract of Backend.
        let rows = unsafe { active(&phase.rows) };
        self.pool.run(rows, &|index| {
            // SAFETY: the row's own memory, as the contract of Backend says.
            unsafe {
                let logits = row(&phase.logits, index);
                let ids = elements_mut(phase.ids.slice(index * count, count));
                let values = row_mut(&phase.values, index);
                select_largest(logits, ids, values);
            }
        });
    }

    pub(super) unsafe fn walk_rows(&self, phase: &WalkCandidates<'_>) {
        // SAFETY: the contract of Backend.
        let blocks = unsafe { active(&phase.slots.draft) };
        self.pool.run(blocks, &|block| {
            // SAFETY: the block's own slots, as the contract of Backend says.
            unsafe { self.walk_block(phase, block) };
        });
    }

    unsafe fn walk_block(&self, phase: &WalkCandidates<'_>, block: usize) {
        let WalkCandidates { slots, batch, .. } = phase;
        let count = phase.values.columns;
        // SAFETY: as for `walk_rows`; candidates are tokens of the vocabulary.
        unsafe {
            let draft = &slots.draft;
            let sequence = elements(draft.sequence)[block] as usize;
            let mut before = elements(draft.token)[block] as usize;
            for index in 0..elements(phase.num_drafts)[sequence] as usize {
                let slot = slots.slot(block, index);
                let ids = elements(phase.ids.slice(slot * count, count));
                let (weights, scores) =
                    (row_mut(&phase.projected, slot), row_mut(&phase.values, slot));
                self.score_slot(&phase.selector, (before, ids), weights, scores);
                if let Some(wanted) = batch.draft_candidates {
                    let wanted_row = sequence * batch.max_drafts + index;
                    let wanted = wanted.slice(wanted_row * count, count);
                    elements_mut(wanted).copy_from_slice(ids);
                }
                let logits = phase.values.row_range(slot, 1);
                let drawn_at = elements(draft.position)[block] + 2 + index as i32;
                let scratch = row_scratch(phase.scratch, phase.values.rows, slot);
                let column = self.draw(batch, &logits, (sequence, index), drawn_at, scratch);
                let token = ids[column];
                let tokens = batch.draft_tokens;
                *place(tokens.span, sequence * tokens.stride + index) = token;
                before = token as usize;
            }
        }
    }

    pub(super) unsafe fn score_candidate_rows(&self, phase: &ScoreCandidates) {
        let (candidates, count) = (&phase.candidates, phase.scores.columns);
        // SAFETY: the contract of Backend; tokens and candidates are tokens of the vocabulary.
        unsafe {
            self.pool.run(active(&phase.rows), &|index| {
                let slot = index / candidates.laws;
                let before = elements(phase.rows.token)[index] as usize;
                let ids = elements(candidates.ids.slice(candidates.table(index), count));
                let (weights, scores) =
                    (row_mut(&phase.weights, index), row_mut(&phase.scores, index));
                weights.copy_from_slice(row(&phase.projected, slot));
                scores.copy_from_slice(row(&phase.values, slot));
                self.score_slot(&phase.selector, (before, ids), weights, scores);
            });
        }
    }

    /// Adds to the logits of candidates how well they follow a token, of a slot that `weights` are of; they
    /// do not stay.
    unsafe fn score_slot(
        &self,
        selector: &Selector,
        (before, ids): (usize, &[i32]),
        weights: &mut [f32],
        scores: &mut [f32],
    ) {
        // SAFETY: the callers' tokens are of the vocabulary.
        unsafe {
            self.each_piece(&selector.predecessors, before, |first, piece| {
                weights[first..].iter_mut().zip(piece).for_each(|(weight, p)| *weight *= p);
            });
            for (score, &id) in scores.iter_mut().zip(ids) {
                *score += self.dot(weights, &selector.successors, id as usize);
            }
        }
    }

    pub(super) unsafe fn refine_rows(&self, phase: &Refine<'_>) {
        let used = phase.slots.used();
        // SAFETY: the contract of Backend.
        unsafe {
            let blocks = active(&phase.slots.draft);
            self.pool.run(blocks, &|block| self.refiner_mean(phase, block));
            self.pool.run(blocks * used, &|index| {
                self.refiner_input(phase, index / used, index % used);
            });
            let weights = &phase.weights;
            let input = [Product::of(&weights.input, phase.mixed, Sink::Store)];
            multiply(&self.pool, self.isa, &phase.input, blocks * used, input);
            self.pool.run(blocks, &|block| self.mix(phase, block));
            let slots = blocks * phase.slots.num_slots;
            let up = Linear::unbiased(weights.up);
            let gate = Linear::unbiased(weights.gate);
            let sink = Sink::Gate(Activation::Silu, &up);
            let gated = [linear_product(&gate, phase.inner, sink)];
            multiply(&self.pool, self.isa, &phase.output, slots, gated);
            let down = [Product::of(&weights.down, phase.output, Sink::Add)];
            multiply(&self.pool, self.isa, &phase.inner, slots, down);
        }
    }

    /// What the mean of a block's hidden states tells, in the input of its first row.
    unsafe fn refiner_mean(&self, phase: &Refine<'_>, block: usize) {
        let (rank, len) = (phase.output.columns, phase.slots.len);
        // SAFETY: as for `refine_rows`.
        unsafe {
            let features = |at: usize| row(&phase.features, block * len + at);
            let mean = phase.input.column_range(rank, rank);
            let mean = row_mut(&mean, block * phase.slots.used());
            for (c, to) in mean.iter_mut().enumerate() {
                let sum: f32 = (0..len).map(|at| features(at)[rank + c]).sum();
                *to = sum / len as f32;
            }
        }
    }

    /// What the input map of a row reads: what its hidden state tells, what the mean of all tells, and the
    /// token before.
    unsafe fn refiner_input(&self, phase: &Refine<'_>, block: usize, at: usize) {
        let (rank, len, used) = (phase.output.columns, phase.slots.len, phase.slots.used());
        // SAFETY: as for `refine_rows`; all tokens are of the vocabulary.
        unsafe {
            // The rows of a block read the mean in its first one, so that each row is taken in parts.
            let part = |first: usize| phase.input.column_range(first * rank, rank);
            let index = block * used + at;
            let own = row(&phase.features, block * len + at);
            row_mut(&part(0), index).copy_from_slice(&own[..rank]);
            if at > 0 {
                row_mut(&part(1), index).copy_from_slice(row(&part(1), block * used));
            }
            let token = self.token_before(phase, block, at) as usize;
            self.widen_row(&phase.weights.embedding, token, row_mut(&part(2), index));
        }
    }

    unsafe fn token_before(&self, phase: &Refine<'_>, block: usize, at: usize) -> i32 {
        let slots = &phase.slots;
        // SAFETY: as for `refine_rows`; plan_rows has checked the sources.
        unsafe {
            let first = elements(slots.draft.token)[block];
            match at.checked_sub(slots.first_slot) {
                Some(0) => first,
                Some(index) => elements(phase.rows.token)[slots.slot(block, index - 1)],
                None => {
                    let committed = elements(slots.draft.source)[block] as usize;
                    let source = elements(phase.commit.source)[committed] as usize;
                    let token = elements(phase.batch.tokens)[source];
                    // A row of the host's embeddings has no token.
                    if token < 0 { first } else { token }
                }
            }
        }
    }

    /// What the rows of a block up to a slot add to it.
    unsafe fn mix(&self, phase: &Refine<'_>, block: usize) {
        let (slots, mix) = (&phase.slots, &phase.weights.mix);
        // SAFETY: as for `refine_rows`.
        unsafe {
            let mixed = |at: usize| row(&phase.mixed, block * slots.used() + at);
            for index in 0..slots.num_slots {
                let at = slots.first_slot + index;
                let output = row_mut(&phase.output, slots.slot(block, index));
                output.copy_from_slice(mixed(at));
                let before = mix.column_range(0, at + 1);
                for (c, to) in output.iter_mut().enumerate() {
                    self.each_piece(&before, c * mix.columns + at, |first, piece| {
                        let terms =
                            (first..).zip(piece).map(|(row, &weight)| weight * mixed(row)[c]);
                        *to += terms.sum::<f32>();
                    });
                }
            }
        }
    }
}

/// The places and values of the largest elements, in falling order; of equal ones the first is first. NaN
/// counts as -inf.
pub(super) fn select_largest(row: &[f32], ids: &mut [i32], values: &mut [f32]) {
    select_largest_of(row.iter().copied().enumerate(), ids, values);
}

/// The same of some elements, in the order of their places; returns how many were found.
pub(super) fn select_largest_of(
    elements: impl Iterator<Item = (usize, f32)>,
    ids: &mut [i32],
    values: &mut [f32],
) -> usize {
    let mut len = 0;
    for (id, element) in elements {
        let element = if element.is_nan() { f32::NEG_INFINITY } else { element };
        if len == values.len() && element <= values[len - 1] {
            continue;
        }
        let at = values[..len].partition_point(|&larger| larger >= element);
        len = values.len().min(len + 1);
        values.copy_within(at..len - 1, at + 1);
        ids.copy_within(at..len - 1, at + 1);
        (values[at], ids[at]) = (element, id as i32);
    }
    len
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_come_in_falling_order_and_the_first_of_equal_ones_first() {
        let row = [0.0, 3.0, f32::NAN, -0.0, 3.0, f32::NEG_INFINITY, 7.5, -2.0];
        let (mut ids, mut values) = ([0; 8], [0.0; 8]);
        select_largest(&row, &mut ids, &mut values);
        assert_eq!(ids, [6, 1, 4, 0, 3, 7, 2, 5]);
        assert_eq!(values[..3], [7.5, 3.0, 3.0]);
        let (mut ids, mut values) = ([0; 2], [0.0; 2]);
        select_largest(&row, &mut ids, &mut values);
        assert_eq!(ids, [6, 1]);
    }
}
