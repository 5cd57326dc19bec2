// The phases that only some block drafters have: convolutions over the rows of a block, and the heads that
// let the tokens of a block depend on each other. src/backend/block_heads.rs says what each of them
// computes.
#include "activation.cuh"
#include "draw.cuh"
#include "products.cuh"
#include "select.cuh"

// The product of two rows of any types, by a warp.
DEVICE f32 dot(u64 left, u32 left_dtype, u64 right, u32 right_dtype, u32 columns) {
  const bool left_vectors = has_vectors(left, columns), right_vectors = has_vectors(right, columns);
  f32 sum = 0.0f;
  for (u32 column = lane_index() * piece_elements; column < columns;
       column += warp_lanes * piece_elements) {
    f32 a[piece_elements], b[piece_elements];
    widen(a, load_piece(left, left_dtype, left_vectors, column, columns));
    widen(b, load_piece(right, right_dtype, right_vectors, column, columns));
#pragma unroll
    for (u32 i = 0; i < piece_elements; i++) sum = fused_multiply_add(a[i], b[i], sum);
  }
  return warp_sum(sum);
}

// The rows of blocks that tokens are proposed from.
struct Slots {
  RowCount draft_rows;  // one for each block
  RowArrays draft;
  u32 len;  // rows of a block
  u32 first_slot;
  u32 num_slots;
  u32 padding;
};
static_assert(sizeof(Slots) == 80, "as in src/backend/cuda/block_heads.rs");

// ---- Convolutions (DFlash2) ----------------------------------------------------------------------

struct ConvolveArguments {
  RowCount rows;
  Matrix from;
  Norm norm;
  Matrix base;          // [taps, columns]
  Matrix coefficients;  // [rows, taps * groups]
  Matrix to;
  u32 len;  // rows of a block
  u32 adds;
};
static_assert(sizeof(ConvolveArguments) == 192, "as in src/backend/cuda/block_heads.rs");

DEVICE f32 inverse_rms_of_row(const f32 *row, u32 columns, f32 epsilon) {
  if (epsilon < 0.0f) return 1.0f;
  f32 squares = 0.0f;
  for (u32 column = threadIdx.x; column < columns; column += product_threads) {
    squares = fused_multiply_add(row[column], row[column], squares);
  }
  return inverse_rms(block_sum<product_threads>(squares), columns, epsilon);
}

// Each CUDA block has a row, and norms the rows before it once more: there are few taps.
KERNEL(256, convolve, ConvolveArguments) {
  const u32 row = blockIdx.x, columns = arguments.to.columns;
  if (row >= count_rows(arguments.rows)) return;
  const u32 taps = arguments.base.rows;
  const u32 groups = arguments.coefficients.columns / taps, group = columns / groups;
  const f32 *coefficients = f32_row(arguments.coefficients, row);
  const Matrix &gain = arguments.norm.weight;
  f32 *to = f32_row(arguments.to, row);
  for (u32 tap = 0; tap < min(taps, row % arguments.len + 1); tap++) {
    const f32 *from = f32_row(arguments.from, row - tap);
    const u64 base = row_address(arguments.base, tap);
    const f32 factor = inverse_rms_of_row(from, columns, arguments.norm.epsilon);
    const bool goes_on = tap != 0 || arguments.adds;
    for (u32 column = threadIdx.x; column < columns; column += product_threads) {
      const f32 normed =
          multiply_rn(multiply_rn(from[column], factor), element_or(gain, column, 1.0f));
      const f32 weight = add_rn(load_element(base, arguments.base.dtype, column),
                                coefficients[tap * groups + column / group]);
      to[column] = fused_multiply_add(weight, normed, goes_on ? to[column] : 0.0f);
    }
  }
}

// ---- Markov heads (DSpark) -----------------------------------------------------------------------

enum MarkovCell : u32 { vanilla_cell = 0, gated_cell = 1, recurrent_cell = 2 };

struct MarkovArguments {
  RowCount rows;
  u64 token;
  Matrix embedding;
  Matrix weight;
  Matrix part;
  Matrix state;
  Matrix next_state;
  Matrix output;
  const u32 *from;   // the row of the state that each row goes on from; NULL: its own
  u32 rows_of_part;  // rows that share a row of part, one after the other
  u32 cell;
  u32 is_first;  // the state is zero before
  u32 padding;
};
static_assert(sizeof(MarkovArguments) == 240, "as in src/backend/cuda/block_heads.rs");

