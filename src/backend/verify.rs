//! The plain data of verification, and the seam between the rules and the rows that they look at.

use super::phases::Column;
use super::processing::Processing;
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

impl SamplingArrays {
    /// All absent.
    pub const NONE: Self =
        Self { temperature: None, top_k: None, top_p: None, min_p: None, seed: None };
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
    /// K: the most nodes of a sequence beside the root.
    pub max_drafts: usize,
    /// The target's logits, `[R, V]`.
    pub logits: Matrix,
    /// The root's row; `None` is `b * (K + 1)`.
    pub row_begin: Option<Span<i32>>,
    /// Drafts of each sequence, negative where it takes no part; `None` is K for all.
    pub num_drafts: Option<Span<i32>>,
    /// The drafts, `[B, stride]`; -1 was struck out. Draft i, counted from 0, is node i + 1.
    pub draft_tokens: Column,
    /// The parent of each node, `[B, K + 1]`; a stride of 0 is one tree for all. `None`: chains.
    pub parents: Option<Column>,
    /// The root's position. May lie in the decision records.
    pub position: Column,
    /// Tokens that a sequence may still emit.
    pub limit: Option<Span<i32>>,
    /// What is done to the logits before.
    pub processing: Option<Processing>,
    /// How tokens are drawn.
    pub sampling: SamplingArrays,
    /// What drafts were drawn from; `None`: they are taken as given.
    pub draft: Option<DraftDistribution>,
    /// Random numbers in [0, 1), `[B, 2 (K + 1)]`, instead of the seeded ones.
    pub uniforms: Option<Span<f64>>,
    /// What lossy rules go by.
    pub leniency: Leniency,
    /// Tokens that end the emission.
    pub stop_tokens: Span<i32>,
    /// What stands beyond the emitted tokens of a record.
    pub padding: i32,
    /// The decision records, `[B, stride]`, written.
    pub decisions: Column,
    /// `[3 + K]`, added to.
    pub counters: Option<Span<u64>>,
    /// Of emitted tokens, by the logits as they are.
    pub raw_logprobs: Option<Logprobs>,
    /// Of emitted tokens, by what they were decided by.
    pub processed_logprobs: Option<Logprobs>,
}

/// The most alternatives of an emitted token.
pub const ALTERNATIVES_MAX: usize = 256;

/// Where the host wants to know how probable the emitted tokens were. For each there is a place of
/// `alternatives + 1` elements: of the token itself, then of the most probable tokens. Places that
/// nothing was emitted for hold NaN, -1 and rank 0.
#[derive(Clone, Copy, Debug)]
pub struct Logprobs {
    /// n.
    pub alternatives: usize,
    /// Logarithms of probabilities, `[B, K + 1, n + 1]`, written.
    pub values: Span<f32>,
    /// Whose they are, `[B, K + 1, n + 1]`, written; not absent if there are alternatives.
    pub token_ids: Option<Span<i32>>,
    /// The ranks of the emitted tokens, `[B, K + 1]`, written: 1 for the most probable one.
    pub ranks: Option<Span<i32>>,
}

impl VerifyBatch {
    /// Greedy chains of `max_drafts` drafts, taken as given, without limits and stop tokens.
    pub const fn new(
        (num_sequences, max_drafts): (usize, usize),
        logits: Matrix,
        draft_tokens: Column,
        position: Column,
        decisions: Column,
    ) -> Self {
        Self {
            num_sequences,
            max_drafts,
            logits,
            row_begin: None,
            num_drafts: None,
            draft_tokens,
            parents: None,
            position,
            limit: None,
            processing: None,
            sampling: SamplingArrays::NONE,
            draft: None,
            uniforms: None,
            leniency: Leniency::NONE,
            stop_tokens: Span::new(0, 0),
            padding: -1,
            decisions,
            counters: None,
            raw_logprobs: None,
            processed_logprobs: None,
        }
    }
}

/// What lossy rules go by; each looks at its own.
#[derive(Clone, Copy, Debug)]
pub struct Leniency {
    /// How many of the largest logits count as equal to the largest, at least 1.
    pub top_n: i32,
    /// How far below the largest logit they may lie.
    pub tolerance: f32,
    /// The probability that is always enough.
    pub epsilon: f32,
    /// The binary logarithm of the factor of `2^-entropy`, in units of 2^-32.
    pub log2_alpha: i64,
    /// The probability with which a draft stands on its own.
    pub threshold_single: f32,
    /// What the probabilities of siblings are divided by.
    pub threshold_accumulated: f32,
    /// `[K]`: the probability that a draft of each depth is accepted.
    pub acceptance: Option<Span<f32>>,
}

impl Leniency {
    /// None.
    pub const NONE: Self = Self {
        top_n: 1,
        tolerance: 0.0,
        epsilon: 1.0,
        log2_alpha: 0,
        threshold_single: 1.0,
        threshold_accumulated: 1.0,
        acceptance: None,
    };
}

impl Default for Leniency {
    fn default() -> Self {
        Self::NONE
    }
}

/// A node below the one that is decided at.
#[derive(Clone, Copy, Debug)]
pub struct Child {
    /// Which node.
    pub node: usize,
    /// Which of the siblings, in the order of their tests.
    pub rank: usize,
    /// Its token; `None` was struck out by the host after it had been drawn.
    pub token: Option<usize>,
    /// Whether the path may go on there: what a rule decides.
    pub is_followed: bool,
}

