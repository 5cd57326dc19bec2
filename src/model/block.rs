//! The networks that draft a block in one pass: rows with a mask token stand behind the last known token
//! and each proposes one. P-EAGLE ("Parallel EAGLE") goes on from the last committed row; DFlash ("Block
//! Diffusion for Flash Speculative Decoding") attends to the target's features, projected once for all
//! layers, and the rows of its blocks see each other. Both as the speculators format stores them. The kinds
//! that are made of DFlash have heads of their own.

use super::candidates::{Candidates, CandidatesScratch};
use super::decoder::{BlockScratch, Decoder, Extent, Halves, RowLimits, Scratch, Step};
use super::fusion::FeatureFusion;
use super::markov::{Confidence, Markov, MarkovScratch};
use super::placement::Placement;
use super::refiner::{Refiner, RefinerScratch};
use super::trees::TreeScratch;
use crate::backend::Backend;
use crate::backend::block_heads::Slots;
use crate::backend::draft_trees::{ColumnTokens, TreeLevel};
use crate::backend::phases::{
    BlockInput, BlockKv, Choice, Gather, KvPool, Norm, OwnKv, Rows, StartBlock,
};
use crate::checkpoint::{self, BlockHead, BlockLength, Speculator};
use crate::error::Result;
use crate::tensor::{Carver, Dtype, Matrix};

/// The network and where its weights are.
#[derive(Debug)]
pub struct Block {
    pub(super) decoder: Decoder,
    fusion: FeatureFusion,
    entry: Entry,
    mask_token: i32,
    length: BlockLength,
    most_drafts: usize,
    first_slot: usize,
    head: Head,
    confidence: Option<Confidence>,
}

/// How tokens come from the rows of a block.
#[derive(Debug)]
pub enum Head {
    /// Each from its row's logits alone.
    Independent,
    /// One after the other.
    Markov(Markov),
    /// Out of candidates.
    Candidates(Candidates),
    /// Again and again.
    Refined(Refiner),
}

/// A session's memory for a head.
#[derive(Clone, Copy, Debug)]
pub enum HeadScratch {
    /// None that is not every head's.
    Independent,
    /// Of a Markov head.
    Markov(MarkovScratch),
    /// Of a walk through candidates.
    Candidates(CandidatesScratch),
    /// Of a refiner.
    Refined(RefinerScratch),
}

/// The rows of blocks that have passed all layers.
#[derive(Clone, Copy)]
pub(super) struct BlockRun<'r> {
    /// The call; its rows are the drafting ones.
    pub(super) step: Step<'r>,
    /// The most blocks.
    pub(super) sequences: usize,
    /// Which rows of a block tokens are proposed from.
    pub(super) slots: Slots,
    /// All rows.
    pub(super) block_rows: Rows,
    /// Their residual stream.
    pub(super) hidden: Matrix,
    /// The slots.
    pub(super) slot_rows: Rows,
    /// Their residual stream.
    pub(super) slot_hidden: Matrix,
}

impl BlockRun<'_> {
    /// Maps the hidden states of all rows, as the head reads them.
    pub(super) fn map_hidden(
        &self,
        decoder: &Decoder,
        weight: &[Matrix],
        bias: Option<Matrix>,
        to: Matrix,
    ) -> Result<()> {
        decoder.map_normed(&self.step, self.block_rows, self.hidden, (weight, bias), to)
    }

    /// A row of each block.
    pub(super) fn every_row(&self, matrix: Matrix, at: usize) -> Matrix {
        matrix.every(self.slots.len, at, self.sequences)
    }

    /// A slot of each block.
    pub(super) fn every_slot(&self, matrix: Matrix, index: usize) -> Matrix {
        matrix.every(self.slots.num_slots, index, self.sequences)
    }

    /// Where the logits of a level of trees are.
    pub(super) fn level_logits(&self, level: &TreeLevel) -> Matrix {
        let logits = self.step.scratch.logits;
        match &block_scratch(&self.step).head {
            // Behind those of the slots.
            HeadScratch::Markov(_) => logits.row_range(self.slot_rows.len(), level.rows.len()),
            HeadScratch::Candidates(scratch) => scratch.scores(level),
            HeadScratch::Independent | HeadScratch::Refined(_) => {
                self.every_slot(logits, level.depth)
            }
        }
    }

    /// What their columns are, if these are candidates.
    pub(super) fn level_candidates(&self, level: &TreeLevel) -> Option<ColumnTokens> {
        match &block_scratch(&self.step).head {
            HeadScratch::Candidates(scratch) => Some(scratch.of_level(self, level)),
            _ => None,
        }
    }
}