// What a gate of a row comes to: row `gate` of the weight times what the cell reads, plus the row's part.
DEVICE f32 gate_of(const MarkovArguments &arguments, u32 row, u32 from, u64 embedded, u32 gate) {
  const u32 rank = arguments.output.columns;
  const Matrix &weight = arguments.weight;
  u64 weights = row_address(weight, gate);
  f32 sum = f32_row(arguments.part, row / arguments.rows_of_part)[gate];
  if (arguments.cell == recurrent_cell) {
    if (!arguments.is_first) {
      sum = add_rn(sum, dot(weights, weight.dtype, row_address(arguments.state, from), dtype_f32, rank));
    }
    weights += u64(rank) * dtype_bytes(weight.dtype);
  }
  return add_rn(sum, dot(weights, weight.dtype, embedded, arguments.embedding.dtype, rank));
}

// Each warp has a column of a row.
KERNEL_RESIDENT(256, 3, step_markov, MarkovArguments) {
  const u32 row = blockIdx.x, column = blockIdx.y * product_warps + warp_index();
  const u32 rank = arguments.output.columns;
  if (row >= count_rows(arguments.rows) || column >= rank) return;
  const u32 token = reinterpret_cast<const u32 *>(arguments.token)[row];
  const u64 embedded = row_address(arguments.embedding, token);
  const u32 from = arguments.from != nullptr ? arguments.from[row] : row;
  f32 output;
  if (arguments.cell == recurrent_cell) {
    const f32 keep = sigmoid(gate_of(arguments, row, from, embedded, column));
    const f32 input = tanhf(gate_of(arguments, row, from, embedded, rank + column));
    output = tanhf(gate_of(arguments, row, from, embedded, 2 * rank + column));
    const f32 before = arguments.is_first ? 0.0f : f32_row(arguments.state, from)[column];
    const f32 state =
        fused_multiply_add(keep, before, multiply_rn(subtract_rn(1.0f, keep), input));
    if (lane_index() == 0) f32_row(arguments.next_state, row)[column] = state;
  } else {
    output = load_element(embedded, arguments.embedding.dtype, column);
    if (arguments.cell == gated_cell) {
      output = multiply_rn(sigmoid(gate_of(arguments, row, from, embedded, column)), output);
    }
  }
  if (lane_index() == 0) f32_row(arguments.output, row)[column] = output;
}

// ---- Confidence (DSpark) -------------------------------------------------------------------------

struct RateArguments {
  Slots slots;
  u64 block_token;  // of the blocks' rows
  u64 num_drafts;
  u64 draft_tokens;
  u64 draft_tokens_stride;
  u64 num_proposed;  // 0: not wanted
  u64 confidence;    // 0: not wanted
  Matrix part;
  Matrix embedding;  // of the token before, and what it is multiplied with, if the head reads it
  Matrix weight;
  f32 min_confidence;
  u32 max_drafts;
  i32 padding_token;
  u32 padding;
};
static_assert(sizeof(RateArguments) == 240, "as in src/backend/cuda/block_heads.rs");

// The score of a proposal, by a warp.
DEVICE f32 score_of(const RateArguments &arguments, u32 block, const i32 *tokens, u32 index) {
  const Slots &slots = arguments.slots;
  const u32 first = block * slots.len;
  f32 score = *f32_row(arguments.part, first + slots.first_slot + index);
  if (arguments.embedding.address != 0) {
    const i32 *block_tokens = reinterpret_cast<const i32 *>(arguments.block_token);
    const i32 before = index == 0 ? block_tokens[first] : tokens[index - 1];
    const Matrix &embedding = arguments.embedding, &weight = arguments.weight;
    const u64 embedded = row_address(embedding, u32(before));
    score = add_rn(score, dot(weight.address, weight.dtype, embedded, embedding.dtype,
                              embedding.columns));
  }
  return score;
}

