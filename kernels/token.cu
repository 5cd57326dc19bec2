// The embedding of each row's token and its hidden state, side by side as rows of f32. The host's tables
// and features may lie in its own memory, so that each element is read once, here, and not by every
// block of the product that follows.
#include "embedding.cuh"

struct TokenArguments {
  RowCount rows;
  u64 token;
  u64 source;  // the row of `from` of each row; 0: the row itself
  Matrix from;
  Matrix output;  // [rows, 2 * columns], or [rows, columns]
  Norm norm;      // of the hidden state
  Embedding embedding;
};
static_assert(sizeof(TokenArguments) == 728, "as in src/backend/cuda/token.rs");

// Each block has one half of one row: the embedding, or the hidden state. Where only embeddings are asked
// for, there are no blocks for the others, and an output row is as long as one of them.
KERNEL(256, gather_token, TokenArguments) {
  const bool is_hidden = blockIdx.y == 1;
  const u32 row = blockIdx.x, columns = arguments.from.columns;
  if (row >= count_rows(arguments.rows)) return;
  InputRow input;
  if (is_hidden) {
    const u32 source = arguments.source != 0 ? u32(entry(arguments.source, row)) : row;
    const u64 address = row_address(arguments.from, source);
    input = InputRow{address, arguments.from.dtype, has_vectors(address, columns)};
  } else {
    input = embedded_row(arguments.embedding, entry(arguments.token, row), columns);
  }
  const Norm &norm = is_hidden ? arguments.norm : arguments.embedding.norm;
  f32 *to = f32_row(arguments.output, row) + (is_hidden ? columns : 0);
  widen_normed(input.address, input.dtype, input.vectors, columns, norm, to);
}
