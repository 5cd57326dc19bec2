//! The head of DFlash2, as the speculators format stores it: of each row's logits the largest are
//! candidates, and a walk through them lets each token depend on the one before.

use super::block::BlockRun;
use super::decoder::Decoder;
use super::placement::Placement;
use crate::backend::block_heads::{SelectCandidates, WalkCandidates};
use crate::checkpoint;
use crate::error::Result;
use crate::tensor::{Carver, Dtype, Matrix, Span};

/// The head and where its weights are.
#[derive(Debug)]
pub struct Candidates {
    count: usize,
    predecessors: Matrix,
    successors: Matrix,
    projection: Matrix,
}

/// A session's memory for the head.
#[derive(Clone, Copy, Debug)]
pub struct CandidatesScratch {
    ids: Span<i32>,
    values: Matrix,
    projected: Matrix,
}

impl Candidates {
    /// Gives the weights their place.
    pub(super) fn place(
        description: &checkpoint::Candidates,
        placement: &mut Placement<'_>,
    ) -> Result<Self> {
        Ok(Self {
            count: description.count,
            predecessors: placement.tensor(&description.predecessors)?,
            successors: placement.tensor(&description.successors)?,
            projection: placement.tensor(&description.projection)?,
        })
    }

    /// Candidates of each proposal.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Cuts the memory for so many slots.
    pub(super) fn carve(&self, carver: &mut Carver, slots: usize) -> CandidatesScratch {
        CandidatesScratch {
            ids: carver.span(slots.saturating_mul(self.count)),
            values: carver.matrix(Dtype::F32, slots, self.count),
            projected: carver.matrix(Dtype::F32, slots, self.projection.rows),
        }
    }

    /// Proposes from the rows of blocks.
    pub(super) fn propose(
        &self,
        decoder: &Decoder,
        run: &BlockRun<'_>,
        scratch: &CandidatesScratch,
    ) -> Result<()> {
        let step = &run.step;
        let slots = run.slot_rows.len();
        let logits = step.scratch.logits.row_range(0, slots);
        let values = scratch.values.row_range(0, slots);
        let ids = scratch.ids.slice(0, slots * self.count);
        decoder.map_to_logits(step, run.slot_rows, run.slot_hidden, logits)?;
        let projection = (&[self.projection][..], None);
        let (rows, hidden) = (run.slot_rows, run.slot_hidden);
        decoder.map_normed(step, rows, hidden, projection, scratch.projected)?;
        let select = SelectCandidates { rows: run.slot_rows, logits, ids, values };
        step.backend.select_candidates(step.stream, &select)?;
        let walk = WalkCandidates {
            slots: run.slots,
            num_drafts: step.plan.num_drafts,
            batch: *step.batch,
            ids,
            values,
            projected: scratch.projected,
            predecessors: self.predecessors,
            successors: self.successors,
            scratch: step.scratch.proposal_scratch,
        };
        step.backend.walk_candidates(step.stream, &walk)
    }
}
