//! The head of DSpark, as the speculators format stores it: the tokens of a block are drawn one after the
//! other, and what the token before tells is added to a row's logits. A second head tells how probably
//! each is accepted.

use super::block::{BlockRun, Head};
use super::decoder::{Decoder, Step};
use super::placement::Placement;
use crate::backend::block_heads::{MarkovCell, RateDrafts, StepMarkov};
use crate::backend::draft_trees::TreeLevel;
use crate::backend::phases::{Choice, Rows};
use crate::checkpoint;
use crate::error::Result;
use crate::tensor::{Carver, Dtype, Matrix, Span};

/// The head and where its weights are.
#[derive(Debug)]
pub struct Markov {
    embedding: Matrix,
    readout: Matrix,
    cell: Cell,
}

#[derive(Debug)]
enum Cell {
    Vanilla,
    Gated { row: Matrix, token: Matrix, bias: Option<Matrix> },
    Recurrent { row: Matrix, others: Matrix, bias: Option<Matrix> },
}

/// A session's memory for the head.
#[derive(Clone, Copy, Debug)]
pub struct MarkovScratch {
    /// Of the blocks' rows.
    part: Matrix,
    /// After the even and the odd steps.
    states: [Matrix; 2],
    scratch: Matrix,
    output: Matrix,
}

impl Markov {
    /// Gives the weights their place.
    pub(super) fn place(
        description: &checkpoint::Markov,
        hidden: usize,
        placement: &mut Placement<'_>,
    ) -> Result<Self> {
        let rank = description.embedding.columns;
        let cell = match &description.cell {
            checkpoint::MarkovCell::Vanilla => Cell::Vanilla,
            checkpoint::MarkovCell::Gated(linear) => {
                let placed = placement.linear(linear)?;
                Cell::Gated {
                    row: placed.weight.column_range(0, hidden),
                    token: placed.weight.column_range(hidden, rank),
                    bias: placed.bias,
                }
            }
            checkpoint::MarkovCell::Recurrent(linear) => {
                let placed = placement.linear(linear)?;
                Cell::Recurrent {
                    others: placed.weight.column_range(0, 2 * rank),
                    row: placed.weight.column_range(2 * rank, hidden),
                    bias: placed.bias,
                }
            }
        };
        Ok(Self {
            embedding: placement.tensor(&description.embedding)?,
            readout: placement.tensor(&description.readout)?,
            cell,
        })
    }

    /// The width of what the readout reads.
    pub(super) fn rank(&self) -> usize {
        self.embedding.columns
    }

    /// The embedding of the token before.
    pub(super) fn embedding(&self) -> Matrix {
        self.embedding
    }

    /// Cuts the memory for so many rows that are stepped at a time, and blocks with so many rows in all.
    pub(super) fn carve(
        &self,
        carver: &mut Carver,
        rows: usize,
        block_rows: usize,
    ) -> MarkovScratch {
        let rank = self.rank();
        let (part_rows, part_columns) =
            self.row_map().map_or((0, 0), |(row, _)| (block_rows, row.rows));
        MarkovScratch {
            part: carver.matrix(Dtype::F32, part_rows, part_columns),
            states: [(); 2].map(|()| carver.matrix(Dtype::F32, rows, rank)),
            scratch: carver.matrix(Dtype::F32, rows, 5 * rank),
            output: carver.matrix(Dtype::F32, rows, rank),
        }
    }

    /// What the cell makes of a row's hidden state, if it reads it.
    fn row_map(&self) -> Option<(Matrix, Option<Matrix>)> {
        match self.cell {
            Cell::Vanilla => None,
            Cell::Gated { row, bias, .. } | Cell::Recurrent { row, bias, .. } => Some((row, bias)),
        }
    }

    /// Proposes one token after the other from the rows of blocks.
    pub(super) fn propose(
        &self,
        decoder: &Decoder,
        run: &BlockRun<'_>,
        scratch: &MarkovScratch,
    ) -> Result<()> {
        let step = &run.step;
        self.start(decoder, run, scratch)?;
        for index in 0..run.slots.num_slots {
            let rows = step.drafting_rows(index);
            self.step(run, CellRows::of_blocks(rows), run.slots.first_slot + index, scratch)?;
            let base = run.every_slot(step.scratch.logits, index);
            let mut proposal = decoder.proposal(step, index, 1, scratch.output);
            proposal.norm = None;
            proposal.head = std::slice::from_ref(&self.readout);
            proposal.base = Some(base);
            proposal.logits = base;
            decoder.propose(&Step { rows, ..*step }, &proposal)?;
        }
        Ok(())
    }

