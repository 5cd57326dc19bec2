// Attention of single rows over paged keys and values.
//
// The positions that a row sees are cut into chunks at absolute positions, and chunks into tiles. Within
// a chunk there is a running maximum; chunks are folded in their order. How long chunks are depends on
// the row's own range alone: so its result depends neither on the batch nor on how many blocks share it.
#pragma once
#include "paging.cuh"
#include "rows.cuh"

constexpr u32 attention_threads = 256;
// Chunks begin at multiples of this many positions and have one or several times as many, so many times
// that a row has at most so many chunks.
constexpr u32 chunk_step = 256;
constexpr u32 most_chunks = 64;
constexpr u32 largest_tile = 128;  // positions

struct AttentionArguments {
  RowCount rows;
  Paging paging;
  const i32 *sequence;
  const i32 *position;
  const i32 *context_begin;  // of each sequence, or NULL
  const f32 *query;
  f32 *output;
  u64 query_stride;  // elements
  u64 output_stride;
  u32 *counters;  // of the units whose chunks are shared out, zero
  f32 *partials;  // of their chunks
  f32 scale;      // of scores in powers of two
  u32 window;     // positions that a row sees at most, itself the last
  u32 window_from_block;  // these are positions before the row's block instead
  u32 sees_block;         // and of the block a row sees what stands behind it, too
  u32 num_heads;
  u32 groups;        // in which the query heads of a kv head are
  u32 group_heads;   // of each group, the last one excepted
  u32 chunks;        // that a unit has room for in `partials`
  u32 tile;          // positions, a power of two
  u32 key_threads;   // for each key of a tile, a power of two
  u32 vectors;       // of 16 bytes, of a row of keys or values in shared memory
  u32 phases;        // rows of a tile that all threads have a vector of, at a time
  u32 tile_bytes;    // of shared memory
  u32 has_vectors;   // whether rows can be loaded in vectors
};
static_assert(sizeof(AttentionArguments) == 264, "as in src/backend/cuda/attention.rs");

DEVICE f32 infinity() { return __uint_as_float(0x7f800000); }

// ---- What is seen --------------------------------------------------------------------------------

// The positions that a row sees.
struct Mask {
  u32 begin, end;

  DEVICE bool sees(u32 position) const { return position >= begin && position < end; }
};

DEVICE Mask mask_of(const AttentionArguments &arguments, const RowPages &pages, u32 sequence,
                    u32 position) {
  const bool from_block = arguments.window_from_block;
  const u32 next = position + 1;
  const u32 end =
      arguments.sees_block ? pages.own_begin + arguments.paging.block_len : next;
  const u32 context =
      arguments.context_begin != nullptr ? u32(max(arguments.context_begin[sequence], 0)) : 0;
  // A window that moves with the row may leave the beginning of its block out; one that ends before
  // the block never does.
  const u32 window_end = from_block ? pages.own_begin : next;
  const u32 kept = from_block ? pages.own_begin : position;
  const u32 window = window_end - min(window_end, arguments.window);
  return Mask{min(max(context, window), kept), end};
}

// The chunks of a row.
struct Chunks {
  u32 base;  // where the first one begins
  u32 positions;
  u32 count;

  DEVICE u32 begin(u32 chunk) const { return base + chunk * positions; }
};

DEVICE Chunks chunks_of(const Mask &mask) {
  const u32 base = mask.begin / chunk_step;
  const u32 steps = (mask.end - 1) / chunk_step + 1 - base;
  const u32 each = (steps + most_chunks - 1) / most_chunks;
  return Chunks{base * chunk_step, each * chunk_step, (steps + each - 1) / each};
}

// ---- A unit of work ------------------------------------------------------------------------------

// A group of query heads of a row, which share a kv head.
struct Unit {
  u32 row;
  u32 index;  // of all rows and groups
  u32 kv_head;
  u32 first_head;
  u32 heads;
  RowPages pages;
  Mask mask;
  Chunks chunks;
  u32 helpers;  // blocks that share the chunks out
};

DEVICE Unit unit_of_block(const AttentionArguments &arguments) {
  Unit unit;
  unit.row = blockIdx.x;
  unit.index = blockIdx.x * gridDim.y + blockIdx.y;
  unit.kv_head = blockIdx.y / arguments.groups;
  const u32 group = blockIdx.y % arguments.groups;
  const u32 queries = arguments.num_heads / arguments.paging.num_kv_heads;
  unit.first_head = unit.kv_head * queries + group * arguments.group_heads;
  unit.heads = min(arguments.group_heads, queries - group * arguments.group_heads);
  const u32 sequence = u32(arguments.sequence[unit.row]);
  const u32 position = u32(arguments.position[unit.row]);
  unit.pages = pages_of_row(arguments.paging, sequence, unit.row, position);
  unit.mask = mask_of(arguments, unit.pages, sequence, position);
  unit.chunks = chunks_of(unit.mask);
  const bool has_room = unit.chunks.count <= arguments.chunks;
  unit.helpers = has_room ? min(gridDim.z, unit.chunks.count) : 1;
  return unit;
}

// A tile of a block's work: the block has the chunks blockIdx.z, blockIdx.z + helpers and so on.
struct Place {
  u32 chunk;
  u32 position;  // the first of the tile

  DEVICE bool is_there(const Unit &unit) const { return chunk < unit.chunks.count; }
  DEVICE u32 chunk_end(const Unit &unit) const {
    return min(unit.chunks.begin(chunk) + unit.chunks.positions, unit.mask.end);
  }
  DEVICE bool is_last_of_chunk(const Unit &unit, u32 tile) const {
    return position + tile >= chunk_end(unit);
  }
};