/// What a block begins with.
#[derive(Debug)]
enum Entry {
    /// The last committed row, whose hidden state is fused from features. The other rows have this one.
    Continued { mask_hidden: Matrix },
    /// The next token. The context's keys and values come from the fused features through this norm.
    Anchored { context_norm: Norm },
}

impl Block {
    /// Gives all weights of a checkpoint their place.
    pub(super) fn place(
        description: &Speculator,
        block: &checkpoint::Block,
        placement: &mut Placement<'_>,
    ) -> Result<Self> {
        let epsilon = description.decoder.epsilon;
        Ok(Self {
            decoder: Decoder::place(description, placement)?,
            fusion: FeatureFusion::place(&block.fusion, epsilon, placement)?,
            entry: match &block.entry {
                checkpoint::BlockEntry::Continued { mask_features } => {
                    let mask_hidden = || block.fusion.hidden_of(mask_features, epsilon);
                    let columns = description.decoder.sizes.hidden;
                    Entry::Continued { mask_hidden: placement.row(columns, mask_hidden)? }
                }
                checkpoint::BlockEntry::Anchored { context_norm } => {
                    Entry::Anchored { context_norm: placement.norm(context_norm, epsilon)? }
                }
            },
            mask_token: block.mask_token,
            length: block.length,
            most_drafts: block.most_drafts,
            first_slot: block.first_slot,
            head: Head::place(&block.head, description.decoder.sizes.hidden, placement)?,
            confidence: match &block.confidence {
                Some(confidence) => {
                    let hidden = description.decoder.sizes.hidden;
                    Some(Confidence::place(confidence, hidden, placement)?)
                }
                None => None,
            },
        })
    }

    /// Candidates of each proposal, if it is chosen out of candidates.
    pub(super) fn candidates(&self) -> Option<usize> {
        match &self.head {
            Head::Candidates(candidates) => Some(candidates.count()),
            _ => None,
        }
    }

    /// Whether the network tells how probably proposals are accepted.
    pub(super) fn has_confidence(&self) -> bool {
        self.confidence.is_some()
    }

    /// Trailing positions of a cached prefix to commit again.
    pub(super) fn prefix_margin(&self) -> usize {
        match self.entry {
            Entry::Continued { .. } => 1,
            // Rows read features alone.
            Entry::Anchored { .. } => 0,
        }
    }

    /// The most tokens that a block proposes.
    pub(super) fn most_drafts(&self) -> usize {
        self.most_drafts
    }

    /// Rows of all blocks, if they are as many as in training.
    pub(super) fn trained_length(&self) -> Option<usize> {
        match self.length {
            BlockLength::Trained(rows) => Some(rows),
            BlockLength::Drafts => None,
        }
    }

    /// The token of the rows behind the first.
    pub(super) fn mask_token(&self) -> i32 {
        self.mask_token
    }

    /// Rows of the blocks of a call that proposes up to `drafts` tokens.
    fn rows_of_block(&self, drafts: usize) -> usize {
        match self.length {
            BlockLength::Trained(rows) => rows,
            BlockLength::Drafts => drafts + self.first_slot,
        }
    }

