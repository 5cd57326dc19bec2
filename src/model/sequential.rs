//! The networks that draft in sequence: a small decoder that reads a hidden state of the target and the
//! next token. EAGLE-3 (Li et al., 2025, "EAGLE-3: Scaling up Inference Acceleration of Large Language
//! Models via Training-Time Test") fuses several hidden states once; EAGLE (Li et al., 2024, "EAGLE:
//! Speculative Sampling Requires Rethinking Feature Uncertainty") and MTP (DeepSeek-AI, 2024,
//! "DeepSeek-V3 Technical Report") fuse hidden state and token anew in each step.

use super::placement::Placement;
use crate::backend::phases::{
    Activation, AddProjection, Attend, AttentionHeads, DraftBatch, EmbeddingInput, FeatureNorm,
    FuseFeatures, FuseToken, GateUp, Gather, HiddenSource, KvPool, KvProjection, Linear,
    MAX_HEAD_DIM, Norm, Paging, Plan, Project, Propose, QueryProjection, Rotary, RowSegments, Rows,
};
use crate::backend::{Backend, Stream};
use crate::checkpoint;
use crate::error::{Error, Result};
use crate::tensor::{Carver, Dtype, Matrix, Span};

/// The network and where its weights are.
#[derive(Debug)]
pub struct Sequential {
    entry: Entry,
    embedding: Vec<Matrix>,
    layers: Vec<Layer>,
    norm: Option<Norm>,
    norm_output: bool,
    head: Vec<Matrix>,
    target_ids: Option<Span<i32>>,
    rotary: Rotary,
    shape: Shape,
}

#[derive(Clone, Copy, Debug)]
struct Shape {
    hidden: usize,
    intermediate: usize,
    features: usize,
    draft_vocabulary: usize,
    heads: AttentionHeads,
    activation: Activation,
}

/// How what the target knows and the next token come into the first layer.
#[derive(Debug)]
enum Entry {
    /// Features once, for committed rows; the first layer reads the embedding itself.
    Features(Features),
    /// The hidden state and the embedding, in each step.
    Token { embedding_norm: Option<Norm>, hidden_norm: Option<Norm>, fusion: Linear },
}

#[derive(Debug)]
struct Features {
    joint: Option<Norm>,
    each: Vec<Norm>,
    linear: Linear,
    /// Whether the residual stream goes on from the first layer's normed hidden state.
    norm_before_residual: bool,
}

#[derive(Debug)]
struct Layer {
    input_norm: Option<Norm>,
    /// The norm of the hidden half, where a layer reads the embedding, too; its input norm is for the
    /// embedded half.
    hidden_norm: Option<Norm>,
    query: Linear,
    query_norm: Option<Norm>,
    key: Linear,
    key_norm: Option<Norm>,
    value: Linear,
    output: Linear,
    post_attention_norm: Norm,
    gate: Linear,
    up: Linear,
    down: Linear,
    window: Option<usize>,
}

/// A session's memory for the intermediate rows.
#[derive(Clone, Copy, Debug)]
pub struct Scratch {
    /// The KV pages.
    pub pool: KvPool,
    chunk_rows: usize,
    /// Of the chunk's rows.
    hidden: Matrix,
    /// Of the drafting rows.
    draft_hidden: Matrix,
    input: Span<f32>,
    query: Matrix,
    attention: Matrix,
    kv: Matrix,
    turns: Matrix,
    gate: Matrix,
    logits: Matrix,
    projection_scratch: Span<u8>,
    attention_scratch: Span<u8>,
    proposal_scratch: Span<u8>,
}

impl Scratch {
    /// The most rows of one commit.
    pub fn chunk_rows(&self) -> usize {
        self.chunk_rows
    }

    /// What [`Backend::prepare_scratch`] prepares.
    pub fn prepared(&self) -> [Span<u8>; 3] {
        [self.projection_scratch, self.attention_scratch, self.proposal_scratch]
    }

    /// The normed input of a phase, as wide as it needs.
    fn input(&self, columns: usize) -> Matrix {
        let rows = self.input.len() / columns;
        let address = self.input.address();
        Matrix { address, dtype: Dtype::F32, rows, columns, row_stride: columns }
    }
}

/// What one run of the network works on.
#[derive(Clone, Copy)]
pub struct Step<'a> {
    /// The device.
    pub backend: &'a dyn Backend,
    /// Where its work is enqueued.
    pub stream: Stream,
    /// The call.
    pub batch: &'a DraftBatch<'a>,
    /// Its rows.
    pub plan: &'a Plan,
    /// The session's memory.
    pub scratch: &'a Scratch,
    /// The rows of this run.
    pub rows: Rows,
}

