//! Verification on the CPU: sequences over threads where there are enough of them, the blocks of
//! each row over threads otherwise. Neither changes a result.

mod chain;
mod node;
mod sequence;
mod walk;

use super::distribution::{MOST_PARTS, Reader, Scratch, Split};
use super::memory::{elements_mut, read};
use super::remainder;
use super::rows::{BLOCK, Row};
use super::simd::Isa;
use super::threads::Pool;
use crate::backend::verify::{Child, Rule, RuleKind, SamplingArrays, VerifyBatch, record};
use crate::sampling::{Purpose, uniform};
use crate::tensor::{ALIGNMENT, Carver, Matrix, Span};
use sequence::{Part, Sequence, parameters, seed};
use std::sync::atomic::{AtomicUsize, Ordering};
use walk::{Emission, Visit};

/// Bytes of workspace that [`verify`] needs.
pub fn workspace_bytes(pool: &Pool, batch: &VerifyBatch, rule: &dyn Rule) -> usize {
    if batch.num_sequences == 0 {
        return 0;
    }
    let (workers, parts) = shares(pool, batch);
    workers.saturating_mul(WorkerScratch::bytes(batch, rule, parts))
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
    let bytes = WorkerScratch::bytes(batch, rule, parts);
    let split = Split { pool: Some(pool), parts };
    let next = AtomicUsize::new(0);
    pool.run(workers, &|worker| {
        let block = workspace.slice(worker * bytes, bytes).address();
        let scratch = WorkerScratch::carve(&mut Carver::of_block(block), batch, rule, parts);
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= batch.num_sequences {
                return;
            }
            // SAFETY: the contract of Backend; this sequence's record and this worker's scratch
            // are used by no other task.
            unsafe { decide(Bench { isa, split, scratch }, batch, rule, index) };
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
    /// Where one test of p against q is not enough.
    remainder: Option<remainder::Scratch>,
    /// The nodes of a sequence.
    visits: Span<Visit>,
    /// The children of a node.
    children: Span<Child>,
}

impl WorkerScratch {
    fn carve(carver: &mut Carver, batch: &VerifyBatch, rule: &dyn Rule, parts: usize) -> Self {
        let vocabulary = batch.logits.columns;
        let needs_remainder = match rule.kind() {
            RuleKind::Rejection(_) => batch.parents.is_some(),
            RuleKind::Block | RuleKind::Threshold => true,
            _ => false,
        };
        Self {
            target: Scratch::carve(carver, vocabulary, parts),
            draft: batch.draft.map(|draft| Scratch::carve(carver, draft.logits.columns, parts)),
            overlap: carver.span(vocabulary.div_ceil(BLOCK)),
            remainder: needs_remainder.then(|| remainder::Scratch::carve(carver, vocabulary)),
            visits: carver.span(batch.max_drafts + 1),
            children: carver.span(batch.max_drafts),
        }
    }

    fn bytes(batch: &VerifyBatch, rule: &dyn Rule, parts: usize) -> usize {
        let mut carver = Carver::counting();
        Self::carve(&mut carver, batch, rule, parts);
        carver.used().checked_next_multiple_of(ALIGNMENT).unwrap_or(usize::MAX)
    }
}

/// What a sequence is decided with.
#[derive(Clone, Copy)]
struct Bench<'a> {
    isa: Isa,
    split: Split<'a>,
    scratch: WorkerScratch,
}

/// Decides one sequence and writes its record.
///
/// # Safety
///
/// The addresses of the batch are valid; `index` is below B; nothing else uses the sequence's
/// record and the scratch, which was carved for the batch.
unsafe fn decide(bench: Bench<'_>, batch: &VerifyBatch, rule: &dyn Rule, index: usize) {
    // The position may lie in the record: it is read before anything is written.
    // SAFETY: as this function's contract.
    let (position, part) = unsafe {
        let position = read(batch.position.span, index * batch.position.stride);
        (position, Sequence::read(batch, rule, index, position))
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
        Part::Takes(sequence) => unsafe { walk::walk(bench, sequence, rule, tokens, path) },
        Part::Absent => Emission::default(),
        Part::Invalid => Emission { flags: record::INVALID, ..Emission::default() },
    };
    record[record::ACCEPTED] = emission.accepted as i32;
    record[record::EMITTED] = emission.emitted as i32;
    if emission.emitted > 0 {
        record[record::NEXT_TOKEN] = record[record::TOKENS + emission.emitted - 1];
    }
    record[record::NEXT_POSITION] = position.wrapping_add(emission.emitted as i32);
    record[record::FLAGS] = emission.flags;
    record[record::DROPPED] = emission.dropped as i32;
    record[record::DROPPED + 1..record::TOKENS].fill(0);
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
