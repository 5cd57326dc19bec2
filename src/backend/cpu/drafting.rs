//! The phases of drafting, composed of products, norms, rotations and attention.

use super::CpuBackend;
use super::matmul::{Product, Sink, multiply};
use super::memory::{elements, elements_mut, place, row, row_mut, store};
use super::{attention, draw, vector};
use crate::backend::phases::{
    Activation, AddProjection, BlockInput, Choice, DraftBatch, EmbedTokens, EmbeddingInput,
    FeatureNorm, FuseFeatures, FuseToken, GateUp, Gather, HiddenSource, Linear, MapRows, Norm,
    Project, Propose, QueryProjection, RowSegments, Rows, StartBlock, StateSource, StepMlp,
};
use crate::backend::verify::SamplingArrays;
use crate::tensor::{Matrix, Span};

/// How many rows of a view there are.
///
/// # Safety
///
/// The contract of [`crate::backend::Backend`].
pub unsafe fn active(rows: &Rows) -> usize {
    // SAFETY: as this function's contract.
    let count = unsafe { elements(rows.count) }[0].max(0) as usize;
    count.saturating_sub(rows.first).min(rows.len())
}

pub(super) fn linear_product<'a>(
    linear: &'a Linear,
    output: Matrix,
    sink: Sink<'a>,
) -> Product<'a> {
    Product { bias: linear.bias, ..Product::of(&linear.weight, output, sink) }
}

impl RowSegments<'_> {
    /// The address of a row, which must lie inside.
    fn row_address(&self, row: usize) -> u64 {
        let mut row = row;
        for segment in self.segments {
            if row < segment.rows {
                return segment.row_address(row);
            }
            row -= segment.rows;
        }
        unreachable!("plan_rows and propose only let tokens of the vocabulary through")
    }
}

/// All of these: the contract of [`crate::backend::Backend`].
impl CpuBackend {
    pub(super) unsafe fn fuse(&self, phase: &FuseFeatures<'_>) {
        // SAFETY: the contract of Backend; plan_rows has checked the sources.
        unsafe {
            let rows = active(&phase.rows);
            self.pool.run(rows, &|index| {
                let source = elements(phase.rows.source)[index] as usize;
                self.concatenate(phase, source, row_mut(&phase.input, index));
            });
            let product = linear_product(&phase.linear, phase.hidden, Sink::Store);
            multiply(&self.pool, self.isa, &phase.input, rows, [product]);
        }
    }

    unsafe fn concatenate(&self, phase: &FuseFeatures<'_>, source: usize, to: &mut [f32]) {
        let mut rest = &mut *to;
        for (index, feature) in phase.features.iter().enumerate() {
            let (part, others) = rest.split_at_mut(feature.columns);
            rest = others;
            // SAFETY: the feature has the row, and the norm the feature's width.
            unsafe {
                vector::widen(self.isa, feature.row_address(source), feature.dtype, part);
                if let FeatureNorm::Each(norms) = phase.norm {
                    vector::rms_norm(self.isa, part, &norms[index]);
                }
            }
        }
        if let FeatureNorm::Joint(norm) = &phase.norm {
            // SAFETY: the norm has the width of all features.
            unsafe { vector::rms_norm(self.isa, to, norm) };
        }
    }

    pub(super) unsafe fn fuse_token_rows(&self, phase: &FuseToken<'_>) {
        // SAFETY: the contract of Backend; plan_rows has checked tokens and sources.
        unsafe {
            let rows = active(&phase.rows);
            self.pool.run(rows, &|index| {
                let input = row_mut(&phase.input, index);
                let (embedded, hidden) = input.split_at_mut(phase.input.columns / 2);
                self.embed(&phase.embedding, elements(phase.rows.token)[index], embedded);
                let (from, row) = match &phase.from {
                    HiddenSource::Rows(rows) => (rows, index),
                    HiddenSource::Feature(feature) => {
                        (feature, elements(phase.rows.source)[index] as usize)
                    }
                };
                vector::widen(self.isa, from.row_address(row), from.dtype, hidden);
                self.norm(hidden, phase.norm.as_ref());
            });
            let product = linear_product(&phase.linear, phase.hidden, Sink::Store);
            multiply(&self.pool, self.isa, &phase.input, rows, [product]);
        }
    }

