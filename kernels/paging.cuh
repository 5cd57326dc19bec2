// Where the keys and values of a sequence are: a page holds, for each layer, the keys and then the
// values of `page_size` positions, [num_kv_heads, page_size, head_dim] each.
#pragma once
#include "tensor.cuh"

struct Paging {
  Matrix pages;  // one a row
  u64 table;     // the pages of all sequences
  u64 page_row;  // where each sequence begins in it
  u32 page_size;
  u32 num_kv_heads;
  u32 layer;
  u32 head_dim;
};
static_assert(sizeof(Paging) == 64, "as in src/backend/cuda/paging.rs");

// Where a sequence begins in the table.
DEVICE u32 first_entry(const Paging &paging, u32 sequence) {
  return u32(reinterpret_cast<const i32 *>(paging.page_row)[sequence]);
}

// Where the keys of a position of a sequence are, given where it begins in the table; 0 where the table
// names no page of the pool. The plan has checked the table, but the host may have written it since:
// nothing outside of the pool is touched.
DEVICE u64 key_place(const Paging &paging, u32 first_entry, u32 position, u32 kv_head) {
  const u32 index = position / paging.page_size, place = position % paging.page_size;
  const u32 page = reinterpret_cast<const u32 *>(paging.table)[u64(first_entry) + index];
  if (page >= paging.pages.rows) return 0;
  const u64 plane = u64(paging.layer) * 2 * paging.num_kv_heads + kv_head;
  const u64 offset = (plane * paging.page_size + place) * paging.head_dim;
  return row_address(paging.pages, page) + offset * dtype_bytes(paging.pages.dtype);
}

// Bytes from the keys of a position to its values.
DEVICE u64 values_behind_keys(const Paging &paging) {
  const u64 elements = u64(paging.num_kv_heads) * paging.page_size * paging.head_dim;
  return elements * dtype_bytes(paging.pages.dtype);
}
