//! The launch code of `kernels/processing.cu`: what is done to the target's logits between the plan
//! of a verification and its decisions.

use super::launch::Launch;
use super::verify::{TILE, row_blocks};
use crate::backend::processing::{Bits, Processing};
use crate::backend::verify::VerifyBatch;
use crate::error::Result;
use crate::tensor::Span;
use bytemuck::NoUninit;

/// Threads of a block.
const THREADS: u32 = 256;

/// Logits of a block: each warp has a tile.
const CHUNK: usize = THREADS as usize / 32 * TILE;

/// Elements from one row to the next, so that each is aligned to vectors of 16 bytes.
fn row_stride(columns: usize) -> usize {
    columns.next_multiple_of(4)
}

/// How many logits the rows of a batch have that something is done to.
pub fn logits(batch: &VerifyBatch) -> usize {
    let rows = batch.num_sequences.saturating_mul(batch.max_drafts + 1);
    let row = row_stride(batch.logits.columns);
    if batch.processing.is_some() { rows.saturating_mul(row) } else { 0 }
}

/// The launch of `process_rows` for a batch.
pub fn launch(batch: &VerifyBatch) -> Result<Launch> {
    let rows = batch.num_sequences.saturating_mul(batch.max_drafts + 1);
    let chunks = batch.logits.columns.div_ceil(CHUNK) as u32;
    let grid = [row_blocks(rows, 1)?, chunks, 1];
    Ok(Launch { grid, threads: THREADS, shared: 0, cooperative: false })
}

/// `Processing` of the kernels.
#[derive(Clone, Copy, Debug, Default, NoUninit)]
#[repr(C)]
pub struct ProcessingArguments {
    allowed: u64,
    mask_row: u64,
    word_tokens: u64,
    word_begin: u64,
    word_length: u64,
    bad_words_begin: u64,
    bad_words_length: u64,
    history: u64,
    history_length: u64,
    min_tokens: u64,
    bias_tokens: u64,
    bias_values: u64,
    biases_begin: u64,
    biases_length: u64,
    repetition: u64,
    frequency: u64,
    presence: u64,
    output_counts: u64,
    prompt_tokens: u64,
    count_row: u64,
    rows: u64,
    num_masks: u32,
    mask_stride: u32,
    num_bad_words: u32,
    num_word_tokens: u32,
    history_stride: u32,
    num_biases: u32,
    num_count_rows: u32,
    count_stride: u32,
    prompt_stride: u32,
    row_stride: u32,
}

impl ProcessingArguments {
    /// The steps of a batch over rows of `columns` logits, which are written to `rows`.
    pub fn of(processing: Option<&Processing>, columns: usize, rows: u64) -> Self {
        let Some(processing) = processing else { return Self::default() };
        let mut arguments = Self {
            min_tokens: address(processing.min_tokens),
            rows,
            row_stride: row_stride(columns) as u32,
            ..Self::default()
        };
        if let Some(masks) = &processing.masks {
            (arguments.allowed, arguments.mask_stride) = bits(&masks.bits);
            arguments.mask_row = address(masks.mask_row);
            arguments.num_masks = masks.count as u32;
        }
        arguments.add_words(processing);
        if let Some(biases) = &processing.biases {
            arguments.bias_tokens = biases.tokens.address();
            arguments.bias_values = biases.values.address();
            arguments.biases_begin = biases.of_sequence.begin.address();
            arguments.biases_length = biases.of_sequence.length.address();
            arguments.num_biases = biases.tokens.len() as u32;
        }
        arguments.add_penalties(processing);
        arguments
    }

    fn add_words(&mut self, processing: &Processing) {
        let Some(bad) = &processing.bad_words else { return };
        self.word_tokens = bad.tokens.address();
        self.word_begin = bad.words.begin.address();
        self.word_length = bad.words.length.address();
        self.bad_words_begin = bad.of_sequence.begin.address();
        self.bad_words_length = bad.of_sequence.length.address();
        self.num_bad_words = bad.words.begin.len() as u32;
        self.num_word_tokens = bad.tokens.len() as u32;
        if let Some(history) = &bad.history {
            self.history = history.tokens.span.address();
            self.history_length = history.length.address();
            self.history_stride = history.tokens.stride as u32;
        }
    }

    fn add_penalties(&mut self, processing: &Processing) {
        let Some(penalties) = &processing.penalties else { return };
        self.repetition = address(penalties.repetition);
        self.frequency = address(penalties.frequency);
        self.presence = address(penalties.presence);
        if let Some(counts) = &penalties.output_counts {
            self.output_counts = counts.span.address();
            self.count_stride = counts.stride as u32;
        }
        if let Some(prompt) = &penalties.prompt {
            (self.prompt_tokens, self.prompt_stride) = bits(prompt);
        }
        self.count_row = address(penalties.count_row);
        self.num_count_rows = penalties.count_rows as u32;
    }
}

fn bits(bits: &Bits) -> (u64, u32) {
    (bits.words.address(), bits.stride as u32)
}

fn address<T>(array: Option<Span<T>>) -> u64 {
    array.map_or(0, |array| array.address())
}
