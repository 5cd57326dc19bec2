//! What all networks are made of: the token embedding, decoder layers, the norm before the head, and the
//! head.

use super::block::HeadScratch;
use super::experts::Experts;
use super::placement::{Placement, first_rows};
use super::trees::{TreeLimits, TreeScratch};
use crate::backend::block_heads::Convolve;
use crate::backend::experts::ExpertScratch;
use crate::backend::phases::{
    Activation, AddProjection, Attend, AttentionHeads, Choice, DraftBatch, EmbedTokens,
    EmbeddingInput, GateRows, GateUp, Gather, KvPool, KvProjection, Linear, MAX_HEAD_DIM, MapRows,
    Mask, Norm, OwnKv, Paging, Plan, Project, Propose, QueryProjection, Rotary, RowSegments, Rows,
};
use crate::backend::{Backend, Stream};
use crate::checkpoint::{self, RowSource, Speculator};
use crate::error::{Error, Result};
use crate::tensor::{Carver, Dtype, Matrix, Span};
use std::ops::Range;

/// The decoder of a speculator and where its weights are.
#[derive(Debug)]
pub struct Decoder {
    embedding: Vec<Matrix>,
    layers: Vec<Layer>,
    /// Of each layer the maps to keys and values.
    kv: Vec<KvProjection>,
    norm: Option<Norm>,
    head: Vec<Matrix>,
    target_ids: Option<Span<i32>>,
    /// Whether the residual stream goes on from the normed hidden state of a layer that reads the
    /// embedding.
    norms_residual: bool,
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

#[derive(Debug)]
struct Layer {
    input_norm: Option<Norm>,
    /// The norm of the hidden half, where a layer reads the embedding, too; its input norm is for the
    /// embedded half.
    hidden_norm: Option<Norm>,
    query: Linear,
    query_norm: Option<Norm>,
    attention_gate: Option<Linear>,
    output: Linear,
    post_attention_norm: Norm,
    mlp: Mlp,
    mask: Mask,
    attention_convolution: Option<Convolution>,
    mlp_convolution: Option<Convolution>,
}

/// What a layer does after its attention.
#[derive(Debug)]
enum Mlp {
    Gated { gate: Linear, up: Linear, down: Linear },
    Experts(Experts),
}

/// The convolution around half of a layer.
#[derive(Clone, Copy, Debug)]
struct Convolution {
    taps: usize,
    /// `[2 * taps, H]`: before and behind.
    base: Matrix,
    /// `[2 * taps * groups, H]`.
    projection: Matrix,
}

/// On which side of half of a layer a convolution is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Before,
    Behind,
}

/// The numbers of rows that a session has memory for.
#[derive(Clone, Copy, Debug)]
pub struct RowLimits {
    /// Rows that one call commits.
    pub commit: usize,
    /// Sequences of a call.
    pub sequences: usize,
    /// Tokens proposed for a sequence.
    pub drafts: usize,
    /// Positions that a row sees.
    pub positions: usize,
    /// Trees of a sequence, if it has any.
    pub tree: Option<TreeLimits>,
}

impl RowLimits {
    /// The most rows that are drafted from at a time, one token after the other.
    pub(super) fn draft_rows(&self) -> usize {
        let width = self.tree.map_or(1, |tree| tree.width);
        self.sequences.saturating_mul(width)
    }
}

/// What a session's network works on at a time, besides the rows that it commits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    /// Rows of drafts.
    pub(super) rows: usize,
    /// Rows that tokens are proposed from.
    pub(super) proposals: usize,
    /// Rows that tokens are drawn from though they have few logits, and how many. A network that has some
    /// proposes from no others, whose counters would lie elsewhere in the same scratch.
    pub(super) narrow: (usize, usize),
    /// The width of what tokens are proposed from, if that is not a hidden state.
    pub(super) width: usize,
    /// Layers that committed rows append their keys and values to.
    pub(super) layers: usize,
}

impl Extent {
    /// Of networks that run a row of each sequence, or some of its tree, through one layer after the other.
    pub(super) fn sequential(limits: &RowLimits) -> Self {
        let rows = limits.draft_rows();
        Self { rows, proposals: rows, narrow: (0, 0), width: 0, layers: 1 }
    }
}

