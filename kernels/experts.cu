// Mixtures of experts: the choice of experts, their products, and the sum. src/backend/experts.rs says what
// they compute. A row and one of its experts are a pair; pairs stand in the order of rows.
#include "activation.cuh"
#include "law.cuh"
#include "products.cuh"

// ---- The choice ----------------------------------------------------------------------------------

struct ChooseArguments {
  RowCount rows;
  Matrix scores;
  u64 experts;     // [rows, chosen], best first
  Matrix weights;  // [rows, chosen]
  u32 renormalizes;
  u32 padding;
};
static_assert(sizeof(ChooseArguments) == 96, "as in src/backend/cuda/experts.rs");

// Each warp has a row.
KERNEL(256, choose_experts, ChooseArguments) {
  const u32 row = blockIdx.x * product_warps + warp_index();
  if (row >= count_rows(arguments.rows)) return;
  const u32 count = arguments.scores.columns, chosen = arguments.weights.columns;
  const f32 *scores = f32_row(arguments.scores, row);
  i32 *experts = reinterpret_cast<i32 *>(arguments.experts) + u64(row) * chosen;
  f32 *weights = f32_row(arguments.weights, row);
  u64 last = ~u64(0);
  f32 largest = 0.0f, sum = 0.0f;
  for (u32 i = 0; i < chosen; i++) {
    u64 best = 0;
    for (u32 expert = lane_index(); expert < count; expert += warp_lanes) {
      const u64 key = key_of_candidate(scores[expert], expert);
      if (key < last && key > best) best = key;
    }
    last = warp_max_key(best);
    const u32 expert = column_of_candidate(last);
    const f32 score = candidate(scores[expert]);
    if (i == 0) largest = score;
    const f32 power = expf(subtract_rn(score, largest));
    sum = add_rn(sum, power);
    if (lane_index() == 0) {
      experts[i] = i32(expert);
      weights[i] = power;
    }
  }
  if (!arguments.renormalizes) {
    f32 part = 0.0f;
    for (u32 expert = lane_index(); expert < count; expert += warp_lanes) {
      part = add_rn(part, expf(subtract_rn(scores[expert], largest)));
    }
    sum = warp_sum(part);
  }
  __syncwarp();  // the weights are there
  for (u32 i = lane_index(); i < chosen; i += warp_lanes) weights[i] = divide_rn(weights[i], sum);
}

// ---- Products ------------------------------------------------------------------------------------

struct ExpertArguments {
  RowCount rows;
  u64 experts;    // of the pairs
  Matrix weight;  // the rows of all experts
  Matrix input;   // of the rows, or of the pairs
  Matrix output;  // of the pairs
  u32 chosen;
  u32 activation;
};
static_assert(sizeof(ExpertArguments) == 128, "as in src/backend/cuda/experts.rs");

constexpr u32 columns_of_warp = 4;
constexpr u32 columns_of_block = product_warps * columns_of_warp;
constexpr u32 pairs_at_once = 8;

// The pairs of one expert among as many as the block has threads.
struct Members {
  u32 pair[product_threads];
  u32 count;
};

// The products of some pairs' inputs with a row of weights, by a warp.
DEVICE void multiply_pairs(f32 (&sums)[pairs_at_once], u64 weights, u32 dtype, const Matrix &input,
                           const u32 *pairs, u32 count, u32 pairs_of_row) {
  const u32 columns = input.columns;
  const bool vectors = has_vectors(weights, columns);
  for (u32 column = lane_index() * piece_elements; column < columns;
       column += warp_lanes * piece_elements) {
    f32 weight[piece_elements];
    widen(weight, load_piece(weights, dtype, vectors, column, columns));
#pragma unroll
    for (u32 i = 0; i < pairs_at_once; i++) {
      if (i < count) {
        const u64 row = row_address(input, pairs[i] / pairs_of_row);
        f32 values[piece_elements];
        widen(values, load_piece(row, dtype_f32, has_vectors(row, columns), column, columns));
#pragma unroll
        for (u32 k = 0; k < piece_elements; k++) {
          sums[i] = fused_multiply_add(weight[k], values[k], sums[i]);
        }
      }
    }
  }
#pragma unroll
  for (u32 i = 0; i < pairs_at_once; i++) sums[i] = warp_sum(sums[i]);
}

