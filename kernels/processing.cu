// What is done to the target's logits before tokens are drawn from them: the steps of spec_processing, at
// all nodes of the sequences that need it, between the plan of a verification and its decisions. On equal
// logits the rows are those of the CPU (src/backend/cpu/verify/processing.rs), bit for bit but for the
// -inf of excluded tokens, to which nothing is added here.
#include "verify.cuh"

constexpr u32 process_threads = 256;
// Each warp has a tile.
constexpr u32 chunk_columns = process_threads / warp_lanes * tile_logits;
constexpr u32 most_drafts = 1023;

// Shared memory of a block: a chunk of a row, and the tokens of the path to its node.
struct Chunk {
  f32 logits[chunk_columns];
  u32 marks[chunk_columns];  // how often the token stands on the path, and `excluded`
  i32 path[most_drafts];
};
constexpr u32 excluded = u32(1) << 31;

// The row of a node, and what its sequence has for it.
struct Place {
  u32 index, depth;
  u32 first_column, columns;  // of the chunk

  DEVICE bool has(i32 token) const { return u32(token) - first_column < columns; }
  DEVICE u32 slot(i32 token) const { return u32(token) - first_column; }
};

// Loads the tile of a warp into the chunk, without the tokens that a mask excludes.
DEVICE void load_logits(const VerifyArguments &arguments, const Sequence &sequence, u32 node,
                        const Place &place, Chunk &chunk) {
  const Row row = logits_row(arguments, sequence, node);
  const u32 tile = place.first_column / tile_logits + warp_index();
  f32 logits[lane_logits];
  load_tile(row, tile, logits);
  const Processing &processing = arguments.processing;
  const i32 mask = mask_of(processing, sequence.first_row + node);
  if (mask >= 0) {
    const u32 *words = processing.allowed + u64(mask) * processing.mask_stride;
#pragma unroll
    for (u32 i = 0; i < lane_logits; i++) {
      const u32 column = tile * tile_logits + i * warp_lanes;
      const u32 word = column < row.columns ? words[column / warp_lanes] : 0;
      if ((word >> lane_index() & 1) == 0) logits[i] = -infinity();
    }
  }
#pragma unroll
  for (u32 i = 0; i < lane_logits; i++) {
    const u32 slot = warp_index() * tile_logits + i * warp_lanes + lane_index();
    chunk.logits[slot] = logits[i];
    chunk.marks[slot] = 0;
  }
}

// Writes the tokens below the root down to a node.
DEVICE void load_path(const VerifyArguments &arguments, u32 node, const Place &place, Chunk &chunk) {
  const i32 *drafts = arguments.drafts + u64(place.index) * arguments.max_drafts;
  if (arguments.parents == nullptr) {
    for (u32 i = threadIdx.x; i < node; i += process_threads) chunk.path[i] = drafts[i];
    return;
  }
  const Family *families = arguments.families + u64(place.index) * nodes_of(arguments);
  if (threadIdx.x != 0) return;
  for (u32 above = node, i = place.depth; above != 0; above = families[above].parent) {
    chunk.path[--i] = drafts[above - 1];
  }
}

// Whether the text at the node ends with the tokens of a word before its last one.
DEVICE bool ends_text(const Processing &processing, const Range &word, const Place &place,
                      const Chunk &chunk) {
  const u32 known = u32(max(history_of(processing, place.index), 0));
  const i32 *history = processing.history + u64(place.index) * processing.history_stride;
  const u32 before = word.end - 1 - word.begin;
  if (before > place.depth + known) return false;
  for (u32 back = 0; back < before; back++) {
    const i32 token = back < place.depth ? chunk.path[place.depth - 1 - back]
                                         : history[known - 1 - (back - place.depth)];
    if (token != processing.word_tokens[word.end - 2 - back]) return false;
  }
  return true;
}

