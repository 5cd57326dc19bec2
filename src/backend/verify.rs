//! The plain data of verification, and the seam between the rules and the rows that they look at.

use super::phases::Column;
use crate::tensor::{Matrix, Span};

/// How tokens are drawn, one element per sequence; absent arrays mean their defaults.
#[derive(Clone, Copy, Debug, Default)]
pub struct SamplingArrays {
    /// Temperatures; absent is 0, which is greedy.
    pub temperature: Option<Span<f32>>,
    /// Top-k; absent is 0, all.
    pub top_k: Option<Span<i32>>,
    /// Top-p; absent is 1, all.
    pub top_p: Option<Span<f32>>,
    /// Min-p; absent is 0, all.
    pub min_p: Option<Span<f32>>,
    /// Seeds; absent is 0.
    pub seed: Option<Span<u64>>,
}

/// The distribution that drafts were drawn from.
#[derive(Clone, Copy, Debug)]
pub struct DraftDistribution {
    /// Logits over the candidates, `[Q, C]`.
    pub logits: Matrix,
    /// The target's ids of the candidates, `[C]` or `[Q, C]`; `None` is the identity. A negative id
    /// is no candidate.
    pub token_ids: Option<Span<i32>>,
    /// Elements from one row of `token_ids` to the next; 0 is the same for all.
    pub token_ids_stride: usize,
    /// The row of each sequence's first draft; `None` is `b * rows_per_sequence`.
    pub row_begin: Option<Span<i32>>,
    /// Rows per sequence where there is no `row_begin`.
    pub rows_per_sequence: usize,
    /// How the drafts were drawn; `None` is as the call's tokens are.
    pub sampling: Option<SamplingArrays>,
}

/// What a host hands to one verification.
#[derive(Clone, Copy, Debug)]
pub struct VerifyBatch {
    /// B.
    pub num_sequences: usize,
    /// K.
    pub max_drafts: usize,
    /// The target's logits, `[R, V]`.
    pub logits: Matrix,
    /// The root's row; `None` is `b * (K + 1)`.
    pub row_begin: Option<Span<i32>>,
    /// Drafts of each sequence, negative where it takes no part; `None` is K for all.
    pub num_drafts: Option<Span<i32>>,
    /// The drafts, `[B, stride]`; -1 was struck out.
    pub draft_tokens: Column,
    /// The root's position. May lie in the decision records.
    pub position: Column,
    /// Tokens that a sequence may still emit.
    pub limit: Option<Span<i32>>,
    /// How tokens are drawn.
    pub sampling: SamplingArrays,
    /// What drafts were drawn from; `None`: they are taken as given.
    pub draft: Option<DraftDistribution>,
    /// Random numbers in [0, 1), `[B, 2 (K + 1)]`, instead of the seeded ones.
    pub uniforms: Option<Span<f64>>,
    /// Tokens that end the emission.
    pub stop_tokens: Span<i32>,
    /// What stands beyond the emitted tokens of a record.
    pub padding: i32,
    /// The decision records, `[B, stride]`, written.
    pub decisions: Column,
    /// `[3 + K]`, added to.
    pub counters: Option<Span<u64>>,
}

/// What was proposed below a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proposal {
    /// Nothing.
    None,
    /// A token that the host struck out after it had been drawn.
    StruckOut,
    /// A token of the target's vocabulary.
    Token(usize),
}

/// What a rule decides at a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// This token, the proposed one, is emitted, and its node is the next one.
    Accept(usize),
    /// This token is emitted, and nothing after it.
    Emit(usize),
}

/// The target's logits at a node, seen with the sequence's parameters: p, and beside it q, the
/// distribution that the proposal was drawn from.
pub trait TargetRow {
    /// Whether the sequence takes the largest logit.
    fn is_greedy(&self) -> bool;
    /// The largest logit's token, of equal ones the lowest.
    fn argmax(&mut self) -> usize;
    /// A token drawn from p, with the number of the emitted token.
    fn draw(&mut self) -> usize;
    /// Whether the token passes the test with probability min(1, p / q), with the number of the
    /// test. Without a distribution, q is 1 at the token.
    fn accepts(&mut self, token: usize) -> bool;
    /// A token drawn from max(p - q, 0), normalised, with the number of the emitted token; from p
    /// where q is nowhere below p, or is not known: there is neither a distribution nor a token.
    fn draw_residual(&mut self, token: Option<usize>) -> usize;
}

/// The rules, for devices that run code of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleKind {
    /// The target's largest logit.
    Greedy,
    /// The target's own draw.
    Follow,
    /// Rejection sampling.
    Rejection,
}

/// An acceptance rule.
pub trait Rule: std::fmt::Debug + Send + Sync {
    /// Which one it is.
    fn kind(&self) -> RuleKind;

    /// Decides at one node.
    fn decide(&self, proposal: Proposal, row: &mut dyn TargetRow) -> Decision;
}

/// Where things stand in a decision record; the numbers are part of the ABI.
pub mod record {
    /// Drafts accepted.
    pub const ACCEPTED: usize = 0;
    /// Tokens emitted.
    pub const EMITTED: usize = 1;
    /// The last emitted token.
    pub const NEXT_TOKEN: usize = 2;
    /// Its position.
    pub const NEXT_POSITION: usize = 3;
    /// The flags.
    pub const FLAGS: usize = 4;
    /// The emitted tokens; the path follows them.
    pub const TOKENS: usize = 8;

    /// A row had no candidate.
    pub const NO_CANDIDATE: i32 = 1;
    /// The last emitted token is a stop token.
    pub const STOPPED: i32 = 2;
    /// As many tokens were emitted as the limit allows.
    pub const LIMIT: i32 = 4;
    /// The sequence's arrays hold something out of range.
    pub const INVALID: i32 = 8;

    /// The elements of a record for `max_drafts` drafts.
    pub const fn len(max_drafts: usize) -> usize {
        TOKENS + 2 * (max_drafts + 1)
    }
}
