// Kernels without mistakes: each must give the right result for every seed, and no checker may object.
#include "../../../kernels/device.cuh"

struct SumArguments {
  const f32 *input;
  f32 *partial_sums;  // one for each block
  f32 *result;
  u32 *counter;
  u32 count;
  u32 padding;
};
static_assert(sizeof(SumArguments) == 40, "as the host passes it");

DEVICE f32 sum_of_block(const SumArguments &arguments) {
  f32 sum = 0.0f;
  for (u32 i = blockIdx.x * 256 + threadIdx.x; i < arguments.count; i += gridDim.x * 256) {
    sum += arguments.input[i];
  }
  return block_sum<256>(sum);
}

KERNEL(256, sum_blocks, SumArguments) {
  const f32 sum = sum_of_block(arguments);
  if (threadIdx.x == 0) arguments.partial_sums[blockIdx.x] = sum;
}

// The last block to finish adds what the others left.
KERNEL(256, sum_last_block, SumArguments) {
  const f32 of_block = sum_of_block(arguments);
  if (threadIdx.x == 0) arguments.partial_sums[blockIdx.x] = of_block;
  if (!last_block(arguments.counter, gridDim.x)) return;
  const f32 partial = threadIdx.x < gridDim.x ? arguments.partial_sums[threadIdx.x] : 0.0f;
  const f32 sum = block_sum<256>(partial);
  if (threadIdx.x == 0) *arguments.result = sum;
}