// Marks the tokens of the path, and those that are excluded.
DEVICE void mark_tokens(const VerifyArguments &arguments, const Place &place, Chunk &chunk) {
  const Processing &processing = arguments.processing;
  for (u32 i = threadIdx.x; i < place.depth; i += process_threads) {
    const i32 token = chunk.path[i];
    if (place.has(token)) atomicAdd(&chunk.marks[place.slot(token)], 1);
  }
  const Range words = words_of(processing, place.index);
  for (u32 i = words.begin + threadIdx.x; i < words.end; i += process_threads) {
    const Range word = tokens_of(processing, i);
    if (!word.is_valid) continue;
    const i32 last = processing.word_tokens[word.end - 1];
    if (place.has(last) && ends_text(processing, word, place, chunk)) {
      atomicOr(&chunk.marks[place.slot(last)], excluded);
    }
  }
  if (processing.min_tokens == nullptr) return;
  if (i32(place.depth) >= processing.min_tokens[place.index]) return;
  for (u32 i = threadIdx.x; i < arguments.num_stop_tokens; i += process_threads) {
    const i32 stop = arguments.stop_tokens[i];
    if (place.has(stop)) atomicOr(&chunk.marks[place.slot(stop)], excluded);
  }
}

// Adds the biases, whose tokens are different ones.
DEVICE void add_biases(const Processing &processing, const Place &place, Chunk &chunk) {
  const Range biases = biases_of(processing, place.index);
  for (u32 i = biases.begin + threadIdx.x; i < biases.end; i += process_threads) {
    const i32 token = processing.bias_tokens[i];
    if (!place.has(token)) continue;
    f32 &logit = chunk.logits[place.slot(token)];
    logit = add_rn(logit, processing.bias_values[i]);
  }
}

// The logit of a token that stands so many times in the text.
DEVICE f32 penalised(const Penalty &penalty, f32 logit, u64 count, bool is_in_prompt) {
  if (count > 0 || is_in_prompt) {
    logit = logit > 0.0f ? divide_rn(logit, penalty.repetition)
                         : multiply_rn(logit, penalty.repetition);
  }
  if (count > 0) {
    logit = subtract_rn(logit, multiply_rn(penalty.frequency, __ull2float_rn(count)));
    logit = subtract_rn(logit, penalty.presence);
  }
  return logit;
}

// Writes the tile of a warp, with its penalties.
DEVICE void store_logits(const Processing &processing, const Place &place, const Chunk &chunk,
                         f32 *row) {
  const Penalty penalty = penalty_of(processing, place.index);
  const bool is_penalised = penalty.is_valid && !penalty.is_none;
  const i32 *counts = processing.output_counts == nullptr || !is_penalised
                          ? nullptr
                          : processing.output_counts + u64(penalty.row) * processing.count_stride;
  const u32 *prompt = processing.prompt_tokens == nullptr || !is_penalised
                          ? nullptr
                          : processing.prompt_tokens + u64(penalty.row) * processing.prompt_stride;
#pragma unroll
  for (u32 i = 0; i < lane_logits; i++) {
    const u32 slot = warp_index() * tile_logits + i * warp_lanes + lane_index();
    if (slot >= place.columns) continue;
    const u32 column = place.first_column + slot, mark = chunk.marks[slot];
    f32 logit = chunk.logits[slot];
    if ((mark & excluded) != 0) {
      logit = -infinity();
    } else if (is_penalised) {
      const i32 before = counts == nullptr ? 0 : counts[column];
      const u32 bits = prompt == nullptr ? 0 : prompt[column / warp_lanes];
      const bool is_in_prompt = (bits >> column % warp_lanes & 1) != 0;
      logit = penalised(penalty, logit, u64(max(before, 0)) + mark, is_in_prompt);
    }
    row[column] = logit;
  }
}

// A block for each chunk of the row of each node: blockIdx.x has the nodes, blockIdx.y the chunks.
KERNEL(process_threads, process_rows, VerifyArguments) {
  __shared__ Chunk chunk;
  const u32 index = blockIdx.x / nodes_of(arguments), node = blockIdx.x % nodes_of(arguments);
  const Sequence &sequence = arguments.sequences[index];
  if (sequence.state != taking_part || sequence.processed_row == not_processed ||
      node > u32(sequence.num_drafts)) {
    return;
  }
  const u32 first_column = blockIdx.y * chunk_columns;
  const u32 depth = arguments.parents == nullptr
                        ? node
                        : arguments.families[u64(index) * nodes_of(arguments) + node].depth;
  const Place place{index, depth, first_column,
                    min(chunk_columns, arguments.vocabulary - first_column)};
  load_logits(arguments, sequence, node, place, chunk);
  load_path(arguments, node, place, chunk);
  __syncthreads();
  mark_tokens(arguments, place, chunk);
  add_biases(arguments.processing, place, chunk);
  __syncthreads();
  store_logits(arguments.processing, place, chunk, processed_logits(arguments, sequence, node));
}
