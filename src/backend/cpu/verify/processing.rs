//! The steps between a row of logits and its law, which are done anew at each node that is looked at:
//! what they depend on differs from path to path.

use super::super::memory::{elements, elements_mut, read};
use super::super::rows::{BLOCK, Row};
use super::super::vector::widen;
use super::Bench;
use super::sequence::Sequence;
use crate::backend::processing::{BadWords, Penalties, Processing, Ranges};
use crate::tensor::{Carver, Dtype, Span};
use std::ops::Range;

/// Tokens of an element of a mask.
const WORD: usize = u32::BITS as usize;

/// Room for one row, and for the tokens of the path that leads to it.
#[derive(Clone, Copy, Debug)]
pub struct Scratch {
    row: Span<f32>,
    path: Span<i32>,
    /// The logits of these tokens before penalties.
    before: Span<f32>,
}

impl Scratch {
    /// Scratch for rows of `columns` logits and paths of up to `drafts` tokens.
    pub fn carve(carver: &mut Carver, columns: usize, drafts: usize) -> Self {
        Self { row: carver.span(columns), path: carver.span(drafts), before: carver.span(drafts) }
    }
}

/// The row of a node: that of the batch where there is nothing to do, otherwise one in scratch.
///
/// # Safety
///
/// As for [`super::decide`]; the node is one of the sequence's. The last row that was made is not
/// used any more.
pub unsafe fn processed_row(bench: Bench<'_>, sequence: &Sequence<'_>, node: usize) -> Row {
    let source = sequence.row(node);
    let (Some(processing), Some(scratch)) = (&sequence.batch.processing, bench.scratch.processing)
    else {
        return source;
    };
    // SAFETY: as this function's contract.
    unsafe {
        let path = path(sequence, node, scratch);
        let steps = Steps { sequence, processing }.at(node, path);
        if steps.do_nothing() {
            return source;
        }
        steps.apply(bench, &source, scratch);
    }
    Row { address: scratch.row.address(), dtype: Dtype::F32, ..source }
}

/// The tokens below the root down to a node.
///
/// # Safety
///
/// As for [`processed_row`].
unsafe fn path<'a>(sequence: &Sequence<'_>, node: usize, scratch: Scratch) -> &'a [i32] {
    // SAFETY: as this function's contract.
    unsafe {
        let path = elements_mut(scratch.path);
        let (mut begin, mut above) = (path.len(), node);
        while above > 0 {
            begin -= 1;
            path[begin] = sequence.draft(above);
            above = sequence.parent(above);
        }
        &path[begin..]
    }
}

/// The steps of a sequence, by the host's arrays.
#[derive(Clone, Copy)]
pub struct Steps<'a> {
    /// Whose rows are looked at.
    pub sequence: &'a Sequence<'a>,
    /// The arrays.
    pub processing: &'a Processing,
}

/// The functions that look at one thing each return `None` where the arrays have something out of
/// range.
impl<'a> Steps<'a> {
    /// Whether nothing is out of range.
    ///
    /// # Safety
    ///
    /// The arrays of the batch are valid.
    pub unsafe fn are_valid(&self) -> bool {
        // SAFETY: as this function's contract.
        unsafe {
            (0..=self.sequence.num_drafts).all(|node| self.mask(node).is_some())
                && self.are_words_valid()
                && self.are_biases_valid()
                && self.penalty().is_some()
        }
    }

    fn is_token(&self, token: i32) -> bool {
        (0..self.sequence.batch.logits.columns as i32).contains(&token)
    }