    pub(super) unsafe fn embed_rows(&self, phase: &EmbedTokens<'_>) {
        // SAFETY: the contract of Backend; plan_rows has checked the tokens.
        unsafe {
            self.pool.run(active(&phase.rows), &|index| {
                let token = elements(phase.rows.token)[index];
                self.embed(&phase.embedding, token, row_mut(&phase.hidden, index));
            });
        }
    }

    pub(super) unsafe fn step_mlp_rows(&self, phase: &StepMlp) {
        let product = Product::of(&phase.projection, phase.state, Sink::Store);
        // SAFETY: the contract of Backend; plan_rows has checked tokens and sources.
        unsafe {
            let rows = active(&phase.rows);
            self.pool.run(rows, &|index| self.read_state(phase, index));
            multiply(&self.pool, self.isa, &phase.input, rows, [product]);
            self.pool.run(rows, &|index| {
                let (state, other) =
                    (row_mut(&phase.state, index), row_mut(&phase.embedded, index));
                let token = elements(phase.rows.token)[index] as usize;
                let dtype = phase.embedding.dtype;
                vector::widen(self.isa, phase.embedding.row_address(token), dtype, other);
                state.iter_mut().zip(&*other).for_each(|(x, y)| *x += phase.embedding_scale * y);
                vector::rms_norm(self.isa, state, &phase.norm);
                vector::widen(self.isa, phase.bias.address, phase.bias.dtype, other);
                state.iter_mut().zip(&*other).for_each(|(x, y)| *x += y);
                vector::activate(self.isa, state, Activation::Gelu);
            });
        }
    }

    /// The state that a row of an MLP speculator goes on from.
    unsafe fn read_state(&self, phase: &StepMlp, index: usize) {
        // SAFETY: the row's own memory, and the host's row, as the contract of Backend says.
        unsafe {
            let input = row_mut(&phase.input, index);
            let StateSource::Feature { feature, committed, is_scaled } = &phase.from else {
                return input.copy_from_slice(row(&phase.state, index));
            };
            let source = elements(phase.rows.source)[index] as usize;
            let source = elements(*committed)[source] as usize;
            vector::widen(self.isa, feature.row_address(source), feature.dtype, input);
            if *is_scaled {
                let norm = Norm { weight: None, ..phase.norm };
                vector::rms_norm(self.isa, input, &norm);
                input.iter_mut().for_each(|x| *x *= std::f32::consts::FRAC_1_SQRT_2);
            }
        }
    }

    /// Norms a row, if there is a norm.
    unsafe fn norm(&self, row: &mut [f32], norm: Option<&Norm>) {
        if let Some(norm) = norm {
            // SAFETY: the norm has the width of the row.
            unsafe { vector::rms_norm(self.isa, row, norm) };
        }
    }

    pub(super) unsafe fn project_rows(&self, phase: &Project<'_>) {
        // SAFETY: the contract of Backend.
        unsafe {
            let rows = active(&phase.rows);
            self.pool.run(rows, &|index| self.projection_input(phase, index));
            let query = phase.query.iter();
            let query = query.map(|query| linear_product(&query.linear, query.output, Sink::Store));
            let kv = phase.kv.iter().flat_map(|kv| [&kv.key, &kv.value]).enumerate();
            let kv = kv.map(|(index, linear)| {
                let width = linear.weight.rows;
                let output = phase.kv_scratch.column_range(index * width, width);
                linear_product(linear, output, Sink::Store)
            });
            multiply(&self.pool, self.isa, &phase.input, rows, query.chain(kv));
            self.pool.run(rows, &|index| self.finish_projection(phase, index));
        }
    }

