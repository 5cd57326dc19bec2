//! MLP speculators: one head after the other, each an MLP that reads the state of the one before and the
//! token that it chose. The first one reads a hidden state of the target. Nothing is kept between calls.

use super::decoder::{Decoder, Extent, RowLimits, Scratch, Step};
use super::placement::Placement;
use super::trees::TreeScratch;
use crate::backend::Backend;
use crate::backend::phases::{Choice, KvPool, Norm, StateSource, StepMlp};
use crate::checkpoint::{self, Speculator};
use crate::error::Result;
use crate::tensor::{Carver, Matrix};

/// The network and where its weights are. Steps beyond the last tensor of a kind share that one.
#[derive(Debug)]
pub struct Heads {
    pub(super) decoder: Decoder,
    steps: usize,
    scales_input: bool,
    embeddings: Vec<Matrix>,
    projections: Vec<Matrix>,
    gains: Vec<Matrix>,
    biases: Vec<Matrix>,
    readouts: Vec<Matrix>,
    epsilon: f32,
    /// What the state and the embedding weigh differs, so that their sum keeps its variance in all steps.
    embedding_scale: f32,
}

impl Heads {
    /// Gives all weights of a checkpoint their place.
    pub(super) fn place(
        description: &Speculator,
        heads: &checkpoint::Heads,
        placement: &mut Placement<'_>,
    ) -> Result<Self> {
        let decoder = Decoder::place(description, placement)?;
        // The decoder has the tables of the first step.
        let mut all = |first: Option<Matrix>, tensors: &[checkpoint::Tensor]| -> Result<Vec<_>> {
            let placed = first.map(Ok).into_iter();
            let others = &tensors[usize::from(first.is_some())..];
            placed.chain(others.iter().map(|tensor| placement.tensor(tensor))).collect()
        };
        let (embedding, readout) = decoder.tables();
        let inner = description.decoder.sizes.hidden as f64;
        let state_scale = 0.5_f64.powf(0.5 / heads.steps as f64);
        let embedding_scale = ((1.0 - state_scale * state_scale) * inner / 2.0).sqrt();
        Ok(Self {
            steps: heads.steps,
            scales_input: heads.scales_input,
            embeddings: all(Some(embedding), &heads.embeddings)?,
            projections: all(None, &heads.projections)?,
            gains: all(None, &heads.gains)?,
            biases: all(None, &heads.biases)?,
            readouts: all(Some(readout), &heads.readouts)?,
            epsilon: description.decoder.epsilon,
            embedding_scale: (embedding_scale / state_scale) as f32,
            decoder,
        })
    }

    /// The most tokens that are proposed: one by each head.
    pub fn most_drafts(&self) -> usize {
        self.steps
    }

    /// Cuts the memory for the intermediate rows of a session.
    pub(super) fn carve(
        &self,
        carver: &mut Carver,
        backend: &dyn Backend,
        pool: KvPool,
        limits: &RowLimits,
    ) -> Scratch {
        // Rows that are only committed pass no phase.
        let limits = RowLimits { commit: 1, ..*limits };
        let extent = Extent::sequential(&limits);
        let mut scratch = self.decoder.carve(carver, backend, pool, &limits, extent);
        scratch.tree = TreeScratch::carve(carver, &pool, &limits, &self.decoder);
        scratch
    }

    /// The state of rows that go on drafting, in a step.
    pub fn advance(&self, step: &Step<'_>, index: usize, state: Matrix) -> Result<()> {
        let from = match (index, step.batch.features) {
            (0, [feature]) => StateSource::Feature {
                feature: *feature,
                committed: step.plan.commit.source,
                is_scaled: self.scales_input,
            },
            (0, _) => unreachable!("these networks read one feature, and calls give what is read"),
            _ => StateSource::Rows,
        };
        let projection = at(&self.projections, index);
        let phase = StepMlp {
            rows: step.rows,
            from,
            projection,
            embedding: at(&self.embeddings, index),
            embedding_scale: self.embedding_scale,
            norm: Norm { weight: Some(at(&self.gains, index)), epsilon: self.epsilon },
            bias: at(&self.biases, index),
            input: step.scratch.input(projection.columns),
            embedded: step.scratch.gate,
            state,
        };
        step.backend.step_mlp(step.stream, &phase)
    }

    /// Chooses the token of each drafting row.
    pub fn propose(&self, step: &Step<'_>, index: usize) -> Result<()> {
        let readout = [at(&self.readouts, index)];
        let mut proposal = self.decoder.proposal(step, index, 1, step.scratch.draft_hidden);
        proposal.head = &readout;
        self.decoder.propose(step, &proposal)
    }

    /// Maps rows to logits, which a later phase reads.
    pub(super) fn map_to_logits(&self, step: &Step<'_>, index: usize, state: Matrix) -> Result<()> {
        let readout = [at(&self.readouts, index)];
        let mut proposal = self.decoder.proposal(step, index, 1, state);
        proposal.head = &readout;
        proposal.choice = Choice::Kept { with_logits: true };
        self.decoder.propose(step, &proposal)
    }
}

/// The matrix of a step.
fn at(matrices: &[Matrix], step: usize) -> Matrix {
    matrices[step.min(matrices.len() - 1)]
}
