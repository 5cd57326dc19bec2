// What kernels spend their time on: threads that start and end, barriers and reductions, products of a
// vector, and products of matrices.
#include "../../../kernels/device.cuh"

struct SpeedArguments {
  const u16 *left;
  const u16 *right;
  f32 *result;
  u32 rows;
  u32 columns;
};
static_assert(sizeof(SpeedArguments) == 32, "as the host passes it");

KERNEL(256, start_and_end, SpeedArguments) {
  if (blockIdx.x >= arguments.rows) return;
  arguments.result[blockIdx.x * 256 + threadIdx.x] = 1.0f;
}

// One block for a row.
KERNEL(256, normalise_rows, SpeedArguments) {
  const u16 *row = arguments.left + u64(blockIdx.x) * arguments.columns;
  f32 sum = 0.0f;
  for (u32 i = threadIdx.x * 8; i < arguments.columns; i += 256 * 8) {
    const uint4 words = *reinterpret_cast<const uint4 *>(row + i);
    const u32 pairs[4] = {words.x, words.y, words.z, words.w};
    for (const u32 pair : pairs) {
      sum = fused_multiply_add(bf16_low(pair), bf16_low(pair), sum);
      sum = fused_multiply_add(bf16_high(pair), bf16_high(pair), sum);
    }
  }
  const f32 scale = rsqrtf(block_sum<256>(sum) / f32(arguments.columns) + 1e-5f);
  for (u32 i = threadIdx.x; i < arguments.columns; i += 256) {
    arguments.result[u64(blockIdx.x) * arguments.columns + i] = to_f32(bf16{row[i]}) * scale;
  }
}

// One warp for a row of `left`; the vector is `right`.
KERNEL(256, multiply_vector, SpeedArguments) {
  for (u32 row = blockIdx.x * 8 + warp_index(); row < arguments.rows; row += gridDim.x * 8) {
    const u16 *weights = arguments.left + u64(row) * arguments.columns;
    f32 sum = 0.0f;
    for (u32 i = lane_index() * 8; i < arguments.columns; i += 256) {
      const uint4 w = load_streaming(weights + i);
      const uint4 x = *reinterpret_cast<const uint4 *>(arguments.right + i);
      sum = fused_multiply_add(bf16_low(w.x), bf16_low(x.x), sum);
      sum = fused_multiply_add(bf16_high(w.x), bf16_high(x.x), sum);
      sum = fused_multiply_add(bf16_low(w.y), bf16_low(x.y), sum);
      sum = fused_multiply_add(bf16_high(w.y), bf16_high(x.y), sum);
      sum = fused_multiply_add(bf16_low(w.z), bf16_low(x.z), sum);
      sum = fused_multiply_add(bf16_high(w.z), bf16_high(x.z), sum);
      sum = fused_multiply_add(bf16_low(w.w), bf16_low(x.w), sum);
      sum = fused_multiply_add(bf16_high(w.w), bf16_high(x.w), sum);
    }
    sum = warp_sum(sum);
    if (lane_index() == 0) arguments.result[row] = sum;
  }
}

// A warp multiplies the 16 rows of `left` by 8 rows of `right`, all of them resident in memory.
KERNEL(128, multiply_tiles, SpeedArguments) {
  __shared__ __align__(16) u16 tile[4][16][24];
  const u32 lane = lane_index(), warp = warp_index();
  const u32 first_column = (blockIdx.x * 4 + warp) * 8;
  f32 sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  for (u32 inner = 0; inner < arguments.columns; inner += 16) {
    const u16 *source = arguments.left + (lane / 2) * u64(arguments.columns) + inner + lane % 2 * 8;
    cp_async16(&tile[warp][lane / 2][lane % 2 * 8], source);
    cp_async_commit();
    cp_async_wait<0>();
    __syncwarp();
    u32 left[4], right[2];
    ldmatrix_x4(left, &tile[warp][lane % 16][lane / 16 * 8]);
    const u32 *words = reinterpret_cast<const u32 *>(
        arguments.right + (first_column + lane / 4) * u64(arguments.columns) + inner);
    right[0] = words[lane % 4];
    right[1] = words[lane % 4 + 4];
    mma_m16n8k16_bf16(sums, left, right);
    __syncwarp();
  }
  for (u32 i = 0; i < 4; i++) {
    arguments.result[(lane / 4 + i / 2 * 8) * arguments.rows + first_column + lane % 4 * 2 + i % 2] =
        sums[i];
  }
}

KERNEL(256, barriers, SpeedArguments) {
  for (u32 i = 0; i < arguments.columns; i++) __syncthreads();
}

KERNEL(256, shuffles, SpeedArguments) {
  f32 value = f32(threadIdx.x);
  for (u32 i = 0; i < arguments.columns; i++) value += __shfl_xor_sync(all_lanes, value, 1);
  arguments.result[threadIdx.x] = value;
}
