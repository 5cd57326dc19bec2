//! The networks that draft in sequence: a small decoder that reads a hidden state of the target and the
//! next token. EAGLE-3 (Li et al., 2025, "EAGLE-3: Scaling up Inference Acceleration of Large Language
//! Models via Training-Time Test") fuses several hidden states once; EAGLE (Li et al., 2024, "EAGLE:
//! Speculative Sampling Requires Rethinking Feature Uncertainty") and MTP (DeepSeek-AI, 2024,
//! "DeepSeek-V3 Technical Report") fuse hidden state and token anew in each step. An independent drafter
//! (Leviathan et al., 2023, "Fast Inference from Transformers via Speculative Decoding") is a language
//! model of its own, which reads tokens alone.

use super::decoder::{Decoder, Extent, Halves, RowLimits, Scratch, Step};
use super::fusion::FeatureFusion;
use super::placement::Placement;
use super::trees::TreeScratch;
use crate::backend::Backend;
use crate::backend::phases::{Choice, FuseToken, HiddenSource, KvPool, Linear, Norm};
use crate::checkpoint::{self, Speculator};
use crate::error::Result;
use crate::tensor::{Carver, Matrix};

/// The network and where its weights are.
#[derive(Debug)]
pub struct Sequential {
    pub(super) decoder: Decoder,
    entry: Entry,
    norm_output: bool,
}

/// How what the target knows and the next token come into the first layer.
#[derive(Debug)]
enum Entry {
    /// Features once, for committed rows; the first layer reads the embedding itself.
    Features(FeatureFusion),
    /// The hidden state and the embedding, in each step.
    Token { embedding_norm: Option<Norm>, hidden_norm: Option<Norm>, fusion: Linear },
    /// The embedding of the row's own token.
    Embedding,
}

impl Sequential {
    /// Gives all weights of a checkpoint their place.
    pub(super) fn place(
        description: &Speculator,
        (entry, norm_output): (&checkpoint::Entry, bool),
        placement: &mut Placement<'_>,
    ) -> Result<Self> {
        let epsilon = description.decoder.epsilon;
        Ok(Self {
            decoder: Decoder::place(description, placement)?,
            entry: Entry::place(entry, epsilon, placement)?,
            norm_output,
        })
    }

    /// Whether rows read their own token, and not the one after it.
    pub(super) fn reads_own_tokens(&self) -> bool {
        matches!(self.entry, Entry::Embedding)
    }

    /// Cuts the memory for the intermediate rows of a session.
    pub(super) fn carve(
        &self,
        carver: &mut Carver,
        backend: &dyn Backend,
        pool: KvPool,
        limits: &RowLimits,
    ) -> Scratch {
        let extent = Extent::sequential(limits);
        let mut scratch = self.decoder.carve(carver, backend, pool, limits, extent);
        scratch.tree = TreeScratch::carve(carver, &pool, limits, &self.decoder);
        scratch
    }

    /// Commits the step's rows: appends their keys and values in all layers, and keeps the residual
    /// stream that enters the last layer for the rows that go on drafting.
    pub fn commit(&self, step: &Step<'_>) -> Result<()> {
        let hidden = step.scratch.hidden;
        match &self.entry {
            Entry::Features(features) => features.fuse(&self.decoder, step)?,
            Entry::Token { .. } => {
                let [feature] = step.batch.features else {
                    unreachable!("these networks read one feature, and calls give what is read")
                };
                self.fuse_token(step, HiddenSource::Feature(*feature), hidden)?;
            }
            Entry::Embedding => self.decoder.embed(step, hidden)?,
        }
        let last = self.decoder.num_layers() - 1;
        self.decoder.run(step, 0..last, hidden)?;
        self.decoder.gather(step)?;
        self.decoder.project(step, last, hidden, Halves::KeyValue)
    }

    /// Runs the rest of the last layer for the rows that go on drafting.
    pub fn continue_from_commit(&self, step: &Step<'_>) -> Result<()> {
        let last = self.decoder.num_layers() - 1;
        self.decoder.project(step, last, step.scratch.draft_hidden, Halves::Query)?;
        self.decoder.finish_layer(step, last, step.scratch.draft_hidden)
    }

    /// Runs all layers on rows that go on drafting.
    pub fn forward(&self, step: &Step<'_>, hidden: Matrix) -> Result<()> {
        match &self.entry {
            Entry::Features(_) => {}
            Entry::Token { .. } => self.fuse_token(step, HiddenSource::Rows(hidden), hidden)?,
            Entry::Embedding => self.decoder.embed(step, hidden)?,
        }
        self.decoder.run(step, 0..self.decoder.num_layers(), hidden)
    }

    /// Chooses the token of each drafting row and moves the rows on.
    pub fn propose(&self, step: &Step<'_>, index: usize) -> Result<()> {
        let mut proposal = self.decoder.proposal(step, index, 1, step.scratch.draft_hidden);
        proposal.feed_back_normed = self.norm_output;
        proposal.distance = self.distance();
        self.decoder.propose(step, &proposal)
    }

    /// Positions from a row to the token that it proposes.
    pub(super) fn distance(&self) -> usize {
        if self.reads_own_tokens() { 1 } else { 2 }
    }

    /// Maps rows to logits, which a later phase reads.
    pub(super) fn map_to_logits(&self, step: &Step<'_>, hidden: Matrix) -> Result<()> {
        let mut proposal = self.decoder.proposal(step, 0, 1, hidden);
        proposal.feed_back_normed = self.norm_output;
        proposal.choice = Choice::Kept { with_logits: true };
        self.decoder.propose(step, &proposal)
    }

    /// Fuses hidden state and token, where that is what a step begins with.
    fn fuse_token(&self, step: &Step<'_>, from: HiddenSource, to: Matrix) -> Result<()> {
        let Entry::Token { embedding_norm, hidden_norm, fusion } = &self.entry else {
            return Ok(());
        };
        let phase = FuseToken {
            rows: step.rows,
            embedding: self.decoder.embedding_input(step, *embedding_norm),
            from,
            norm: *hidden_norm,
            linear: *fusion,
            input: step.scratch.input(2 * self.decoder.hidden_size()),
            hidden: to,
        };
        step.backend.fuse_token(step.stream, &phase)
    }
}

impl Entry {
    fn place(
        description: &checkpoint::Entry,
        epsilon: f32,
        placement: &mut Placement<'_>,
    ) -> Result<Self> {
        Ok(match description {
            checkpoint::Entry::Features(fusion) => {
                Self::Features(FeatureFusion::place(fusion, epsilon, placement)?)
            }
            checkpoint::Entry::Token { embedding_norm, hidden_norm, fusion } => Self::Token {
                embedding_norm: placement.optional_norm(embedding_norm.as_ref(), epsilon)?,
                hidden_norm: placement.optional_norm(hidden_norm.as_ref(), epsilon)?,
                fusion: placement.linear(fusion)?,
            },
            checkpoint::Entry::Embedding => Self::Embedding,
        })
    }
}
