// Where the keys and values of a sequence are: a page holds, for each layer, the keys and then the
// values of `page_size` positions, [num_kv_heads, page_size, head_dim] each.
#pragma once
#include "device.cuh"

struct Paging {
  u64 pages;
  u64 page_stride;     // bytes
  const i32 *table;    // the pages of all sequences
  const i32 *page_row; // the first entry of each sequence in it
  u32 num_pages;
  u32 page_size;
  u32 num_kv_heads;
  u32 layer;
  u32 row_bytes;  // of a head's keys or values of one position
  u32 padding;
};
static_assert(sizeof(Paging) == 56, "as in src/backend/cuda/paging.rs");

// The keys of a position of a sequence, whose entries of the table begin with `first_entry`; 0 if they
// are in no page of the pool. The plan has checked the table, but the host may have written it since:
// nothing outside of the pool is touched.
DEVICE u64 key_address(const Paging &paging, u32 first_entry, u32 position, u32 kv_head) {
  const u32 index = position / paging.page_size, place = position % paging.page_size;
  const u32 page = u32(paging.table[u64(first_entry) + index]);
  if (page >= paging.num_pages) return 0;
  const u64 plane = u64(paging.layer) * 2 * paging.num_kv_heads + kv_head;
  return paging.pages + page * paging.page_stride +
         (plane * paging.page_size + place) * paging.row_bytes;
}

// Bytes from the keys of a position to its values.
DEVICE u64 values_offset(const Paging &paging) {
  return u64(paging.num_kv_heads) * paging.page_size * paging.row_bytes;
}
