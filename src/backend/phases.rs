//! The plain data of the phases that a drafting step is made of. Everything is addresses and
//! sizes: a phase reads counts, positions and tables from memory of the device when it runs, so
//! that nothing of a step has to be known to the host when the phase is enqueued.

pub use crate::tensor::Column;

use super::draft_trees::{TreeKv, TreeShape};
use super::verify::SamplingArrays;
use crate::tensor::{Carver, Matrix, Span};
use crate::tree::Links;

/// What a host hands to one drafting call.
#[derive(Clone, Copy, Debug)]
pub struct DraftBatch<'a> {
    /// B.
    pub num_sequences: usize,
    /// The rows of `tokens` and of every feature.
    pub num_rows: usize,
    /// The most tokens to propose for any sequence of this call.
    pub max_drafts: usize,
    /// The position of `next_token`, for each sequence.
    pub position: Column,
    /// The rows to commit: those of the positions `position - row_count .. position`.
    pub row_count: Column,
    /// The verified token that has not been run through the target yet.
    pub next_token: Column,
    /// The first row of each sequence; `None` is `b * (max_drafts + 1)`.
    pub row_begin: Option<Span<i32>>,
    /// Which rows after the first, when they are not contiguous: a negative first entry is
    /// contiguous all the same.
    pub row_index: Option<Column>,
    /// Tokens to propose; `None` is `max_drafts` for all.
    pub num_drafts: Option<Span<i32>>,
    /// Tokens that the sequence may still emit; at most one less is proposed.
    pub limit: Option<Span<i32>>,
    /// The first position that has drafter rows; `None` is 0.
    pub context_begin: Option<Span<i32>>,
    /// The pages of each sequence; `None` uses the session's slots.
    pub block_table: Option<Column>,
    /// The slot of each sequence where there is no block table; `None` is `b`.
    pub slot: Option<Span<i32>>,
    /// The tokens of the rows.
    pub tokens: Span<i32>,
    /// RoPE positions of the rows where they differ from the positions.
    pub rope_position: Option<Span<i32>>,
    /// One matrix `[num_rows, width]` per feature.
    pub features: &'a [Matrix],
    /// Embeddings of the rows whose token is -1.
    pub embeddings: Option<Matrix>,
    /// How the proposals are drawn; all absent is greedy.
    pub sampling: SamplingArrays,
    /// What trees are drafted; `None` is chains.
    pub shape: Option<TreeShape<'a>>,
    /// Where the host wants to know the trees.
    pub links: Option<Links>,
    /// The proposals, `[B, stride]`.
    pub draft_tokens: Column,
    /// How many tokens were proposed.
    pub num_proposed: Option<Span<i32>>,
    /// The logits that the proposals were drawn from, row `b * max_drafts + step`; in trees those that the
    /// children of a node were drawn from, row `b * max_drafts + node`.
    pub draft_logits: Option<Matrix>,
    /// Where drafters choose out of candidates: the ids of their columns, in the same rows.
    pub draft_candidates: Option<Span<i32>>,
    /// How probably each proposal is accepted, in the same rows, as far as the drafter tells.
    pub confidence: Option<Span<f32>>,
    /// Proposals end before the first one whose confidence, times that of all before it, is below this.
    pub min_confidence: f32,
    /// What stands in `draft_tokens` beyond the proposals.
    pub padding: i32,
}

impl DraftBatch<'_> {
    /// A call that has no array yet.
    pub const fn new(num_sequences: usize, max_drafts: usize) -> Self {
        const NONE: Column = Column { span: Span::new(0, 0), stride: 0 };
        Self {
            num_sequences,
            num_rows: 0,
            max_drafts,
            position: NONE,
            row_count: NONE,
            next_token: NONE,
            row_begin: None,
            row_index: None,
            num_drafts: None,
            limit: None,
            context_begin: None,
            block_table: None,
            slot: None,
            tokens: Span::new(0, 0),
            rope_position: None,
            features: &[],
            embeddings: None,
            sampling: SamplingArrays::NONE,
            shape: None,
            links: None,
            draft_tokens: NONE,
            num_proposed: None,
            draft_logits: None,
            draft_candidates: None,
            confidence: None,
            min_confidence: 0.0,
            padding: -1,
        }
    }
}

