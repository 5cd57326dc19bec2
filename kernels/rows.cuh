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

// What tokens the columns of laws are: those of a table.
struct ColumnTokens {
  const i32 *ids;  // NULL: a column is its own token
  u64 stride;      // elements from one table to the next
  u32 laws;        // that share a table, one after the other
  u32 padding;

  DEVICE const i32 *table(u32 law) const { return ids + law / laws * stride; }
};
static_assert(sizeof(ColumnTokens) == 24, "as in src/backend/cuda/rows.rs");

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