/// A session's memory for the intermediate rows.
#[derive(Clone, Copy, Debug)]
pub struct Scratch {
    /// The KV pages.
    pub pool: KvPool,
    /// What the rows of blocks take besides.
    pub block: Option<BlockScratch>,
    /// What those of trees take.
    pub tree: Option<TreeScratch>,
    /// Of the chunk's rows.
    pub(super) hidden: Matrix,
    /// Of the drafting rows: one of a sequence, or the first of its block.
    pub(super) draft_hidden: Matrix,
    chunk_rows: usize,
    input: Span<f32>,
    query: Matrix,
    attention: Matrix,
    attention_gate: Option<Matrix>,
    kv: Span<f32>,
    turns: Matrix,
    pub(super) gate: Matrix,
    experts: Option<ExpertScratch>,
    convolution: Option<ConvolutionScratch>,
    pub(super) logits: Matrix,
    projection_scratch: Span<u8>,
    attention_scratch: Span<u8>,
    pub(super) proposal_scratch: Span<u8>,
}

/// A session's memory for convolutions.
#[derive(Clone, Copy, Debug)]
struct ConvolutionScratch {
    coefficients: Matrix,
    before: Matrix,
    behind: Matrix,
}

/// A session's memory for blocks.
#[derive(Clone, Copy, Debug)]
pub struct BlockScratch {
    /// The blocks' rows.
    pub rows: Rows,
    /// The rows whose hidden states the proposals are read from.
    pub slots: Rows,
    /// The blocks' keys and values, of one layer at a time.
    pub pages: Matrix,
    /// The residual stream of the blocks' rows.
    pub hidden: Matrix,
    /// That of the slots.
    pub slot_hidden: Matrix,
    /// What the head takes.
    pub head: HeadScratch,
    /// What the confidence head makes of the blocks' rows.
    pub confidence: Option<Matrix>,
}

impl Scratch {
    /// The first row and the number of rows of each commit of `rows` rows.
    pub fn chunks(&self, rows: usize) -> impl Iterator<Item = (usize, usize)> {
        let chunk = self.chunk_rows;
        (0..rows).step_by(chunk).map(move |first| (first, chunk.min(rows - first)))
    }

    /// The hidden state of the drafting rows.
    pub fn draft_hidden(&self) -> Matrix {
        self.draft_hidden
    }

    /// What [`Backend::prepare_scratch`] prepares.
    pub fn prepared(&self) -> [Span<u8>; 3] {
        [self.projection_scratch, self.attention_scratch, self.proposal_scratch]
    }

    /// The normed input of a phase, as wide as it needs.
    pub(super) fn input(&self, columns: usize) -> Matrix {
        rows_of(self.input, columns)
    }

    /// Keys and values of so many layers.
    fn kv(&self, layers: usize) -> Matrix {
        rows_of(self.kv, layers * 2 * self.pool.num_kv_heads * self.pool.head_dim)
    }
}

/// As many rows of this width as there is memory for.
fn rows_of(memory: Span<f32>, columns: usize) -> Matrix {
    Matrix::contiguous(memory.address(), memory.len() / columns.max(1), columns)
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
    /// Where their keys and values are if they do not enter the pool.
    pub own: Option<OwnKv>,
}

impl Step<'_> {
    /// Where keys and values of a layer are.
    fn paging(&self, layer: usize) -> Paging {
        let pool = self.scratch.pool;
        let table = self.batch.block_table.map_or(pool.slot_pages, |table| table.span);
        Paging { pool, table, page_row: self.plan.page_row, layer, own: self.own }
    }

    /// The rows of the sequences that propose more tokens than this.
    pub fn drafting_rows(&self, drafted: usize) -> Rows {
        let rows = self.plan.draft.slice(0, self.batch.num_sequences);
        Rows { count: self.plan.drafting.slice(drafted, 1), ..rows }
    }
}

/// Which halves of a layer's projections are wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Halves {
    Query,
    KeyValue,
    Both,
}