    /// Cuts the memory for the intermediate rows of a session.
    pub(super) fn carve(
        &self,
        carver: &mut Carver,
        backend: &dyn Backend,
        pool: KvPool,
        limits: &RowLimits,
    ) -> Scratch {
        let drafts = limits.drafts.min(self.most_drafts);
        let (len, hidden) = (self.rows_of_block(drafts), self.decoder.hidden_size());
        let (rows, slots) = (limits.sequences * len, limits.sequences * drafts);
        let level_rows = if limits.tree.is_some() { limits.draft_rows() } else { 0 };
        let of_level = if matches!(self.head, Head::Markov(_)) { level_rows } else { 0 };
        let extent = Extent {
            rows,
            proposals: slots.saturating_add(of_level),
            narrow: self.candidates().map_or((0, 0), |count| (level_rows, count)),
            width: self.head.input_width(),
            layers: match self.entry {
                Entry::Continued { .. } => 1,
                Entry::Anchored { .. } => self.decoder.num_layers(),
            },
        };
        let mut scratch = self.decoder.carve(carver, backend, pool, limits, extent);
        let page_columns = 2 * pool.num_kv_heads * pool.page_size * pool.head_dim;
        let pages = limits.sequences * len.div_ceil(pool.page_size);
        scratch.block = Some(BlockScratch {
            rows: Rows::carve(carver, rows),
            slots: Rows::carve(carver, slots),
            pages: carver.matrix(pool.pages.dtype, pages, page_columns),
            hidden: carver.matrix(Dtype::F32, rows, hidden),
            slot_hidden: carver.matrix(Dtype::F32, slots, hidden),
            head: self.head.carve(carver, limits.draft_rows(), (rows, slots, level_rows)),
            confidence: self.confidence.as_ref().map(|head| head.carve(carver, rows)),
        });
        let of_slots = (self.most_drafts, matches!(self.head, Head::Independent));
        scratch.tree = TreeScratch::carve_of_blocks(carver, &pool, limits, &self.decoder, of_slots);
        scratch
    }

    /// Commits the step's rows: appends their keys and values in all layers, and keeps the hidden state of
    /// the rows that blocks go on from.
    pub fn commit(&self, step: &Step<'_>) -> Result<()> {
        self.fusion.fuse(&self.decoder, step)?;
        let Entry::Anchored { context_norm } = &self.entry else {
            self.decoder.gather(step)?;
            let (last, hidden) = (self.decoder.num_layers() - 1, step.scratch.hidden);
            self.decoder.run(step, 0..last, hidden)?;
            return self.decoder.project(step, last, hidden, Halves::KeyValue);
        };
        self.decoder.append_context(step, *context_norm)
    }

    /// Why no trees are drafted from the blocks, if none are.
    pub(super) fn tree_obstacle(&self) -> Option<&'static str> {
        match &self.head {
            Head::Independent | Head::Markov(_) | Head::Candidates(_) => None,
            Head::Refined(_) => Some(
                "its tokens are refined together, so that none has a distribution given its path alone",
            ),
        }
    }

    /// Runs the blocks of all sequences that draft, and proposes from them. `step` has the drafting rows.
    pub fn draft(&self, step: &Step<'_>) -> Result<()> {
        let run = self.run(step, step.batch.max_drafts.min(self.most_drafts))?;
        let scratch = block_scratch(step);
        self.head.propose(&self.decoder, &run, &scratch.head)?;
        match self.confidence.as_ref().zip(scratch.confidence) {
            Some((head, part)) => head.rate(&self.decoder, &run, &self.head, part),
            None => Ok(()),
        }
    }

    /// Maps a level of trees to logits, which later phases read: those of all slots with the roots, or those
    /// of its rows.
    pub(super) fn map_level(
        &self,
        run: &BlockRun<'_>,
        level: &TreeLevel,
        logits: Matrix,
    ) -> Result<()> {
        match (&self.head, &block_scratch(&run.step).head) {
            (Head::Markov(head), HeadScratch::Markov(scratch)) => {
                head.map_level(&self.decoder, run, (level, logits), scratch)
            }
            (Head::Candidates(head), HeadScratch::Candidates(scratch)) => {
                head.map_level(&self.decoder, run, level, scratch)
            }
            _ if level.depth == 0 => self.map_slots(run),
            _ => Ok(()),
        }
    }

    fn map_slots(&self, run: &BlockRun<'_>) -> Result<()> {
        let mut proposal =
            self.decoder.proposal(&run.step, 0, run.slots.num_slots, run.slot_hidden);
        proposal.choice = Choice::Kept { with_logits: true };
        self.decoder.propose(&Step { rows: run.slot_rows, ..run.step }, &proposal)
    }

    /// Runs the blocks of the step's rows, the drafting ones, with so many slots.
    pub(super) fn run<'r>(&self, step: &Step<'r>, drafts: usize) -> Result<BlockRun<'r>> {
        let scratch = block_scratch(step);
        let len = self.rows_of_block(drafts);
        let sequences = step.batch.num_sequences;
        let rows = scratch.rows.slice(0, sequences * len);
        let slots = scratch.slots.slice(0, sequences * drafts);
        let start = StartBlock {
            draft: step.rows,
            rows,
            len,
            distance: usize::from(matches!(self.entry, Entry::Anchored { .. })),
            mask_token: self.mask_token,
            slots,
            first_slot: self.first_slot,
            num_slots: drafts,
            input: self.input(step),
            hidden: scratch.hidden,
        };
        step.backend.start_block(step.stream, &start)?;
        let pages = scratch.pages;
        let block = Step { rows, own: Some(OwnKv::Block(BlockKv { pages, len })), ..*step };
        self.decoder.run(&block, 0..self.decoder.num_layers(), scratch.hidden)?;
        let gather = Gather {
            rows: slots,
            from: scratch.hidden,
            first: 0,
            len: rows.len(),
            to: scratch.slot_hidden,
        };
        step.backend.gather(step.stream, &gather)?;
        Ok(BlockRun {
            step: *step,
            sequences,
            slots: Slots { draft: step.rows, len, first_slot: self.first_slot, num_slots: drafts },
            block_rows: rows,
            hidden: scratch.hidden,
            slot_rows: slots,
            slot_hidden: scratch.slot_hidden,
        })
    }

    fn input<'s>(&'s self, step: &Step<'s>) -> BlockInput<'s> {
        match self.entry {
            Entry::Continued { mask_hidden } => {
                BlockInput::Hidden { first: step.scratch.draft_hidden, others: mask_hidden }
            }
            Entry::Anchored { .. } => {
                BlockInput::Embedding(self.decoder.embedding_input(step, None))
            }
        }
    }
}

