// Attention, one block for a group of query heads of a row and some of the row's chunks. While the
// scores of a tile of keys are computed, its values are copied to shared memory; while its values are
// summed up, the next keys are.
//
// What bounds the registers of a thread are its weighted sums, heads * elements, which live all the time,
// and beside them the products and vectors of scoring. There is room for three blocks' on a
// multiprocessor, and for two blocks' where a thread has 64 sums, as nothing else lives from phase to
// phase: what all threads know is in shared memory, and so is what each of them has to do; what is
// computed from the thread's index is computed where it is used.
#include "attention.cuh"

// Shared memory of a block; the rest is of dynamic size.
template <u32 heads>
struct AttentionScratch {
  Unit unit;
  Place place, next;                // a tile, and the one after it
  Share shares[attention_threads];  // what each thread does
  u64 addresses[largest_tile];      // of the keys of a tile; 0 where a position is not seen
  Total chunk[heads];               // of the chunk so far
  Total before[heads];              // of the chunks before
  f32 factors[heads];               // what turns sums before a tile to its maximum

  // By one thread.
  DEVICE void move_on(u32 tile) {
    place = next;
    next = next_place(place, unit, tile);
  }
};

DEVICE f32 add_product(const float4 &left, const float4 &right, f32 sum) {
  sum = fused_multiply_add(left.x, right.x, sum);
  sum = fused_multiply_add(left.y, right.y, sum);
  sum = fused_multiply_add(left.z, right.z, sum);
  return fused_multiply_add(left.w, right.w, sum);
}

template <class Element, u32 heads>
struct Block {
  static constexpr u32 elements = vector_elements<Element>;
  static constexpr u32 quads = elements / 4;
  // Neighbours that read the same head of neighbouring vectors do so from different banks.
  static constexpr u32 query_stride = heads * elements + 4;
  // As much at a time as there are registers for: the queries are read once for all keys of a thread.
  static constexpr bool is_large = heads * elements >= 64;
  static constexpr u32 keys_of_thread = is_large ? 1 : 2;
  static constexpr u32 unrolled = is_large ? 1 : 2;
  static constexpr u32 weights_at_once = heads < 4 ? heads : 4;
  static constexpr u32 unrolled_vectors = heads * elements >= 32 ? 1 : 2;
  static constexpr u32 unrolled_quads = is_large ? 1 : quads;

  const AttentionArguments &arguments;
  const Unit &unit;
  uint4 *keys;
  uint4 *values;
  f32 *queries;  // [vectors][query_stride], of which [heads][elements] are used
  f32 *weights;  // [tile][heads]: scores, then what they weigh
  AttentionScratch<heads> &scratch;
  // The weighted sums of this thread's vector over its rows.
  f32 sums[heads][elements];

  DEVICE Block(const AttentionArguments &arguments, unsigned char *shared,
               AttentionScratch<heads> &scratch)
      : arguments(arguments),
        unit(scratch.unit),
        scratch(scratch) {
    keys = reinterpret_cast<uint4 *>(shared);
    values = reinterpret_cast<uint4 *>(shared + arguments.tile_bytes);
    queries = reinterpret_cast<f32 *>(shared + 2 * arguments.tile_bytes);
    weights = queries + arguments.vectors * query_stride;
    scratch.shares[threadIdx.x] = share_of_thread(arguments, parts());
    begin_chunk();
  }

  DEVICE Share own_share() const { return scratch.shares[thread_index()]; }

  DEVICE u32 row_elements() const { return arguments.vectors * elements; }

  DEVICE void begin_chunk() {
    if (threadIdx.x < heads) scratch.chunk[threadIdx.x] = no_total();
#pragma unroll
    for (u32 head = 0; head < heads; head++) {
#pragma unroll
      for (u32 i = 0; i < elements; i++) sums[head][i] = 0.0f;
    }
  }

  DEVICE void load_queries() {
    const f32 *from = arguments.query + unit.row * arguments.query_stride +
                      u64(unit.first_head) * arguments.paging.head_dim;
#pragma unroll 1
    for (u32 i = threadIdx.x; i < heads * row_elements(); i += attention_threads) {
      const u32 head = i / row_elements(), column = i % row_elements();
      const bool is_there = head < unit.heads && column < arguments.paging.head_dim;
      f32 *vector = queries + column / elements * query_stride + head * elements;
      vector[column % elements] = is_there ? from[head * arguments.paging.head_dim + column] : 0.0f;
    }
  }

