//! Verification on the CPU: sequences over threads where there are enough of them, the blocks of
//! each row over threads otherwise. Neither changes a result.

mod chain;
mod logprobs;
mod node;
mod processing;
mod sequence;
mod walk;

use super::distribution::{MOST_PARTS, Scratch, Split};
use super::memory::{elements_mut, read};
use super::remainder;
use super::rows::BLOCK;
use super::simd::Isa;
use super::threads::Pool;
use crate::backend::verify::{Child, Rule, RuleKind, VerifyBatch, record};
use crate::tensor::{ALIGNMENT, Carver, Span};
use sequence::{Part, Sequence};
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
    /// Where something is done to rows before they are looked at.
    processing: Option<processing::Scratch>,
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
            processing: batch
                .processing
                .map(|_| processing::Scratch::carve(carver, vocabulary, batch.max_drafts)),
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
    // SAFETY: as this function's contract.
    unsafe { logprobs::clear(batch, index) };
    let emission = match &part {
        // SAFETY: as this function's contract.
        Part::Takes(sequence) => unsafe {
            let emission = walk::walk(bench, sequence, rule, tokens, path);
            logprobs::write(bench, sequence, &tokens[..emission.emitted], path);
            emission
        },
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