/// What a session was created for.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The most rows that one call commits.
    pub max_rows: usize,
    /// Positions lie below this.
    pub max_position: usize,
    /// The target's vocabulary.
    pub vocabulary: usize,
    /// The number of slots where there is no block table.
    pub num_slots: usize,
    /// The most tokens that are proposed for a sequence, one behind the other, whatever the call asks for.
    pub most_drafts: usize,
    /// Whether drafts take pages behind those of the committed rows.
    pub drafts_in_pages: bool,
    /// Whether a row goes with its own token, and not with that of the row after it. The next token of a
    /// sequence that drafts then has a row of its own, behind those that the host commits.
    pub reads_own_tokens: bool,
}

/// The KV pages of a session. A page holds, for each layer, the keys and then the values of
/// `page_size` positions, `[num_kv_heads, page_size, head_dim]` each.
#[derive(Clone, Copy, Debug)]
pub struct KvPool {
    /// The pages, one row each, in the KV element type.
    pub pages: Matrix,
    /// Positions of a page.
    pub page_size: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// The pages of the slots, `[num_slots, pages_per_slot]`, for calls without a block table.
    pub slot_pages: Span<i32>,
    /// The row length of `slot_pages`.
    pub pages_per_slot: usize,
}

/// Rows that a phase works on, one element per row in every span. Element 0 of `count` says how
/// many there are, at most `len`.
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    /// The number of rows, one element.
    pub count: Span<i32>,
    /// Rows before the first one of this view that `count` counts too.
    pub first: usize,
    /// The sequence.
    pub sequence: Span<i32>,
    /// The position, which is the index of the row's keys and values.
    pub position: Span<i32>,
    /// The position that the rotary embedding turns by.
    pub rope_position: Span<i32>,
    /// The token that the row embeds, or `-1 - r` for row `r` of the host's embeddings.
    pub token: Span<i32>,
    /// The row of the features (for rows to commit) or of all rows to commit (for drafting rows)
    /// that this row continues.
    pub source: Span<i32>,
}

impl Rows {
    /// Memory for `len` rows.
    pub fn carve(carver: &mut Carver, len: usize) -> Self {
        Self {
            count: carver.span(1),
            first: 0,
            sequence: carver.span(len),
            position: carver.span(len),
            rope_position: carver.span(len),
            token: carver.span(len),
            source: carver.span(len),
        }
    }

    /// The most rows there can be.
    pub fn len(&self) -> usize {
        self.sequence.len()
    }

    /// Whether there can be no rows at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// At most `len` of the rows from the `start`-th on.
    pub fn slice(&self, start: usize, len: usize) -> Self {
        Self {
            count: self.count,
            first: self.first + start,
            sequence: self.sequence.slice(start, len),
            position: self.position.slice(start, len),
            rope_position: self.rope_position.slice(start, len),
            token: self.token.slice(start, len),
            source: self.source.slice(start, len),
        }
    }
}

/// The rows of one drafting call, filled by [`super::Backend::plan_rows`].
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The rows to commit, sequence by sequence in rising position, each with the row of its next token
    /// behind it if that has one.
    pub commit: Rows,
    /// One row per sequence that drafts, those with the most tokens to propose first, so that the
    /// sequences still drafting at any step are the first `drafting[step]`.
    pub draft: Rows,
    /// How many sequences propose more than `step` tokens, `[max_drafts]`.
    pub drafting: Span<i32>,
    /// How many tokens each sequence proposes.
    pub num_drafts: Span<i32>,
    /// How deep its tree may be, where trees are dynamic.
    pub depth: Span<i32>,
    /// What a device keeps of the shape of a call's trees: [`super::draft_trees::SHAPE_TABLES`] numbers of each
    /// node.
    pub shape: Span<i32>,
    /// Where each sequence's pages begin in the table that the call uses.
    pub page_row: Span<i32>,
    /// The first fault since the last poll: its number and its sequence.
    pub fault: Span<i32>,
}

/// Why a sequence took no part in a step. The numbers stand in memory of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Fault {
    /// The sequence's rows do not lie inside of the call's rows.
    Rows = 1,
    /// A position is negative, too large, or before the context's beginning.
    Position = 2,
    /// A page or slot that does not exist.
    Page = 3,
    /// A token outside of the vocabulary.
    Token = 4,
    /// More rows than the session was created for, or than the call has.
    TooManyRows = 5,
}