    /// Norms a row's input, and its residual stream where that goes on normed.
    unsafe fn projection_input(&self, phase: &Project<'_>, index: usize) {
        // SAFETY: the row's own memory, as the contract of Backend says.
        unsafe {
            let input = row_mut(&phase.input, index);
            let hidden = row_mut(&phase.hidden, index);
            let width = input.len() - hidden.len();
            let (embedded, normed) = input.split_at_mut(width);
            if let Some(embedding) = &phase.embedding {
                let token = elements(phase.rows.token)[index];
                self.embed(embedding, token, embedded);
            }
            normed.copy_from_slice(hidden);
            self.norm(normed, phase.norm.as_ref());
            if phase.residual_is_normed {
                hidden.copy_from_slice(normed);
            }
        }
    }

    unsafe fn embed(&self, embedding: &EmbeddingInput<'_>, token: i32, to: &mut [f32]) {
        let (address, dtype) = match (usize::try_from(token), &embedding.embeddings) {
            (Ok(token), _) => {
                (embedding.table.row_address(token), embedding.table.segments[0].dtype)
            }
            (Err(_), Some(given)) => (given.row_address((-1 - token) as usize), given.dtype),
            (Err(_), None) => unreachable!("plan_rows lets -1 through only with embeddings"),
        };
        // SAFETY: a row of the table or of the host's embeddings, as wide as the hidden state.
        unsafe {
            vector::widen(self.isa, address, dtype, to);
            self.norm(to, embedding.norm.as_ref());
        }
    }

    /// Norms and turns a row's heads and appends its keys and values.
    unsafe fn finish_projection(&self, phase: &Project<'_>, index: usize) {
        let head_dim = phase.paging.pool.head_dim;
        // SAFETY: the row's own memory; plan_rows has checked its pages.
        unsafe {
            let turns = row_mut(&phase.turns, index);
            vector::turn(&phase.rotary, elements(phase.rows.rope_position)[index], turns);
            if let Some(QueryProjection { norm, output, .. }) = &phase.query {
                self.turn_heads(row_mut(output, index), head_dim, norm.as_ref(), turns);
            }
            if phase.kv.is_empty() {
                return;
            }
            let all = row_mut(&phase.kv_scratch, index);
            let layers = all.chunks_exact_mut(all.len() / phase.kv.len());
            for (both, kv) in layers.zip(phase.kv) {
                let keys = &mut both[..kv.key.weight.rows];
                self.turn_heads(keys, head_dim, kv.key_norm.as_ref(), turns);
            }
            let sequence = elements(phase.rows.sequence)[index] as usize;
            let position = elements(phase.rows.position)[index] as usize;
            attention::append(&phase.paging, (index, sequence, position), all);
        }
    }

    unsafe fn turn_heads(
        &self,
        heads: &mut [f32],
        head_dim: usize,
        norm: Option<&Norm>,
        turns: &[f32],
    ) {
        for head in heads.chunks_exact_mut(head_dim) {
            // SAFETY: the norm has the width of a head.
            unsafe { self.norm(head, norm) };
            vector::rotate(head, turns);
        }
    }

    pub(super) unsafe fn add(&self, phase: &AddProjection) {
        let product = linear_product(&phase.linear, phase.hidden, Sink::Add);
        // SAFETY: the contract of Backend.
        unsafe { multiply(&self.pool, self.isa, &phase.input, active(&phase.rows), [product]) };
    }

    pub(super) unsafe fn gate(&self, phase: &GateUp) {
        let sink = Sink::Gate(phase.activation, &phase.up);
        let product = linear_product(&phase.gate, phase.output, sink);
        // SAFETY: the contract of Backend.
        unsafe {
            let rows = active(&phase.rows);
            self.norm_rows(&phase.hidden, &phase.input, rows, phase.norm.as_ref());
            multiply(&self.pool, self.isa, &phase.input, rows, [product]);
        }
    }