impl Decoder {
    /// Gives all weights of a checkpoint's decoder their place.
    pub(super) fn place(description: &Speculator, placement: &mut Placement<'_>) -> Result<Self> {
        let epsilon = description.decoder.epsilon;
        let ids = description.draft_token_ids.as_deref();
        let shape = Shape::of(description)?;
        let layers = description.layers.iter();
        let layers = layers.map(|layer| Layer::place(layer, epsilon, placement));
        let layers = layers.collect::<Result<_>>()?;
        let kv = description.layers.iter().map(|layer| place_kv(layer, epsilon, placement));
        let kv = kv.collect::<Result<_>>()?;
        let rope = &description.decoder.rope;
        let vocabulary = description.decoder.sizes.vocabulary;
        let embedding = placement.embedding(&description.embedding, vocabulary)?;
        let norm = placement.optional_norm(description.norm.as_ref(), epsilon)?;
        let head = match &description.head {
            RowSource::Embedding => first_rows(&embedding, shape.draft_vocabulary),
            source => placement.head(source, shape.draft_vocabulary, ids.unwrap_or_default())?,
        };
        Ok(Self {
            layers,
            kv,
            embedding,
            norm,
            head,
            target_ids: ids.map(|ids| placement.table(ids)).transpose()?,
            norms_residual: description.norms_residual(),
            rotary: Rotary {
                inverse_frequency: placement.table(&rope.inverse_frequency)?,
                long_inverse_frequency: placement.table(&rope.long_inverse_frequency)?,
                long_from: rope.long_from,
                scale: rope.scale,
            },
            shape,
        })
    }

