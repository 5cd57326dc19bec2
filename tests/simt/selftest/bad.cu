// Kernels with one mistake each, which the simulator must find.
#include "../../../kernels/device.cuh"

struct BadArguments {
  f32 *values;
  f32 *others;
  u32 *words;
  u32 count;
  u32 padding;
};
static_assert(sizeof(BadArguments) == 32, "as the host passes it");

KERNEL(64, out_of_bounds, BadArguments) {
  if (threadIdx.x <= arguments.count) arguments.values[threadIdx.x] = 1.0f;
}

KERNEL(64, out_of_bounds_far, BadArguments) { arguments.values[threadIdx.x * 100000] = 1.0f; }

KERNEL(64, out_of_shared_bounds, BadArguments) {
  DYNAMIC_SHARED(f32, values);
  values[threadIdx.x + 1] = 1.0f;
  __syncthreads();
  arguments.values[threadIdx.x] = values[threadIdx.x + 1];
}

KERNEL(64, reads_uninitialised, BadArguments) {
  arguments.values[threadIdx.x] = arguments.others[threadIdx.x] + 1.0f;
}

KERNEL(64, reads_uninitialised_shared, BadArguments) {
  __shared__ f32 values[64];
  if (threadIdx.x < 63) values[threadIdx.x] = 1.0f;
  __syncthreads();
  arguments.values[threadIdx.x] = values[threadIdx.x];
}

KERNEL(64, misaligned, BadArguments) {
  const f32 *odd = arguments.others + 1;
  const float4 four = *reinterpret_cast<const float4 *>(odd);
  arguments.values[threadIdx.x] = four.x + four.w;
}

KERNEL(64, misaligned_copy, BadArguments) {
  __shared__ __align__(16) f32 values[68];
  cp_async16(values, arguments.others + 1);
  cp_async_commit();
  cp_async_wait<0>();
  arguments.values[threadIdx.x] = values[0];
}

// ---- Races in shared memory ----

KERNEL(64, shared_race, BadArguments) {
  __shared__ f32 values[64];
  values[threadIdx.x] = 0.0f;
  __syncthreads();
  values[threadIdx.x] = arguments.others[threadIdx.x];
  arguments.values[threadIdx.x] = values[63 - threadIdx.x];
}

KERNEL(64, shared_race_on_reuse, BadArguments) {
  __shared__ f32 value;
  f32 sum = 0.0f;
  for (u32 i = 0; i < 3; i++) {
    if (threadIdx.x == i) value = arguments.others[i];
    __syncthreads();
    sum += value;
  }
  arguments.values[threadIdx.x] = sum;
}

KERNEL(32, shared_race_within_a_warp, BadArguments) {
  __shared__ f32 values[32];
  values[threadIdx.x] = 0.0f;
  __syncwarp();
  values[threadIdx.x] = arguments.others[threadIdx.x];
  // A shuffle is no barrier for memory.
  const f32 other = __shfl_xor_sync(all_lanes, values[threadIdx.x], 1);
  arguments.values[threadIdx.x] = other + values[threadIdx.x ^ 2];
}

// Two threads write the two halves of a word, and one of them reads the other's.
KERNEL(64, shared_race_on_bytes, BadArguments) {
  __shared__ u16 halves[64];
  halves[threadIdx.x] = 0;
  __syncthreads();
  halves[threadIdx.x] = u16(threadIdx.x);
  __syncwarp();
  arguments.words[threadIdx.x] = halves[(threadIdx.x + 1) % 64];
}

KERNEL(64, barrier_of_one_warp_only, BadArguments) {
  __shared__ f32 values[64];
  values[threadIdx.x] = 0.0f;
  __syncthreads();
  values[threadIdx.x] = 1.0f;
  barrier_of_warps(1 + warp_index(), 32);
  arguments.values[threadIdx.x] = values[threadIdx.x ^ 32];
}

KERNEL(32, copy_without_wait, BadArguments) {
  __shared__ __align__(16) f32 values[128];
  cp_async16(values + 4 * threadIdx.x, arguments.others + 4 * threadIdx.x);
  cp_async_commit();
  __syncwarp();
  arguments.values[threadIdx.x] = values[4 * threadIdx.x];
}

KERNEL(32, copy_waits_for_one_too_few, BadArguments) {
  __shared__ __align__(16) f32 values[128];
  cp_async16(values + 4 * threadIdx.x, arguments.others + 4 * threadIdx.x);
  cp_async_commit();
  cp_async_wait<1>();
  __syncwarp();
  arguments.values[threadIdx.x] = values[4 * threadIdx.x];
}

KERNEL(64, copy_without_barrier, BadArguments) {
  __shared__ __align__(16) f32 values[256];
  for (u32 i = 0; i < 4; i++) values[i * 64 + threadIdx.x] = 0.0f;
  __syncthreads();
  cp_async16(values + 4 * threadIdx.x, arguments.others + 4 * threadIdx.x);
  cp_async_commit();
  cp_async_wait<0>();
  arguments.values[threadIdx.x] = values[4 * (63 - threadIdx.x)];
}

// ---- Races in global memory ----

KERNEL(64, global_race_within_a_block, BadArguments) {
  arguments.values[threadIdx.x] = 1.0f;
  arguments.others[threadIdx.x] = arguments.values[63 - threadIdx.x];
}