impl Step<'_> {
    fn paging(&self, layer: usize) -> Paging {
        let pool = self.scratch.pool;
        let table = self.batch.block_table.map_or(pool.slot_pages, |table| table.span);
        Paging { pool, table, page_row: self.plan.page_row, layer }
    }
}

/// Which halves of a layer's projections are wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Halves {
    Query,
    KeyValue,
    Both,
}

impl Sequential {
    /// Gives all weights of a checkpoint their place.
    pub(super) fn place(
        description: &checkpoint::Sequential,
        placement: &mut Placement<'_>,
    ) -> Result<Self> {
        let epsilon = description.epsilon;
        let ids = description.draft_token_ids.as_deref();
        let shape = Shape::of(description)?;
        let layers = description.layers.iter();
        let layers = layers.map(|layer| Layer::place(layer, epsilon, placement));
        Ok(Self {
            layers: layers.collect::<Result<_>>()?,
            entry: Entry::place(description, placement)?,
            embedding: placement.embedding(&description.embedding)?,
            norm: placement.optional_norm(description.norm.as_ref(), epsilon)?,
            norm_output: description.norm_output,
            head: placement.head(
                &description.head,
                shape.draft_vocabulary,
                ids.unwrap_or_default(),
            )?,
            target_ids: ids.map(|ids| placement.table(ids)).transpose()?,
            rotary: Rotary {
                inverse_frequency: placement.table(&description.rope.inverse_frequency)?,
                long_inverse_frequency: placement
                    .table(&description.rope.long_inverse_frequency)?,
                long_from: description.rope.long_from,
                scale: description.rope.scale,
            },
            shape,
        })
    }

    /// H.
    pub fn hidden_size(&self) -> usize {
        self.shape.hidden
    }

    /// L.
    pub fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// The heads of every layer.
    pub fn heads(&self) -> AttentionHeads {
        self.shape.heads
    }

    /// Cuts the memory for the intermediate rows of a session.
    pub fn carve(
        &self,
        carver: &mut Carver,
        backend: &dyn Backend,
        pool: KvPool,
        max_rows: usize,
        sequences: usize,
        max_position: usize,
    ) -> Scratch {
        let Shape { hidden, heads, .. } = self.shape;
        let chunk_rows = max_rows.min(backend.description().commit_rows);
        let rows = chunk_rows.max(sequences);
        let input_columns = self.shape.features.max(2 * hidden);
        let mut f32_matrix = |rows, columns| carver.matrix(Dtype::F32, rows, columns);
        let query_columns = heads.num_heads * heads.head_dim;
        let hidden_rows = f32_matrix(chunk_rows, hidden);
        let draft_hidden = f32_matrix(sequences, hidden);
        let query = f32_matrix(rows, query_columns);
        let attention = f32_matrix(rows, query_columns);
        let kv = f32_matrix(rows, 2 * heads.num_kv_heads * heads.head_dim);
        let turns = f32_matrix(rows, 2 * self.rotary.inverse_frequency.len());
        let gate = f32_matrix(rows, self.shape.intermediate);
        let logits = f32_matrix(sequences, self.shape.draft_vocabulary);
        let projection = backend.projection_scratch(rows, heads);
        let scratch = backend.attention_scratch(rows, heads, max_position);
        let proposal = backend.proposal_scratch(sequences, self.shape.draft_vocabulary);
        Scratch {
            pool,
            chunk_rows,
            hidden: hidden_rows,
            draft_hidden,
            input: carver.span(rows.saturating_mul(input_columns)),
            query,
            attention,
            kv,
            turns,
            gate,
            logits,
            projection_scratch: carver.span(projection),
            attention_scratch: carver.span(scratch),
            proposal_scratch: carver.span(proposal),
        }
    }

    /// Commits the step's rows: appends their keys and values in all layers, and keeps the residual
    /// stream that enters the last layer for the rows that go on drafting.
    pub fn commit(&self, step: &Step<'_>) -> Result<()> {
        let hidden = step.scratch.hidden;
        match &self.entry {
            Entry::Features(features) => self.fuse_features(step, features)?,
            Entry::Token { .. } => {
                let [feature] = step.batch.features else {
                    unreachable!("these networks read one feature, and calls give what is read")
                };
                self.fuse_token(step, HiddenSource::Feature(*feature), hidden)?;
            }
        }
        let last = self.layers.len() - 1;
        for layer in 0..last {
            self.project(step, layer, hidden, Halves::Both)?;
            self.finish_layer(step, layer, hidden)?;
        }
        if let Some(count) = (step.batch.max_drafts > 0).then(|| step.plan.drafting.slice(0, 1)) {
            let gather = Gather {
                rows: Rows { count, ..step.plan.draft.slice(0, step.batch.num_sequences) },
                from: hidden,
                first: step.rows.first,
                len: step.rows.len(),
                to: step.scratch.draft_hidden,
            };
            step.backend.gather(step.stream, &gather)?;
        }
        self.project(step, last, hidden, Halves::KeyValue)
    }