DEVICE Place first_place(const Unit &unit, u32 chunk, u32 tile) {
  return Place{chunk, max(unit.chunks.begin(chunk), unit.mask.begin / tile * tile)};
}

DEVICE Place next_place(const Place &place, const Unit &unit, u32 tile) {
  if (place.is_last_of_chunk(unit, tile)) {
    return first_place(unit, place.chunk + unit.helpers, tile);
  }
  return Place{place.chunk, place.position + tile};
}

// ---- Folding chunks ------------------------------------------------------------------------------

// What the weights of a head sum up to below a maximum.
struct Total {
  f32 maximum;  // of the scores
  f32 sum;
};

DEVICE Total no_total() { return Total{-infinity(), 0.0f}; }

// Adds a chunk to those before it; the first one is taken as it is.
DEVICE void fold(Total &total, f32 &value, const Total &next, f32 next_value) {
  if (total.maximum == -infinity()) {
    total = next;
    value = next_value;
    return;
  }
  const f32 maximum = fmaxf(total.maximum, next.maximum);
  const f32 before = exp2f(total.maximum - maximum), after = exp2f(next.maximum - maximum);
  value = fused_multiply_add(next_value, after, multiply_rn(value, before));
  total.sum = fused_multiply_add(next.sum, after, multiply_rn(total.sum, before));
  total.maximum = maximum;
}

DEVICE f32 mean(const Total &total, f32 value) {
  // Nothing is seen only if the host took the pages away meanwhile.
  return total.sum == 0.0f ? 0.0f : divide_rn(value, total.sum);
}

// The partial results of a unit's chunks: for each, the weighted sums of all heads, then their totals.
struct Partials {
  f32 *first;
  u32 heads, head_dim;

  DEVICE u32 size() const { return heads * (head_dim + 2); }
  DEVICE f32 &value(u32 chunk, u32 element) const {
    return first[u64(chunk) * size() + element];
  }
  DEVICE Total total(u32 chunk, u32 head) const {
    const f32 *totals = &value(chunk, heads * head_dim + 2 * head);
    return Total{totals[0], totals[1]};
  }
  DEVICE void set_total(u32 chunk, u32 head, const Total &total) const {
    f32 *totals = &value(chunk, heads * head_dim + 2 * head);
    totals[0] = total.maximum;
    totals[1] = total.sum;
  }
};

DEVICE Partials partials_of(const AttentionArguments &arguments, const Unit &unit) {
  Partials partials = {arguments.partials, arguments.group_heads, arguments.paging.head_dim};
  partials.first += u64(unit.index) * arguments.chunks * partials.size();
  return partials;
}

DEVICE f32 *output_of(const AttentionArguments &arguments, const Unit &unit) {
  return arguments.output + unit.row * arguments.output_stride +
         u64(unit.first_head) * arguments.paging.head_dim;
}

// Folds all chunks of a unit.
DEVICE void fold_partials(const AttentionArguments &arguments, const Unit &unit) {
  const Partials partials = partials_of(arguments, unit);
  f32 *output = output_of(arguments, unit);
  for (u32 i = threadIdx.x; i < unit.heads * arguments.paging.head_dim; i += attention_threads) {
    const u32 head = i / arguments.paging.head_dim;
    Total total = no_total();
    f32 value = 0.0f;
    for (u32 chunk = 0; chunk < unit.chunks.count; chunk++) {
      fold(total, value, partials.total(chunk, head), partials.value(chunk, i));
    }
    output[i] = mean(total, value);
  }
}

// ---- Keys and values in shared memory ------------------------------------------------------------

template <class Element>
constexpr u32 vector_elements = 16 / sizeof(Element);

// Elements 4 * quad and the next three of a vector.
DEVICE float4 quad_of(const uint4 &vector, u32, f32) {
  return make_float4(__uint_as_float(vector.x), __uint_as_float(vector.y),
                     __uint_as_float(vector.z), __uint_as_float(vector.w));
}
DEVICE float4 quad_of(const uint4 &vector, u32 quad, bf16) {
  const u32 first = quad == 0 ? vector.x : vector.z, second = quad == 0 ? vector.y : vector.w;
  return make_float4(bf16_low(first), bf16_high(first), bf16_low(second), bf16_high(second));
}
DEVICE float4 quad_of(const uint4 &vector, u32 quad, f16) {
  const u32 first = quad == 0 ? vector.x : vector.z, second = quad == 0 ? vector.y : vector.w;
  return make_float4(f16_low(first), f16_high(first), f16_low(second), f16_high(second));
}

// What a thread does of each tile. It copies and sums up a vector of the rows phase, phase + phases and
// so on. Of its first key and the others it multiplies the vectors part, part + parts and so on.
struct alignas(8) Share {
  u16 phase, vector;
  u16 first_key, part;

  DEVICE bool is_there(const AttentionArguments &arguments) const {
    return phase < arguments.phases;
  }
};

DEVICE Share share_of_thread(const AttentionArguments &arguments, u32 parts) {
  return Share{u16(threadIdx.x / arguments.vectors), u16(threadIdx.x % arguments.vectors),
               u16(threadIdx.x / parts), u16(threadIdx.x % parts)};
}

// Copies a vector of a row that cannot be copied as one; zeros where there is no row, and behind its
// end.
template <class Element>
DEVICE void copy_elements(const Element *row, u32 vector, u32 head_dim, uint4 *to) {
  Element *elements = reinterpret_cast<Element *>(to);
#pragma unroll 1
  for (u32 i = 0; i < vector_elements<Element>; i++) {
    const u32 column = vector * vector_elements<Element> + i;
    elements[i] = row != nullptr && column < head_dim ? row[column] : Element();
  }
}
