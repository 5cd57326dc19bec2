//! The head of XPress, as the speculators format stores it: all tokens of a block are chosen at once, and
//! again in each pass, from their rows' logits and what the tokens of the pass before add to them.

use super::block::BlockRun;
use super::decoder::{Decoder, Step};
use super::placement::Placement;
use crate::backend::block_heads::{Refine, RefinerWeights};
use crate::backend::phases::Choice;
use crate::checkpoint;
use crate::error::Result;
use crate::tensor::{Carver, Dtype, Matrix};

/// The head and where its weights are.
#[derive(Debug)]
pub struct Refiner {
    /// Of a row's hidden state, and of the mean of all.
    features: [Matrix; 2],
    weights: RefinerWeights,
    readout: Matrix,
    passes: usize,
}

/// A session's memory for the head.
#[derive(Clone, Copy, Debug)]
pub struct RefinerScratch {
    features: Matrix,
    input: Matrix,
    mixed: Matrix,
    inner: Matrix,
    output: Matrix,
    base: Matrix,
}

impl Refiner {
    /// Gives the weights their place.
    pub(super) fn place(
        description: &checkpoint::Refiner,
        placement: &mut Placement<'_>,
    ) -> Result<Self> {
        let mut tensor = |tensor| placement.tensor(tensor);
        Ok(Self {
            features: [tensor(&description.down_row)?, tensor(&description.down_mean)?],
            weights: RefinerWeights {
                embedding: tensor(&description.embedding)?,
                input: tensor(&description.input)?,
                mix: tensor(&description.mix)?,
                gate: tensor(&description.gate)?,
                up: tensor(&description.up)?,
                down: tensor(&description.down)?,
            },
            readout: tensor(&description.readout)?,
            passes: description.passes,
        })
    }

    /// The width of what the readout reads.
    pub(super) fn rank(&self) -> usize {
        self.readout.columns
    }

    /// Cuts the memory for so many rows of blocks and slots.
    pub(super) fn carve(
        &self,
        carver: &mut Carver,
        (block_rows, slots): (usize, usize),
    ) -> RefinerScratch {
        let rank = self.rank();
        let mut matrix = |rows, columns| carver.matrix(Dtype::F32, rows, columns);
        RefinerScratch {
            features: matrix(block_rows, 2 * rank),
            input: matrix(block_rows, 3 * rank),
            mixed: matrix(block_rows, rank),
            inner: matrix(slots, self.weights.gate.rows),
            output: matrix(slots, rank),
            base: matrix(slots, self.readout.rows),
        }
    }

    /// Proposes from the rows of blocks.
    pub(super) fn propose(
        &self,
        decoder: &Decoder,
        run: &BlockRun<'_>,
        scratch: &RefinerScratch,
    ) -> Result<()> {
        let step = Step { rows: run.slot_rows, ..run.step };
        let num_slots = run.slots.num_slots;
        run.map_hidden(decoder, &self.features, None, scratch.features)?;
        let mut proposal = decoder.proposal(&step, 0, num_slots, run.slot_hidden);
        proposal.logits = scratch.base;
        proposal.choice = Choice::Kept { with_logits: true };
        decoder.propose(&step, &proposal)?;
        let refine = Refine {
            slots: run.slots,
            rows: run.slot_rows,
            block_rows: run.block_rows,
            commit: step.plan.commit,
            batch: *step.batch,
            features: scratch.features,
            weights: self.weights,
            input: scratch.input,
            mixed: scratch.mixed,
            inner: scratch.inner,
            output: scratch.output,
        };
        for pass in 1..=self.passes {
            step.backend.refine(step.stream, &refine)?;
            let mut proposal = decoder.proposal(&step, 0, num_slots, scratch.output);
            proposal.norm = None;
            proposal.head = std::slice::from_ref(&self.readout);
            proposal.base = Some(scratch.base);
            if pass < self.passes {
                proposal.choice = Choice::Kept { with_logits: false };
            }
            decoder.propose(&step, &proposal)?;
        }
        Ok(())
    }
}