KERNEL(64, global_race_between_blocks, BadArguments) {
  if (threadIdx.x == 0) arguments.values[0] = f32(blockIdx.x);
}

KERNEL(64, global_race_with_an_atomic, BadArguments) {
  if (threadIdx.x != 0) return;
  if (blockIdx.x == 0) arguments.words[0] = 5;
  else atomicAdd(arguments.words, 1);
}

DEVICE void write_and_count(const BadArguments &arguments, bool acquire, bool release) {
  if (threadIdx.x != 0) return;
  arguments.values[blockIdx.x] = 1.0f;
  u32 before;
  if (release && acquire) before = add_acquire_release(arguments.words, 1);
  else if (release) before = add_release(arguments.words, 1);
  else before = atomicAdd(arguments.words, 1);
  if (acquire && !release) load_acquire(arguments.words);
  if (before != gridDim.x - 1) return;
  f32 sum = 0.0f;
  for (u32 i = 0; i < gridDim.x; i++) sum += arguments.values[i];
  arguments.others[0] = sum;
}

KERNEL(64, missing_release, BadArguments) { write_and_count(arguments, true, false); }
KERNEL(64, missing_acquire, BadArguments) { write_and_count(arguments, false, true); }

// Only the fence before the atomic, not the one after.
KERNEL(64, missing_fence, BadArguments) {
  if (threadIdx.x != 0) return;
  arguments.values[blockIdx.x] = 1.0f;
  __threadfence();
  if (atomicAdd(arguments.words, 1) != gridDim.x - 1) return;
  f32 sum = 0.0f;
  for (u32 i = 0; i < gridDim.x; i++) sum += arguments.values[i];
  arguments.others[0] = sum;
}

// Thread 0 releases before the other threads of its block have written for sure.
KERNEL(64, release_without_barrier, BadArguments) {
  __shared__ u32 before;
  arguments.values[blockIdx.x * 64 + threadIdx.x] = 1.0f;
  if (threadIdx.x == 0) before = add_acquire_release(arguments.words, 1);
  __syncthreads();
  if (before != gridDim.x - 1) return;
  f32 sum = 0.0f;
  for (u32 i = 0; i < gridDim.x; i++) sum += arguments.values[i * 64 + threadIdx.x];
  arguments.others[threadIdx.x] = sum;
}

// One thread acquires, and the others read at once.
KERNEL(64, acquire_without_barrier, BadArguments) {
  if (blockIdx.x == 0) {
    arguments.values[threadIdx.x] = 1.0f;
    __syncthreads();
    if (threadIdx.x == 0) store_release(arguments.words, 1u);
  } else {
    if (threadIdx.x == 0) {
      while (load_acquire(arguments.words) == 0) spin_hint();
    }
    const bool seen = __shfl_sync(all_lanes, 1, 0) != 0;
    if (seen && threadIdx.x < 32) {
      arguments.others[threadIdx.x] = arguments.values[threadIdx.x];
    }
  }
}

KERNEL(64, phases_without_grid_barrier, BadArguments) {
  const u32 blocks = gridDim.x;
  if (threadIdx.x == 0) arguments.values[blockIdx.x] = 1.0f;
  __syncthreads();
  if (threadIdx.x == 0) arguments.others[blockIdx.x] = arguments.values[(blockIdx.x + 1) % blocks];
}

// ---- Barriers ----

KERNEL(64, divergent_barrier, BadArguments) {
  if (threadIdx.x < 32) {
    __syncthreads();
    arguments.values[0] = 1.0f;
  } else {
    arguments.values[1] = 1.0f;
    __syncthreads();
  }
}

KERNEL(32, wrong_mask, BadArguments) {
  f32 value = 1.0f;
  if (threadIdx.x < 16) value = __shfl_xor_sync(all_lanes, value, 1);
  arguments.values[threadIdx.x] = value;
}

KERNEL(32, not_in_own_mask, BadArguments) {
  arguments.values[threadIdx.x] = f32(__ballot_sync(0xffff, 1));
}

KERNEL(32, different_masks, BadArguments) {
  u32 value;
  if (threadIdx.x < 16) value = __ballot_sync(0xffff, 1);
  else value = __ballot_sync(0xffffffff, 1);
  arguments.values[threadIdx.x] = f32(value);
}

KERNEL(64, deadlock, BadArguments) {
  if (warp_index() == 0) barrier_of_warps(1, 64);
  arguments.values[threadIdx.x] = 1.0f;
}

KERNEL(64, livelock, BadArguments) {
  while (load_acquire(arguments.words) == 0) spin_hint();
}

// Hangs in the plain build.
KERNEL(64, waits_without_hint, BadArguments) {
  while (load_acquire(arguments.words) == 0) {
  }
}

// Needs all blocks alive, which only a cooperative launch promises.
KERNEL(64, needs_all_blocks, BadArguments) { grid_barrier(arguments.words); }

// ---- Memory that is no longer, or was never, the device's ----

KERNEL(64, writes_anywhere, BadArguments) { arguments.values[threadIdx.x] = 1.0f; }

KERNEL(64, writes_constants, BadArguments) {
  f32 *constant = const_cast<f32 *>(reinterpret_cast<const f32 *>(&arguments.count));
  *static_cast<volatile f32 *>(constant) = 1.0f;
}

KERNEL(64, traps, BadArguments) {
  if (threadIdx.x == arguments.count - 1) __trap();
}
