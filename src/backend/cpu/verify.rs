//! Verification on the CPU: sequences over threads where there are enough of them, the blocks of
//! each row over threads otherwise. Neither changes a result.

use super::distribution::{Contest, DraftLaw, Law, MOST_PARTS, Reader, Scratch, Split, TokenIds};
use super::memory::{elements_mut, read};
use super::rows::{BLOCK, Row};
use super::simd::Isa;
use super::threads::Pool;
use crate::backend::verify::{
    Decision, DraftDistribution, Proposal, Rule, SamplingArrays, TargetRow, VerifyBatch, record,
};
use crate::sampling::{Parameters, Purpose, uniform};
use crate::tensor::{ALIGNMENT, Carver, Matrix, Span};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of workspace that [`verify`] needs; the rule does not matter.
pub fn workspace_bytes(pool: &Pool, batch: &VerifyBatch, _rule: &dyn Rule) -> usize {
    if batch.num_sequences == 0 {
        return 0;
    }
    let (workers, parts) = shares(pool, batch);
    workers.saturating_mul(WorkerScratch::bytes(batch, parts))
}

/// Decides all sequences of a batch.
///
/// # Safety
///
/// The contract of [`crate::backend::Backend`]; the workspace has [`workspace_bytes`] bytes.
pub unsafe fn verify(
    pool: &Pool,
    isa: Isa,
    batch: &VerifyBatch,
    rule: &dyn Rule,
    workspace: Span<u8>,
) {
    if batch.num_sequences == 0 {
        return;
    }
    let (workers, parts) = shares(pool, batch);
    let bytes = WorkerScratch::bytes(batch, parts);
    let split = Split { pool: Some(pool), parts };
    let next = AtomicUsize::new(0);
    pool.run(workers, &|worker| {
        let block = workspace.slice(worker * bytes, bytes).address();
        let scratch = WorkerScratch::carve(&mut Carver::of_block(block), batch, parts);
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= batch.num_sequences {
                return;
            }
            // SAFETY: the contract of Backend; this sequence's record and this worker's scratch
            // are used by no other task.
            unsafe { decide(isa, split, batch, rule, index, scratch) };
        }
    });
    if let Some(counters) = batch.counters {
        // SAFETY: the contract of Backend; all records are written.
        unsafe { add_counters(batch, counters) };
    }
}

/// Bytes of scratch that [`draw_draft`] needs for rows of `columns` logits.
pub fn draft_scratch(columns: usize) -> usize {
    let mut carver = Carver::counting();
    Scratch::carve(&mut carver, columns, 1);
    carver.used()
}

/// The column that a sequence's next draft is drawn from, given the logits' row 0: the one that
/// verification would draw from the same logits, but with a number for drafts. The first one
/// where there is no candidate.
///
/// # Safety
///
/// The matrix is valid, not written meanwhile, and has a row that is not empty; the sampling
/// arrays reach the sequence; `scratch` has [`draft_scratch`] bytes, aligned as [`Carver`] says,
/// used by nothing else.
pub unsafe fn draw_draft(
    isa: Isa,
    logits: &Matrix,
    sampling: &SamplingArrays,
    sequence: usize,
    position: i32,
    scratch: Span<u8>,
) -> usize {
    let scratch = Scratch::carve(&mut Carver::of_block(scratch.address()), logits.columns, 1);
    let row = Row {
        address: logits.row_address(0),
        dtype: logits.dtype,
        len: logits.columns,
        token_ids: None,
    };
    // SAFETY: as this function's contract.
    unsafe {
        let reader = Reader::new(isa, Split::NONE, row, scratch);
        let number = uniform(seed(sampling, sequence), position as u64, Purpose::Draft, 0);
        let law = reader.law(&parameters(sampling, sequence));
        law.map_or(0, |law| reader.draw(&law, number))
    }
}

/// How many sequences are worked on at a time, and in how many parts their rows.
fn shares(pool: &Pool, batch: &VerifyBatch) -> (usize, usize) {
    let threads = pool.threads();
    if batch.num_sequences >= threads { (threads, 1) } else { (1, threads.min(MOST_PARTS)) }
}

#[derive(Clone, Copy)]
struct WorkerScratch {
    target: Scratch,
    draft: Option<Scratch>,
    overlap: Span<u128>,
}