    pub(super) unsafe fn norm_rows(
        &self,
        from: &Matrix,
        to: &Matrix,
        rows: usize,
        norm: Option<&Norm>,
    ) {
        self.pool.run(rows, &|index| {
            // SAFETY: the row's own memory, as the contract of Backend says.
            unsafe {
                let to = row_mut(to, index);
                to.copy_from_slice(row(from, index));
                self.norm(to, norm);
            }
        });
    }

    pub(super) unsafe fn start_blocks(&self, phase: &StartBlock<'_>) {
        // SAFETY: the contract of Backend.
        unsafe {
            let blocks = active(&phase.draft);
            *place(phase.rows.count, 0) = (blocks * phase.len) as i32;
            *place(phase.slots.count, 0) = (blocks * phase.num_slots) as i32;
            self.pool.run(blocks, &|block| {
                for row in 0..phase.len {
                    self.start_row(phase, block, row);
                }
                for slot in 0..phase.num_slots {
                    let to = block * phase.num_slots + slot;
                    copy_place(&phase.draft, block, slot, &phase.slots, to);
                    let source = block * phase.len + phase.first_slot + slot;
                    *place(phase.slots.source, to) = source as i32;
                }
            });
        }
    }

    /// Lays out a row of a block, and what enters the first layer with it.
    unsafe fn start_row(&self, phase: &StartBlock<'_>, block: usize, row: usize) {
        let to = block * phase.len + row;
        // SAFETY: the block's own rows, as the contract of Backend says.
        unsafe {
            copy_place(&phase.draft, block, phase.distance + row, &phase.rows, to);
            let token = match row {
                0 => elements(phase.draft.token)[block],
                _ => phase.mask_token,
            };
            *place(phase.rows.token, to) = token;
            let hidden = row_mut(&phase.hidden, to);
            match &phase.input {
                BlockInput::Embedding(embedding) => self.embed(embedding, token, hidden),
                BlockInput::Hidden { first, .. } if row == 0 => {
                    hidden.copy_from_slice(self::row(first, block));
                }
                BlockInput::Hidden { others, .. } => hidden.copy_from_slice(self::row(others, 0)),
            }
        }
    }

    pub(super) unsafe fn gather_rows(&self, phase: &Gather) {
        // SAFETY: the contract of Backend; sources in the chunk are rows of `from`.
        unsafe {
            for index in 0..active(&phase.rows) {
                let source = elements(phase.rows.source)[index] as usize;
                if let Some(inside) = source.checked_sub(phase.first).filter(|&i| i < phase.len) {
                    row_mut(&phase.to, index).copy_from_slice(row(&phase.from, inside));
                }
            }
        }
    }

    pub(super) unsafe fn map(&self, phase: &MapRows<'_>) {
        let product = Product {
            weight: phase.weight.segments,
            bias: phase.bias,
            output: phase.to,
            sink: Sink::Store,
        };
        // SAFETY: the contract of Backend.
        unsafe {
            let rows = active(&phase.rows);
            let input = match &phase.norm {
                None => &phase.from,
                norm => {
                    self.norm_rows(&phase.from, &phase.input, rows, norm.as_ref());
                    &phase.input
                }
            };
            multiply(&self.pool, self.isa, input, rows, [product]);
        }
    }

    pub(super) unsafe fn propose_rows(&self, phase: &Propose<'_>) {
        // SAFETY: the contract of Backend.
        unsafe {
            let rows = active(&phase.rows);
            self.norm_rows(&phase.hidden, &phase.input, rows, phase.norm.as_ref());
            if let Some(base) = phase.base.filter(|base| base.address != phase.logits.address) {
                self.pool.run(rows, &|index| {
                    let base = row(&base, index / phase.rows_of_base);
                    row_mut(&phase.logits, index).copy_from_slice(base);
                });
            }
            let product = Product {
                weight: phase.head.segments,
                bias: None,
                output: phase.logits,
                sink: if phase.base.is_some() { Sink::Add } else { Sink::Store },
            };
            multiply(&self.pool, self.isa, &phase.input, rows, [product]);
            self.pool.run(rows, &|index| self.choose(phase, index));
        }
    }

