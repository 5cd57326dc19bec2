// Copies the residual stream of the rows that go on drafting out of a chunk of committed rows.
#include "rows.cuh"

struct GatherArguments {
  RowCount rows;
  const i32 *source;  // of each drafting row, among all rows to commit
  const f32 *from;    // the rows of the chunk
  f32 *to;
  u64 from_stride;  // elements
  u64 to_stride;
  u32 first;  // the first row of the chunk among all rows to commit
  u32 len;
  u32 columns;
  u32 padding;
};
static_assert(sizeof(GatherArguments) == 72, "as in src/backend/cuda/plan.rs");

KERNEL(256, gather_rows, GatherArguments) {
  const u32 row = blockIdx.x;
  if (row >= count_rows(arguments.rows)) return;
  const u32 place = u32(arguments.source[row]) - arguments.first;
  if (place >= arguments.len) return;
  const f32 *from = arguments.from + place * arguments.from_stride;
  f32 *to = arguments.to + row * arguments.to_stride;
  const bool has_vectors = (reinterpret_cast<u64>(from) | reinterpret_cast<u64>(to)) % 16 == 0;
  const u32 vectors = has_vectors ? arguments.columns / 4 : 0;
  for (u32 i = threadIdx.x; i < vectors; i += blockDim.x) {
    reinterpret_cast<float4 *>(to)[i] = reinterpret_cast<const float4 *>(from)[i];
  }
  for (u32 i = 4 * vectors + threadIdx.x; i < arguments.columns; i += blockDim.x) to[i] = from[i];
}
