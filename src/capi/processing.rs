//! The host's arrays about the processing of logits as checked plain data. What the arrays hold is
//! not looked at here: that is part of the work.

use super::boundary::within;
use super::tensors::{column, optional_span, span};
use super::types::spec_processing;
use crate::error::Result;
use crate::tensor::{Matrix, Span};
use crate::verify::{
    BadWords, Biases, Bits, Column, History, Masks, Penalties, Processing, Ranges,
};

/// The steps for `sequences` sequences over rows of these logits.
pub fn processing(
    given: &spec_processing,
    sequences: usize,
    logits: &Matrix,
) -> Result<Processing> {
    Ok(Processing {
        masks: masks(given, logits)?,
        bad_words: bad_words(given, sequences)?,
        min_tokens: optional_span("min_tokens", given.min_tokens, sequences)?,
        biases: biases(given, sequences)?,
        penalties: penalties(given, sequences, logits.columns)?,
    })
}

fn count(what: &str, value: i32) -> Result<usize> {
    within(what, value.into(), 0, i32::MAX.into())
}

/// A stride of at least `least` elements; 0 is that.
fn stride(what: &str, value: i32, least: usize) -> Result<usize> {
    match value {
        0 => Ok(least),
        value => within(what, value.into(), least as i64, i32::MAX.into()),
    }
}

/// Elements of `rows` rows of `width` elements.
fn reach(rows: usize, stride: usize, width: usize) -> usize {
    if rows == 0 { 0 } else { (rows - 1) * stride + width }
}

/// Words of bits for a row of tokens.
fn bit_words(tokens: usize) -> usize {
    tokens.div_ceil(u32::BITS as usize)
}

fn masks(given: &spec_processing, logits: &Matrix) -> Result<Option<Masks>> {
    let masks = count("num_masks", given.num_masks)?;
    let width = bit_words(logits.columns);
    let stride = stride("mask_stride", given.mask_stride, width)?;
    let mask_row = optional_span("mask_row", given.mask_row, logits.rows)?;
    if masks == 0 && mask_row.is_none() {
        return Ok(None);
    }
    let words = span("allowed", given.allowed, reach(masks, stride, width))?;
    Ok(Some(Masks { bits: Bits { words, stride }, count: masks, mask_row }))
}

fn ranges(
    (begin_name, begin): (&str, *const i32),
    (length_name, length): (&str, *const i32),
    len: usize,
) -> Result<Ranges> {
    Ok(Ranges { begin: span(begin_name, begin, len)?, length: span(length_name, length, len)? })
}

fn bad_words(given: &spec_processing, sequences: usize) -> Result<Option<BadWords>> {
    let words = count("num_bad_words", given.num_bad_words)?;
    let tokens = count("num_word_tokens", given.num_word_tokens)?;
    let tokens = span("word_tokens", given.word_tokens, if words == 0 { 0 } else { tokens })?;
    if words == 0 {
        return Ok(None);
    }
    Ok(Some(BadWords {
        tokens,
        words: ranges(("word_begin", given.word_begin), ("word_length", given.word_length), words)?,
        of_sequence: ranges(
            ("bad_words_begin", given.bad_words_begin),
            ("bad_words_length", given.bad_words_length),
            sequences,
        )?,
        history: history(given, sequences)?,
    }))
}

fn history(given: &spec_processing, sequences: usize) -> Result<Option<History>> {
    if given.history.is_null() {
        return Ok(None);
    }
    let width = within("history_stride", given.history_stride.into(), 1, i32::MAX.into())?;
    Ok(Some(History {
        tokens: column("history", given.history, sequences, given.history_stride, width)?,
        length: span("history_length", given.history_length, sequences)?,
    }))
}

fn biases(given: &spec_processing, sequences: usize) -> Result<Option<Biases>> {
    let biases = count("num_biases", given.num_biases)?;
    if biases == 0 {
        return Ok(None);
    }
    Ok(Some(Biases {
        tokens: span("bias_tokens", given.bias_tokens, biases)?,
        values: span("bias_values", given.bias_values, biases)?,
        of_sequence: ranges(
            ("biases_begin", given.biases_begin),
            ("biases_length", given.biases_length),
            sequences,
        )?,
    }))
}

fn penalties(
    given: &spec_processing,
    sequences: usize,
    vocabulary: usize,
) -> Result<Option<Penalties>> {
    let rows = count("num_count_rows", given.num_count_rows)?;
    let count_stride = stride("count_stride", given.count_stride, vocabulary)?;
    let width = bit_words(vocabulary);
    let prompt_stride = stride("prompt_stride", given.prompt_stride, width)?;
    let penalties = |name: &str, values: *const f32| optional_span(name, values, sequences);
    let repetition = penalties("repetition", given.repetition)?;
    let frequency = penalties("frequency", given.frequency)?;
    let presence = penalties("presence", given.presence)?;
    let counts = reach(rows, count_stride, vocabulary);
    let counts = optional_span("output_counts", given.output_counts, counts)?;
    let prompt =
        optional_span("prompt_tokens", given.prompt_tokens, reach(rows, prompt_stride, width))?;
    let count_row = optional_span("count_row", given.count_row, sequences)?;
    let is_none = |values: &Option<Span<f32>>| values.is_none();
    if [repetition, frequency, presence].iter().all(is_none) {
        return Ok(None);
    }
    Ok(Some(Penalties {
        repetition,
        frequency,
        presence,
        output_counts: counts.map(|span| Column { span, stride: count_stride }),
        prompt: prompt.map(|words| Bits { words, stride: prompt_stride }),
        count_row,
        count_rows: rows,
    }))
}
