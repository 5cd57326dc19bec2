// Norm, head and choice of draft tokens, in one launch; moves the rows on to the next step.
//
// Each block has a few columns of the logits. The largest logit of a row comes together in one word,
// whose order is that of the logits and, of equal ones, against that of the columns. Logits are written
// only where the host wants them or a token is drawn from them.
#include "draw.cuh"
#include "products.cuh"

constexpr u32 max_row_segments = 16;

struct ProposeArguments {
  RowCount rows;
  u64 sequence;
  u64 position;
  u64 rope_position;
  u64 token;
  u64 num_drafts;  // how many tokens each sequence proposes; 0: all rows only keep what they choose
  u64 target_ids;  // of the columns; 0: the identity
  u64 draft_tokens;
  u64 draft_tokens_stride;
  u64 scratch;  // one record for each row, see below
  u64 record_bytes;
  Sampling sampling;
  Matrix hidden;
  Norm norm;
  Matrix segments[max_row_segments];
  Matrix base;          // logits that those of the head are added to, if there are any
  Matrix draft_logits;  // wanted by the host
  Matrix logits;        // where they are kept otherwise
  u32 num_segments;
  u32 columns;
  u32 step;        // the first token that is proposed
  u32 slots;       // rows of a sequence, for as many tokens from there on
  u32 max_drafts;
  u32 keeps_logits;  // even where nothing is drawn from them
  u32 feeds_back_normed;
  u32 most_last_blocks;
  u32 distance;  // positions from a row to the token that it proposes
  u32 rows_of_base;  // that share a row of base, one after the other
};
static_assert(sizeof(ProposeArguments) == 856, "as in src/backend/cuda/propose.rs");

// The scratch of a row. The first words are zero between launches.
struct Record {
  u64 largest;        // the key of the largest logit so far; 0: there is none
  u32 last_blocks[2];  // of the group of rows that has the record's number
  u64 sums[1];        // and the following: one for each tile of logits, and as many f32 after them
};

DEVICE Record &record_of(const ProposeArguments &arguments, u32 row) {
  return *reinterpret_cast<Record *>(arguments.scratch + row * arguments.record_bytes);
}

DEVICE u64 key_of_logit(f32 logit, u32 column) {
  return logit > -infinity() ? key_of_candidate(logit, column) : 0;
}

DEVICE u32 column_of_key(u64 key) { return key == 0 ? 0 : column_of_candidate(key); }

DEVICE i32 entry(u64 array, u64 index) { return reinterpret_cast<const i32 *>(array)[index]; }
DEVICE i32 &place(u64 array, u64 index) { return reinterpret_cast<i32 *>(array)[index]; }

// Which of its sequence's tokens a row proposes.
DEVICE u32 step_of(const ProposeArguments &arguments, u32 row) {
  return arguments.step + row % arguments.slots;
}

// Whether the row chooses at all: one whose sequence proposes fewer tokens does not.
DEVICE bool takes_part(const ProposeArguments &arguments, u32 row) {
  if (arguments.num_drafts == 0) return true;
  const u32 sequence = u32(entry(arguments.sequence, row));
  return i32(step_of(arguments, row)) < entry(arguments.num_drafts, sequence);
}

// Where a row's logits are written, if they are.
DEVICE u64 logits_of(const ProposeArguments &arguments, u32 row) {
  if (arguments.draft_logits.address == 0) return row_address(arguments.logits, row);
  const u64 sequence = u32(entry(arguments.sequence, row));
  return row_address(arguments.draft_logits,
                     sequence * arguments.max_drafts + step_of(arguments, row));
}

DEVICE WeightRow head_row(const ProposeArguments &arguments, u32 column) {
  u32 row = min(column, arguments.columns - 1), segment = 0;
  while (segment + 1 < arguments.num_segments && row >= arguments.segments[segment].rows) {
    row -= arguments.segments[segment].rows;
    segment++;
  }
  return weight_row(arguments.segments[segment], row);
}

// The column that a row proposes, for all threads of the block.
DEVICE u32 choose(const ProposeArguments &arguments, u32 row, LawScratch<product_threads> &scratch) {
  Record &record = record_of(arguments, row);
  const u32 column = column_of_key(record.largest);
  if (arguments.sampling.temperature == 0 || !takes_part(arguments, row)) return column;
  const u32 sequence = u32(entry(arguments.sequence, row));
  const Parameters parameters = parameters_of(arguments.sampling, sequence);
  if (is_greedy(parameters)) return column;
  const bool wanted = arguments.draft_logits.address != 0;
  const Row logits = {reinterpret_cast<const u8 *>(logits_of(arguments, row)), nullptr,
                      wanted ? arguments.draft_logits.dtype : u32(dtype_f32), 0, arguments.columns};
  const i64 position = i64(entry(arguments.position, row)) + arguments.distance;
  const u64 number = number_of(arguments.sampling, sequence, position, step_of(arguments, row), 0);
  f32 *peaks = reinterpret_cast<f32 *>(record.sums + tiles_of(arguments.columns));
  return draw_column(logits, parameters, number, peaks, record.sums, scratch);
}