    /// Maps the rows of a level of trees to logits, whose states are those that the level above has left.
    pub(super) fn map_level(
        &self,
        decoder: &Decoder,
        run: &BlockRun<'_>,
        (level, logits): (&TreeLevel, Matrix),
        scratch: &MarkovScratch,
    ) -> Result<()> {
        let (rows, depth) = (level.rows, level.depth);
        if depth == 0 {
            self.start(decoder, run, scratch)?;
        }
        let from = (depth > 0).then_some(rows.source);
        let cells = CellRows { rows, of_block: level.width, from };
        self.step(run, cells, run.slots.first_slot + depth, scratch)?;
        let step = Step { rows, ..run.step };
        let mut proposal = decoder.proposal(&step, 0, 1, scratch.output);
        proposal.norm = None;
        proposal.head = std::slice::from_ref(&self.readout);
        proposal.base = Some(run.every_slot(step.scratch.logits, depth));
        proposal.rows_of_base = level.width;
        proposal.logits = logits;
        proposal.choice = Choice::Kept { with_logits: true };
        decoder.propose(&step, &proposal)
    }

    /// What comes before the first proposal: all that depends on no token drafted.
    fn start(&self, decoder: &Decoder, run: &BlockRun<'_>, scratch: &MarkovScratch) -> Result<()> {
        let step = &run.step;
        decoder.map_to_logits(step, run.slot_rows, run.slot_hidden, step.scratch.logits)?;
        if let Some((weight, bias)) = self.row_map() {
            run.map_hidden(decoder, &[weight], bias, scratch.part)?;
        }
        // A recurrent cell has seen all rows of a block, those that draft nothing, too.
        if matches!(self.cell, Cell::Recurrent { .. }) {
            for at in 0..run.slots.first_slot {
                self.step(run, CellRows::of_blocks(step.drafting_rows(0)), at, scratch)?;
            }
        }
        Ok(())
    }

    /// A step of the cell, at a row of each block.
    fn step(
        &self,
        run: &BlockRun<'_>,
        cells: CellRows,
        at: usize,
        scratch: &MarkovScratch,
    ) -> Result<()> {
        let step = &run.step;
        let phase = StepMarkov {
            rows: cells.rows,
            embedding: self.embedding,
            cell: match self.cell {
                Cell::Vanilla => MarkovCell::Vanilla,
                Cell::Gated { token, .. } => MarkovCell::Gated { weight: token },
                Cell::Recurrent { others, .. } => {
                    MarkovCell::Recurrent { weight: others, is_first: at == 0 }
                }
            },
            part: match self.row_map() {
                Some(_) => run.every_row(scratch.part, at),
                None => scratch.part,
            },
            rows_of_part: cells.of_block,
            from: cells.from,
            state: scratch.states[1 - at % 2],
            next_state: scratch.states[at % 2],
            scratch: scratch.scratch,
            output: scratch.output,
        };
        step.backend.step_markov(step.stream, &phase)
    }
}

/// What the cell is stepped for.
struct CellRows {
    /// The rows, with the tokens before.
    rows: Rows,
    /// Rows of each block.
    of_block: usize,
    /// The row of the step before that each goes on from, if it is not its own.
    from: Option<Span<i32>>,
}

impl CellRows {
    /// One row of each block.
    fn of_blocks(rows: Rows) -> Self {
        Self { rows, of_block: 1, from: None }
    }
}

/// The head that tells how probably proposals are accepted.
#[derive(Debug)]
pub struct Confidence {
    row: Matrix,
    bias: Option<Matrix>,
    /// What it makes of the embedded token before.
    token: Option<Matrix>,
}

impl Confidence {
    /// Gives the weights their place.
    pub(super) fn place(
        description: &checkpoint::Confidence,
        hidden: usize,
        placement: &mut Placement<'_>,
    ) -> Result<Self> {
        let placed = placement.linear(&description.linear)?;
        let others = placed.weight.columns - hidden;
        Ok(Self {
            row: placed.weight.column_range(0, hidden),
            bias: placed.bias,
            token: description.reads_token.then(|| placed.weight.column_range(hidden, others)),
        })
    }

    /// Cuts the memory for so many rows of blocks.
    pub(super) fn carve(&self, carver: &mut Carver, block_rows: usize) -> Matrix {
        carver.matrix(Dtype::F32, block_rows, 1)
    }

    /// Rates what was proposed, if the host wants to know or proposals end where it is too low.
    pub(super) fn rate(
        &self,
        decoder: &Decoder,
        run: &BlockRun<'_>,
        head: &Head,
        part: Matrix,
    ) -> Result<()> {
        let step = &run.step;
        if step.batch.confidence.is_none() && step.batch.min_confidence <= 0.0 {
            return Ok(());
        }
        run.map_hidden(decoder, &[self.row], self.bias, part)?;
        let embedding = match head {
            Head::Markov(markov) => Some(markov.embedding()),
            _ => None,
        };
        let phase = RateDrafts {
            slots: run.slots,
            blocks: run.block_rows,
            num_drafts: step.plan.num_drafts,
            batch: *step.batch,
            part,
            token: embedding.zip(self.token),
        };
        step.backend.rate_drafts(step.stream, &phase)
    }
}
