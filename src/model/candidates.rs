//! The head of DFlash2, as the speculators format stores it: of each row's logits the largest are
//! candidates, and a walk through them lets each token depend on the one before.

use super::block::BlockRun;
use super::decoder::Decoder;
use super::placement::Placement;
use crate::backend::block_heads::{ScoreCandidates, SelectCandidates, Selector, WalkCandidates};
use crate::backend::draft_trees::{ColumnTokens, TreeLevel};
use crate::checkpoint;
use crate::error::Result;
use crate::tensor::{Carver, Dtype, Matrix, Span};

/// The head and where its weights are.
#[derive(Debug)]
pub struct Candidates {
    count: usize,
    selector: Selector,
    projection: Matrix,
}

/// A session's memory for the head.
#[derive(Clone, Copy, Debug)]
pub struct CandidatesScratch {
    ids: Span<i32>,
    values: Matrix,
    projected: Matrix,
    /// Of the rows of a level of trees.
    weights: Matrix,
    scores: Matrix,
}

impl CandidatesScratch {
    /// The candidates of a level of trees: those of a slot of each block.
    pub(super) fn of_level(&self, run: &BlockRun<'_>, level: &TreeLevel) -> ColumnTokens {
        let count = self.values.columns;
        let ids = self.ids.slice(0, run.slot_rows.len() * count);
        ColumnTokens {
            ids: ids.slice(level.depth * count, ids.len() - level.depth * count),
            stride: run.slots.num_slots * count,
            laws: level.width,
        }
    }

    /// The scores of these, for each row.
    pub(super) fn scores(&self, level: &TreeLevel) -> Matrix {
        self.scores.row_range(0, level.rows.len())
    }
}

impl Candidates {
    /// Gives the weights their place.
    pub(super) fn place(
        description: &checkpoint::Candidates,
        placement: &mut Placement<'_>,
    ) -> Result<Self> {
        Ok(Self {
            count: description.count,
            selector: Selector {
                predecessors: placement.tensor(&description.predecessors)?,
                successors: placement.tensor(&description.successors)?,
            },
            projection: placement.tensor(&description.projection)?,
        })
    }

    /// Candidates of each proposal.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Cuts the memory for so many slots, and rows of a level of trees.
    pub(super) fn carve(
        &self,
        carver: &mut Carver,
        slots: usize,
        level_rows: usize,
    ) -> CandidatesScratch {
        CandidatesScratch {
            ids: carver.span(slots.saturating_mul(self.count)),
            values: carver.matrix(Dtype::F32, slots, self.count),
            projected: carver.matrix(Dtype::F32, slots, self.projection.rows),
            weights: carver.matrix(Dtype::F32, level_rows, self.projection.rows),
            scores: carver.matrix(Dtype::F32, level_rows, self.count),
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
        self.start(decoder, run, scratch)?;
        let walk = WalkCandidates {
            slots: run.slots,
            num_drafts: step.plan.num_drafts,
            batch: *step.batch,
            ids: scratch.ids.slice(0, slots * self.count),
            values: scratch.values.row_range(0, slots),
            projected: scratch.projected,
            selector: self.selector,
            scratch: step.scratch.proposal_scratch,
        };
        step.backend.walk_candidates(step.stream, &walk)
    }

    /// Scores the candidates below the rows of a level of trees.
    pub(super) fn map_level(
        &self,
        decoder: &Decoder,
        run: &BlockRun<'_>,
        level: &TreeLevel,
        scratch: &CandidatesScratch,
    ) -> Result<()> {
        let (step, depth) = (&run.step, level.depth);
        if depth == 0 {
            self.start(decoder, run, scratch)?;
        }
        let phase = ScoreCandidates {
            rows: level.rows,
            candidates: scratch.of_level(run, level),
            values: run.every_slot(scratch.values, depth),
            projected: run.every_slot(scratch.projected, depth),
            selector: self.selector,
            weights: scratch.weights,
            scores: scratch.scores(level),
        };
        step.backend.score_candidates(step.stream, &phase)
    }

    /// What depends on no token drafted: the candidates of all slots, and what the selector makes of their
    /// hidden states.
    fn start(
        &self,
        decoder: &Decoder,
        run: &BlockRun<'_>,
        scratch: &CandidatesScratch,
    ) -> Result<()> {
        let step = &run.step;
        let (rows, hidden) = (run.slot_rows, run.slot_hidden);
        let logits = step.scratch.logits.row_range(0, rows.len());
        decoder.map_to_logits(step, rows, hidden, logits)?;
        let projection = (&[self.projection][..], None);
        decoder.map_normed(step, rows, hidden, projection, scratch.projected)?;
        let ids = scratch.ids.slice(0, rows.len() * self.count);
        let values = scratch.values.row_range(0, rows.len());
        let select = SelectCandidates { rows, logits, ids, values };
        step.backend.select_candidates(step.stream, &select)
    }
}
