//! Laying out the rows of a drafting call. Nothing that the host's arrays say is trusted here, and
//! nothing that passed is checked again later.

use super::memory::{elements, elements_mut, place, read};
use crate::backend::draft_trees::TreeShape;
use crate::backend::phases::{Column, DraftBatch, Fault, KvPool, Limits, Plan};
use crate::tensor::Span;

/// Checks a call's arrays, lays out its rows, pads its outputs. Returns how many rows there are.
///
/// # Safety
///
/// The contract of [`crate::backend::Backend`].
pub unsafe fn plan_rows(
    batch: &DraftBatch<'_>,
    limits: &Limits,
    pool: &KvPool,
    plan: &Plan,
) -> usize {
    let planner = Planner { batch, limits, pool, plan };
    // Rows of the call, and those laid out for them.
    let (mut committed, mut placed) = (0, 0);
    // SAFETY: as this function's contract, here and below.
    unsafe {
        elements_mut(plan.drafting)[..batch.max_drafts].fill(0);
        for sequence in 0..batch.num_sequences {
            let rows = planner.sequence(sequence, committed);
            let (rows, drafts) = match rows {
                Ok(Some(rows)) => {
                    placed += planner.lay_out(&rows, placed);
                    (rows.count, rows.drafts)
                }
                Ok(None) => (0, 0),
                Err(fault) => {
                    planner.fault(fault, sequence);
                    (0, 0)
                }
            };
            committed += rows;
            planner.pad(sequence, drafts);
            elements_mut(plan.num_drafts)[sequence] = drafts as i32;
            elements_mut(plan.drafting)[..drafts].iter_mut().for_each(|count| *count += 1);
            // Until the drafting rows are sorted, the place of a sequence is its own.
            elements_mut(plan.page_row)[sequence] = planner.page_row(sequence).unwrap_or(0) as i32;
        }
        elements_mut(plan.commit.count)[0] = placed as i32;
        planner.sort_drafting_rows();
    }
    placed
}

/// The rows of one sequence, checked.
struct SequenceRows {
    sequence: usize,
    position: usize,
    first: usize,
    count: usize,
    contiguous: bool,
    drafts: usize,
}

struct Planner<'a> {
    batch: &'a DraftBatch<'a>,
    limits: &'a Limits,
    pool: &'a KvPool,
    plan: &'a Plan,
}

/// One entry of a column. It is read alone: where a row index lies in records, the last row's end
/// may lie outside of the host's memory.
unsafe fn entry(column: &Column, sequence: usize, index: usize) -> i32 {
    // SAFETY: the callers' sequences and indices lie inside, by the contract of Backend.
    unsafe { read(column.span, sequence * column.stride + index) }
}

/// One entry of an array, or what holds where there is none.
unsafe fn optional(span: Option<Span<i32>>, index: usize, otherwise: i64) -> i64 {
    // SAFETY: as for `entry`.
    span.map_or(otherwise, |span| unsafe { read(span, index) }.into())
}

fn index(value: i64, below: usize, fault: Fault) -> Result<usize, Fault> {
    usize::try_from(value).ok().filter(|&value| value < below).ok_or(fault)
}