// The first pair of each expert has a CUDA block, for some columns of all of the expert's pairs, which read
// the weights once for several of them. `gated`: the expert has rows of the gate, then as many of what it
// gates, and its input is that of the row; otherwise that of the pair.
template <bool gated>
DEVICE void multiply_experts(const ExpertArguments &arguments) {
  __shared__ Members members;
  const u32 chosen = arguments.chosen, pairs = count_rows(arguments.rows) * chosen;
  if (blockIdx.x >= pairs) return;
  const i32 *experts = reinterpret_cast<const i32 *>(arguments.experts);
  const i32 expert = experts[blockIdx.x];
  u32 is_later = 0;
  for (u32 pair = threadIdx.x; pair < blockIdx.x; pair += product_threads) {
    is_later |= experts[pair] == expert ? 1 : 0;
  }
  if (__syncthreads_or(is_later) != 0) return;
  const Matrix &weight = arguments.weight;
  const u32 columns = arguments.output.columns;
  const u64 first_row = u64(u32(expert)) * (gated ? 2 : 1) * columns;
  for (u32 first = blockIdx.x; first < pairs; first += product_threads) {
    if (threadIdx.x == 0) members.count = 0;
    __syncthreads();
    const u32 own = first + threadIdx.x;
    if (own < pairs && experts[own] == expert) members.pair[atomicAdd(&members.count, 1)] = own;
    __syncthreads();
    for (u32 begin = 0; begin < members.count; begin += pairs_at_once) {
      const u32 count = min(members.count - begin, pairs_at_once);
      const u32 *group = members.pair + begin;
      for (u32 i = 0; i < columns_of_warp; i++) {
        const u32 column = blockIdx.y * columns_of_block + warp_index() * columns_of_warp + i;
        if (column >= columns) break;
        f32 values[pairs_at_once] = {};
        multiply_pairs(values, row_address(weight, first_row + column), weight.dtype, arguments.input,
                       group, count, gated ? chosen : 1);
        if (gated) {
          f32 ups[pairs_at_once] = {};
          multiply_pairs(ups, row_address(weight, first_row + columns + column), weight.dtype,
                         arguments.input, group, count, chosen);
#pragma unroll
          for (u32 k = 0; k < pairs_at_once; k++) {
            values[k] = multiply_rn(activate(arguments.activation, values[k]), ups[k]);
          }
        }
        if (lane_index() == 0) {
#pragma unroll
          for (u32 k = 0; k < pairs_at_once; k++) {
            if (k < count) f32_row(arguments.output, group[k])[column] = values[k];
          }
        }
      }
    }
    __syncthreads();  // the members are done with
  }
}

KERNEL_RESIDENT(256, 2, experts_gate_up, ExpertArguments) { multiply_experts<true>(arguments); }
KERNEL_RESIDENT(256, 2, experts_down, ExpertArguments) { multiply_experts<false>(arguments); }

// ---- The sum -------------------------------------------------------------------------------------

struct AddArguments {
  RowCount rows;
  Matrix weights;  // [rows, chosen]
  Matrix made;     // of the pairs
  Matrix shared;
  Matrix shared_score;
  Matrix hidden;
};
static_assert(sizeof(AddArguments) == 176, "as in src/backend/cuda/experts.rs");

// Each block has a row.
KERNEL(256, add_experts, AddArguments) {
  const u32 row = blockIdx.x;
  if (row >= count_rows(arguments.rows)) return;
  const u32 chosen = arguments.weights.columns;
  const f32 *weights = f32_row(arguments.weights, row), *shared = f32_row(arguments.shared, row);
  const f32 shared_weight = sigmoid(*f32_row(arguments.shared_score, row));
  f32 *hidden = f32_row(arguments.hidden, row);
  for (u32 i = threadIdx.x; i < arguments.hidden.columns; i += product_threads) {
    f32 sum = hidden[i];
    for (u32 k = 0; k < chosen; k++) {
      sum = fused_multiply_add(weights[k], f32_row(arguments.made, row * chosen + k)[i], sum);
    }
    hidden[i] = fused_multiply_add(shared_weight, shared[i], sum);
  }
}
