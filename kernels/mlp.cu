// What stands around the product of a step of an MLP speculator: the state that it goes on from, and what
// becomes of it with the token.
#include "activation.cuh"
#include "embedding.cuh"

struct StateArguments {
  RowCount rows;
  u64 source;     // among the rows to commit, of each row
  u64 committed;  // of those, the row of the feature
  Matrix from;    // the feature, or the state before
  Matrix to;
  Norm norm;  // of a feature that is scaled to a mean square of one half
  u32 is_feature;
  u32 padding;
};
static_assert(sizeof(StateArguments) == 144, "as in src/backend/cuda/mlp.rs");

// Each block has a row.
KERNEL(256, read_states, StateArguments) {
  constexpr f32 root_of_half = 0.70710678f;
  const u32 row = blockIdx.x, columns = arguments.to.columns;
  if (row >= count_rows(arguments.rows)) return;
  const u32 source = arguments.is_feature
                         ? u32(entry(arguments.committed, u32(entry(arguments.source, row))))
                         : row;
  const u64 from = row_address(arguments.from, source);
  f32 *to = f32_row(arguments.to, row);
  widen_normed(from, arguments.from.dtype, has_vectors(from, columns), columns, arguments.norm, to);
  if (arguments.norm.epsilon < 0.0f) return;
  __syncthreads();  // pieces are written by other threads than these elements are scaled by
  for (u32 i = threadIdx.x; i < columns; i += product_threads) to[i] = multiply_rn(to[i], root_of_half);
}

struct MlpArguments {
  RowCount rows;
  u64 token;
  Matrix embedding;
  Norm norm;
  Matrix bias;
  Matrix state;
  f32 embedding_scale;
  u32 padding;
};
static_assert(sizeof(MlpArguments) == 168, "as in src/backend/cuda/mlp.rs");

// Each block has a row, in which every thread has elements of its own.
KERNEL(256, finish_mlp, MlpArguments) {
  const u32 row = blockIdx.x, columns = arguments.state.columns;
  if (row >= count_rows(arguments.rows)) return;
  f32 *state = f32_row(arguments.state, row);
  const Matrix &embedding = arguments.embedding;
  const u64 embedded = row_address(embedding, u32(entry(arguments.token, row)));
  f32 squares = 0.0f;
  for (u32 i = threadIdx.x; i < columns; i += product_threads) {
    const f32 other = load_element(embedded, embedding.dtype, i);
    const f32 sum = fused_multiply_add(arguments.embedding_scale, other, state[i]);
    squares = fused_multiply_add(sum, sum, squares);
    state[i] = sum;
  }
  const f32 factor =
      inverse_rms(block_sum<product_threads>(squares), columns, arguments.norm.epsilon);
  for (u32 i = threadIdx.x; i < columns; i += product_threads) {
    const f32 gain = element_or(arguments.norm.weight, i, 1.0f);
    const f32 normed = multiply_rn(multiply_rn(state[i], factor), gain);
    state[i] = activate(gelu, add_rn(normed, element_or(arguments.bias, i, 0.0f)));
  }
}
