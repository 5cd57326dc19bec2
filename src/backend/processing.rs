//! What is done to the target's logits before tokens are drawn from them, as plain data. The order
//! of the fields is that of the steps.

use super::phases::Column;
use crate::tensor::Span;

/// The steps of a call; what is absent is not done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Processing {
    /// Tokens that are allowed.
    pub masks: Option<Masks>,
    /// Words that must not end at a node.
    pub bad_words: Option<BadWords>,
    /// `[B]`: how many tokens are emitted before a stop token may be.
    pub min_tokens: Option<Span<i32>>,
    /// What is added to logits.
    pub biases: Option<Biases>,
    /// What repeated tokens are made less probable by.
    pub penalties: Option<Penalties>,
}

/// Rows of bits, one for each token, the lowest of a word first.
#[derive(Clone, Copy, Debug)]
pub struct Bits {
    /// `[rows, stride]`.
    pub words: Span<u32>,
    /// Elements from one row to the next.
    pub stride: usize,
}

impl Bits {
    /// The words of a row with a bit for each of so many tokens.
    pub fn row(&self, row: usize, tokens: usize) -> Span<u32> {
        self.words.slice(row * self.stride, tokens.div_ceil(u32::BITS as usize))
    }
}

/// Masks of allowed tokens, whose bits are 1.
#[derive(Clone, Copy, Debug)]
pub struct Masks {
    /// The masks.
    pub bits: Bits,
    /// How many there are.
    pub count: usize,
    /// `[R]`: the mask of each row of logits, -1 for none; absent: row r has mask r.
    pub mask_row: Option<Span<i32>>,
}

/// Ranges of elements of a list.
#[derive(Clone, Copy, Debug)]
pub struct Ranges {
    /// The first element of each.
    pub begin: Span<i32>,
    /// How many elements each has.
    pub length: Span<i32>,
}

/// Words of several tokens, the last of which is excluded where the others end the text.
#[derive(Clone, Copy, Debug)]
pub struct BadWords {
    /// The tokens of all words.
    pub tokens: Span<i32>,
    /// `[W]`: the tokens of each word.
    pub words: Ranges,
    /// `[B]`: the words of each sequence.
    pub of_sequence: Ranges,
    /// The text that ends with the root; absent: nothing is known of it.
    pub history: Option<History>,
}

/// The last tokens of each sequence, in order.
#[derive(Clone, Copy, Debug)]
pub struct History {
    /// `[B, stride]`.
    pub tokens: Column,
    /// `[B]`: how many there are, at most the stride.
    pub length: Span<i32>,
}

/// Numbers that are added to the logits of tokens.
#[derive(Clone, Copy, Debug)]
pub struct Biases {
    /// The tokens of all lists.
    pub tokens: Span<i32>,
    /// What is added to each.
    pub values: Span<f32>,
    /// `[B]`: the list of each sequence.
    pub of_sequence: Ranges,
}

/// Penalties, one element per sequence, and the counts that they go by.
#[derive(Clone, Copy, Debug)]
pub struct Penalties {
    /// For tokens of the prompt or the output; absent is 1.
    pub repetition: Option<Span<f32>>,
    /// For each time that a token stands in the output; absent is 0.
    pub frequency: Option<Span<f32>>,
    /// For tokens of the output; absent is 0.
    pub presence: Option<Span<f32>>,
    /// `[S, stride]`: how often each token stands in the output, the root included; absent: never.
    pub output_counts: Option<Column>,
    /// `[S]` rows: the tokens of the prompt, whose bits are 1; absent: none.
    pub prompt: Option<Bits>,
    /// `[B]`: the row of each sequence in both; absent: b.
    pub count_row: Option<Span<i32>>,
    /// S.
    pub count_rows: usize,
}