// Each CUDA block has a block's proposals, as many at a time as it has warps.
KERNEL(256, rate_drafts, RateArguments) {
  __shared__ f32 confidences[product_warps];
  __shared__ f32 reached;
  __shared__ u32 kept;
  const u32 block = blockIdx.x;
  if (block >= count_rows(arguments.slots.draft_rows)) return;
  const u32 sequence = u32(arguments.slots.draft.sequence[block]);
  i32 *num_drafts = reinterpret_cast<i32 *>(arguments.num_drafts) + sequence;
  i32 *tokens = reinterpret_cast<i32 *>(arguments.draft_tokens) + sequence * arguments.draft_tokens_stride;
  const u32 drafts = u32(*num_drafts);
  if (threadIdx.x == 0) {
    reached = 1.0f;
    kept = drafts;
  }
  __syncthreads();
  for (u32 first = 0; first < kept; first += product_warps) {
    const u32 index = first + warp_index();
    if (index < drafts) {
      const f32 confidence = sigmoid(score_of(arguments, block, tokens, index));
      if (lane_index() == 0) confidences[warp_index()] = confidence;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      f32 *wanted = reinterpret_cast<f32 *>(arguments.confidence);
      for (u32 i = first; i < min(first + product_warps, kept); i++) {
        const f32 confidence = confidences[i - first];
        if (wanted != nullptr) wanted[u64(sequence) * arguments.max_drafts + i] = confidence;
        reached = multiply_rn(reached, confidence);
        if (reached < arguments.min_confidence) kept = i;
      }
    }
    __syncthreads();
  }
  for (u32 i = kept + threadIdx.x; i < drafts; i += product_threads) tokens[i] = arguments.padding_token;
  if (threadIdx.x == 0 && kept < drafts) {
    *num_drafts = i32(kept);
    if (arguments.num_proposed != 0) reinterpret_cast<i32 *>(arguments.num_proposed)[sequence] = i32(kept);
  }
}

// ---- Candidates (DFlash2) ------------------------------------------------------------------------

struct SelectArguments {
  RowCount rows;
  Matrix logits;
  u64 ids;        // [rows, count]
  Matrix values;  // [rows, count]
};
static_assert(sizeof(SelectArguments) == 88, "as in src/backend/cuda/block_heads.rs");

constexpr u32 select_threads = 512;

// Each CUDA block has a row.
KERNEL_RESIDENT(512, 2, select_candidates, SelectArguments) {
  __shared__ SelectScratch scratch;
  const u32 row = blockIdx.x;
  if (row >= count_rows(arguments.rows)) return;
  const u32 columns = arguments.logits.columns, count = arguments.values.columns;
  const f32 *logits = f32_row(arguments.logits, row);
  i32 *ids = reinterpret_cast<i32 *>(arguments.ids) + u64(row) * count;
  f32 *values = f32_row(arguments.values, row);
  select_largest<select_threads>(
      columns, count, scratch, [&](u32 column) { return logits[column]; },
      [&](u32 rank, u32 column) {
        ids[rank] = i32(column);
        values[rank] = candidate(logits[column]);
      });
}

// What tells how well candidates follow a token.
struct Selector {
  Matrix predecessors;
  Matrix successors;
};
static_assert(sizeof(Selector) == 64, "as in src/backend/cuda/block_heads.rs");

// What is known of the candidates of a slot.
struct Candidates {
  const i32 *ids;
  const f32 *values;
  const f32 *projected;
  u32 count;
};

// Writes the scores of candidates behind a token, by all threads of a block: the logit of each, and how
// well it follows. Weights and scores may stand in place of what they are made of.
DEVICE void score_slot(const Selector &selector, const Candidates &candidates, u32 before, f32 *weights,
                       f32 *scores) {
  const Matrix &predecessors = selector.predecessors, &successors = selector.successors;
  const u32 rank = predecessors.columns;
  const u64 predecessor = row_address(predecessors, before);
  for (u32 i = threadIdx.x; i < rank; i += product_threads) {
    const f32 weight = load_element(predecessor, predecessors.dtype, i);
    weights[i] = multiply_rn(candidates.projected[i], weight);
  }
  __syncthreads();
  for (u32 i = warp_index(); i < candidates.count; i += product_warps) {
    const u64 successor = row_address(successors, u32(candidates.ids[i]));
    const f32 score = dot(u64(weights), dtype_f32, successor, successors.dtype, rank);
    if (lane_index() == 0) scores[i] = add_rn(candidates.values[i], score);
  }
  __syncthreads();
}