    /// Runs the rest of the last layer for the rows that go on drafting.
    pub fn continue_from_commit(&self, step: &Step<'_>) -> Result<()> {
        let last = self.layers.len() - 1;
        self.project(step, last, step.scratch.draft_hidden, Halves::Query)?;
        self.finish_layer(step, last, step.scratch.draft_hidden)
    }

    /// Runs all layers on the drafting rows.
    pub fn forward(&self, step: &Step<'_>) -> Result<()> {
        let hidden = step.scratch.draft_hidden;
        self.fuse_token(step, HiddenSource::Rows(hidden), hidden)?;
        for layer in 0..self.layers.len() {
            self.project(step, layer, hidden, Halves::Both)?;
            self.finish_layer(step, layer, hidden)?;
        }
        Ok(())
    }

    /// Chooses the token of each drafting row and moves the rows on.
    pub fn propose(&self, step: &Step<'_>, index: usize) -> Result<()> {
        let phase = Propose {
            rows: step.rows,
            step: index,
            batch: *step.batch,
            hidden: step.scratch.draft_hidden,
            norm: self.norm,
            feed_back_normed: self.norm_output,
            head: RowSegments { segments: &self.head },
            target_ids: self.target_ids,
            input: step.scratch.input(self.shape.hidden),
            logits: step.scratch.logits,
            scratch: step.scratch.proposal_scratch,
        };
        step.backend.propose(step.stream, &phase)
    }

    fn fuse_features(&self, step: &Step<'_>, features: &Features) -> Result<()> {
        let Features { joint, each, linear, .. } = features;
        let norm = match joint {
            Some(norm) => FeatureNorm::Joint(*norm),
            None if each.is_empty() => FeatureNorm::None,
            None => FeatureNorm::Each(each),
        };
        let phase = FuseFeatures {
            rows: step.rows,
            features: step.batch.features,
            norm,
            linear: *linear,
            input: step.scratch.input(self.shape.features),
            hidden: step.scratch.hidden,
        };
        step.backend.fuse_features(step.stream, &phase)
    }

    /// Fuses hidden state and token, where that is what a step begins with.
    fn fuse_token(&self, step: &Step<'_>, from: HiddenSource, to: Matrix) -> Result<()> {
        let Entry::Token { embedding_norm, hidden_norm, fusion } = &self.entry else {
            return Ok(());
        };
        let phase = FuseToken {
            rows: step.rows,
            embedding: self.embedding_input(step, *embedding_norm),
            from,
            norm: *hidden_norm,
            linear: *fusion,
            input: step.scratch.input(2 * self.shape.hidden),
            hidden: to,
        };
        step.backend.fuse_token(step.stream, &phase)
    }

    fn embedding_input<'s>(&'s self, step: &Step<'s>, norm: Option<Norm>) -> EmbeddingInput<'s> {
        EmbeddingInput {
            table: RowSegments { segments: &self.embedding },
            embeddings: step.batch.embeddings,
            norm,
        }
    }

    fn norms_residual(&self) -> bool {
        matches!(&self.entry, Entry::Features(features) if features.norm_before_residual)
    }

    fn project(&self, step: &Step<'_>, index: usize, hidden: Matrix, halves: Halves) -> Result<()> {
        let layer = &self.layers[index];
        let scratch = step.scratch;
        let embedding = layer.hidden_norm.map(|_| self.embedding_input(step, layer.input_norm));
        let columns = if embedding.is_some() { 2 * self.shape.hidden } else { self.shape.hidden };
        let query =
            QueryProjection { linear: layer.query, norm: layer.query_norm, output: scratch.query };
        let kv = KvProjection {
            key: layer.key,
            value: layer.value,
            key_norm: layer.key_norm,
            scratch: scratch.kv,
        };
        let phase = Project {
            rows: step.rows,
            hidden,
            norm: layer.hidden_norm.or(layer.input_norm),
            // Keys and values alone leave the residual stream as it is for the query half.
            residual_is_normed: layer.hidden_norm.is_some()
                && self.norms_residual()
                && halves != Halves::KeyValue,
            embedding,
            input: scratch.input(columns),
            query: (halves != Halves::KeyValue).then_some(query),
            kv: (halves != Halves::Query).then_some(kv),
            rotary: self.rotary,
            turns: scratch.turns,
            paging: step.paging(index),
            scratch: scratch.projection_scratch,
        };
        step.backend.project(step.stream, &phase)
    }