/// What a rule decides at a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The path goes on at the children that are followed: there is one at least.
    Follow,
    /// This token is emitted, and nothing after it.
    Emit(usize),
}

/// How the siblings of a tree were drawn from q.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Siblings {
    /// Each from all of q.
    Independent,
    /// Each from what its earlier siblings left of q.
    Distinct,
}

/// The target's logits at a node, seen with the sequence's parameters: p, and beside it q, the
/// distribution that the children were drawn from. Weights are those of [`crate::sampling`].
pub trait TargetRow {
    /// Whether the sequence takes the largest logit.
    fn is_greedy(&self) -> bool;
    /// The largest logit's token, of equal ones the lowest.
    fn argmax(&mut self) -> usize;
    /// A token drawn from p, with the number of the emitted token.
    fn draw(&mut self) -> usize;
    /// Whether the child, which has a token, passes the test with probability min(1, r / q), with
    /// the number of its test. r is what the rejected siblings have left of p. Without a
    /// distribution, q is 1 at the token.
    fn accepts(&mut self, child: &Child) -> bool;
    /// Takes q from r, as the child failed its test. Nothing is known of q, and r stays as it is,
    /// where there is neither a distribution nor a token.
    fn reject(&mut self, child: &Child, siblings: Siblings);
    /// A token drawn from r, with the number of the emitted token; from p where nothing is left.
    fn draw_left(&mut self) -> usize;
    /// Takes a token from r as it is.
    fn remove(&mut self, token: usize);
    /// The number of a child's test.
    fn test_number(&self, child: &Child) -> u64;
    /// The weight of a token in p.
    fn weight(&mut self, token: usize) -> u64;
    /// The sum of p's weights.
    fn sum(&mut self) -> u64;
    /// The entropy of p in units of 2^-32 bits.
    fn entropy(&mut self) -> i64;
    /// What a logit has to reach, both of them, to be among the `top_n` largest, with all that equal
    /// the last of them, and at most `tolerance` below the largest; `None` where there is no
    /// candidate.
    fn bounds_near_best(&mut self, top_n: i32, tolerance: f32) -> Option<[f32; 2]>;
    /// The logit of a token; NaN counts as -inf.
    fn logit(&mut self, token: usize) -> f32;
    /// What the call's lossy rule goes by.
    fn leniency(&self) -> Leniency;
    /// The probability with which the call's host wants drafts of the children's depth accepted.
    fn wanted_acceptance(&self) -> f32;
}

/// How probable the drafts of a chain are by p as against q, at most 1: the product of p / q that
/// was never let above 1. In units of 2^-64; [`PrefixWeight::ONE`] is 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefixWeight {
    /// 1.
    One,
    /// Less than 1.
    Fraction(u64),
}

/// The rows of a chain, for a rule that looks at all of them before it decides.
pub trait TargetChain {
    /// The number of drafts.
    fn num_drafts(&self) -> usize;
    /// The prefix weight with the draft below a node added.
    fn extend(&mut self, node: usize, weight: PrefixWeight) -> PrefixWeight;
    /// Whether the number of the draft above a node is below h = s / (s + 1 - w), where s is the
    /// sum of max(w p - q, 0) at the node and w the weight of the prefix that ends there.
    fn passes(&mut self, node: usize, weight: PrefixWeight) -> bool;
    /// Whether the number of the last draft is below the weight of the whole chain.
    fn passes_whole(&mut self, weight: PrefixWeight) -> bool;
    /// A token drawn from max(w p - q, 0) at a node, normalised; after the last draft from p.
    fn draw_above(&mut self, node: usize, weight: PrefixWeight) -> usize;
}

/// A rule that looks at a whole chain before it decides.
pub trait ChainRule {
    /// How many drafts are accepted, and the token that follows them.
    fn decide(&self, chain: &mut dyn TargetChain) -> (usize, usize);
}

/// The rules, for devices that run code of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleKind {
    /// The target's largest logit.
    Greedy,
    /// The target's own draw.
    Follow,
    /// Rejection sampling, of siblings that were drawn so.
    Rejection(Siblings),
    /// Block verification.
    Block,
    /// Typical acceptance.
    Typical,
    /// Thresholds.
    Threshold,
    /// One of the largest logits.
    Relaxed,
    /// As often as the host wants.
    Synthetic,
}

impl RuleKind {
    /// Whether the text may have another distribution than the target's.
    pub const fn is_lossy(self) -> bool {
        matches!(self, Self::Typical | Self::Threshold | Self::Relaxed | Self::Synthetic)
    }
}

/// An acceptance rule.
pub trait Rule: std::fmt::Debug + Send + Sync {
    /// Which one it is.
    fn kind(&self) -> RuleKind;

    /// Decides at one node, whose children stand in the order of their tests and are not followed
    /// yet.
    fn decide(&self, children: &mut [Child], row: &mut dyn TargetRow) -> Decision;

    /// The rule for sequences that are not greedy, if it has to look at their whole chain.
    fn chain_rule(&self) -> Option<&dyn ChainRule> {
        None
    }
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
    /// Drafts below the last accepted one that were not looked at, as it ended the emission.
    pub const DROPPED: usize = 5;
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
    /// The rule does not keep the target's distribution.
    pub const LOSSY: i32 = 16;

    /// The elements of a record for `max_drafts` drafts.
    pub const fn len(max_drafts: usize) -> usize {
        TOKENS + 2 * (max_drafts + 1)
    }
}