struct ScoreArguments {
  RowCount rows;
  const u32 *token;         // the one before the children of each row
  ColumnTokens candidates;  // of the rows' slots
  Matrix values;            // of the slots
  Matrix projected;
  Selector selector;
  Matrix weights;  // scratch of the rows
  Matrix scores;
};
static_assert(sizeof(ScoreArguments) == 240, "as in src/backend/cuda/block_heads.rs");

// Each CUDA block has a row.
KERNEL(256, score_candidates, ScoreArguments) {
  const u32 row = blockIdx.x;
  if (row >= count_rows(arguments.rows)) return;
  const u32 slot = row / arguments.candidates.laws;
  const Candidates candidates = {arguments.candidates.table(row), f32_row(arguments.values, slot),
                                 f32_row(arguments.projected, slot), arguments.scores.columns};
  score_slot(arguments.selector, candidates, arguments.token[row], f32_row(arguments.weights, row),
             f32_row(arguments.scores, row));
}

struct WalkArguments {
  Slots slots;
  u64 num_drafts;
  u64 draft_tokens;
  u64 draft_tokens_stride;
  u64 draft_candidates;  // 0: not wanted
  Sampling sampling;
  u64 ids;
  Matrix draft_logits;  // wanted by the host
  Matrix values;
  Matrix projected;
  Selector selector;
  u32 max_drafts;
  u32 padding;
};
static_assert(sizeof(WalkArguments) == 328, "as in src/backend/cuda/block_heads.rs");

struct WalkScratch {
  LawScratch<product_threads> law;
  f32 peaks[1];
  u64 sums[1];
  i32 before;
};

// What the host wants to know of a slot; the row that its token is drawn from.
DEVICE Row tell_candidates(const WalkArguments &arguments, u32 slot, u64 wanted_row) {
  const u32 count = arguments.values.columns;
  const i32 *ids = reinterpret_cast<const i32 *>(arguments.ids) + u64(slot) * count;
  const f32 *values = f32_row(arguments.values, slot);
  Row row = {reinterpret_cast<const u8 *>(values), nullptr, dtype_f32, 0, count};
  if (arguments.draft_candidates != 0) {
    i32 *wanted = reinterpret_cast<i32 *>(arguments.draft_candidates) + wanted_row * count;
    for (u32 i = threadIdx.x; i < count; i += product_threads) wanted[i] = ids[i];
  }
  if (arguments.draft_logits.address != 0) {
    row.dtype = arguments.draft_logits.dtype;
    const u64 wanted = row_address(arguments.draft_logits, wanted_row);
    row.logits = reinterpret_cast<const u8 *>(wanted);
    for (u32 i = threadIdx.x; i < count; i += product_threads) {
      store_element(wanted, row.dtype, i, values[i]);
    }
    __syncthreads();
  }
  return row;
}

// Each CUDA block has a block's slots, one after the other.
KERNEL_RESIDENT(256, 2, walk_candidates, WalkArguments) {
  __shared__ WalkScratch scratch;
  const Slots &slots = arguments.slots;
  const u32 block = blockIdx.x;
  if (block >= count_rows(slots.draft_rows)) return;
  const u32 sequence = u32(slots.draft.sequence[block]);
  const Parameters parameters = parameters_of(arguments.sampling, sequence);
  const u32 drafts = reinterpret_cast<const u32 *>(arguments.num_drafts)[sequence];
  i32 *tokens = reinterpret_cast<i32 *>(arguments.draft_tokens) + sequence * arguments.draft_tokens_stride;
  i32 before = slots.draft.token[block];
  for (u32 index = 0; index < drafts; index++) {
    const u32 slot = block * slots.num_slots + index;
    const u32 count = arguments.values.columns;
    const i32 *ids = reinterpret_cast<const i32 *>(arguments.ids) + u64(slot) * count;
    f32 *weights = f32_row(arguments.projected, slot), *values = f32_row(arguments.values, slot);
    score_slot(arguments.selector, {ids, values, weights, count}, u32(before), weights, values);
    const Row row = tell_candidates(arguments, slot, u64(sequence) * arguments.max_drafts + index);
    const i64 position = i64(slots.draft.position[block]) + 2 + index;
    const u64 number = number_of(arguments.sampling, sequence, position, index, 0);
    const u32 column =
        draw_column(row, parameters, number, scratch.peaks, scratch.sums, scratch.law);
    if (threadIdx.x == 0) {
      const u64 place = u64(slot) * arguments.values.columns + column;
      tokens[index] = scratch.before = reinterpret_cast<const i32 *>(arguments.ids)[place];
    }
    __syncthreads();
    before = scratch.before;
  }
}