    /// The embedding and the head, each in one piece as its checkpoint stores it.
    pub(super) fn tables(&self) -> (Matrix, Matrix) {
        (self.embedding[0], self.head[0])
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

    /// The width of all features side by side.
    pub(super) fn feature_width(&self) -> usize {
        self.shape.features
    }

    /// Cuts the memory for the intermediate rows of a session.
    pub(super) fn carve(
        &self,
        carver: &mut Carver,
        backend: &dyn Backend,
        pool: KvPool,
        limits: &RowLimits,
        extent: Extent,
    ) -> Scratch {
        let Extent { rows: draft_rows, proposals, narrow, width, layers } = extent;
        let Shape { hidden, heads, .. } = self.shape;
        let chunk_rows = limits.commit.min(backend.description().commit_rows);
        let rows = chunk_rows.max(draft_rows);
        let kv_rows = chunk_rows.saturating_mul(layers).max(draft_rows);
        let input_columns = self.shape.features.max(2 * hidden).max(width);
        let mut f32_matrix = |rows, columns| carver.matrix(Dtype::F32, rows, columns);
        let query_columns = heads.num_heads * heads.head_dim;
        let hidden_rows = f32_matrix(chunk_rows, hidden);
        let draft_hidden = f32_matrix(limits.sequences, hidden);
        let query = f32_matrix(rows, query_columns);
        let attention = f32_matrix(rows, query_columns);
        let is_gated = self.layers.iter().any(|layer| layer.attention_gate.is_some());
        let attention_gate = is_gated.then(|| f32_matrix(rows, query_columns));
        let turns = f32_matrix(rows, 2 * self.rotary.inverse_frequency.len());
        let gate = f32_matrix(rows, self.shape.intermediate);
        let logits = f32_matrix(proposals, self.shape.draft_vocabulary);
        let convolutions = self.layers.iter().filter_map(|layer| layer.attention_convolution);
        let convolution = convolutions.take(1).next().map(|convolution| ConvolutionScratch {
            coefficients: f32_matrix(draft_rows, convolution.projection.rows),
            before: f32_matrix(draft_rows, hidden),
            behind: f32_matrix(draft_rows, hidden),
        });
        // Committed rows do not pass the last layer.
        let mlp_rows = if self.layers.len() == 1 { draft_rows } else { rows };
        let mixtures = self.layers.iter().filter_map(|layer| match &layer.mlp {
            Mlp::Gated { .. } => None,
            Mlp::Experts(experts) => Some(experts),
        });
        let experts = mixtures.take(1).next().map(|experts| experts.carve(carver, mlp_rows));
        let projection = backend.projection_scratch(rows, heads);
        let scratch = backend.attention_scratch(rows, heads, limits.positions);
        let proposal = backend.proposal_scratch(proposals, self.shape.draft_vocabulary);
        let proposal = proposal.max(backend.proposal_scratch(narrow.0, narrow.1));
        Scratch {
            pool,
            block: None,
            tree: None,
            chunk_rows,
            hidden: hidden_rows,
            draft_hidden,
            input: carver.span(rows.max(proposals).saturating_mul(input_columns)),
            query,
            attention,
            attention_gate,
            kv: carver.span(kv_rows.saturating_mul(2 * heads.num_kv_heads * heads.head_dim)),
            turns,
            gate,
            experts,
            convolution,
            logits,
            projection_scratch: carver.span(projection),
            attention_scratch: carver.span(scratch),
            proposal_scratch: carver.span(proposal),
        }
    }

    /// The columns of logits.
    pub(super) fn draft_vocabulary(&self) -> usize {
        self.shape.draft_vocabulary
    }

    /// The target's id of each column; `None` is the identity.
    pub(super) fn target_ids(&self) -> Option<Span<i32>> {
        self.target_ids
    }

    /// Copies the hidden state of the rows that go on drafting out of the step's committed rows.
    pub(super) fn gather(&self, step: &Step<'_>) -> Result<()> {
        if step.batch.max_drafts == 0 {
            return Ok(());
        }
        let gather = Gather {
            rows: step.drafting_rows(0),
            from: step.scratch.hidden,
            first: step.rows.first,
            len: step.rows.len(),
            to: step.scratch.draft_hidden,
        };
        step.backend.gather(step.stream, &gather)
    }

    /// The embedded half of an input.
    pub(super) fn embedding_input<'s>(
        &'s self,
        step: &Step<'s>,
        norm: Option<Norm>,
    ) -> EmbeddingInput<'s> {
        EmbeddingInput {
            table: RowSegments { segments: &self.embedding },
            embeddings: step.batch.embeddings,
            norm,
        }
    }

    /// The norm before the head.
    pub(super) fn final_norm(&self) -> Option<Norm> {
        self.norm
    }

    /// Starts the residual stream of the step's rows from their tokens alone.
    pub(super) fn embed(&self, step: &Step<'_>, hidden: Matrix) -> Result<()> {
        let embedding = self.embedding_input(step, None);
        let phase = EmbedTokens { rows: step.rows, embedding, hidden };
        step.backend.embed_tokens(step.stream, &phase)
    }

    /// Runs some of the layers on the step's rows.
    pub(super) fn run(&self, step: &Step<'_>, layers: Range<usize>, hidden: Matrix) -> Result<()> {
        for index in layers {
            self.project(step, index, hidden, Halves::Both)?;
            self.finish_layer(step, index, hidden)?;
        }
        Ok(())
    }

    /// Queries, keys and values of a layer.
    pub(super) fn project(
        &self,
        step: &Step<'_>,
        index: usize,
        hidden: Matrix,
        halves: Halves,
    ) -> Result<()> {
        let layer = &self.layers[index];
        let embedding = layer.hidden_norm.map(|_| self.embedding_input(step, layer.input_norm));
        let norm = layer.hidden_norm.or(layer.input_norm);
        let input = self.convolved(step, layer.attention_convolution, (hidden, norm))?;
        self.project_input(step, index..index + 1, input, embedding, halves)
    }

    /// What half of a layer reads, with its norm: the residual stream, or what a convolution makes of it.
    fn convolved(
        &self,
        step: &Step<'_>,
        convolution: Option<Convolution>,
        (hidden, norm): (Matrix, Option<Norm>),
    ) -> Result<(Matrix, Option<Norm>)> {
        let Some((convolution, scratch)) = convolution.zip(step.scratch.convolution) else {
            return Ok((hidden, norm));
        };
        let maps = (&[convolution.projection][..], None);
        self.map(step, step.rows, (hidden, norm), maps, scratch.coefficients)?;
        let to = scratch.before;
        self.convolve(step, &convolution, Side::Before, (hidden, norm), to)?;
        Ok((to, None))
    }

    fn convolve(
        &self,
        step: &Step<'_>,
        convolution: &Convolution,
        side: Side,
        (from, norm): (Matrix, Option<Norm>),
        to: Matrix,
    ) -> Result<()> {
        let (Some(scratch), Some(OwnKv::Block(block))) = (step.scratch.convolution, step.own)
        else {
            unreachable!("only layers of blocks have convolutions, and carve gives them memory")
        };
        let (taps, width) = (convolution.taps, convolution.projection.rows / 2);
        let phase = Convolve {
            rows: step.rows,
            len: block.len,
            from,
            norm,
            base: convolution.base.row_range(side as usize * taps, taps),
            coefficients: scratch.coefficients.column_range(side as usize * width, width),
            input: step.scratch.input(self.shape.hidden),
            to,
            adds: side == Side::Behind,
        };
        step.backend.convolve(step.stream, &phase)
    }

    /// Keys and values of all layers from the same rows of the target's context, which pass no layer.
    pub(super) fn append_context(&self, step: &Step<'_>, norm: Norm) -> Result<()> {
        let input = (step.scratch.hidden, Some(norm));
        self.project_input(step, 0..self.layers.len(), input, None, Halves::KeyValue)
    }

    /// Adds what half of a layer ends with to the residual stream, through its convolution if it has one.
    fn add(
        &self,
        step: &Step<'_>,
        convolution: Option<Convolution>,
        (input, linear): (Matrix, Linear),
        hidden: Matrix,
    ) -> Result<()> {
        let Some((convolution, scratch)) = convolution.zip(step.scratch.convolution) else {
            let add = AddProjection { rows: step.rows, input, linear, hidden };
            return step.backend.add_projection(step.stream, &add);
        };
        let maps = (&[linear.weight][..], linear.bias);
        self.map(step, step.rows, (input, None), maps, scratch.behind)?;
        self.convolve(step, &convolution, Side::Behind, (scratch.behind, None), hidden)
    }

    /// The projections of a layer from hidden states, their norm, and what stands before them; keys and
    /// values may be those of several layers.
    fn project_input(
        &self,
        step: &Step<'_>,
        layers: Range<usize>,
        (hidden, norm): (Matrix, Option<Norm>),
        embedding: Option<EmbeddingInput<'_>>,
        halves: Halves,
    ) -> Result<()> {
        let (first, scratch) = (layers.start, step.scratch);
        let layer = &self.layers[first];
        let columns = if embedding.is_some() { 2 * self.shape.hidden } else { self.shape.hidden };
        let query =
            QueryProjection { linear: layer.query, norm: layer.query_norm, output: scratch.query };
        let kv = if halves == Halves::Query { &[] } else { &self.kv[layers] };
        let phase = Project {
            rows: step.rows,
            hidden,
            norm,
            // Keys and values alone leave the residual stream as it is for the query half.
            residual_is_normed: embedding.is_some()
                && self.norms_residual
                && halves != Halves::KeyValue,
            embedding,
            input: scratch.input(columns),
            query: (halves != Halves::KeyValue).then_some(query),
            kv,
            kv_scratch: scratch.kv(kv.len()),
            rotary: self.rotary,
            turns: scratch.turns,
            paging: step.paging(first),
            scratch: scratch.projection_scratch,
        };
        step.backend.project(step.stream, &phase)
    }

    /// Attention, its output map, and the MLP.
    pub(super) fn finish_layer(&self, step: &Step<'_>, index: usize, hidden: Matrix) -> Result<()> {
        let (layer, scratch) = (&self.layers[index], step.scratch);
        let (backend, stream) = (step.backend, step.stream);
        let attend = Attend {
            rows: step.rows,
            heads: self.shape.heads,
            query: scratch.query,
            output: scratch.attention,
            paging: step.paging(index),
            context_begin: step.batch.context_begin,
            mask: layer.mask,
            scale: 1.0 / (self.shape.heads.head_dim as f32).sqrt(),
            scratch: scratch.attention_scratch,
        };
        backend.attend(stream, &attend)?;
        if let Some((gate, gates)) = layer.attention_gate.zip(scratch.attention_gate) {
            let maps = (&[gate.weight][..], gate.bias);
            self.map(step, step.rows, (hidden, layer.input_norm), maps, gates)?;
            let phase = GateRows { rows: step.rows, gates, values: scratch.attention };
            backend.gate_rows(stream, &phase)?;
        }
        let attention = (scratch.attention, layer.output);
        self.add(step, layer.attention_convolution, attention, hidden)?;
        self.run_mlp(step, layer, hidden)
    }

    fn run_mlp(&self, step: &Step<'_>, layer: &Layer, hidden: Matrix) -> Result<()> {
        let (scratch, activation) = (step.scratch, self.shape.activation);
        match (&layer.mlp, scratch.experts) {
            (Mlp::Gated { gate, up, down }, _) => {
                let normed = (hidden, Some(layer.post_attention_norm));
                let (input, norm) = self.convolved(step, layer.mlp_convolution, normed)?;
                let gate_up = GateUp {
                    rows: step.rows,
                    hidden: input,
                    norm,
                    gate: *gate,
                    up: *up,
                    activation,
                    input: scratch.input(self.shape.hidden),
                    output: scratch.gate,
                };
                step.backend.gate_up(step.stream, &gate_up)?;
                self.add(step, layer.mlp_convolution, (scratch.gate, *down), hidden)
            }
            (Mlp::Experts(experts), Some(memory)) => {
                let normed = (hidden, layer.post_attention_norm);
                experts.run(step, normed, activation, (scratch.gate, memory))
            }
            (Mlp::Experts(_), None) => unreachable!("carve gives memory to experts"),
        }
    }

    /// Maps hidden states, normed, to logits.
    pub(super) fn map_to_logits(
        &self,
        step: &Step<'_>,
        rows: Rows,
        hidden: Matrix,
        logits: Matrix,
    ) -> Result<()> {
        self.map_normed(step, rows, hidden, (&self.head, None), logits)
    }

    /// Maps hidden states as the head reads them: behind the norm before it.
    pub(super) fn map_normed(
        &self,
        step: &Step<'_>,
        rows: Rows,
        hidden: Matrix,
        maps: (&[Matrix], Option<Matrix>),
        to: Matrix,
    ) -> Result<()> {
        self.map(step, rows, (hidden, self.norm), maps, to)
    }

    fn map(
        &self,
        step: &Step<'_>,
        rows: Rows,
        (from, norm): (Matrix, Option<Norm>),
        (segments, bias): (&[Matrix], Option<Matrix>),
        to: Matrix,
    ) -> Result<()> {
        let phase = MapRows {
            rows,
            from,
            norm,
            weight: RowSegments { segments },
            bias,
            input: step.scratch.input(self.shape.hidden),
            to,
        };
        step.backend.map_rows(step.stream, &phase)
    }

    /// A proposal from hidden states, of the `first`-th token on, as many of each sequence as `slots` says.
    pub(super) fn proposal(
        &self,
        step: &Step<'_>,
        first: usize,
        slots: usize,
        hidden: Matrix,
    ) -> Proposal<'_> {
        Proposal {
            first,
            slots,
            distance: 2,
            hidden,
            norm: self.norm,
            head: &self.head,
            base: None,
            rows_of_base: 1,
            logits: step.scratch.logits,
            choice: Choice::Proposed,
            feed_back_normed: false,
        }
    }

    /// Chooses tokens from rows.
    pub(super) fn propose(&self, step: &Step<'_>, proposal: &Proposal<'_>) -> Result<()> {
        let phase = Propose {
            rows: step.rows,
            step: proposal.first,
            slots: proposal.slots,
            distance: proposal.distance,
            num_drafts: step.plan.num_drafts,
            batch: *step.batch,
            hidden: proposal.hidden,
            norm: proposal.norm,
            feed_back_normed: proposal.feed_back_normed,
            head: RowSegments { segments: proposal.head },
            base: proposal.base,
            rows_of_base: proposal.rows_of_base,
            choice: proposal.choice,
            target_ids: self.target_ids,
            input: step.scratch.input(proposal.hidden.columns),
            logits: proposal.logits,
            scratch: step.scratch.proposal_scratch,
        };
        step.backend.propose(step.stream, &phase)
    }
}

