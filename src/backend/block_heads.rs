//! The plain data of the phases that only some block drafters have: convolutions over a block's rows, and
//! the heads that let the tokens of a block depend on each other.

use super::draft_trees::ColumnTokens;
use super::phases::{DraftBatch, Norm, Rows};
use crate::tensor::{Matrix, Span};

/// The rows of blocks that tokens are proposed from. In matrices with `len` rows for each block it is the
/// rows from `first_slot` on; in those of slots, `num_slots` rows for each block.
#[derive(Clone, Copy, Debug)]
pub struct Slots {
    /// The drafting rows, one for each block.
    pub draft: Rows,
    /// Rows of a block.
    pub len: usize,
    /// The first row of a block that a token is proposed from.
    pub first_slot: usize,
    /// Rows of a block that tokens are proposed from.
    pub num_slots: usize,
}

impl Slots {
    /// The slot of a block with a number.
    pub fn slot(&self, block: usize, index: usize) -> usize {
        block * self.num_slots + index
    }

    /// Rows of a block up to its last slot.
    pub fn used(&self) -> usize {
        self.first_slot + self.num_slots
    }
}

/// A convolution over the rows of each block (DFlash2): element c of a row becomes the sum over the row
/// and those before it in its block, t rows back, of that row's element c times `base[t, c] +
/// coefficients[row, t, c / group]`.
#[derive(Clone, Copy, Debug)]
pub struct Convolve {
    /// The rows, block after block.
    pub rows: Rows,
    /// Rows of a block.
    pub len: usize,
    /// `[rows, H]`.
    pub from: Matrix,
    /// Its norm.
    pub norm: Option<Norm>,
    /// `[taps, H]`.
    pub base: Matrix,
    /// `[rows, taps * groups]`.
    pub coefficients: Matrix,
    /// Scratch for the normed rows.
    pub input: Matrix,
    /// `[rows, H]`: written or, if `adds`, added to. Not what it comes from.
    pub to: Matrix,
    /// Whether the result is added.
    pub adds: bool,
}

/// What a Markov head makes of the token before.
#[derive(Clone, Copy, Debug)]
pub enum MarkovCell {
    /// The embedded token.
    Vanilla,
    /// The embedded token times the sigmoid of `weight` of it plus the row's part.
    Gated {
        /// `[rank, rank]`.
        weight: Matrix,
    },
    /// A gated recurrent cell: with `[a, b, o]` = `weight` of the state and the embedded token plus the
    /// row's part, the next state is sigmoid(a) of it plus 1 - sigmoid(a) of tanh(b), the output
    /// tanh(o).
    Recurrent {
        /// `[3 * rank, 2 * rank]`.
        weight: Matrix,
        /// Whether the state is zero before.
        is_first: bool,
    },
}

/// A step of a Markov head (DSpark): from the token before to what its readout reads.
#[derive(Clone, Copy, Debug)]
pub struct StepMarkov {
    /// The rows; `token` is the token before.
    pub rows: Rows,
    /// `[V, rank]`.
    pub embedding: Matrix,
    /// What is done to it.
    pub cell: MarkovCell,
    /// What the cell's map makes of a hidden state, biases included: `[parts, rank]` or `[parts, 3 *
    /// rank]`. No rows where the cell reads none.
    pub part: Matrix,
    /// Rows that share a row of `part`, one after the other.
    pub rows_of_part: usize,
    /// `[rows, rank]`: the state after the step before.
    pub state: Matrix,
    /// The row of `state` that each row goes on from; `None` is its own.
    pub from: Option<Span<i32>>,
    /// The same after this one, written.
    pub next_state: Matrix,
    /// Scratch, `[rows, 5 * rank]`.
    pub scratch: Matrix,
    /// `[rows, rank]`, written.
    pub output: Matrix,
}

/// How probably each proposal is accepted, as far as its head can tell; drops proposals from the first on
/// that is reached with too small a probability.
#[derive(Clone, Copy, Debug)]
pub struct RateDrafts<'a> {
    /// The slots; the token of a drafting row is what it drafted last.
    pub slots: Slots,
    /// The blocks' rows, whose first have the token before the first proposal.
    pub blocks: Rows,
    /// How many tokens each sequence proposes.
    pub num_drafts: Span<i32>,
    /// The call.
    pub batch: DraftBatch<'a>,
    /// What the head's map makes of the hidden states of the blocks' rows, bias included: `[rows, 1]`.
    pub part: Matrix,
    /// The embedding of the token before, `[V, rank]`, and what the map makes of it, `[1, rank]`.
    pub token: Option<(Matrix, Matrix)>,
}