    /// Draws a row's token and moves the row on.
    unsafe fn choose(&self, phase: &Propose<'_>, index: usize) {
        let DraftBatch { draft_tokens, .. } = phase.batch;
        // SAFETY: the row's own memory, as the contract of Backend says.
        unsafe {
            if phase.feed_back_normed {
                row_mut(&phase.hidden, index).copy_from_slice(row(&phase.input, index));
            }
            let scratch = row_scratch(phase.scratch, phase.rows.len(), index);
            let token_of =
                |column: usize| phase.target_ids.map_or(column as i32, |ids| elements(ids)[column]);
            if let Choice::Kept { .. } = phase.choice {
                let (logits, greedy) =
                    (phase.logits.row_range(index, 1), SamplingArrays::default());
                let column = draw::draw_draft(self.isa, &logits, &greedy, 0, (0, 0), scratch);
                *place(phase.rows.token, index) = token_of(column);
                return;
            }
            let sequence = elements(phase.rows.sequence)[index] as usize;
            let step = phase.step + index % phase.slots;
            if step >= elements(phase.num_drafts)[sequence] as usize {
                return;
            }
            let logits = phase.logits.row_range(index, 1);
            let position = place(phase.rows.position, index);
            let drawn_at = *position + phase.distance as i32;
            let column = self.draw(&phase.batch, &logits, (sequence, step), drawn_at, scratch);
            let token = token_of(column);
            *place(draft_tokens.span, sequence * draft_tokens.stride + step) = token;
            *place(phase.rows.token, index) = token;
            *position += 1;
            let rope_position = place(phase.rows.rope_position, index);
            // The host's rope positions are any numbers.
            *rope_position = rope_position.wrapping_add(1);
        }
    }

    /// The column that a proposal is drawn from, and its logits as the host wants them, whose type the
    /// draw then sees.
    pub(super) unsafe fn draw(
        &self,
        batch: &DraftBatch<'_>,
        logits: &Matrix,
        (sequence, step): (usize, usize),
        position: i32,
        scratch: Span<u8>,
    ) -> usize {
        let mut logits = *logits;
        // SAFETY: the proposal's own memory, as the contract of Backend says.
        unsafe {
            if let Some(wanted) = batch.draft_logits {
                let wanted = wanted.row_range(sequence * batch.max_drafts + step, 1);
                store(row(&logits, 0), wanted.address, wanted.dtype);
                logits = wanted;
            }
            let place = (position, step);
            draw::draw_draft(self.isa, &logits, &batch.sampling, sequence, place, scratch)
        }
    }

    pub(super) unsafe fn copy(&self, from: &Matrix, ids: &[i32], to: &Matrix) {
        let bytes = from.columns * from.dtype.size();
        for (index, &id) in ids.iter().enumerate() {
            // SAFETY: the contract of Backend; the ids are rows of `from`.
            unsafe {
                let from: Span<u8> = Span::new(from.row_address(id as usize), bytes);
                let to: Span<u8> = Span::new(to.row_address(index), bytes);
                elements_mut(to).copy_from_slice(elements(from));
            }
        }
    }
}

/// Places a row `distance` positions behind another one.
///
/// # Safety
///
/// The contract of [`crate::backend::Backend`].
unsafe fn copy_place(from: &Rows, row: usize, distance: usize, to: &Rows, to_row: usize) {
    // SAFETY: as this function's contract.
    unsafe {
        let distance = distance as i32;
        *place(to.sequence, to_row) = elements(from.sequence)[row];
        *place(to.position, to_row) = elements(from.position)[row] + distance;
        // The host's rope positions are any numbers.
        *place(to.rope_position, to_row) = elements(from.rope_position)[row].wrapping_add(distance);
    }
}

/// The part of a phase's scratch that belongs to a row.
pub(super) fn row_scratch(scratch: Span<u8>, rows: usize, index: usize) -> Span<u8> {
    let bytes = scratch.len() / rows.max(1) / crate::tensor::ALIGNMENT * crate::tensor::ALIGNMENT;
    scratch.slice(index * bytes, bytes)
}