impl Fault {
    /// The fault with this number.
    pub fn from_number(number: i32) -> Option<Self> {
        [Self::Rows, Self::Position, Self::Page, Self::Token, Self::TooManyRows]
            .into_iter()
            .find(|fault| *fault as i32 == number)
    }

    /// What was expected, for the message of a poll.
    pub const fn expectation(self) -> &'static str {
        match self {
            Self::Rows => "row_begin and row_count (and row_index) inside of the call's rows",
            Self::Position => {
                "context_begin <= position - row_count and position < max_position of the session"
            }
            Self::Page => "pages of the block table (or the slot) inside of the session's pool",
            Self::Token => {
                "tokens of the target's vocabulary, or -1 where the call gives embeddings"
            }
            Self::TooManyRows => {
                "no more rows in all than max_rows of the session and num_rows of the call"
            }
        }
    }
}

/// The gain of an RMS norm.
#[derive(Clone, Copy, Debug)]
pub struct Norm {
    /// One row; `None` is all ones.
    pub weight: Option<Matrix>,
    /// Added to the mean square.
    pub epsilon: f32,
}

/// A linear map, `y = x Wᵀ + b`.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    /// `[outputs, inputs]`.
    pub weight: Matrix,
    /// One row of `outputs`.
    pub bias: Option<Matrix>,
}

impl Linear {
    /// A map without a bias.
    pub fn unbiased(weight: Matrix) -> Self {
        Self { weight, bias: None }
    }
}

/// How the concatenated features are normed before the fusing map.
#[derive(Clone, Copy, Debug)]
pub enum FeatureNorm<'a> {
    /// Not at all.
    None,
    /// As one row.
    Joint(Norm),
    /// Each feature by itself.
    Each(&'a [Norm]),
}

/// Features to hidden state: norm, concatenation, linear map.
#[derive(Clone, Copy, Debug)]
pub struct FuseFeatures<'a> {
    /// The rows; `source` is the row of the features.
    pub rows: Rows,
    /// The host's features.
    pub features: &'a [Matrix],
    /// How they are normed.
    pub norm: FeatureNorm<'a>,
    /// The map.
    pub linear: Linear,
    /// Scratch for the concatenation.
    pub input: Matrix,
    /// The hidden state, written.
    pub hidden: Matrix,
}

/// Where the hidden state of rows comes from.
#[derive(Clone, Copy, Debug)]
pub enum HiddenSource {
    /// A feature of the host, of which a row has the row `source`.
    Feature(Matrix),
    /// The rows themselves, one for each.
    Rows(Matrix),
}

/// Token and hidden state to hidden state: norms, the embedding and the hidden state side by side,
/// linear map.
#[derive(Clone, Copy, Debug)]
pub struct FuseToken<'a> {
    /// The rows.
    pub rows: Rows,
    /// The half that comes from the token.
    pub embedding: EmbeddingInput<'a>,
    /// The other half.
    pub from: HiddenSource,
    /// Its norm.
    pub norm: Option<Norm>,
    /// The map.
    pub linear: Linear,
    /// Scratch for both halves.
    pub input: Matrix,
    /// The hidden state, written; it may be what the rows come from.
    pub hidden: Matrix,
}

/// What a step of an MLP speculator goes on from.
#[derive(Clone, Copy, Debug)]
pub enum StateSource {
    /// A feature of the host.
    Feature {
        /// The feature.
        feature: Matrix,
        /// Its row for each row to commit, of which a drafting row has the row `source`.
        committed: Span<i32>,
        /// Whether it is scaled to a mean square of one half.
        is_scaled: bool,
    },
    /// The state that the step before has written.
    Rows,
}

/// A step of an MLP speculator: state and token to state.
#[derive(Clone, Copy, Debug)]
pub struct StepMlp {
    /// The drafting rows.
    pub rows: Rows,
    /// The state before.
    pub from: StateSource,
    /// Its map, `[D, inputs]`.
    pub projection: Matrix,
    /// `[V, D]`, of the token.
    pub embedding: Matrix,
    /// Multiplies the embedding.
    pub embedding_scale: f32,
    /// The norm of the sum of both.
    pub norm: Norm,
    /// What is added to it before the Gaussian error linear unit, one row.
    pub bias: Matrix,
    /// Scratch for the state before, `[rows, inputs]`.
    pub input: Matrix,
    /// Scratch for the embedding, `[rows, D]`.
    pub embedded: Matrix,
    /// `[rows, D]`, written.
    pub state: Matrix,
}

