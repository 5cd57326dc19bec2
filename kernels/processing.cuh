// The host's arrays about what is done to logits before tokens are drawn from them, and what they say:
// as in src/backend/processing.rs. What reads them tells whether they are in range, both where that is
// checked and where they are used.
#pragma once
#include "device.cuh"

struct Range {
  u32 begin, end;
  bool is_valid;

  DEVICE bool is_empty() const { return begin == end; }
};

// Pointers are NULL where there is nothing. Strides are in elements.
struct Processing {
  const u32 *allowed;                             // [masks, mask_stride]
  const i32 *mask_row;                            // [rows of logits]
  const i32 *word_tokens;                         // [num_word_tokens]
  const i32 *word_begin, *word_length;            // [num_bad_words]
  const i32 *bad_words_begin, *bad_words_length;  // [sequences]; NULL: no words
  const i32 *history;                             // [sequences, history_stride]
  const i32 *history_length;                      // [sequences]
  const i32 *min_tokens;                          // [sequences]
  const i32 *bias_tokens;                         // [num_biases]
  const f32 *bias_values;                         // [num_biases]
  const i32 *biases_begin, *biases_length;        // [sequences]; NULL: no biases
  const f32 *repetition, *frequency, *presence;   // [sequences]
  const i32 *output_counts;                       // [num_count_rows, count_stride]
  const u32 *prompt_tokens;                       // [num_count_rows, prompt_stride]
  const i32 *count_row;                           // [sequences]
  f32 *rows;  // the workspace: [sequences, nodes, row_stride]; NULL: nothing is done
  u32 num_masks, mask_stride;
  u32 num_bad_words, num_word_tokens, history_stride;
  u32 num_biases;
  u32 num_count_rows, count_stride, prompt_stride;
  u32 row_stride;
};
static_assert(sizeof(Processing) == 21 * 8 + 10 * 4, "as the host lays it out");

DEVICE Range range_of(const i32 *begins, const i32 *lengths, u32 index, u32 all) {
  const i32 begin = begins[index], length = lengths[index];
  const bool is_valid = begin >= 0 && length >= 0 && u32(begin) + u32(length) <= all;
  return is_valid ? Range{u32(begin), u32(begin) + u32(length), true} : Range{0, 0, false};
}

// The words of a sequence.
DEVICE Range words_of(const Processing &processing, u32 index) {
  if (processing.bad_words_begin == nullptr) return Range{0, 0, true};
  return range_of(processing.bad_words_begin, processing.bad_words_length, index,
                  processing.num_bad_words);
}

// The tokens of a word.
DEVICE Range tokens_of(const Processing &processing, u32 word) {
  const Range range = range_of(processing.word_begin, processing.word_length, word,
                               processing.num_word_tokens);
  return range.is_empty() ? Range{0, 0, false} : range;
}

// How many tokens there are of the text at the root, or -1.
DEVICE i32 history_of(const Processing &processing, u32 index) {
  if (processing.history == nullptr) return 0;
  const i32 length = processing.history_length[index];
  return length >= 0 && u32(length) <= processing.history_stride ? length : -1;
}

DEVICE Range biases_of(const Processing &processing, u32 index) {
  if (processing.biases_begin == nullptr) return Range{0, 0, true};
  return range_of(processing.biases_begin, processing.biases_length, index,
                  processing.num_biases);
}

constexpr i32 no_mask = -1, wrong_mask = -2;

// The mask of a row of logits.
DEVICE i32 mask_of(const Processing &processing, u64 row) {
  if (processing.mask_row == nullptr) {
    if (processing.allowed == nullptr) return no_mask;
    return row < processing.num_masks ? i32(row) : wrong_mask;
  }
  const i32 mask = processing.mask_row[row];
  if (mask == -1) return no_mask;
  return mask >= 0 && u32(mask) < processing.num_masks ? mask : wrong_mask;
}

// What tokens that stand in the text or the prompt are made less probable by.
struct Penalty {
  f32 repetition, frequency, presence;
  u32 row;  // of the counts
  bool is_valid, is_none;
};

DEVICE Penalty penalty_of(const Processing &processing, u32 index) {
  Penalty penalty{1.0f, 0.0f, 0.0f, index, true, true};
  if (processing.repetition != nullptr) penalty.repetition = processing.repetition[index];
  if (processing.frequency != nullptr) penalty.frequency = processing.frequency[index];
  if (processing.presence != nullptr) penalty.presence = processing.presence[index];
  penalty.is_valid = penalty.repetition > 0.0f && penalty.frequency == penalty.frequency &&
                     penalty.presence == penalty.presence;
  penalty.is_none =
      penalty.repetition == 1.0f && penalty.frequency == 0.0f && penalty.presence == 0.0f;
  if (!penalty.is_valid || penalty.is_none) return penalty;
  if (processing.output_counts == nullptr && processing.prompt_tokens == nullptr) return penalty;
  if (processing.count_row != nullptr) penalty.row = u32(processing.count_row[index]);
  penalty.is_valid = penalty.row < processing.num_count_rows;
  return penalty;
}

// ---- The plan ------------------------------------------------------------------------------------

struct ProcessingPlan {
  bool is_valid;
  bool is_needed;  // whether anything is done to a row
};

// Checks what concerns a sequence with so many rows; for a warp.
DEVICE ProcessingPlan plan_processing(const Processing &processing, u32 index, u64 first_row,
                                      u32 rows, u32 vocabulary, bool has_stop_tokens) {
  bool is_valid = true, has_mask = false;
#pragma unroll 1
  for (u32 node = lane_index(); node < rows; node += warp_lanes) {
    const i32 mask = mask_of(processing, first_row + node);
    is_valid &= mask != wrong_mask;
    has_mask |= mask != no_mask;
  }
  const Range words = words_of(processing, index);
  is_valid &= words.is_valid && (words.is_empty() || history_of(processing, index) >= 0);
#pragma unroll 1
  for (u32 word = words.begin + lane_index(); word < words.end; word += warp_lanes) {
    const Range tokens = tokens_of(processing, word);
    is_valid &= tokens.is_valid;
#pragma unroll 1
    for (u32 i = tokens.begin; i < tokens.end; i++) {
      is_valid &= u32(processing.word_tokens[i]) < vocabulary;
    }
  }
  const Range biases = biases_of(processing, index);
  is_valid &= biases.is_valid;
#pragma unroll 1
  for (u32 i = biases.begin + lane_index(); i < biases.end; i += warp_lanes) {
    const f32 value = processing.bias_values[i];
    is_valid &= u32(processing.bias_tokens[i]) < vocabulary && value == value;
  }
  const Penalty penalty = penalty_of(processing, index);
  is_valid &= penalty.is_valid;
  const bool excludes_stops = has_stop_tokens && processing.min_tokens != nullptr &&
                              processing.min_tokens[index] > 0;
  const bool is_needed = has_mask || !words.is_empty() || !biases.is_empty() || !penalty.is_none ||
                         excludes_stops;
  return ProcessingPlan{__all_sync(all_lanes, is_valid) != 0,
                        __any_sync(all_lanes, is_needed) != 0};
}
