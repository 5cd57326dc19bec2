//! What a sequence's arrays say, checked.

use super::super::draw::{parameters, seed};
use super::super::memory::read;
use super::super::rows::Row;
use super::processing::Steps;
use crate::backend::verify::{DraftDistribution, Rule, RuleKind, VerifyBatch};
use crate::sampling::{Parameters, Purpose, uniform};
use crate::tensor::{Matrix, Span};

/// A sequence that takes part, its arrays checked.
#[derive(Clone, Copy)]
pub struct Sequence<'a> {
    /// The call.
    pub batch: &'a VerifyBatch,
    /// b.
    pub index: usize,
    /// The root's position.
    pub position: i32,
    /// Its drafts.
    pub num_drafts: usize,
    /// The root's row.
    pub first_row: usize,
    /// How its tokens are drawn.
    pub parameters: Parameters,
    seed: u64,
}

/// Whether a sequence takes part.
pub enum Part<'a> {
    /// It does.
    Takes(Sequence<'a>),
    /// It does not.
    Absent,
    /// Its arrays hold something out of range.
    Invalid,
}

impl<'a> Sequence<'a> {
    /// # Safety
    ///
    /// The arrays of the batch are valid; `index` is below B.
    pub unsafe fn read(
        batch: &'a VerifyBatch,
        rule: &dyn Rule,
        index: usize,
        position: i32,
    ) -> Part<'a> {
        // SAFETY: as this function's contract.
        let num_drafts = unsafe {
            batch.num_drafts.map_or(batch.max_drafts as i32, |values| read(values, index))
        };
        if num_drafts < 0 {
            return Part::Absent;
        }
        // SAFETY: as this function's contract.
        let first_row = unsafe { first(batch.row_begin, index, batch.max_drafts + 1) };
        let num_drafts = num_drafts as usize;
        let Some(first_row) = within(first_row, num_drafts + 1, &batch.logits)
            .filter(|_| num_drafts <= batch.max_drafts)
        else {
            return Part::Invalid;
        };
        // SAFETY: as this function's contract.
        let (parameters, seed) =
            unsafe { (parameters(&batch.sampling, index), seed(&batch.sampling, index)) };
        let sequence = Self { batch, index, position, num_drafts, first_row, parameters, seed };
        // SAFETY: as this function's contract.
        if unsafe { sequence.is_valid(rule) } { Part::Takes(sequence) } else { Part::Invalid }
    }

    /// # Safety
    ///
    /// As for [`Sequence::read`].
    unsafe fn is_valid(&self, rule: &dyn Rule) -> bool {
        let vocabulary = self.batch.logits.columns as i64;
        let last_position = i64::from(self.position) + self.num_drafts as i64 + 1;
        let needs_numbers = !self.parameters.is_greedy() || rule.kind() == RuleKind::Synthetic;
        // SAFETY: as this function's contract.
        unsafe {
            self.position >= 0
                && last_position <= i64::from(i32::MAX)
                && self.parameters.are_numbers()
                && (1..=self.num_drafts).all(|node| {
                    (-1..vocabulary).contains(&self.draft(node).into())
                        && (0..node as i32).contains(&self.parent_entry(node))
                })
                && self
                    .batch
                    .processing
                    .as_ref()
                    .is_none_or(|processing| Steps { sequence: self, processing }.are_valid())
                && self.batch.draft.is_none_or(|draft| {
                    self.draft_parameters(&draft).are_numbers()
                        && (self.num_drafts == 0 || self.draft_row(&draft).is_some())
                })
                && self.batch.uniforms.is_none_or(|uniforms| {
                    !needs_numbers
                        || (0..2 * (self.num_drafts + 1)).all(|index| {
                            (0.0..1.0).contains(&read(uniforms, self.first_uniform() + index))
                        })
                })
        }
    }

    /// The logits of a node, as they are.
    pub fn row(&self, node: usize) -> Row {
        let logits = &self.batch.logits;
        Row {
            address: logits.row_address(self.first_row + node),
            dtype: logits.dtype,
            len: logits.columns,
            token_ids: None,
        }
    }

    fn first_uniform(&self) -> usize {
        self.index * 2 * (self.batch.max_drafts + 1)
    }

    /// The token of a node, not the root; negative if it was struck out.
    ///
    /// # Safety
    ///
    /// As for [`Sequence::read`]; `node` is from 1 to the number of drafts.
    pub unsafe fn draft(&self, node: usize) -> i32 {
        let drafts = self.batch.draft_tokens;
        // SAFETY: as this function's contract.
        unsafe { read(drafts.span, self.index * drafts.stride + node - 1) }
    }

    /// What the host says is the parent of a node, not the root.
    ///
    /// # Safety
    ///
    /// As for [`Sequence::draft`].
    unsafe fn parent_entry(&self, node: usize) -> i32 {
        let Some(parents) = self.batch.parents else { return node as i32 - 1 };
        // SAFETY: as this function's contract.
        unsafe { read(parents.span, self.index * parents.stride + node) }
    }

    /// The parent of a node, not the root: a node before it.
    ///
    /// # Safety
    ///
    /// As for [`Sequence::draft`].
    pub unsafe fn parent(&self, node: usize) -> usize {
        // The host may write to its array meanwhile: that must not lead anywhere else.
        // SAFETY: as this function's contract.
        unsafe { self.parent_entry(node) }.clamp(0, node as i32 - 1) as usize
    }

    /// How the drafts were drawn.
    ///
    /// # Safety
    ///
    /// As for [`Sequence::read`].
    pub unsafe fn draft_parameters(&self, draft: &DraftDistribution) -> Parameters {
        // SAFETY: as this function's contract.
        unsafe { parameters(draft.sampling.as_ref().unwrap_or(&self.batch.sampling), self.index) }
    }

    /// The row that the root's children were drawn from, if those of all nodes are there that can
    /// have children.
    ///
    /// # Safety
    ///
    /// As for [`Sequence::read`].
    pub unsafe fn draft_row(&self, draft: &DraftDistribution) -> Option<usize> {
        // SAFETY: as this function's contract.
        let first = unsafe { first(draft.row_begin, self.index, draft.rows_per_sequence) };
        within(first, self.num_drafts, &draft.logits)
    }

    /// The number of the test of a node at this depth, for a purpose of the lane.
    ///
    /// # Safety
    ///
    /// As for [`Sequence::draft`].
    pub unsafe fn test_number(
        &self,
        (node, depth): (usize, usize),
        purpose: Purpose,
        lane: usize,
    ) -> u64 {
        // SAFETY: as this function's contract.
        unsafe { self.number(2 * (node - 1), depth, purpose, lane) }
    }

    /// The number of the token that is emitted below a node at this depth.
    ///
    /// # Safety
    ///
    /// As for [`Sequence::read`]; `node` is one of the sequence's.
    pub unsafe fn emission_number(&self, node: usize, depth: usize) -> u64 {
        // SAFETY: as this function's contract.
        unsafe { self.number(2 * node + 1, depth + 1, Purpose::Emit, 0) }
    }

    /// The host's number of this index, or that of the seed.
    ///
    /// # Safety
    ///
    /// As above; `index` is below two for each node.
    unsafe fn number(&self, index: usize, depth: usize, purpose: Purpose, lane: usize) -> u64 {
        let Some(uniforms) = self.batch.uniforms else {
            return uniform(self.seed, self.position as u64 + depth as u64, purpose, lane as u32);
        };
        // A number below 1 times 2^64 is exact, and below 2^64.
        // SAFETY: as this function's contract.
        unsafe { (read(uniforms, self.first_uniform() + index) * 2.0_f64.powi(64)) as u64 }
    }
}

/// The first row of a sequence, as the host's array or the default says.
///
/// # Safety
///
/// The array is valid and reaches the sequence.
unsafe fn first(array: Option<Span<i32>>, index: usize, per_sequence: usize) -> i64 {
    // SAFETY: as this function's contract.
    array.map_or((index * per_sequence) as i64, |rows| unsafe { read(rows, index) }.into())
}

/// `first`, if so many rows from there on are in the matrix.
fn within(first: i64, rows: usize, matrix: &Matrix) -> Option<usize> {
    let first = usize::try_from(first).ok()?;
    first.checked_add(rows).filter(|&end| end <= matrix.rows).map(|_| first)
}