impl Planner<'_> {
    /// # Safety
    ///
    /// The contract of `plan_rows`, here and for the other functions.
    unsafe fn sequence(&self, b: usize, committed: usize) -> Result<Option<SequenceRows>, Fault> {
        let (batch, limits) = (self.batch, self.limits);
        // SAFETY: as this function's contract.
        unsafe {
            let count = i64::from(entry(&batch.row_count, b, 0));
            if count == 0 {
                return Ok(None);
            }
            let count = index(count, batch.num_rows + 1, Fault::Rows)?;
            if count > limits.max_rows.min(batch.num_rows) - committed {
                return Err(Fault::TooManyRows);
            }
            let position =
                index(entry(&batch.position, b, 0).into(), limits.max_position, Fault::Position)?;
            let begin = optional(batch.context_begin, b, 0);
            let begin = index(begin, (position + 1).saturating_sub(count), Fault::Position)?;
            let default_first = (b * (batch.max_drafts + 1)) as i64;
            let first = optional(batch.row_begin, b, default_first);
            let first = index(first, batch.num_rows, Fault::Rows)?;
            let contiguous = batch.row_index.is_none_or(|paths| entry(&paths, b, 0) < 0);
            let drafts = self.drafts(b, position);
            let rows = SequenceRows { sequence: b, position, first, count, contiguous, drafts };
            for row in 0..count {
                self.check_row(&rows, row)?;
            }
            let next = i64::from(entry(&batch.next_token, b, 0));
            index(next, limits.vocabulary, Fault::Token)?;
            self.check_pages(&rows, begin)?;
            Ok(Some(rows))
        }
    }

    /// The tokens that the sequence proposes if all is well.
    unsafe fn drafts(&self, b: usize, position: usize) -> usize {
        let (batch, limits) = (self.batch, self.limits);
        // SAFETY: as for `sequence`.
        let (wanted, limit) = unsafe {
            (optional(batch.num_drafts, b, i64::MAX), optional(batch.limit, b, i64::MAX))
        };
        // The last proposal has no row, and the first one none of its own unless rows read their tokens.
        let rowless = if limits.reads_own_tokens { 0 } else { 1 };
        let room = limits.max_position - position + rowless;
        let behind = limit.saturating_sub(1).clamp(0, room.min(limits.most_drafts) as i64) as usize;
        let drafts = match &batch.shape {
            None => behind,
            Some(shape) => {
                if let TreeShape::Dynamic { depth, .. } = shape {
                    // SAFETY: as for `sequence`.
                    unsafe { *place(self.plan.depth, b) = behind.min(*depth) as i32 };
                }
                shape.drafts_within(behind)
            }
        };
        drafts.min(batch.max_drafts).min(wanted.max(0) as usize)
    }

    /// The host's row of a sequence's row to commit.
    unsafe fn source(&self, rows: &SequenceRows, row: usize) -> i64 {
        let offset = match &self.batch.row_index {
            Some(paths) if !rows.contiguous => {
                // SAFETY: as for `sequence`; check_row has bounded the row by the column's width.
                i64::from(unsafe { entry(paths, rows.sequence, row) })
            }
            _ => row as i64,
        };
        rows.first as i64 + offset
    }

    unsafe fn check_row(&self, rows: &SequenceRows, row: usize) -> Result<(), Fault> {
        if let Some(paths) = self.batch.row_index.filter(|_| !rows.contiguous) {
            // SAFETY: the row is checked to lie inside of the path.
            if row >= paths.stride || unsafe { entry(&paths, rows.sequence, row) } < 0 {
                return Err(Fault::Rows);
            }
        }
        // SAFETY: as for `sequence`.
        let source = unsafe { self.source(rows, row) };
        let source = index(source, self.batch.num_rows, Fault::Rows)?;
        // SAFETY: the source lies inside.
        let token = unsafe { elements(self.batch.tokens)[source] };
        if token == -1 && self.batch.embeddings.is_some() {
            return Ok(());
        }
        index(token.into(), self.limits.vocabulary, Fault::Token).map(|_| ())
    }

    /// The first entry of the sequence's pages in the table, and the entries that it has.
    unsafe fn pages(&self, b: usize) -> Result<(usize, usize), Fault> {
        match &self.batch.block_table {
            Some(table) => Ok((b * table.stride, table.stride)),
            None => {
                // SAFETY: as for `sequence`.
                let slot = unsafe { optional(self.batch.slot, b, b as i64) };
                let slot = index(slot, self.limits.num_slots, Fault::Page)?;
                Ok((slot * self.pool.pages_per_slot, self.pool.pages_per_slot))
            }
        }
    }

    unsafe fn page_row(&self, b: usize) -> Option<usize> {
        // SAFETY: as for `sequence`.
        unsafe { self.pages(b) }.ok().map(|(first, _)| first)
    }

    unsafe fn check_pages(&self, rows: &SequenceRows, begin: usize) -> Result<(), Fault> {
        // SAFETY: as for `sequence`; the range is checked before it is read.
        unsafe {
            let (first, len) = self.pages(rows.sequence)?;
            // The rows of trees do not enter the pool.
            let chained = if self.batch.shape.is_some() { 1 } else { usize::MAX };
            let drafts = rows.drafts.min(chained);
            let behind = match (self.limits.drafts_in_pages, self.limits.reads_own_tokens) {
                (false, _) => 0,
                (true, false) => drafts.max(1) - 1,
                (true, true) => drafts,
            };
            let last = (rows.position + behind - 1) / self.pool.page_size;
            if last >= len {
                return Err(Fault::Page);
            }
            let table = match &self.batch.block_table {
                Some(table) => elements(table.span),
                None => elements(self.pool.slot_pages),
            };
            for &page in &table[first + begin / self.pool.page_size..=first + last] {
                index(page.into(), self.pool.pages.rows, Fault::Page)?;
            }
        }
        Ok(())
    }

    /// Writes the rows of a sequence from `first` on: row t goes with the token of the row after it, or
    /// with its own. Returns how many they are.
    unsafe fn lay_out(&self, rows: &SequenceRows, first: usize) -> usize {
        let commit = &self.plan.commit;
        let own = usize::from(self.limits.reads_own_tokens);
        let len = rows.count + own * usize::from(rows.drafts > 0);
        // SAFETY: as for `sequence`; the rows were checked and fit.
        unsafe {
            for row in 0..len {
                let place = first + row;
                // The row of the next token, which the host has no row for, turns one step further.
                let of_host = row.min(rows.count - 1);
                let ahead = (row - of_host) as i64;
                let source = self.source(rows, of_host) as usize;
                let position = (rows.position - rows.count + row) as i32;
                let token = self.token(rows, row + 1 - own);
                let unset = i64::from(position) - ahead;
                let rope = optional(self.batch.rope_position, source, unset) + ahead;
                let rope = rope as i32;
                elements_mut(commit.sequence)[place] = rows.sequence as i32;
                elements_mut(commit.position)[place] = position;
                elements_mut(commit.rope_position)[place] = rope;
                elements_mut(commit.token)[place] = token;
                elements_mut(commit.source)[place] = source as i32;
            }
            // The last committed row of each sequence, until the drafting rows are written.
            elements_mut(self.plan.draft.source)[rows.sequence] = (first + len - 1) as i32;
        }
        len
    }

    /// The token of a sequence's row, or the next token behind its rows.
    unsafe fn token(&self, rows: &SequenceRows, row: usize) -> i32 {
        // SAFETY: as for `sequence`; the rows were checked.
        unsafe {
            if row == rows.count {
                return entry(&self.batch.next_token, rows.sequence, 0);
            }
            let source = self.source(rows, row) as usize;
            match elements(self.batch.tokens)[source] {
                -1 => -1 - source as i32,
                token => token,
            }
        }
    }

    unsafe fn pad(&self, b: usize, drafts: usize) {
        let Column { span, stride } = self.batch.draft_tokens;
        // SAFETY: as for `sequence`.
        unsafe {
            if self.batch.max_drafts > 0 {
                let row = span.slice(b * stride, self.batch.max_drafts);
                elements_mut(row).fill(self.batch.padding);
            }
            if let Some(proposed) = self.batch.num_proposed {
                elements_mut(proposed)[b] = drafts as i32;
            }
        }
    }

    unsafe fn fault(&self, fault: Fault, sequence: usize) {
        // SAFETY: as for `sequence`.
        let word = unsafe { elements_mut(self.plan.fault) };
        if word[0] == 0 {
            word.copy_from_slice(&[fault as i32, sequence as i32]);
        }
    }

    /// Writes one row per drafting sequence, those with the most tokens to propose first: a counting
    /// sort whose cursors are the counts of `drafting` themselves.
    unsafe fn sort_drafting_rows(&self) {
        let (draft, commit) = (&self.plan.draft, &self.plan.commit);
        // SAFETY: as for `sequence`.
        unsafe {
            let drafting = &mut elements_mut(self.plan.drafting)[..self.batch.max_drafts];
            let Some(&total) = drafting.first() else { return };
            elements_mut(draft.count)[0] = total;
            let sources = elements_mut(draft.position);
            sources[..self.batch.num_sequences]
                .copy_from_slice(&elements(draft.source)[..self.batch.num_sequences]);
            let places = elements_mut(draft.token);
            for b in (0..self.batch.num_sequences).rev() {
                let drafts = elements(self.plan.num_drafts)[b] as usize;
                if drafts > 0 {
                    // The class of `drafts` ends where that of one draft fewer begins.
                    drafting[drafts - 1] -= 1;
                    places[drafting[drafts - 1] as usize] = b as i32;
                }
            }
            // Now each count stands one step too early.
            drafting.rotate_right(1);
            drafting[0] = total;
            for (place, &b) in places[..total as usize].iter().enumerate() {
                elements_mut(draft.sequence)[place] = b;
                elements_mut(draft.source)[place] = sources[b as usize];
            }
            for place in 0..total as usize {
                let row = elements(draft.source)[place] as usize;
                elements_mut(draft.position)[place] = elements(commit.position)[row];
                elements_mut(draft.rope_position)[place] = elements(commit.rope_position)[row];
                elements_mut(draft.token)[place] = elements(commit.token)[row];
            }
        }
    }
}