  DEVICE void find_keys(const Place &place) {
    const u32 row = thread_index();
    if (row >= arguments.tile) return;
    const u32 position = place.position + row;
    scratch.addresses[row] =
        unit.mask.sees(position)
            ? key_place(arguments.paging, unit.pages, position, unit.kv_head)
            : 0;
  }

  // Threads that share the keys of a thread.
  DEVICE u32 parts() const { return keys_of_thread * arguments.key_threads; }
  // Rows from one key of a thread to its next. As many times parts() is a multiple of 8, so that
  // vectors of the same columns lie in the same banks in both.
  DEVICE u32 rows_apart() const { return arguments.tile / keys_of_thread; }

  // Where a vector of a row of a tile lies. Those of the same columns of neighbouring keys, which are
  // read at the same time, lie in different banks.
  DEVICE u32 vector_place(u32 row, u32 vector) const {
    const u32 swizzle = arguments.vectors % 8 == 0 ? row * parts() & 7 : 0;
    return row * arguments.vectors + (vector ^ swizzle);
  }

  // Begins to copy the rows whose keys are at the addresses, from `offset` behind; zeros where a
  // position is not seen.
  DEVICE void copy_tile(u64 offset, uint4 *to) {
    const Share share = own_share();
    if (share.is_there(arguments)) {
#pragma unroll unrolled
      for (u32 row = share.phase; row < arguments.tile; row += arguments.phases) {
        const u64 keys_of_row = scratch.addresses[row];
        const u64 from = keys_of_row != 0 ? keys_of_row + offset : 0;
        uint4 *place = to + vector_place(row, share.vector);
        if (arguments.has_vectors) {
          const u64 vector = from != 0 ? from + 16 * share.vector : arguments.paging.pages.address;
          cp_async16(place, reinterpret_cast<const void *>(vector), from != 0);
        } else {
          copy_elements(reinterpret_cast<const Element *>(from), share.vector, arguments.paging.head_dim,
                        place);
        }
      }
    }
    cp_async_commit();
  }
  DEVICE void copy_keys() { copy_tile(0, keys); }
  DEVICE void copy_values() { copy_tile(values_behind_keys(arguments.paging), values); }

  // The scores of the tile's keys.
  DEVICE void score() {
    f32 products[keys_of_thread][heads] = {};
    const u32 first_key = own_share().first_key;
#pragma unroll unrolled_vectors
    for (u32 vector = own_share().part; vector < arguments.vectors; vector += parts()) {
      const float4 *queries_of_vector =
          reinterpret_cast<const float4 *>(queries + vector * query_stride);
      const uint4 *vector_of_keys = keys + vector_place(first_key, vector);
      uint4 key[keys_of_thread];
#pragma unroll
      for (u32 k = 0; k < keys_of_thread; k++) {
        key[k] = vector_of_keys[k * rows_apart() * arguments.vectors];
      }
#pragma unroll unrolled_quads
      for (u32 quad = 0; quad < quads; quad++) {
        float4 elements_of_key[keys_of_thread];
#pragma unroll
        for (u32 k = 0; k < keys_of_thread; k++) {
          elements_of_key[k] = quad_of(key[k], quad, Element());
        }
#pragma unroll
        for (u32 head = 0; head < heads; head++) {
          const float4 query = queries_of_vector[head * quads + quad];
#pragma unroll
          for (u32 k = 0; k < keys_of_thread; k++) {
            products[k][head] = add_product(query, elements_of_key[k], products[k][head]);
          }
        }
      }
    }
#pragma unroll 1
    for (u32 distance = parts() / 2; distance != 0; distance /= 2) {
#pragma unroll
      for (u32 k = 0; k < keys_of_thread; k++) {
#pragma unroll
        for (u32 head = 0; head < heads; head++) {
          const f32 other = __shfl_xor_sync(all_lanes, products[k][head], distance);
          products[k][head] = add_rn(products[k][head], other);
        }
      }
    }
    const Share share = own_share();
#pragma unroll
    for (u32 k = 0; k < keys_of_thread; k++) {
      const u32 row = share.first_key + k * rows_apart();
      const bool is_seen = scratch.addresses[row] != 0;
#pragma unroll
      for (u32 head = 0; head < heads; head++) {
        if ((k * heads + head) % parts() != share.part) continue;
        const f32 score = multiply_rn(products[k][head], arguments.scale);
        weights[row * heads + head] = is_seen ? score : -infinity();
      }
    }
  }

