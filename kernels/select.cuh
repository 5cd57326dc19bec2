// The largest logits of a row, exactly and in order: of equal ones the first is first. A block has a row.
#pragma once
#include "law.cuh"

// The most that are selected.
constexpr u32 most_selected = 256;
constexpr u32 most_collected = 1024;

struct SelectScratch {
  u64 largest[most_selected];
  u64 keys[most_collected];
  u64 bound;
  u32 count;
};

// Collects the keys from a bound on, in any order, as far as there is room, and returns how many there are.
template <u32 threads, class Logit>
DEVICE u32 collect_keys(u32 columns, u64 bound, SelectScratch &scratch, Logit logit) {
  if (threadIdx.x == 0) scratch.count = 0;
  __syncthreads();
#pragma unroll 4
  for (u32 first = 0; first < columns; first += threads) {
    const u32 column = first + threadIdx.x;
    const u64 key = column < columns ? key_of_candidate(logit(column), column) : 0;
    const bool is_in = column < columns && key >= bound;
    const u32 lanes = __ballot_sync(all_lanes, is_in);
    if (lanes == 0) continue;
    u32 place = 0;
    if (lane_index() == 0) place = atomicAdd(&scratch.count, __popc(lanes));
    place = __shfl_sync(all_lanes, place, 0) + __popc(lanes & ((1u << lane_index()) - 1));
    if (is_in && place < most_collected) scratch.keys[place] = key;
  }
  __syncthreads();
  const u32 count = scratch.count;
  __syncthreads();  // the next collection may begin
  return count;
}

// A bound that leaves at least `count` keys: the columns are cut into as many parts as may be selected,
// and the count-th of their largest keys is it.
template <u32 threads, class Logit>
DEVICE u64 first_bound(u32 columns, u32 count, SelectScratch &scratch, Logit logit) {
  if (threadIdx.x < most_selected) scratch.largest[threadIdx.x] = 0;
  u64 largest = 0;
#pragma unroll 4
  for (u32 column = threadIdx.x; column < columns; column += threads) {
    const u64 key = key_of_candidate(logit(column), column);
    largest = key > largest ? key : largest;
  }
  __syncthreads();
  if (threadIdx.x == 0) scratch.bound = 0;
  atomicMax(&scratch.largest[threadIdx.x % most_selected], largest);
  __syncthreads();
  if (threadIdx.x < most_selected) {
    const u64 own = scratch.largest[threadIdx.x];
    u32 above = 0;
    for (u32 i = 0; i < most_selected; i++) above += scratch.largest[i] > own ? 1 : 0;
    if (own != 0 && above == count - 1) scratch.bound = own;
  }
  __syncthreads();
  return scratch.bound;
}

// Tells `write` the ranks and columns of the `count` largest logits, from 1 to as many as there are
// columns; each by one thread.
template <u32 threads, class Logit, class Write>
DEVICE void select_largest(u32 columns, u32 count, SelectScratch &scratch, Logit logit, Write write) {
  static_assert(threads >= most_selected, "a thread for each part");
  u64 low = first_bound<threads>(columns, count, scratch, logit), high = ~u64(0);
  u32 collected = collect_keys<threads>(columns, low, scratch, logit);
  // Where very many are equal or grow from part to part, the bound is looked for between these. As keys
  // differ, there is one that leaves neither too many nor too few.
  for (u64 bound = low; collected > most_collected || collected < count;) {
    if (collected < count) {
      high = bound;
    } else {
      low = bound;
    }
    bound = low + (high - low) / 2;
    collected = collect_keys<threads>(columns, bound, scratch, logit);
  }
  for (u32 i = threadIdx.x; i < collected; i += threads) {
    const u64 key = scratch.keys[i];
    u32 rank = 0;
    for (u32 other = 0; other < collected; other++) rank += scratch.keys[other] > key ? 1 : 0;
    if (rank < count) write(rank, column_of_candidate(key));
  }
}