// Writes the token and moves the row on, by one thread.
DEVICE void move_on(const ProposeArguments &arguments, u32 row, u32 column) {
  record_of(arguments, row).largest = 0;
  if (!takes_part(arguments, row)) return;
  const i32 token = element_of(arguments.target_ids, column, i32(column));
  place(arguments.token, row) = token;
  if (arguments.num_drafts == 0) return;
  const u64 sequence = u32(entry(arguments.sequence, row));
  const u64 step = step_of(arguments, row);
  place(arguments.draft_tokens, sequence * arguments.draft_tokens_stride + step) = token;
  place(arguments.position, row) += 1;
  // The host's rope positions are any numbers.
  i32 &rope_position = place(arguments.rope_position, row);
  rope_position = i32(u32(rope_position) + 1);
}

template <class Kind, class Shape>
DEVICE void propose(const ProposeArguments &arguments) {
  static_assert(Shape::columns == warp_lanes, "the sink has the columns of a row in a warp");
  __shared__ Meeting<Shape> meeting;
  __shared__ LawScratch<product_threads> scratch;
  const u32 first_column = blockIdx.y * Shape::columns;
  const Norms norms = {1, arguments.hidden.columns, arguments.norm.epsilon, 0.0f};
  const ColumnSlice slice = slice_of(warp_index(), norms.columns, norms.halves);
  WeightStream<Kind, Shape> weights;
  weights.open([&](u32 row) { return head_row(arguments, first_column + row); }, slice);
  const RowGroup group = group_of_block(arguments.rows, Shape::rows);
  if (group.len == 0) return;
  const ScratchRows rows = scratch_rows<Kind>(arguments.hidden, group.begin);
  Sums<Shape> sums = {};
  const Gain gain = gain_of<Kind>(arguments.norm);
  accumulate<Kind, Shape, true>(sums, weights, slice, rows, gain, group.len);

  const bool wanted = arguments.draft_logits.address != 0;
  const bool is_kept = wanted || arguments.sampling.temperature != 0 || arguments.keeps_logits;
  const u32 dtype = wanted ? arguments.draft_logits.dtype : u32(dtype_f32);
  combine<Shape, true, false>(meeting, sums, norms, group.len, [&](u32 row, u32 column, f32 logit) {
    row += group.begin;
    column += first_column;
    u64 key = 0;
    if (column < arguments.columns && takes_part(arguments, row)) {
      if (arguments.base.address != 0) logit = add_rn(f32_row(arguments.base, row / arguments.rows_of_base)[column], logit);
      if (is_kept) {
        store_element(logits_of(arguments, row), dtype, column, logit);
        logit = rounded_to(dtype, logit);
      }
      key = key_of_logit(logit, column);
    }
    key = warp_max_key(key);
    if (lane_index() == 0 && key != 0) atomicMax(&record_of(arguments, row).largest, key);
  });

  // Only draws and norms are worth more than one block.
  const bool is_work = arguments.sampling.temperature != 0 || arguments.feeds_back_normed;
  const u32 count = count_last_blocks(is_work ? group.len : 1, arguments.most_last_blocks);
  u32(&words)[2] = record_of(arguments, blockIdx.x).last_blocks;
  const u32 number = join_last_blocks(words, count);
  if (number == count) return;
  for (u32 row = number; row < group.len; row += count) {
    const u32 column = choose(arguments, group.begin + row, scratch);
    if (arguments.feeds_back_normed) {
      const f32 factor = inverse_rms(meeting, norms, 0, row);
      norm_in_place(arguments.hidden, group.begin + row, arguments.norm.weight, factor);
    }
    __syncthreads();  // all threads have read what changes now
    if (threadIdx.x == 0) move_on(arguments, group.begin + row, column);
  }
  leave_last_blocks(words, count);
}

typedef Shape<2, 2, 2> Propose16;
typedef Shape<2, 4, 1> Propose32;
typedef Shape<2, 2, 4> ProposeF16x16;
typedef Shape<2, 4, 2> ProposeF16x32;

KERNEL_RESIDENT(256, 2, propose_bf16_16, ProposeArguments) { propose<Bf16Weights, Propose16>(arguments); }
KERNEL_RESIDENT(256, 2, propose_bf16_32, ProposeArguments) { propose<Bf16Weights, Propose32>(arguments); }
KERNEL_RESIDENT(256, 1, propose_f16_16, ProposeArguments) { propose<F16Weights, ProposeF16x16>(arguments); }
KERNEL_RESIDENT(256, 1, propose_f16_32, ProposeArguments) { propose<F16Weights, ProposeF16x32>(arguments); }
KERNEL_RESIDENT(256, 1, propose_any_16, ProposeArguments) { propose<AnyWeights, Propose16>(arguments); }
KERNEL_RESIDENT(256, 1, propose_any_32, ProposeArguments) { propose<AnyWeights, Propose32>(arguments); }