// The same with the classic fences around an atomic that orders nothing itself.
KERNEL(256, sum_last_block_fenced, SumArguments) {
  __shared__ u32 is_last;
  const f32 of_block = sum_of_block(arguments);
  if (threadIdx.x == 0) {
    arguments.partial_sums[blockIdx.x] = of_block;
    __threadfence();
    is_last = atomicAdd(arguments.counter, 1) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  if (!is_last) return;
  const f32 partial = threadIdx.x < gridDim.x ? arguments.partial_sums[threadIdx.x] : 0.0f;
  const f32 sum = block_sum<256>(partial);
  if (threadIdx.x == 0) {
    *arguments.result = sum;
    *arguments.counter = 0;
  }
}

// Two phases of a cooperative launch: every block needs the sums of all.
KERNEL(256, normalise, SumArguments) {
  const f32 of_block = sum_of_block(arguments);
  if (threadIdx.x == 0) arguments.partial_sums[blockIdx.x] = of_block;
  grid_barrier(arguments.counter);
  f32 sum = 0.0f;
  for (u32 i = 0; i < gridDim.x; i++) sum += arguments.partial_sums[i];
  for (u32 i = blockIdx.x * 256 + threadIdx.x; i < arguments.count; i += gridDim.x * 256) {
    arguments.result[i] = arguments.input[i] / sum;
  }
  grid_barrier(arguments.counter);
}

// Two sums in a row, and a last block that needs what all threads of the others wrote.
KERNEL(256, sum_twice, SumArguments) {
  const u32 thread = blockIdx.x * 256 + threadIdx.x;
  const f32 value = thread < arguments.count ? arguments.input[thread] : 0.0f;
  const f32 sum = block_sum<256>(value);
  const f32 weighted = block_sum<256>(value * sum);
  arguments.partial_sums[thread] = weighted;
  if (!last_block(arguments.counter, gridDim.x)) return;
  f32 total = 0.0f;
  for (u32 i = 0; i < gridDim.x; i++) total += arguments.partial_sums[i * 256 + threadIdx.x];
  arguments.result[threadIdx.x] = total;
}

// All threads of a block write what all threads of the next one read.
KERNEL(256, shift_by_a_block, SumArguments) {
  const u32 from = (blockIdx.x + 1) % gridDim.x;
  arguments.partial_sums[blockIdx.x * 256 + threadIdx.x] = f32(blockIdx.x);
  grid_barrier(arguments.counter);
  arguments.result[blockIdx.x * 256 + threadIdx.x] = arguments.partial_sums[from * 256 + threadIdx.x];
}

struct ProductArguments {
  const bf16 *left;   // rows x inner
  const bf16 *right;  // columns x inner
  f32 *result;        // rows x columns
  u32 rows;           // at most 16
  u32 columns;        // 8 for each block
  u32 inner;          // a multiple of 32
  u32 padding;
};
static_assert(sizeof(ProductArguments) == 40, "as the host passes it");

constexpr u32 product_step = 32;
constexpr u32 product_stride = product_step + 8;

struct ProductStage {
  bf16 left[16][product_stride];
  bf16 right[8][product_stride];
};

DEVICE void load_stage(ProductStage &stage, const ProductArguments &arguments, u32 first) {
  for (u32 i = threadIdx.x; i < 64; i += 32) {
    const u32 row = i / 4, column = i % 4 * 8;
    const bool present = row < arguments.rows;
    const u64 source = u64(present ? row : 0) * arguments.inner + first + column;
    cp_async16(&stage.left[row][column], arguments.left + source, present);
  }
  const u32 row = threadIdx.x / 4, column = threadIdx.x % 4 * 8;
  const u64 source = u64(blockIdx.x * 8 + row) * arguments.inner + first + column;
  cp_async16(&stage.right[row][column], arguments.right + source);
  cp_async_commit();
}

// One warp for 8 columns, with two stages in flight.
KERNEL(32, multiply_matrices, ProductArguments) {
  DYNAMIC_SHARED(ProductStage, stages);
  const u32 lane = threadIdx.x;
  f32 sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  load_stage(stages[0], arguments, 0);
  for (u32 first = 0, current = 0; first < arguments.inner; first += product_step, current ^= 1) {
    if (first + product_step < arguments.inner) {
      load_stage(stages[current ^ 1], arguments, first + product_step);
      cp_async_wait<1>();
    } else {
      cp_async_wait<0>();
    }
    __syncwarp();
    const ProductStage &stage = stages[current];
    for (u32 inner = 0; inner < product_step; inner += 16) {
      u32 left[4], right[2];
      ldmatrix_x4(left, &stage.left[lane % 16][inner + lane / 16 * 8]);
      const u32 *words = reinterpret_cast<const u32 *>(&stage.right[lane / 4][inner]);
      right[0] = words[lane % 4];
      right[1] = words[lane % 4 + 4];
      mma_m16n8k16_bf16(sums, left, right);
    }
    __syncwarp();  // the stage is free
  }
  const u32 row = lane / 4, column = blockIdx.x * 8 + lane % 4 * 2;
  for (u32 i = 0; i < 4; i++) {
    const u32 at = row + i / 2 * 8;
    if (at < arguments.rows) {
      arguments.result[u64(at) * arguments.columns + column + i % 2] = sums[i];
    }
  }
}

struct WordsArguments {
  const u32 *input;
  u32 *output;  // what each thread found, one array after another
  u32 threads;
  u32 padding;
};
static_assert(sizeof(WordsArguments) == 24, "as the host passes it");

// What lanes exchange.
KERNEL(64, exchange, WordsArguments) {
  const u32 thread = threadIdx.x, value = arguments.input[thread];
  u32 *output = arguments.output + thread;
  const u32 stride = arguments.threads;
  output[0 * stride] = __shfl_sync(all_lanes, value, 3, 8);
  output[1 * stride] = __shfl_up_sync(all_lanes, value, 5);
  output[2 * stride] = __shfl_down_sync(all_lanes, value, 5, 16);
  output[3 * stride] = __ballot_sync(all_lanes, value & 1);
  output[4 * stride] = __match_any_sync(all_lanes, value & 3);
  output[5 * stride] = warp_max(value);
  output[6 * stride] = u32(__syncthreads_count(int(value & 1)));
  output[7 * stride] = 0;
  if (thread % 32 < 7) output[7 * stride] = __reduce_add_sync(0x7f, thread % 32);
}

struct ConvertArguments {
  const f32 *input;
  bf16 *as_bf16;
  f16 *as_f16;
  u32 count;
  u32 padding;
};
static_assert(sizeof(ConvertArguments) == 32, "as the host passes it");

KERNEL(128, convert, ConvertArguments) {
  const u32 i = blockIdx.x * 128 + threadIdx.x;
  if (i >= arguments.count) return;
  arguments.as_bf16[i] = from_f32<bf16>(arguments.input[i]);
  arguments.as_f16[i] = from_f32<f16>(arguments.input[i]);
}

struct ScaleArguments {
  f32 *values;
  u32 *done;  // in pinned host memory
  u32 count;
  f32 factor;
};
static_assert(sizeof(ScaleArguments) == 24, "as the host passes it");

KERNEL(128, scale, ScaleArguments) {
  const u32 i = blockIdx.x * 128 + threadIdx.x;
  if (i < arguments.count) arguments.values[i] = multiply_rn(arguments.values[i], arguments.factor);
  if (i == 0 && arguments.done != nullptr) store_system_release(arguments.done, 1u);
}

// Each block waits for the one before.
KERNEL(32, pass_along, WordsArguments) {
  if (threadIdx.x != 0) return;
  if (blockIdx.x != 0) {
    while (load_acquire(arguments.output + gridDim.x + blockIdx.x - 1) == 0) spin_hint();
  }
  const u32 before = blockIdx.x == 0 ? 0 : arguments.output[blockIdx.x - 1];
  arguments.output[blockIdx.x] = before + arguments.input[blockIdx.x];
  store_release(arguments.output + gridDim.x + blockIdx.x, 1u);
}

struct SmallArguments {
  u8 *bytes;
  u32 *words;
};
static_assert(sizeof(SmallArguments) == 16, "as the host passes it");

// Threads write neighbouring bytes and halves of words.
KERNEL(64, neighbouring_bytes, SmallArguments) {
  __shared__ u16 halves[64];
  const u32 thread = threadIdx.x;
  arguments.bytes[blockIdx.x * 64 + thread] = u8(thread);
  halves[thread] = u16(3 * thread);
  __syncthreads();
  const u32 neighbour = arguments.bytes[blockIdx.x * 64 + (thread ^ 1)];
  arguments.words[blockIdx.x * 64 + thread] = halves[63 - thread] + neighbour;
}

// Some lanes of a warp order their memory among themselves, and then all do.
KERNEL(32, partial_warps, SmallArguments) {
  __shared__ u32 values[32];
  const u32 lane = threadIdx.x;
  values[lane] = lane;
  u32 sum = 0;
  if (lane < 8) {
    __syncwarp(0xff);
    sum = values[lane ^ 7];
    __syncwarp(0xff);
    values[lane] = sum + 1;
  }
  __syncwarp();
  arguments.words[lane] = values[31 - lane];
}

// One warp fills, another empties, and the third does something else.
KERNEL(96, pipe_between_warps, SmallArguments) {
  __shared__ u32 stage[32];
  constexpr u32 full = 1, empty = 2, threads = 64;
  const u32 lane = lane_index();
  if (warp_index() == 2) return;
  u32 sum = 0;
  for (u32 step = 0; step < 6; step++) {
    if (warp_index() == 0) stage[lane] = step * 100 + lane;
    barrier_of_warps(full, threads);
    if (warp_index() == 1) sum += stage[31 - lane];
    barrier_of_warps(empty, threads);
  }
  if (warp_index() == 1) arguments.words[lane] = sum;
}

// One warp tells another through a word of global memory that shared memory is written.
KERNEL(64, word_between_warps, SmallArguments) {
  __shared__ u32 values[32];
  const u32 lane = lane_index();
  if (warp_index() == 0) {
    values[lane] = lane * lane;
    __syncwarp();
    if (lane == 0) store_release(arguments.words + 32, 1u);
  } else {
    if (lane == 0) {
      while (load_acquire(arguments.words + 32) == 0) spin_hint();
    }
    __syncwarp();
    arguments.words[lane] = values[31 - lane];
  }
}

// Counts in shared memory, with atomics between barriers.
KERNEL(64, shared_counters, SmallArguments) {
  __shared__ u32 counts[4];
  if (threadIdx.x < 4) counts[threadIdx.x] = 0;
  __syncthreads();
  atomicAdd(&counts[threadIdx.x % 3], 1);
  __syncthreads();
  if (threadIdx.x < 4) arguments.words[threadIdx.x] = counts[threadIdx.x];
}

// Any number of threads of all blocks change a word, one after another.
KERNEL(64, guarded_by_a_lock, SmallArguments) {
  u32 *lock = arguments.words, *value = arguments.words + 1;
  if (lane_index() != 0) return;
  while (atomicCAS(lock, 0, 1) != 0) spin_hint();
  __threadfence();
  *value += 1;
  __threadfence();
  atomicExch(lock, 0);
}