    /// The mask of a node's row, if it has one.
    unsafe fn mask(&self, node: usize) -> Option<Option<&'a [u32]>> {
        let Some(masks) = &self.processing.masks else { return Some(None) };
        let row = self.sequence.first_row + node;
        let mask = match masks.mask_row {
            // SAFETY: the contract of `are_valid`; the row is one of the batch.
            Some(rows) => match unsafe { read(rows, row) } {
                -1 => return Some(None),
                mask => usize::try_from(mask).ok()?,
            },
            None => row,
        };
        let columns = self.sequence.batch.logits.columns;
        // SAFETY: as above; the mask is one of those that there are.
        (mask < masks.count).then(|| Some(unsafe { elements(masks.bits.row(mask, columns)) }))
    }

    /// The sequence's words, by their numbers.
    unsafe fn words(&self) -> Option<Range<usize>> {
        let Some(words) = &self.processing.bad_words else { return Some(0..0) };
        // SAFETY: the contract of `are_valid`.
        unsafe { range(&words.of_sequence, self.sequence.index, words.words.begin.len()) }
    }

    /// The last tokens of the text at the root.
    unsafe fn history(&self) -> Option<&'a [i32]> {
        let words = self.processing.bad_words.as_ref();
        let Some(history) = words.and_then(|words| words.history) else { return Some(&[]) };
        let (index, stride) = (self.sequence.index, history.tokens.stride);
        // SAFETY: the contract of `are_valid`; the length is at most that of a row.
        unsafe {
            let length = usize::try_from(read(history.length, index)).ok()?;
            (length <= stride).then(|| elements(history.tokens.span.slice(index * stride, length)))
        }
    }

    unsafe fn are_words_valid(&self) -> bool {
        let Some(bad) = &self.processing.bad_words else { return true };
        // SAFETY: the contract of `are_valid`.
        unsafe {
            self.words().is_some_and(|words| {
                let has_tokens = |word: &[i32]| word.iter().all(|&token| self.is_token(token));
                words.is_empty()
                    || self.history().is_some()
                        && words.into_iter().all(|at| word(bad, at).is_some_and(has_tokens))
            })
        }
    }

    /// The sequence's biases, by their places.
    unsafe fn biases(&self) -> Option<Range<usize>> {
        let Some(biases) = &self.processing.biases else { return Some(0..0) };
        // SAFETY: the contract of `are_valid`.
        unsafe { range(&biases.of_sequence, self.sequence.index, biases.tokens.len()) }
    }

    unsafe fn are_biases_valid(&self) -> bool {
        let Some(biases) = &self.processing.biases else { return true };
        // SAFETY: the contract of `are_valid`; the places are in the lists.
        unsafe {
            self.biases().is_some_and(|mut places| {
                places.all(|at| {
                    self.is_token(read(biases.tokens, at)) && !read(biases.values, at).is_nan()
                })
            })
        }
    }

    /// The sequence's penalties, if it has any.
    unsafe fn penalty(&self) -> Option<Option<Penalty<'a>>> {
        let Some(penalties) = &self.processing.penalties else { return Some(None) };
        let (index, columns) = (self.sequence.index, self.sequence.batch.logits.columns);
        let value = |values: Option<Span<f32>>, otherwise| {
            // SAFETY: the contract of `are_valid`.
            values.map_or(otherwise, |values| unsafe { read(values, index) })
        };
        let repetition = value(penalties.repetition, 1.0);
        let frequency = value(penalties.frequency, 0.0);
        let presence = value(penalties.presence, 0.0);
        let is_valid = repetition > 0.0 && !frequency.is_nan() && !presence.is_nan();
        if !is_valid || (repetition, frequency, presence) == (1.0, 0.0, 0.0) {
            return is_valid.then_some(None);
        }
        // SAFETY: as above; the row is one of those that there are.
        unsafe {
            let row = count_row(penalties, index)?;
            let counts = penalties.output_counts;
            let counts = counts.map(|counts| counts.span.slice(row * counts.stride, columns));
            let prompt = penalties.prompt.map(|bits| bits.row(row, columns));
            Some(Some(Penalty {
                repetition,
                frequency,
                presence,
                counts: counts.map_or(&[], |counts| elements(counts)),
                prompt: prompt.map_or(&[], |prompt| elements(prompt)),
            }))
        }
    }

    /// What is done at a node, below this path. Who writes to the arrays after they were checked
    /// changes no more than what is done.
    ///
    /// # Safety
    ///
    /// As for [`processed_row`].
    unsafe fn at(self, node: usize, path: &'a [i32]) -> NodeSteps<'a> {
        let index = self.sequence.index;
        let min_tokens = self.processing.min_tokens;
        // SAFETY: as this function's contract.
        unsafe {
            let least = min_tokens.map_or(0, |values| read(values, index));
            NodeSteps {
                steps: self,
                path,
                mask: self.mask(node).flatten(),
                words: self.words().unwrap_or_default(),
                excludes_stops: (path.len() as i64) < i64::from(least)
                    && !self.sequence.batch.stop_tokens.is_empty(),
                biases: self.biases().unwrap_or_default(),
                penalty: self.penalty().flatten(),
            }
        }
    }
}