fn block_scratch<'s>(step: &Step<'s>) -> &'s BlockScratch {
    let Some(scratch) = &step.scratch.block else {
        unreachable!("carve gives these networks memory for blocks")
    };
    scratch
}

impl Head {
    fn place(
        description: &BlockHead,
        hidden: usize,
        placement: &mut Placement<'_>,
    ) -> Result<Self> {
        Ok(match description {
            BlockHead::Independent => Self::Independent,
            BlockHead::Markov(head) => Self::Markov(Markov::place(head, hidden, placement)?),
            BlockHead::Candidates(head) => Self::Candidates(Candidates::place(head, placement)?),
            BlockHead::Refined(head) => Self::Refined(Refiner::place(head, placement)?),
        })
    }

    /// The width of what tokens are chosen from besides hidden states.
    fn input_width(&self) -> usize {
        match self {
            Self::Independent | Self::Candidates(_) => 0,
            Self::Markov(head) => head.rank(),
            Self::Refined(head) => head.rank(),
        }
    }

    fn carve(
        &self,
        carver: &mut Carver,
        rows: usize,
        (block_rows, slots, level_rows): (usize, usize, usize),
    ) -> HeadScratch {
        match self {
            Self::Independent => HeadScratch::Independent,
            Self::Markov(head) => HeadScratch::Markov(head.carve(carver, rows, block_rows)),
            Self::Candidates(head) => {
                HeadScratch::Candidates(head.carve(carver, slots, level_rows))
            }
            Self::Refined(head) => HeadScratch::Refined(head.carve(carver, (block_rows, slots))),
        }
    }

    fn propose(&self, decoder: &Decoder, run: &BlockRun<'_>, scratch: &HeadScratch) -> Result<()> {
        match (self, scratch) {
            (Self::Markov(head), HeadScratch::Markov(scratch)) => {
                head.propose(decoder, run, scratch)
            }
            (Self::Candidates(head), HeadScratch::Candidates(scratch)) => {
                head.propose(decoder, run, scratch)
            }
            (Self::Refined(head), HeadScratch::Refined(scratch)) => {
                head.propose(decoder, run, scratch)
            }
            (Self::Independent, HeadScratch::Independent) => {
                let slots = run.slots.num_slots;
                let proposal = decoder.proposal(&run.step, 0, slots, run.slot_hidden);
                decoder.propose(&Step { rows: run.slot_rows, ..run.step }, &proposal)
            }
            _ => unreachable!("carve gives each head its own memory"),
        }
    }
}