  // Turns the scores of a head into weights below the running maximum; a warp for each head.
  DEVICE void weigh() {
    constexpr u32 most = largest_tile / warp_lanes;
    const u32 thread = thread_index(), lane = thread % warp_lanes, head = thread / warp_lanes;
    if (head >= heads) return;
    f32 scores[most];
    f32 largest = -infinity();
#pragma unroll
    for (u32 i = 0; i < most; i++) {
      const u32 row = lane + i * warp_lanes;
      scores[i] = row < arguments.tile ? weights[row * heads + head] : -infinity();
      largest = fmaxf(largest, scores[i]);
    }
    const Total before = scratch.chunk[head];
    const f32 maximum = fmaxf(before.maximum, warp_max(largest));
    const f32 shift = maximum == -infinity() ? 0.0f : maximum;
    f32 sum = 0.0f;
#pragma unroll
    for (u32 i = 0; i < most; i++) {
      const u32 row = lane + i * warp_lanes;
      const f32 weight = exp2f(scores[i] - shift);
      if (row < arguments.tile) weights[row * heads + head] = weight;
      sum = add_rn(sum, weight);
    }
    sum = warp_sum(sum);
    __syncwarp();  // all lanes have read what stands here
    if (lane == 0) {
      const f32 factor = exp2f(before.maximum - shift);
      scratch.chunk[head] = Total{maximum, fused_multiply_add(before.sum, factor, sum)};
      scratch.factors[head] = factor;
    }
  }

  DEVICE void load_weights(f32 (&weight)[weights_at_once], u32 row, u32 head) const {
    const f32 *from = weights + row * heads + head;
    if constexpr (weights_at_once == 4) {
      const float4 four = *reinterpret_cast<const float4 *>(from);
      weight[0] = four.x;
      weight[1] = four.y;
      weight[2] = four.z;
      weight[3] = four.w;
    } else {
#pragma unroll
      for (u32 i = 0; i < weights_at_once; i++) weight[i] = from[i];
    }
  }

  // Adds the tile's values, weighted.
  DEVICE void add_values() {
    const Share share = own_share();
    if (!share.is_there(arguments)) return;
#pragma unroll
    for (u32 head = 0; head < heads; head++) {
      const f32 factor = scratch.factors[head];
#pragma unroll
      for (u32 i = 0; i < elements; i++) sums[head][i] = multiply_rn(sums[head][i], factor);
    }
#pragma unroll unrolled
    for (u32 row = share.phase; row < arguments.tile; row += arguments.phases) {
      const uint4 value = values[vector_place(row, share.vector)];
#pragma unroll
      for (u32 quad = 0; quad < quads; quad++) {
        const float4 four = quad_of(value, quad, Element());
#pragma unroll
        for (u32 head = 0; head < heads; head += weights_at_once) {
          f32 weight[weights_at_once];
          load_weights(weight, row, head);
#pragma unroll
          for (u32 i = 0; i < weights_at_once; i++) {
            f32 *sum = &sums[head + i][4 * quad];
            sum[0] = fused_multiply_add(weight[i], four.x, sum[0]);
            sum[1] = fused_multiply_add(weight[i], four.y, sum[1]);
            sum[2] = fused_multiply_add(weight[i], four.z, sum[2]);
            sum[3] = fused_multiply_add(weight[i], four.w, sum[3]);
          }
        }
      }
    }
  }

  // Takes the weighted sum of an element of a head over a chunk.
  DEVICE void take(u32 chunk, u32 head, u32 column, f32 value) {
    if (unit.helpers > 1) {
      const Partials partials = partials_of(arguments, unit);
      partials.value(chunk, head * arguments.paging.head_dim + column) = value;
      return;
    }
    // The chunks come in their order: the output has what they were folded to so far.
    f32 &output = output_of(arguments, unit)[head * arguments.paging.head_dim + column];
    Total all = scratch.before[head];
    f32 folded = chunk != 0 ? output : 0.0f;
    fold(all, folded, scratch.chunk[head], value);
    output = chunk + 1 == unit.chunks.count ? mean(all, folded) : folded;
  }