/// The embedding of each row's token.
#[derive(Clone, Copy, Debug)]
pub struct EmbedTokens<'a> {
    /// The rows.
    pub rows: Rows,
    /// The table.
    pub embedding: EmbeddingInput<'a>,
    /// The residual stream, written.
    pub hidden: Matrix,
}

/// The rotary embedding's tables.
#[derive(Clone, Copy, Debug)]
pub struct Rotary {
    /// Turns per position, `[rotated / 2]`.
    pub inverse_frequency: Span<f32>,
    /// Instead of those from position `long_from` on.
    pub long_inverse_frequency: Span<f32>,
    /// Where the second table begins to hold.
    pub long_from: usize,
    /// Multiplies the cosines and sines.
    pub scale: f32,
}

/// An embedding table whose rows may lie in several pieces.
#[derive(Clone, Copy, Debug)]
pub struct RowSegments<'a> {
    /// The pieces, in the order of their rows.
    pub segments: &'a [Matrix],
}

/// The half of an input that comes from the embedded token.
#[derive(Clone, Copy, Debug)]
pub struct EmbeddingInput<'a> {
    /// The embedding table.
    pub table: RowSegments<'a>,
    /// The host's embeddings, for rows without a token.
    pub embeddings: Option<Matrix>,
    /// The norm of this half.
    pub norm: Option<Norm>,
}

/// The query half of an attention's projections.
#[derive(Clone, Copy, Debug)]
pub struct QueryProjection {
    /// The map to `[heads * head_dim]`.
    pub linear: Linear,
    /// The norm of each head.
    pub norm: Option<Norm>,
    /// The queries, written.
    pub output: Matrix,
}

/// The key and value half, of a layer.
#[derive(Clone, Copy, Debug)]
pub struct KvProjection {
    /// The map to the keys, `[kv_heads * head_dim]`.
    pub key: Linear,
    /// The map to the values, as many.
    pub value: Linear,
    /// The norm of each key head.
    pub key_norm: Option<Norm>,
}

/// Where the pages of the rows' sequences are.
#[derive(Clone, Copy, Debug)]
pub struct Paging {
    /// The pool.
    pub pool: KvPool,
    /// The table that the call uses.
    pub table: Span<i32>,
    /// The first entry of each sequence in it.
    pub page_row: Span<i32>,
    /// The decoder layer, the first one where a phase has several.
    pub layer: usize,
    /// Where the keys and values of the rows themselves are, if they do not enter the pool.
    pub own: Option<OwnKv>,
}

impl Paging {
    /// Those of blocks, if the rows are such.
    pub fn block(&self) -> Option<BlockKv> {
        match self.own {
            Some(OwnKv::Block(block)) => Some(block),
            _ => None,
        }
    }

    /// Those of trees, if the rows are such.
    pub fn tree(&self) -> Option<TreeKv> {
        match self.own {
            Some(OwnKv::Tree(tree)) => Some(tree),
            _ => None,
        }
    }

    /// The pages that are not of the pool.
    pub fn own_pages(&self) -> Option<Matrix> {
        self.own.map(|own| match own {
            OwnKv::Block(block) => block.pages,
            OwnKv::Tree(tree) => tree.pages,
        })
    }
}

/// Keys and values of rows that are drafted from and never enter the pool.
#[derive(Clone, Copy, Debug)]
pub enum OwnKv {
    /// Of blocks.
    Block(BlockKv),
    /// Of trees.
    Tree(TreeKv),
}

/// The keys and values of blocks, which never enter the pool. The rows of a phase are then those of one
/// block after the other, each at the positions from its first row's on.
#[derive(Clone, Copy, Debug)]
pub struct BlockKv {
    /// Pages like those of the pool, but of one layer: for each block as many as its rows take, from its
    /// first row on.
    pub pages: Matrix,
    /// Rows of a block.
    pub len: usize,
}

impl BlockKv {
    /// Pages of each block.
    pub fn pages_per_block(&self, page_size: usize) -> usize {
        self.len.div_ceil(page_size)
    }
}

/// What a row sees of the positions before it and of its block.
#[derive(Clone, Copy, Debug)]
pub struct Mask {
    /// A row sees this many positions, itself the last; `None` is all.
    pub window: Option<usize>,
    /// Whether the window is instead this many positions before the row's block, and all of what the
    /// row sees of the block.
    pub window_from_block: bool,
    /// Whether a row sees its whole block, and not only what stands before it there.
    pub sees_block: bool,
}

