// The host's features as rows of f32, side by side. They may lie in memory of the host, so that each
// element is read once, here, and not by every block of the product that follows.
#include "products.cuh"

constexpr u32 max_features = 64;  // of a launch

struct Feature {
  u64 address;
  u64 row_stride;
  Norm norm;
  u32 dtype;
  u32 columns;
  u32 first_column;  // in the output
  u32 padding;
};

struct FeaturesArguments {
  RowCount rows;
  u64 source;
  Matrix output;
  Matrix gain;  // of the norm of whole rows
  f32 epsilon;
  u32 padding;
  Feature features[max_features];
};
static_assert(sizeof(FeaturesArguments) == 4704, "as in src/backend/cuda/features.rs");

// Each block has one row of one feature.
KERNEL(256, gather_features, FeaturesArguments) {
  const Feature &feature = arguments.features[blockIdx.y];
  const u32 row = blockIdx.x, columns = feature.columns;
  if (row >= count_rows(arguments.rows)) return;
  const u64 source = u64(reinterpret_cast<const i32 *>(arguments.source)[row]);
  const u64 from = feature.address + source * feature.row_stride * dtype_bytes(feature.dtype);
  f32 *to = f32_row(arguments.output, row) + feature.first_column;
  widen_normed(from, feature.dtype, has_vectors(from, columns), columns, feature.norm, to);
}

// The norm of all features of a row together, in place.
KERNEL(256, norm_features, FeaturesArguments) {
  const u32 row = blockIdx.x;
  if (row >= count_rows(arguments.rows)) return;
  const f32 *values = f32_row(arguments.output, row);
  f32 squares = 0.0f;
  for (u32 column = threadIdx.x; column < arguments.output.columns; column += product_threads) {
    squares = fused_multiply_add(values[column], values[column], squares);
  }
  squares = block_sum<product_threads>(squares);
  const f32 factor = inverse_rms(squares, arguments.output.columns, arguments.epsilon);
  norm_in_place(arguments.output, row, arguments.gain, factor);
}