impl WorkerScratch {
    fn carve(carver: &mut Carver, batch: &VerifyBatch, parts: usize) -> Self {
        let vocabulary = batch.logits.columns;
        Self {
            target: Scratch::carve(carver, vocabulary, parts),
            draft: batch.draft.map(|draft| Scratch::carve(carver, draft.logits.columns, parts)),
            overlap: carver.span(vocabulary.div_ceil(BLOCK)),
        }
    }

    fn bytes(batch: &VerifyBatch, parts: usize) -> usize {
        let mut carver = Carver::counting();
        Self::carve(&mut carver, batch, parts);
        carver.used().checked_next_multiple_of(ALIGNMENT).unwrap_or(usize::MAX)
    }
}

/// How a sequence's tokens are drawn.
///
/// # Safety
///
/// The arrays are valid and reach the sequence.
unsafe fn parameters(arrays: &SamplingArrays, sequence: usize) -> Parameters {
    // SAFETY: as this function's contract.
    unsafe {
        Parameters {
            temperature: arrays.temperature.map_or(0.0, |values| read(values, sequence)),
            top_k: arrays.top_k.map_or(0, |values| read(values, sequence)),
            top_p: arrays.top_p.map_or(1.0, |values| read(values, sequence)),
            min_p: arrays.min_p.map_or(0.0, |values| read(values, sequence)),
        }
    }
}

/// The seed of a sequence.
///
/// # Safety
///
/// As for [`parameters`].
unsafe fn seed(arrays: &SamplingArrays, sequence: usize) -> u64 {
    // SAFETY: as this function's contract.
    arrays.seed.map_or(0, |seeds| unsafe { read(seeds, sequence) })
}

/// A sequence that takes part, its arrays checked.
#[derive(Clone, Copy)]
struct Sequence<'a> {
    batch: &'a VerifyBatch,
    index: usize,
    position: i32,
    num_drafts: usize,
    first_row: usize,
    parameters: Parameters,
    seed: u64,
}

/// Whether a sequence takes part.
enum Part<'a> {
    Takes(Sequence<'a>),
    Absent,
    Invalid,
}