  // Adds up the sums of all phases, in their order. The tile of values is free, and serves for as many
  // heads at a time as it has room for.
  DEVICE void finish_chunk(u32 chunk) {
    const Share share = own_share();
    f32 *of_phases = reinterpret_cast<f32 *>(values);
    const u32 stride = arguments.phases * row_elements();  // of a head
    const u32 at_once = min(heads, arguments.tile_bytes / u32(stride * sizeof(f32)));
    for (u32 first = 0; first < unit.heads; first += at_once) {
#pragma unroll
      for (u32 head = 0; head < heads; head++) {
        if (head < first || head >= first + at_once || !share.is_there(arguments)) continue;
        f32 *to = of_phases + (head - first) * stride + share.phase * row_elements() +
                  share.vector * elements;
#pragma unroll
        for (u32 i = 0; i < elements; i++) to[i] = sums[head][i];
      }
      __syncthreads();
      const u32 last = min(first + at_once, unit.heads);
      for (u32 i = threadIdx.x; i < (last - first) * arguments.paging.head_dim; i += attention_threads) {
        const u32 head = i / arguments.paging.head_dim, column = i % arguments.paging.head_dim;
        f32 sum = 0.0f;
#pragma unroll unrolled
        for (u32 phase = 0; phase < arguments.phases; phase++) {
          sum = add_rn(sum, of_phases[head * stride + phase * row_elements() + column]);
        }
        take(chunk, first + head, column, sum);
      }
      __syncthreads();
    }
    if (threadIdx.x < unit.heads) {
      const Total &of_chunk = scratch.chunk[threadIdx.x];
      if (unit.helpers > 1) {
        partials_of(arguments, unit).set_total(chunk, threadIdx.x, of_chunk);
      } else {
        f32 none = 0.0f;
        fold(scratch.before[threadIdx.x], none, of_chunk, 0.0f);
      }
    }
    begin_chunk();
  }

  DEVICE void run() {
    if (threadIdx.x == 0) scratch.next = first_place(unit, blockIdx.z, arguments.tile);
    if (threadIdx.x < heads) scratch.before[threadIdx.x] = no_total();
    load_queries();
    __syncthreads();
    find_keys(scratch.next);
    __syncthreads();
    copy_keys();
    copy_values();
    const Place &place = scratch.place, &next = scratch.next;
#pragma unroll 1
    for (;;) {
      cp_async_wait<1>();
      __syncthreads();  // the keys are there
      if (threadIdx.x == 0) scratch.move_on(arguments.tile);
      score();
      __syncthreads();  // the scores and the next place are there, the keys are done with
      weigh();
      const bool goes_on = next.is_there(unit);
      if (goes_on) find_keys(next);
      cp_async_wait<0>();
      __syncthreads();  // the weights, the values and the next addresses are there
      if (goes_on) copy_keys();
      add_values();
      __syncthreads();  // the values and the weights are done with
      if (place.is_last_of_chunk(unit, arguments.tile)) finish_chunk(place.chunk);
      if (!goes_on) break;
      copy_values();
    }
    if (unit.helpers > 1 && last_block(arguments.counters + unit.index, unit.helpers)) {
      fold_partials(arguments, unit);
    }
  }
};

template <class Element, u32 heads>
DEVICE void attend(const AttentionArguments &arguments) {
  DYNAMIC_SHARED(unsigned char, shared);
  __shared__ AttentionScratch<heads> scratch;
  if (blockIdx.x >= count_rows(arguments.rows)) return;
  if (threadIdx.x == 0) scratch.unit = unit_of_block(arguments);
  __syncthreads();
  if (blockIdx.z >= scratch.unit.helpers) return;
  Block<Element, heads>(arguments, shared, scratch).run();
}

// By the elements of keys and values, and the most query heads of a group.
KERNEL_RESIDENT(attention_threads, 3, attend_f32_1, AttentionArguments) { attend<f32, 1>(arguments); }
KERNEL_RESIDENT(attention_threads, 3, attend_f32_2, AttentionArguments) { attend<f32, 2>(arguments); }
KERNEL_RESIDENT(attention_threads, 3, attend_f32_4, AttentionArguments) { attend<f32, 4>(arguments); }
KERNEL_RESIDENT(attention_threads, 3, attend_f32_8, AttentionArguments) { attend<f32, 8>(arguments); }
KERNEL_RESIDENT(attention_threads, 3, attend_f16_1, AttentionArguments) { attend<f16, 1>(arguments); }
KERNEL_RESIDENT(attention_threads, 3, attend_f16_2, AttentionArguments) { attend<f16, 2>(arguments); }
KERNEL_RESIDENT(attention_threads, 3, attend_f16_4, AttentionArguments) { attend<f16, 4>(arguments); }
KERNEL_RESIDENT(attention_threads, 2, attend_f16_8, AttentionArguments) { attend<f16, 8>(arguments); }
KERNEL_RESIDENT(attention_threads, 3, attend_bf16_1, AttentionArguments) { attend<bf16, 1>(arguments); }
KERNEL_RESIDENT(attention_threads, 3, attend_bf16_2, AttentionArguments) { attend<bf16, 2>(arguments); }
KERNEL_RESIDENT(attention_threads, 3, attend_bf16_4, AttentionArguments) { attend<bf16, 4>(arguments); }
KERNEL_RESIDENT(attention_threads, 2, attend_bf16_8, AttentionArguments) { attend<bf16, 8>(arguments); }