/// A range of a list with `all` elements.
///
/// # Safety
///
/// The arrays are valid and reach the index.
unsafe fn range(ranges: &Ranges, index: usize, all: usize) -> Option<Range<usize>> {
    // SAFETY: as this function's contract.
    let (begin, length) = unsafe { (read(ranges.begin, index), read(ranges.length, index)) };
    let (begin, length) = (usize::try_from(begin).ok()?, usize::try_from(length).ok()?);
    (length <= all && begin <= all - length).then_some(begin..begin + length)
}

/// The tokens of a word, of which there is one at least.
///
/// # Safety
///
/// The arrays are valid; the word is one of those that there are.
unsafe fn word<'a>(bad: &BadWords, word: usize) -> Option<&'a [i32]> {
    // SAFETY: as this function's contract; the range lies in the list.
    unsafe {
        let tokens = range(&bad.words, word, bad.tokens.len())?;
        (!tokens.is_empty()).then(|| elements(bad.tokens.slice(tokens.start, tokens.len())))
    }
}

/// The row of a sequence's counts; 0 where there are none at all.
///
/// # Safety
///
/// The arrays are valid and reach the sequence.
unsafe fn count_row(penalties: &Penalties, index: usize) -> Option<usize> {
    if penalties.output_counts.is_none() && penalties.prompt.is_none() {
        return Some(0);
    }
    let row = match penalties.count_row {
        // SAFETY: as this function's contract.
        Some(rows) => usize::try_from(unsafe { read(rows, index) }).ok()?,
        None => index,
    };
    (row < penalties.count_rows).then_some(row)
}

/// What tokens that stand in the text or the prompt are made less probable by.
#[derive(Clone, Copy)]
struct Penalty<'a> {
    repetition: f32,
    frequency: f32,
    presence: f32,
    /// Of each token in the text at the root; empty: 0.
    counts: &'a [i32],
    /// Bits of the tokens of the prompt; empty: 0.
    prompt: &'a [u32],
}

impl Penalty<'_> {
    /// The logit of a token that the path adds to as many times.
    fn penalised(&self, logit: f32, token: usize, on_path: usize) -> f32 {
        let before = self.counts.get(token).map_or(0, |&count| i64::from(count.max(0)));
        let count = before + on_path as i64;
        let prompt = self.prompt.get(token / WORD).copied().unwrap_or_default();
        let mut logit = logit;
        if count > 0 || prompt >> (token % WORD) & 1 == 1 {
            logit = if logit > 0.0 { logit / self.repetition } else { logit * self.repetition };
        }
        if count > 0 {
            logit -= self.frequency * count as f32;
            logit -= self.presence;
        }
        logit
    }

    /// Penalises the logits from a token on, which begins an element of the prompt's bits, for what
    /// stands in the text at the root and in the prompt.
    fn penalise(&self, first: usize, logits: &mut [f32]) {
        for (group, logits) in logits.chunks_mut(WORD).enumerate() {
            let first = first + group * WORD;
            let counts = self.counts.get(first..first + logits.len()).unwrap_or_default();
            let prompt = self.prompt.get(first / WORD).copied().unwrap_or_default();
            // Most tokens stand nowhere.
            if prompt == 0 && !counts.iter().fold(false, |any, &count| any | (count > 0)) {
                continue;
            }
            for (place, logit) in logits.iter_mut().enumerate() {
                *logit = self.penalised(*logit, first + place, 0);
            }
        }
    }
}

/// What is done to the row of a node.
struct NodeSteps<'a> {
    steps: Steps<'a>,
    path: &'a [i32],
    mask: Option<&'a [u32]>,
    words: Range<usize>,
    excludes_stops: bool,
    biases: Range<usize>,
    penalty: Option<Penalty<'a>>,
}