impl<'a> Sequence<'a> {
    /// # Safety
    ///
    /// The arrays of the batch are valid; `index` is below B.
    unsafe fn read(batch: &'a VerifyBatch, index: usize, position: i32) -> Part<'a> {
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
        if unsafe { sequence.is_valid() } { Part::Takes(sequence) } else { Part::Invalid }
    }

    /// # Safety
    ///
    /// As for [`Sequence::read`].
    unsafe fn is_valid(&self) -> bool {
        let vocabulary = self.batch.logits.columns as i64;
        let last_position = i64::from(self.position) + self.num_drafts as i64 + 1;
        // SAFETY: as this function's contract.
        unsafe {
            self.position >= 0
                && last_position <= i64::from(i32::MAX)
                && self.parameters.are_numbers()
                && (0..self.num_drafts)
                    .all(|node| (-1..vocabulary).contains(&self.draft(node).into()))
                && self.batch.draft.is_none_or(|draft| {
                    self.draft_parameters(&draft).are_numbers()
                        && (self.num_drafts == 0 || self.draft_row(&draft).is_some())
                })
                && self.batch.uniforms.is_none_or(|uniforms| {
                    self.parameters.is_greedy()
                        || (0..2 * (self.num_drafts + 1)).all(|index| {
                            (0.0..1.0).contains(&read(uniforms, self.first_uniform() + index))
                        })
                })
        }
    }

    fn first_uniform(&self) -> usize {
        self.index * 2 * (self.batch.max_drafts + 1)
    }

    /// # Safety
    ///
    /// As for [`Sequence::read`]; `node` is below the number of drafts.
    unsafe fn draft(&self, node: usize) -> i32 {
        let drafts = self.batch.draft_tokens;
        // SAFETY: as this function's contract.
        unsafe { read(drafts.span, self.index * drafts.stride + node) }
    }

    /// # Safety
    ///
    /// As for [`Sequence::read`].
    unsafe fn draft_parameters(&self, draft: &DraftDistribution) -> Parameters {
        // SAFETY: as this function's contract.
        unsafe { parameters(draft.sampling.as_ref().unwrap_or(&self.batch.sampling), self.index) }
    }

    /// The row of the first draft, if those of all drafts are there.
    ///
    /// # Safety
    ///
    /// As for [`Sequence::read`].
    unsafe fn draft_row(&self, draft: &DraftDistribution) -> Option<usize> {
        // SAFETY: as this function's contract.
        let first = unsafe { first(draft.row_begin, self.index, draft.rows_per_sequence) };
        within(first, self.num_drafts, &draft.logits)
    }

    /// The number for the test or the token below a node.
    ///
    /// # Safety
    ///
    /// As for [`Sequence::read`].
    unsafe fn number(&self, node: usize, purpose: Purpose) -> u64 {
        let Some(uniforms) = self.batch.uniforms else {
            let position = self.position as u64 + 1 + node as u64;
            return uniform(self.seed, position, purpose, 0);
        };
        let index = self.first_uniform() + 2 * node + usize::from(purpose == Purpose::Emit);
        // A number below 1 times 2^64 is exact, and below 2^64.
        // SAFETY: as this function's contract.
        unsafe { (read(uniforms, index) * 2.0_f64.powi(64)) as u64 }
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

/// A node of a sequence, as the rules see it. What is computed for one question is kept for the
/// next.
struct Node<'a> {
    isa: Isa,
    split: Split<'a>,
    scratch: WorkerScratch,
    sequence: &'a Sequence<'a>,
    node: usize,
    has_candidate: bool,
    p: Option<Law>,
    contest: Option<Contest<'a>>,
}

impl<'a> Node<'a> {
    fn target(&self) -> Reader<'a> {
        let logits = &self.sequence.batch.logits;
        let row = Row {
            address: logits.row_address(self.sequence.first_row + self.node),
            dtype: logits.dtype,
            len: logits.columns,
            token_ids: None,
        };
        // SAFETY: the contract of `decide`; the sequence's rows were checked.
        unsafe { Reader::new(self.isa, self.split, row, self.scratch.target) }
    }

    /// p; a row without a candidate is certain of its lowest id.
    fn law(&mut self) -> Law {
        if let Some(law) = self.p {
            return law;
        }
        let law = self.target().law(&self.sequence.parameters);
        self.has_candidate &= law.is_some();
        *self.p.insert(law.unwrap_or(Law::Certain(0)))
    }

    /// The law that the proposal was drawn from; `None` where it is not known, or its row has no
    /// candidate.
    fn draft_law(&self, token: Option<usize>) -> Option<(DraftLaw<'a>, TokenIds)> {
        let (Some(draft), Some(scratch)) = (self.sequence.batch.draft, self.scratch.draft) else {
            return token.map(|token| (DraftLaw::Token(token), TokenIds::Identity));
        };
        // SAFETY: the contract of `decide`.
        let (first, parameters) =
            unsafe { (self.sequence.draft_row(&draft)?, self.sequence.draft_parameters(&draft)) };
        let index = first + self.node;
        let ids = draft
            .token_ids
            .map(|ids| ids.address() + (index * draft.token_ids_stride * size_of::<i32>()) as u64);
        let row = Row {
            address: draft.logits.row_address(index),
            dtype: draft.logits.dtype,
            len: draft.logits.columns,
            token_ids: ids,
        };
        // SAFETY: as above; the draft's rows were checked.
        let reader = unsafe { Reader::new(self.isa, self.split, row, scratch) };
        let law = reader.law(&parameters)?;
        Some((DraftLaw::Row(reader, law), ids.map_or(TokenIds::Identity, TokenIds::At)))
    }

    fn contest(&mut self, token: Option<usize>) -> Option<Contest<'a>> {
        if self.contest.is_none() {
            let (target, p) = (self.target(), self.law());
            let (q, ids) = self.draft_law(token)?;
            self.contest = Some(Contest { target, p, q, ids, overlap: self.scratch.overlap });
        }
        self.contest
    }

    fn number(&self, purpose: Purpose) -> u64 {
        // SAFETY: the contract of `decide`.
        unsafe { self.sequence.number(self.node, purpose) }
    }
}