/// What tokens are chosen from.
pub(super) struct Proposal<'p> {
    /// The first token that is proposed, of each sequence.
    pub(super) first: usize,
    /// Rows of each sequence, one for each token from there on.
    pub(super) slots: usize,
    /// Positions from a row to the token that it proposes.
    pub(super) distance: usize,
    /// What the rows have.
    pub(super) hidden: Matrix,
    /// Its norm.
    pub(super) norm: Option<Norm>,
    /// From there to logits.
    pub(super) head: &'p [Matrix],
    /// Logits that these are added to.
    pub(super) base: Option<Matrix>,
    /// Rows that share a row of them, one after the other.
    pub(super) rows_of_base: usize,
    /// Where the sum goes.
    pub(super) logits: Matrix,
    /// What becomes of the tokens.
    pub(super) choice: Choice,
    /// Whether the rows go on in their normed form.
    pub(super) feed_back_normed: bool,
}

impl Shape {
    fn of(description: &Speculator) -> Result<Self> {
        let sizes = &description.decoder.sizes;
        if sizes.head_dim > MAX_HEAD_DIM {
            return Err(Error::unsupported(format!(
                "head_dim: expected at most {MAX_HEAD_DIM}, found {}",
                sizes.head_dim
            )));
        }
        Ok(Self {
            hidden: sizes.hidden,
            intermediate: sizes.intermediate,
            features: description.features.iter().map(|feature| feature.width).sum(),
            draft_vocabulary: sizes.draft_vocabulary,
            heads: AttentionHeads {
                num_heads: sizes.heads,
                num_kv_heads: sizes.kv_heads,
                head_dim: sizes.head_dim,
            },
            activation: match description.decoder.activation {
                checkpoint::Activation::Silu => Activation::Silu,
                checkpoint::Activation::GeluTanh => Activation::GeluTanh,
                checkpoint::Activation::Gelu => Activation::Gelu,
                checkpoint::Activation::Relu => Activation::Relu,
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
            output: placement.linear(&description.output)?,
            attention_gate: match &description.attention_gate {
                Some(gate) => Some(placement.linear(gate)?),
                None => None,
            },
            post_attention_norm: placement.norm(&description.post_attention_norm, epsilon)?,
            mlp: match &description.mlp {
                checkpoint::Mlp::Gated(mlp) => Mlp::Gated {
                    gate: placement.linear(&mlp.gate)?,
                    up: placement.linear(&mlp.up)?,
                    down: placement.linear(&mlp.down)?,
                },
                checkpoint::Mlp::Experts(experts) => {
                    Mlp::Experts(Experts::place(experts, placement)?)
                }
            },
            attention_convolution: convolution(&description.attention_convolution, placement)?,
            mlp_convolution: convolution(&description.mlp_convolution, placement)?,
            mask: Mask {
                window: description.window,
                window_from_block: description.window_from_block,
                sees_block: description.sees_block,
            },
        })
    }
}

fn place_kv(
    description: &checkpoint::DecoderLayer,
    epsilon: f32,
    placement: &mut Placement<'_>,
) -> Result<KvProjection> {
    Ok(KvProjection {
        key: placement.linear(&description.key)?,
        value: placement.linear(&description.value)?,
        key_norm: placement.optional_norm(description.key_norm.as_ref(), epsilon)?,
    })
}

fn convolution(
    description: &Option<checkpoint::Convolution>,
    placement: &mut Placement<'_>,
) -> Result<Option<Convolution>> {
    let Some(description) = description else { return Ok(None) };
    Ok(Some(Convolution {
        taps: description.taps,
        base: placement.tensor(&description.base)?,
        projection: placement.tensor(&description.projection)?,
    }))
}