    /// Attention, its output map, and the MLP.
    fn finish_layer(&self, step: &Step<'_>, index: usize, hidden: Matrix) -> Result<()> {
        let (layer, scratch) = (&self.layers[index], step.scratch);
        let (backend, stream) = (step.backend, step.stream);
        let attend = Attend {
            rows: step.rows,
            heads: self.shape.heads,
            query: scratch.query,
            output: scratch.attention,
            paging: step.paging(index),
            context_begin: step.batch.context_begin,
            window: layer.window,
            scale: 1.0 / (self.shape.heads.head_dim as f32).sqrt(),
            scratch: scratch.attention_scratch,
        };
        backend.attend(stream, &attend)?;
        let add = |input, linear| AddProjection { rows: step.rows, input, linear, hidden };
        backend.add_projection(stream, &add(scratch.attention, layer.output))?;
        let gate_up = GateUp {
            rows: step.rows,
            hidden,
            norm: layer.post_attention_norm,
            gate: layer.gate,
            up: layer.up,
            activation: self.shape.activation,
            input: scratch.input(self.shape.hidden),
            output: scratch.gate,
        };
        backend.gate_up(stream, &gate_up)?;
        backend.add_projection(stream, &add(scratch.gate, layer.down))
    }
}

impl Shape {
    fn of(description: &checkpoint::Sequential) -> Result<Self> {
        if description.head_dim > MAX_HEAD_DIM {
            return Err(Error::unsupported(format!(
                "head_dim: expected at most {MAX_HEAD_DIM}, found {}",
                description.head_dim
            )));
        }
        Ok(Self {
            hidden: description.hidden_size,
            intermediate: description.intermediate_size,
            features: description.features.iter().map(|feature| feature.width).sum(),
            draft_vocabulary: description.draft_vocabulary,
            heads: AttentionHeads {
                num_heads: description.heads,
                num_kv_heads: description.kv_heads,
                head_dim: description.head_dim,
            },
            activation: match description.activation {
                checkpoint::Activation::Silu => Activation::Silu,
                checkpoint::Activation::GeluTanh => Activation::GeluTanh,
                checkpoint::Activation::Gelu => Activation::Gelu,
                checkpoint::Activation::Relu => Activation::Relu,
            },
        })
    }
}

impl Entry {
    fn place(description: &checkpoint::Sequential, placement: &mut Placement<'_>) -> Result<Self> {
        let epsilon = description.epsilon;
        Ok(match &description.entry {
            checkpoint::Entry::Features { norm, fc, norm_before_residual } => {
                let (joint, each) = match norm {
                    checkpoint::FeatureNorm::None => (None, &[][..]),
                    checkpoint::FeatureNorm::Joint(norm) => (Some(norm), &[][..]),
                    checkpoint::FeatureNorm::Each(norms) => (None, &norms[..]),
                };
                let each = each.iter().map(|norm| placement.norm(norm, epsilon));
                let each = each.collect::<Result<_>>()?;
                let weight = placement.tensor(fc)?;
                Self::Features(Features {
                    joint: placement.optional_norm(joint, epsilon)?,
                    each,
                    linear: Linear { weight, bias: None },
                    norm_before_residual: *norm_before_residual,
                })
            }
            checkpoint::Entry::Token { embedding_norm, hidden_norm, fusion } => Self::Token {
                embedding_norm: placement.optional_norm(embedding_norm.as_ref(), epsilon)?,
                hidden_norm: placement.optional_norm(hidden_norm.as_ref(), epsilon)?,
                fusion: placement.linear(fusion)?,
            },
        })
    }
}

impl Layer {
    fn place(
        description: &checkpoint::DecoderLayer,
        epsilon: f32,
        placement: &mut Placement<'_>,
    ) -> Result<Self> {
        Ok(Self {
            input_norm: placement.optional_norm(description.input_norm.as_ref(), epsilon)?,
            hidden_norm: placement.optional_norm(description.hidden_norm.as_ref(), epsilon)?,
            query: placement.linear(&description.query)?,
            query_norm: placement.optional_norm(description.query_norm.as_ref(), epsilon)?,
            key: placement.linear(&description.key)?,
            key_norm: placement.optional_norm(description.key_norm.as_ref(), epsilon)?,
            value: placement.linear(&description.value)?,
            output: placement.linear(&description.output)?,
            post_attention_norm: placement.norm(&description.post_attention_norm, epsilon)?,
            gate: placement.linear(&description.gate)?,
            up: placement.linear(&description.up)?,
            down: placement.linear(&description.down)?,
            window: description.window,
        })
    }
}