impl TargetRow for Node<'_> {
    fn is_greedy(&self) -> bool {
        self.sequence.parameters.is_greedy()
    }

    fn argmax(&mut self) -> usize {
        let token = self.target().argmax();
        self.has_candidate &= token.is_some();
        token.unwrap_or(0)
    }

    fn draw(&mut self) -> usize {
        let law = self.law();
        self.target().draw(&law, self.number(Purpose::Emit))
    }

    fn accepts(&mut self, token: usize) -> bool {
        let number = self.number(Purpose::Accept);
        self.contest(Some(token)).is_some_and(|contest| contest.accepts(token, number))
    }

    fn draw_residual(&mut self, token: Option<usize>) -> usize {
        let number = self.number(Purpose::Emit);
        let drawn = self.contest(token).and_then(|contest| contest.draw_residual(number));
        drawn.unwrap_or_else(|| self.draw())
    }
}

/// What was emitted for a sequence.
#[derive(Default)]
struct Emission {
    accepted: usize,
    emitted: usize,
    flags: i32,
}

/// Decides one sequence and writes its record.
///
/// # Safety
///
/// The addresses of the batch are valid; `index` is below B; nothing else uses the sequence's
/// record and the scratch, which was carved for the batch.
unsafe fn decide(
    isa: Isa,
    split: Split<'_>,
    batch: &VerifyBatch,
    rule: &dyn Rule,
    index: usize,
    scratch: WorkerScratch,
) {
    // The position may lie in the record: it is read before anything is written.
    // SAFETY: as this function's contract.
    let (position, part) = unsafe {
        let position = read(batch.position.span, index * batch.position.stride);
        (position, Sequence::read(batch, index, position))
    };
    let len = record::len(batch.max_drafts);
    let span = batch.decisions.span.slice(index * batch.decisions.stride, len);
    // SAFETY: as this function's contract.
    let record = unsafe { elements_mut(span) };
    let (tokens, path) = record[record::TOKENS..].split_at_mut(batch.max_drafts + 1);
    tokens.fill(batch.padding);
    path.fill(-1);
    let emission = match &part {
        // SAFETY: as this function's contract.
        Part::Takes(sequence) => unsafe { walk(isa, split, sequence, rule, scratch, tokens) },
        Part::Absent => Emission::default(),
        Part::Invalid => Emission { flags: record::INVALID, ..Emission::default() },
    };
    for (node, place) in path[..emission.emitted].iter_mut().enumerate() {
        *place = node as i32;
    }
    record[record::ACCEPTED] = emission.accepted as i32;
    record[record::EMITTED] = emission.emitted as i32;
    if emission.emitted > 0 {
        record[record::NEXT_TOKEN] = record[record::TOKENS + emission.emitted - 1];
    }
    record[record::NEXT_POSITION] = position.wrapping_add(emission.emitted as i32);
    record[record::FLAGS] = emission.flags;
    record[record::FLAGS + 1..record::TOKENS].fill(0);
}

/// Goes down the chain while drafts are accepted.
///
/// # Safety
///
/// As for [`decide`].
unsafe fn walk(
    isa: Isa,
    split: Split<'_>,
    sequence: &Sequence<'_>,
    rule: &dyn Rule,
    scratch: WorkerScratch,
    tokens: &mut [i32],
) -> Emission {
    let batch = sequence.batch;
    let mut emission = Emission::default();
    // SAFETY: as this function's contract.
    let limit = batch.limit.map_or(i32::MAX, |limits| unsafe { read(limits, sequence.index) });
    if limit <= 0 {
        return Emission { flags: record::LIMIT, ..emission };
    }
    for (node, place) in tokens.iter_mut().enumerate().take(sequence.num_drafts + 1) {
        let mut row = Node {
            isa,
            split,
            scratch,
            sequence,
            node,
            has_candidate: true,
            p: None,
            contest: None,
        };
        let proposal = if node == sequence.num_drafts {
            Proposal::None
        } else {
            // SAFETY: as this function's contract.
            let draft = unsafe { sequence.draft(node) };
            usize::try_from(draft).map_or(Proposal::StruckOut, Proposal::Token)
        };
        let (token, is_accepted) = match rule.decide(proposal, &mut row) {
            Decision::Accept(token) => (token as i32, true),
            Decision::Emit(token) => (token as i32, false),
        };
        *place = token;
        emission.emitted += 1;
        emission.accepted += usize::from(is_accepted);
        if !row.has_candidate {
            emission.flags |= record::NO_CANDIDATE;
        }
        // SAFETY: as this function's contract.
        let is_stop = |stop| unsafe { read(batch.stop_tokens, stop) } == token;
        if (0..batch.stop_tokens.len()).any(is_stop) {
            emission.flags |= record::STOPPED;
        }
        if emission.emitted == limit as usize {
            emission.flags |= record::LIMIT;
        }
        if !is_accepted || emission.flags & (record::STOPPED | record::LIMIT) != 0 {
            break;
        }
    }
    emission
}