/// Norm, query / key / value maps, per-head norms, rotary embedding, append to the pages. Layers that read
/// the same rows append their keys and values together.
#[derive(Clone, Copy, Debug)]
pub struct Project<'a> {
    /// The rows.
    pub rows: Rows,
    /// The residual stream.
    pub hidden: Matrix,
    /// Its norm.
    pub norm: Option<Norm>,
    /// Whether the residual stream goes on as its normed form (not where only keys and values are
    /// asked for).
    pub residual_is_normed: bool,
    /// What stands before it in the input of the first layer.
    pub embedding: Option<EmbeddingInput<'a>>,
    /// Scratch for the normed input.
    pub input: Matrix,
    /// The queries, where they are wanted.
    pub query: Option<QueryProjection>,
    /// The keys and values, where they are wanted: of the layer that `paging` names and of those that
    /// follow it. Rows of blocks have those of one layer.
    pub kv: &'a [KvProjection],
    /// Scratch for keys and values in the order of their pages: of each layer the keys, then the values,
    /// `[rows, layers * 2 * kv_heads * head_dim]`.
    pub kv_scratch: Matrix,
    /// The rotary embedding.
    pub rotary: Rotary,
    /// Scratch for its cosines and sines, `[rows, rotated]`.
    pub turns: Matrix,
    /// Where keys and values go.
    pub paging: Paging,
    /// Scratch of [`super::Backend::projection_scratch`] bytes, prepared.
    pub scratch: Span<u8>,
}

/// The most elements of a head.
pub const MAX_HEAD_DIM: usize = 512;

/// The heads of an attention.
#[derive(Clone, Copy, Debug)]
pub struct AttentionHeads {
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; query head h reads head `h / (num_heads / num_kv_heads)`.
    pub num_kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
}

/// Attention of each row over its sequence's pages.
#[derive(Clone, Copy, Debug)]
pub struct Attend {
    /// The rows.
    pub rows: Rows,
    /// The heads.
    pub heads: AttentionHeads,
    /// `[rows, heads * head_dim]`.
    pub query: Matrix,
    /// The same shape, written.
    pub output: Matrix,
    /// Where keys and values are.
    pub paging: Paging,
    /// The first position with keys, per sequence; `None` is 0.
    pub context_begin: Option<Span<i32>>,
    /// What a row sees.
    pub mask: Mask,
    /// Multiplies the scores.
    pub scale: f32,
    /// Scratch of [`super::Backend::attention_scratch`] bytes, prepared.
    pub scratch: Span<u8>,
}

/// Multiplies each element by the sigmoid of its gate.
#[derive(Clone, Copy, Debug)]
pub struct GateRows {
    /// The rows.
    pub rows: Rows,
    /// `[rows, width]`.
    pub gates: Matrix,
    /// The same shape, multiplied.
    pub values: Matrix,
}

/// A linear map whose result is added to the residual stream.
#[derive(Clone, Copy, Debug)]
pub struct AddProjection {
    /// The rows.
    pub rows: Rows,
    /// `[rows, inputs]`.
    pub input: Matrix,
    /// The map.
    pub linear: Linear,
    /// The residual stream, added to.
    pub hidden: Matrix,
}

/// Norm and linear map of rows.
#[derive(Clone, Copy, Debug)]
pub struct MapRows<'a> {
    /// The rows.
    pub rows: Rows,
    /// `[rows, inputs]`.
    pub from: Matrix,
    /// Its norm.
    pub norm: Option<Norm>,
    /// `[outputs, inputs]`.
    pub weight: RowSegments<'a>,
    /// One row of `outputs`.
    pub bias: Option<Matrix>,
    /// Scratch for the normed input.
    pub input: Matrix,
    /// `[rows, outputs]`, written.
    pub to: Matrix,
}

/// Elementwise functions of a gated MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + exp(-x))`.
    Silu,
    /// The Gaussian error linear unit through tanh.
    GeluTanh,
    /// The Gaussian error linear unit through the error function.
    Gelu,
    /// `max(x, 0)`.
    Relu,
}

