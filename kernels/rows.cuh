// The rows of a phase.
#pragma once
#include "device.cuh"

// The count, which includes the `first` rows before those of the phase, is read from memory. It may be
// beyond `most`, which the grid is made for: kernels compare it with the number of a block.
struct RowCount {
  u64 count;
  u32 first;
  u32 most;
};
static_assert(sizeof(RowCount) == 16, "as in src/backend/cuda/products.rs");

DEVICE u32 count_rows(const RowCount &rows) {
  const i32 count = *reinterpret_cast<const i32 *>(rows.count);
  return u32(max(i64(count) - rows.first, i64(0)));
}