/// The tokens with the largest logits of each row, in falling order, of equal ones the lowest id first.
#[derive(Clone, Copy, Debug)]
pub struct SelectCandidates {
    /// The slots.
    pub rows: Rows,
    /// `[rows, V]`.
    pub logits: Matrix,
    /// Their ids, `[rows, count]`, written.
    pub ids: Span<i32>,
    /// Their logits, `[rows, count]` F32, written.
    pub values: Matrix,
}

/// What tells how well candidates follow a token (DFlash2).
#[derive(Clone, Copy, Debug)]
pub struct Selector {
    /// `[V, rank]`.
    pub predecessors: Matrix,
    /// `[V, rank]`.
    pub successors: Matrix,
}

/// A walk through the candidates of each block (DFlash2): a candidate's score is its logit plus the sum
/// over the predecessor's row, the slot's and its own; the token that is drawn from the scores is the next
/// slot's predecessor.
#[derive(Clone, Copy, Debug)]
pub struct WalkCandidates<'a> {
    /// The slots; the token of a drafting row is the first predecessor.
    pub slots: Slots,
    /// How many tokens each sequence proposes.
    pub num_drafts: Span<i32>,
    /// The call.
    pub batch: DraftBatch<'a>,
    /// As [`SelectCandidates`] wrote them.
    pub ids: Span<i32>,
    /// As [`SelectCandidates`] wrote them; becomes the scores.
    pub values: Matrix,
    /// `[slots, rank]`: what the selector makes of the hidden states. Does not stay.
    pub projected: Matrix,
    /// Its maps.
    pub selector: Selector,
    /// Scratch of [`super::Backend::proposal_scratch`] bytes for `count` columns, prepared.
    pub scratch: Span<u8>,
}

/// The scores of the candidates below each row of a level of trees (DFlash2), as a walk that has come to
/// the row's token makes them. The rows of a tree share a slot, whose memory stays as it is.
#[derive(Clone, Copy, Debug)]
pub struct ScoreCandidates {
    /// The rows; `token` is the predecessor.
    pub rows: Rows,
    /// The candidates, as [`SelectCandidates`] wrote them: a table for each slot, shared by its rows.
    pub candidates: ColumnTokens,
    /// `[slots, count]`: their logits.
    pub values: Matrix,
    /// `[slots, rank]`: what the selector makes of the hidden states.
    pub projected: Matrix,
    /// Its maps.
    pub selector: Selector,
    /// Scratch, `[rows, rank]`.
    pub weights: Matrix,
    /// `[rows, count]`, written: the scores.
    pub scores: Matrix,
}

/// The weights of a refiner.
#[derive(Clone, Copy, Debug)]
pub struct RefinerWeights {
    /// `[V, rank]`.
    pub embedding: Matrix,
    /// `[rank, 3 * rank]`.
    pub input: Matrix,
    /// `[rank * rows, rows]`: the weights of the rows of a block, for each element and row.
    pub mix: Matrix,
    /// `[inner, rank]`.
    pub gate: Matrix,
    /// `[inner, rank]`.
    pub up: Matrix,
    /// `[rank, inner]`.
    pub down: Matrix,
}

/// One pass of a refiner (XPress) up to what its readout reads: input map, mixing of the rows of a block up
/// to each, and a gated MLP with SiLU that is added.
#[derive(Clone, Copy, Debug)]
pub struct Refine<'a> {
    /// The slots; the token of a drafting row is the block's first one.
    pub slots: Slots,
    /// The slots' rows, whose tokens are those of the last pass.
    pub rows: Rows,
    /// The blocks' rows.
    pub block_rows: Rows,
    /// The rows that were committed: where the token before the block's first one comes from.
    pub commit: Rows,
    /// The call.
    pub batch: DraftBatch<'a>,
    /// `[block rows, 2 * rank]`: of each row's hidden state its own part and its part of the mean.
    pub features: Matrix,
    /// The weights.
    pub weights: RefinerWeights,
    /// Scratch, `[block rows, 3 * rank]`.
    pub input: Matrix,
    /// Scratch, `[block rows, rank]`.
    pub mixed: Matrix,
    /// Scratch, `[slots, inner]`.
    pub inner: Matrix,
    /// `[slots, rank]`, written.
    pub output: Matrix,
}
