// The rows of a phase.
#pragma once
#include "device.cuh"

// Rows as the plan lays them out.
struct RowArrays {
  i32 *count;
  i32 *sequence;
  i32 *position;
  i32 *rope_position;
  i32 *token;
  i32 *source;
};
static_assert(sizeof(RowArrays) == 48, "as in src/backend/cuda/rows.rs");

// The rows that a phase works on; the count, which includes `first` rows before, is read from memory.
struct RowCount {
  u64 count;
  u32 first;
  u32 most;
};
static_assert(sizeof(RowCount) == 16, "as in src/backend/cuda/products.rs");

DEVICE u32 count_rows(const RowCount &rows) {
  const i32 count = *reinterpret_cast<const i32 *>(rows.count);
  return u32(min(max(i64(count) - rows.first, i64(0)), i64(rows.most)));
}