impl NodeSteps<'_> {
    fn do_nothing(&self) -> bool {
        self.mask.is_none()
            && self.words.is_empty()
            && !self.excludes_stops
            && self.biases.is_empty()
            && self.penalty.is_none()
    }

    /// Writes the row as the steps make it.
    ///
    /// # Safety
    ///
    /// As for [`processed_row`].
    unsafe fn apply(&self, bench: Bench<'_>, source: &Row, scratch: Scratch) {
        let blocks = |(begin, end): (usize, usize)| begin * BLOCK..source.len.min(end * BLOCK);
        bench.split.run(source.blocks(), &|_, range| {
            let places = blocks(range);
            let from = source.address + (places.start * source.dtype.size()) as u64;
            // SAFETY: as this function's contract; each part writes its own blocks of the row.
            unsafe {
                let logits = elements_mut(scratch.row.slice(places.start, places.len()));
                widen(bench.isa, from, source.dtype, logits);
                if let Some(mask) = self.mask {
                    exclude(&mask[places.start / WORD..], logits);
                }
            }
        });
        // SAFETY: as this function's contract; no part is running.
        unsafe {
            let logits = elements_mut(scratch.row);
            self.exclude_words(logits);
            self.exclude_stops(logits);
            self.add_biases(logits);
        }
        let Some(penalty) = self.penalty else { return };
        // SAFETY: as above.
        let (logits, before) = unsafe { (elements_mut(scratch.row), elements_mut(scratch.before)) };
        for (before, &token) in before.iter_mut().zip(self.path) {
            *before = logits.get(token as usize).copied().unwrap_or_default();
        }
        bench.split.run(source.blocks(), &|_, range| {
            let places = blocks(range);
            // SAFETY: as above; each part writes its own blocks of the row.
            let logits = unsafe { elements_mut(scratch.row.slice(places.start, places.len())) };
            penalty.penalise(places.start, logits);
        });
        for (before, &token) in before.iter().zip(self.path) {
            let on_path = self.path.iter().filter(|&&other| other == token).count();
            // A draft that was struck out is no token.
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = penalty.penalised(*before, token as usize, on_path);
            }
        }
    }

    /// Excludes the last tokens of words whose other tokens end the text.
    ///
    /// # Safety
    ///
    /// As for [`processed_row`].
    unsafe fn exclude_words(&self, logits: &mut [f32]) {
        let Some(bad) = &self.steps.processing.bad_words else { return };
        // SAFETY: as this function's contract.
        let history = unsafe { self.steps.history() }.unwrap_or_default();
        let text = || self.path.iter().rev().chain(history.iter().rev());
        for index in self.words.clone() {
            // SAFETY: as above; the sequence's words are among those that there are.
            let Some([before @ .., last]) = (unsafe { word(bad, index) }) else { continue };
            if before.iter().rev().eq(text().take(before.len())) {
                set(logits, *last, |_| f32::NEG_INFINITY);
            }
        }
    }

    /// # Safety
    ///
    /// As for [`processed_row`].
    unsafe fn exclude_stops(&self, logits: &mut [f32]) {
        if !self.excludes_stops {
            return;
        }
        // SAFETY: as this function's contract.
        for &stop in unsafe { elements(self.steps.sequence.batch.stop_tokens) } {
            set(logits, stop, |_| f32::NEG_INFINITY);
        }
    }

    /// # Safety
    ///
    /// As for [`processed_row`].
    unsafe fn add_biases(&self, logits: &mut [f32]) {
        let Some(biases) = &self.steps.processing.biases else { return };
        for at in self.biases.clone() {
            // SAFETY: as this function's contract; the places are in the lists.
            let (token, value) = unsafe { (read(biases.tokens, at), read(biases.values, at)) };
            set(logits, token, |logit| logit + value);
        }
    }
}

/// Changes the logit of a token, if it is one.
fn set(logits: &mut [f32], token: i32, change: impl FnOnce(f32) -> f32) {
    if let Some(logit) = usize::try_from(token).ok().and_then(|token| logits.get_mut(token)) {
        *logit = change(*logit);
    }
}

/// Excludes tokens whose bits are 0.
fn exclude(mask: &[u32], logits: &mut [f32]) {
    for (logits, &word) in logits.chunks_mut(WORD).zip(mask) {
        match word {
            u32::MAX => {}
            0 => logits.fill(f32::NEG_INFINITY),
            _ => {
                for (bit, logit) in logits.iter_mut().enumerate() {
                    if word >> bit & 1 == 0 {
                        *logit = f32::NEG_INFINITY;
                    }
                }
            }
        }
    }
}