/// Norm, gate and up maps, activation, product.
#[derive(Clone, Copy, Debug)]
pub struct GateUp {
    /// The rows.
    pub rows: Rows,
    /// The residual stream.
    pub hidden: Matrix,
    /// Its norm.
    pub norm: Option<Norm>,
    /// The gate.
    pub gate: Linear,
    /// What it gates.
    pub up: Linear,
    /// Applied to the gate.
    pub activation: Activation,
    /// Scratch for the normed input.
    pub input: Matrix,
    /// `[rows, intermediate]`, written.
    pub output: Matrix,
}

/// What enters the first layer with the rows of a block.
#[derive(Clone, Copy, Debug)]
pub enum BlockInput<'a> {
    /// The embedding of each row's token.
    Embedding(EmbeddingInput<'a>),
    /// A hidden state: of the first row of each block, one row for each drafting row; of all others the
    /// same one.
    Hidden {
        /// Of the first rows.
        first: Matrix,
        /// Of the others, one row.
        others: Matrix,
    },
}

/// Lays out a block for each drafting row, and what enters the first layer with its rows.
#[derive(Clone, Copy, Debug)]
pub struct StartBlock<'a> {
    /// The drafting rows, one for each sequence: the last row that was committed, with the next token.
    pub draft: Rows,
    /// The rows of all blocks, written, their count as well. The first one of a block has the drafting
    /// row's token, the others the mask token.
    pub rows: Rows,
    /// Rows of a block.
    pub len: usize,
    /// Positions from the drafting row to the first row of its block.
    pub distance: usize,
    /// The token of the other rows.
    pub mask_token: i32,
    /// The rows that tokens are proposed from, written, their count as well: `num_slots` of each block,
    /// at the positions from the drafting row's on. `source` is their place among the blocks' rows.
    pub slots: Rows,
    /// The first row of a block that a token is proposed from.
    pub first_slot: usize,
    /// Tokens that are proposed from a block, at most.
    pub num_slots: usize,
    /// What enters the first layer.
    pub input: BlockInput<'a>,
    /// The residual stream of the blocks' rows, written.
    pub hidden: Matrix,
}

/// Copies the residual stream of the rows that go on drafting out of a chunk of committed rows.
#[derive(Clone, Copy, Debug)]
pub struct Gather {
    /// The drafting rows; `source` counts all rows to commit.
    pub rows: Rows,
    /// The chunk's residual stream.
    pub from: Matrix,
    /// The first committed row of the chunk.
    pub first: usize,
    /// The rows of the chunk.
    pub len: usize,
    /// The drafting rows' residual stream, written where the source lies in the chunk.
    pub to: Matrix,
}

/// What becomes of the tokens that rows choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// They are drawn as the call says and proposed; the rows move on to the next step.
    Proposed,
    /// Those with the largest logits stay in the rows, which stay where they are.
    Kept {
        /// Whether a later phase reads the logits.
        with_logits: bool,
    },
}

/// Norm, head, choice of the next draft token.
#[derive(Clone, Copy, Debug)]
pub struct Propose<'a> {
    /// The drafting rows of this step.
    pub rows: Rows,
    /// The first token that is proposed, from 0.
    pub step: usize,
    /// Rows of each sequence, one after the other, for as many tokens from the step on.
    pub slots: usize,
    /// Positions from a row to the token that it proposes: 1 where rows read their own tokens, 2 where they
    /// read that of the next row.
    pub distance: usize,
    /// How many tokens each sequence proposes: rows beyond that propose nothing.
    pub num_drafts: Span<i32>,
    /// The call.
    pub batch: DraftBatch<'a>,
    /// The residual stream.
    pub hidden: Matrix,
    /// Its norm.
    pub norm: Option<Norm>,
    /// Whether the next step continues from the normed form.
    pub feed_back_normed: bool,
    /// The rows of the head.
    pub head: RowSegments<'a>,
    /// Logits that the head's are added to; they may be `logits` if each row has its own.
    pub base: Option<Matrix>,
    /// Rows that share a row of `base`, one after the other.
    pub rows_of_base: usize,
    /// What becomes of the tokens.
    pub choice: Choice,
    /// The target's id of each row of the head; `None` is the identity.
    pub target_ids: Option<Span<i32>>,
    /// Scratch for the normed input.
    pub input: Matrix,
    /// Memory for the logits, which a device need not write unless [`Choice::Kept`] says so.
    pub logits: Matrix,
    /// Scratch of [`super::Backend::proposal_scratch`] bytes, prepared.
    pub scratch: Span<u8>,
}