/// Adds what the records say to the host's counters.
///
/// # Safety
///
/// The addresses of the batch are valid, and all its records are written.
unsafe fn add_counters(batch: &VerifyBatch, counters: Span<u64>) {
    let len = 3 + batch.max_drafts;
    // SAFETY: as this function's contract.
    let counters = unsafe { elements_mut(counters.slice(0, len)) };
    for index in 0..batch.num_sequences {
        let decisions = batch.decisions;
        let start = index * decisions.stride;
        // SAFETY: as this function's contract.
        let (accepted, emitted, drafts) = unsafe {
            (
                read(decisions.span, start + record::ACCEPTED) as usize,
                read(decisions.span, start + record::EMITTED) as u64,
                batch.num_drafts.map_or(batch.max_drafts as i32, |values| read(values, index)),
            )
        };
        if emitted == 0 {
            continue;
        }
        counters[0] += 1;
        counters[1] += drafts as u64;
        counters[2] += emitted;
        counters[3..3 + accepted].iter_mut().for_each(|count| *count += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Dtype;

    #[repr(align(64))]
    struct Memory([u8; 20_000]);

    fn draw(isa: Isa, logits: &[f32], temperature: f32, seed: u64, position: i32) -> usize {
        let mut memory = Memory([0xA5; 20_000]);
        assert!(draft_scratch(logits.len()) <= memory.0.len());
        let scratch = Span::new(memory.0.as_mut_ptr() as u64, memory.0.len());
        let logits = Matrix {
            address: logits.as_ptr() as u64,
            dtype: Dtype::F32,
            rows: 1,
            columns: logits.len(),
            row_stride: logits.len(),
        };
        let (temperatures, seeds) = ([9.0, temperature], [0, seed]);
        let sampling = SamplingArrays {
            temperature: Some(Span::new(temperatures.as_ptr() as u64, 2)),
            seed: Some(Span::new(seeds.as_ptr() as u64, 2)),
            ..SamplingArrays::default()
        };
        // SAFETY: all memory outlives the call.
        unsafe { draw_draft(isa, &logits, &sampling, 1, position, scratch) }
    }

    #[test]
    fn drafts_are_drawn_by_their_own_numbers_in_the_order_of_the_columns() {
        let logits: Vec<f32> = (0..300).map(|place| ((place * 7 % 31) as f32).sqrt()).collect();
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        for position in 0..200 {
            let number = uniform(77, position as u64, Purpose::Draft, 0);
            let target = number as f64 / 2.0_f64.powi(64) * sum;
            let mut reached = 0.0;
            let ends: Vec<f64> = logits
                .iter()
                .map(|&logit| {
                    reached += f64::from(logit).exp();
                    reached
                })
                .collect();
            let expected = ends.iter().position(|&end| target < end).unwrap();
            // Real numbers decide nothing that rounding could turn.
            if ends.iter().any(|end| (end - target).abs() < 1e-5 * sum) {
                continue;
            }
            for isa in Isa::available() {
                assert_eq!(draw(isa, &logits, 1.0, 77, position), expected);
            }
        }
    }

    #[test]
    fn greedy_drafts_are_the_first_of_the_largest_logits() {
        for isa in Isa::available() {
            assert_eq!(draw(isa, &[1.0, f32::NAN, 3.0, 3.0], 0.0, 5, 9), 2);
            assert_eq!(draw(isa, &[f32::NAN; 3], 0.0, 5, 9), 0);
            assert_eq!(draw(isa, &[f32::NEG_INFINITY; 3], 1.0, 5, 9), 0);
        }
    }
}
