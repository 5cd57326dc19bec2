// Rows of the embedding: of a table, which may lie in several pieces, or given by the host.
#pragma once
#include "products.cuh"

constexpr u32 max_row_segments = 16;

// The half of an input that comes from the token.
struct Embedding {
  Matrix segments[max_row_segments];
  Matrix given;  // rows of the host, for rows without a token
  Norm norm;
  u32 num_segments;  // 0: there is no such half
  u32 padding;
};
static_assert(sizeof(Embedding) == 592, "as in src/backend/cuda/embedding.rs");

DEVICE i32 entry(u64 array, u64 index) { return reinterpret_cast<const i32 *>(array)[index]; }

struct InputRow {
  u64 address;
  u32 dtype;
  u32 vectors;
};

DEVICE u64 segment_row(const Embedding &embedding, u32 row) {
  u32 segment = 0;
  while (segment + 1 < embedding.num_segments && row >= embedding.segments[segment].rows) {
    row -= embedding.segments[segment].rows;
    segment++;
  }
  return row_address(embedding.segments[segment], row);
}

DEVICE InputRow embedded_row(const Embedding &embedding, i32 token, u32 columns) {
  const bool is_token = token >= 0;
  const u64 address = is_token ? segment_row(embedding, u32(token))
                               : row_address(embedding.given, u32(-1 - token));
  const u32 dtype = is_token ? embedding.segments[0].dtype : embedding.given.dtype;
  return InputRow{address, dtype, has_vectors(address, columns)};
}
