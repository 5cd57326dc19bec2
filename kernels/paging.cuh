// Where the keys and values of a sequence are: a page holds, for each layer, the keys and then the
// values of `page_size` positions, [num_kv_heads, page_size, head_dim] each. The rows of blocks and trees
// have theirs in pages of their own, which never enter the pool.
#pragma once
#include "tensor.cuh"

struct Paging {
  Matrix pages;        // one a row
  // Of blocks the same, of one layer: as many for each block as its rows take. Of trees all layers, and
  // their places are slots.
  Matrix own_pages;
  u64 table;           // the pages of all sequences
  u64 page_row;        // where each sequence begins in it
  u32 page_size;
  u32 num_kv_heads;
  u32 layer;
  u32 head_dim;
  u32 block_len;  // rows of a block, one block after the other; 0: the rows are not those of blocks
  u32 pages_per_block;
  u64 paths;        // of the rows of trees the slots from below the root to themselves; 0: they are not such
  u32 path_stride;  // elements from one row's path to the next
  u32 path_len;     // slots of a path
};
static_assert(sizeof(Paging) == 120, "as in src/backend/cuda/paging.rs");

// The pages that a row sees.
struct RowPages {
  u32 first_entry;  // of its sequence in the table
  u32 own_begin;    // the positions from here on are those of its block, or of its path
  u32 own_first;    // the first page of its block, or the first element of its path
};

DEVICE RowPages pages_of_row(const Paging &paging, u32 sequence, u32 row, u32 position) {
  RowPages pages = {u32(reinterpret_cast<const i32 *>(paging.page_row)[sequence]), 0xffffffff, 0};
  if (paging.block_len != 0) {
    pages.own_begin = position - row % paging.block_len;
    pages.own_first = row / paging.block_len * paging.pages_per_block;
  } else if (paging.paths != 0) {
    pages.own_begin = position + 1 - paging.path_len;
    pages.own_first = row * paging.path_stride;
  }
  return pages;
}

// Where the keys of a position are; 0 where the table names no page of the pool. The plan has checked the
// table, but the host may have written it since: nothing outside of the pool is touched. Numbers of heads
// beyond the layer's keys are its values and what follows them in the page.
DEVICE u64 key_place(const Paging &paging, const RowPages &pages, u32 position, u32 kv_head) {
  const bool is_own = position >= pages.own_begin;
  const bool is_of_path = is_own && paging.paths != 0;
  u32 place = is_own ? position - pages.own_begin : position;
  if (is_of_path) place = reinterpret_cast<const u32 *>(paging.paths)[u64(pages.own_first) + place];
  const u32 index = place / paging.page_size;
  const Matrix &matrix = is_own ? paging.own_pages : paging.pages;
  const u32 page = is_of_path ? index
                   : is_own   ? pages.own_first + index
                              : reinterpret_cast<const u32 *>(paging.table)[u64(pages.first_entry) + index];
  if (page >= matrix.rows) return 0;
  const u32 layer = is_own && !is_of_path ? 0 : paging.layer;
  const u64 plane = u64(layer) * 2 * paging.num_kv_heads + kv_head;
  const u64 offset = (plane * paging.page_size + place % paging.page_size) * paging.head_dim;
  return row_address(matrix, page) + offset * dtype_bytes(matrix.dtype);
}

// Bytes from the keys of a position to its values.
DEVICE u64 values_behind_keys(const Paging &paging) {
  const u64 elements = u64(paging.num_kv_heads) * paging.page_size * paging.head_dim;
  return elements * dtype_bytes(paging.pages.dtype);
}