// ---- Refiners (XPress) ---------------------------------------------------------------------------

struct RefineArguments {
  Slots slots;
  u64 slot_token;     // of the last pass
  u64 commit_source;  // of the rows that were committed
  u64 tokens;         // of the call
  Matrix features;
  Matrix embedding;
  Matrix input;
  Matrix mixed;
  Matrix mix;
  Matrix output;
};
static_assert(sizeof(RefineArguments) == 296, "as in src/backend/cuda/block_heads.rs");

// The token before a row of a block.
DEVICE i32 token_before(const RefineArguments &arguments, u32 block, u32 at) {
  const Slots &slots = arguments.slots;
  const i32 first = slots.draft.token[block];
  if (at == slots.first_slot) return first;
  if (at > slots.first_slot) {
    const u32 slot = block * slots.num_slots + at - slots.first_slot - 1;
    return reinterpret_cast<const i32 *>(arguments.slot_token)[slot];
  }
  const u32 committed = u32(slots.draft.source[block]);
  const i32 source = reinterpret_cast<const i32 *>(arguments.commit_source)[committed];
  const i32 token = reinterpret_cast<const i32 *>(arguments.tokens)[source];
  // A row of the host's embeddings has no token.
  return token < 0 ? first : token;
}

// What the input map of a row reads: what its hidden state tells, what the mean of all tells, and the token
// before. Each CUDA block has a row. Rows behind the last slot are of no interest.
KERNEL(256, refiner_input, RefineArguments) {
  const Slots &slots = arguments.slots;
  const u32 block = blockIdx.x, at = blockIdx.y, rank = arguments.output.columns;
  if (block >= count_rows(slots.draft_rows)) return;
  const u32 row = block * slots.len + at;
  const bool is_used = at < slots.first_slot + slots.num_slots;
  f32 *to = f32_row(arguments.input, row);
  if (!is_used) {
    for (u32 i = threadIdx.x; i < 3 * rank; i += product_threads) to[i] = 0.0f;
    return;
  }
  const f32 *own = f32_row(arguments.features, row);
  const u32 token = u32(token_before(arguments, block, at));
  const u64 embedded = row_address(arguments.embedding, token);
  for (u32 i = threadIdx.x; i < rank; i += product_threads) {
    f32 sum = 0.0f;
    for (u32 other = 0; other < slots.len; other++) {
      sum = add_rn(sum, f32_row(arguments.features, block * slots.len + other)[rank + i]);
    }
    to[i] = own[i];
    to[rank + i] = divide_rn(sum, f32(slots.len));
    to[2 * rank + i] = load_element(embedded, arguments.embedding.dtype, i);
  }
}

// What the rows of a block up to a slot add to it. Each CUDA block has a slot.
KERNEL(256, refiner_mix, RefineArguments) {
  const Slots &slots = arguments.slots;
  const u32 block = blockIdx.x, slot = blockIdx.y, at = slots.first_slot + slot;
  if (block >= count_rows(slots.draft_rows)) return;
  const Matrix &mix = arguments.mix;
  const u32 first = block * slots.len;
  f32 *to = f32_row(arguments.output, block * slots.num_slots + slot);
  for (u32 i = threadIdx.x; i < arguments.output.columns; i += product_threads) {
    const u64 weights = row_address(mix, u64(i) * mix.columns + at);
    f32 sum = 0.0f;
    for (u32 row = 0; row <= at; row++) {
      const f32 weight = load_element(weights, mix.dtype, row);
      sum = fused_multiply_add(weight, f32_row(arguments.mixed, first + row)[i], sum);
    }
    to[i] = add_rn(f32_row(arguments.mixed, first + at)[i], sum);
  }
}
