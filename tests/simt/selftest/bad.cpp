// Each planted mistake is reported, with the error that the driver then gives.
#include "host.h"

namespace {

struct BadArguments {
  float *values, *others;
  uint32_t *words;
  uint32_t count, padding;
};

// Everything that most of the kernels need: written memory of enough size.
struct Memory {
  Buffer values{std::vector<float>(1024, 1.0f)};
  Buffer others{std::vector<float>(1024, 2.0f)};
  Buffer words{std::vector<uint32_t>(256, 0)};

  BadArguments arguments() const {
    return {values.as<float>(), others.as<float>(), words.as<uint32_t>(), 64, 0};
  }
};

template <unsigned blocks, unsigned threads, CUresult error>
void launch_and_expect(const char *kernel) {
  const Memory memory;
  Shape shape{blocks, threads};
  launch(kernel, shape, memory.arguments());
  EXPECT_RESULT(cuCtxSynchronize(), error);
  EXPECT_RESULT(cuCtxSynchronize(), error);  // sticky
}

#define SIMT_BAD(kernel, blocks, threads, error)                                      \
  [] { launch_and_expect<blocks, threads, CUDA_ERROR_##error>(#kernel); }

void out_of_bounds() {
  const Buffer values(std::vector<float>(50, 0.0f));
  launch("out_of_bounds", {1, 64}, BadArguments{values.as<float>(), nullptr, nullptr, 50, 0});
  EXPECT_RESULT(cuCtxSynchronize(), CUDA_ERROR_ILLEGAL_ADDRESS);
}

void out_of_shared_bounds() {
  const Memory memory;
  launch("out_of_shared_bounds", {1, 64, 64 * sizeof(float)}, memory.arguments());
  EXPECT_RESULT(cuCtxSynchronize(), CUDA_ERROR_ILLEGAL_ADDRESS);
}

void reads_uninitialised() {
  const Buffer values(64 * sizeof(float)), others(64 * sizeof(float));
  launch("reads_uninitialised", {1, 64},
         BadArguments{values.as<float>(), others.as<float>(), nullptr, 64, 0});
  EXPECT_RESULT(cuCtxSynchronize(), CUDA_ERROR_LAUNCH_FAILED);
}

void use_after_free() {
  CUdeviceptr address;
  EXPECT_OK(cuMemAlloc_v2(&address, 4096));
  EXPECT_OK(cuMemFree_v2(address));
  launch("writes_anywhere", {1, 64},
         BadArguments{reinterpret_cast<float *>(address), nullptr, nullptr, 0, 0});
  EXPECT_RESULT(cuCtxSynchronize(), CUDA_ERROR_ILLEGAL_ADDRESS);
}

void null_pointer() {
  launch("writes_anywhere", {1, 64}, BadArguments{nullptr, nullptr, nullptr, 0, 0});
  EXPECT_RESULT(cuCtxSynchronize(), CUDA_ERROR_ILLEGAL_ADDRESS);
}

void pageable_memory() {
  std::vector<float> values(64);
  launch("writes_anywhere", {1, 64}, BadArguments{values.data(), nullptr, nullptr, 0, 0});
  EXPECT_RESULT(cuCtxSynchronize(), CUDA_ERROR_ILLEGAL_ADDRESS);
}

void unregistered_memory() {
  std::vector<float> values(64);
  const BadArguments arguments{values.data(), nullptr, nullptr, 0, 0};
  EXPECT_OK(cuMemHostRegister_v2(values.data(), values.size() * sizeof(float), 0));
  launch("writes_anywhere", {1, 64}, arguments);
  EXPECT_OK(cuCtxSynchronize());
  EXPECT(values[63] == 1.0f);
  EXPECT_OK(cuMemHostUnregister(values.data()));
  launch("writes_anywhere", {1, 64}, arguments);
  EXPECT_RESULT(cuCtxSynchronize(), CUDA_ERROR_ILLEGAL_ADDRESS);
}

void pinned_memory_is_bounded() {
  void *values;
  EXPECT_OK(cuMemHostAlloc(&values, 63 * sizeof(float), 0));
  launch("writes_anywhere", {1, 64},
         BadArguments{static_cast<float *>(values), nullptr, nullptr, 0, 0});
  EXPECT_RESULT(cuCtxSynchronize(), CUDA_ERROR_ILLEGAL_ADDRESS);
}

// Every block waits at a barrier of the grid, and not all of them fit on the device.
void blocks_that_do_not_fit() {
  const Memory memory;
  EXPECT(simt_configure("SIMT_RESIDENT", "3") == 1);
  launch("needs_all_blocks", {4, 64}, memory.arguments());
  EXPECT_RESULT(cuCtxSynchronize(), CUDA_ERROR_LAUNCH_FAILED);
}

constexpr bool in_both = false, checked = true;

const Tests tests{
    {"out of bounds", out_of_bounds, "200 bytes of device memory", in_both},
    {"out of bounds by far", SIMT_BAD(out_of_bounds_far, 1, 64, ILLEGAL_ADDRESS), "illegal address",
     in_both},
    {"out of shared bounds", out_of_shared_bounds, "shared memory", in_both},
    {"uninitialised", reads_uninitialised, "device memory that was never written", checked},
    {"uninitialised shared", SIMT_BAD(reads_uninitialised_shared, 1, 64, LAUNCH_FAILED),
     "shared memory that was never written", checked},
    {"misaligned", SIMT_BAD(misaligned, 1, 64, MISALIGNED_ADDRESS), "misaligned address", checked},
    {"misaligned copy", SIMT_BAD(misaligned_copy, 1, 64, MISALIGNED_ADDRESS),
     "cp.async with a misaligned address", in_both},

    {"shared race", SIMT_BAD(shared_race, 1, 64, LAUNCH_FAILED),
     "shared memory: race", checked},
    {"shared race on reuse", SIMT_BAD(shared_race_on_reuse, 1, 64, LAUNCH_FAILED),
     "shared memory: race", checked},
    {"shared race within a warp", SIMT_BAD(shared_race_within_a_warp, 1, 32, LAUNCH_FAILED),
     "shared memory: race", checked},
    {"shared race on bytes", SIMT_BAD(shared_race_on_bytes, 1, 64, LAUNCH_FAILED),
     "shared memory: race", checked},
    {"barrier of one warp only", SIMT_BAD(barrier_of_one_warp_only, 1, 64, LAUNCH_FAILED),
     "shared memory: race", checked},
    {"copy without wait", SIMT_BAD(copy_without_wait, 1, 32, LAUNCH_FAILED),
     "cp.async that was not waited for", checked},
    {"copy waits for one too few", SIMT_BAD(copy_waits_for_one_too_few, 1, 32, LAUNCH_FAILED),
     "cp.async that was not waited for", checked},
    {"copy without barrier", SIMT_BAD(copy_without_barrier, 1, 64, LAUNCH_FAILED), "shared memory",
     checked},

    {"global race within a block", SIMT_BAD(global_race_within_a_block, 1, 64, LAUNCH_FAILED),
     "global memory: race", checked},
    {"global race between blocks", SIMT_BAD(global_race_between_blocks, 8, 64, LAUNCH_FAILED),
     "global memory: race, two writes", checked},
    {"global race with an atomic", SIMT_BAD(global_race_with_an_atomic, 8, 64, LAUNCH_FAILED),
     "global memory: race", checked},
    {"missing release", SIMT_BAD(missing_release, 8, 64, LAUNCH_FAILED),
     "global memory: race, a read after a write", checked},
    {"missing acquire", SIMT_BAD(missing_acquire, 8, 64, LAUNCH_FAILED),
     "global memory: race, a read after a write", checked},
    {"missing fence", SIMT_BAD(missing_fence, 8, 64, LAUNCH_FAILED),
     "global memory: race, a read after a write", checked},
    {"release without barrier", SIMT_BAD(release_without_barrier, 8, 64, LAUNCH_FAILED),
     "global memory: race, a read after a write", checked},
    {"acquire without barrier", SIMT_BAD(acquire_without_barrier, 2, 64, LAUNCH_FAILED),
     "global memory: race, a read after a write", checked},
    {"phases without grid barrier", SIMT_BAD(phases_without_grid_barrier, 8, 64, LAUNCH_FAILED),
     "global memory: race", checked},

    {"divergent barrier", SIMT_BAD(divergent_barrier, 1, 64, LAUNCH_FAILED),
     "divergent __syncthreads", in_both},
    {"wrong mask", SIMT_BAD(wrong_mask, 1, 32, LAUNCH_FAILED), "lanes", in_both},
    {"not in own mask", SIMT_BAD(not_in_own_mask, 1, 32, LAUNCH_FAILED), "not in the mask", in_both},
    {"different masks", SIMT_BAD(different_masks, 1, 32, LAUNCH_FAILED), "lanes", in_both},
    {"deadlock", SIMT_BAD(deadlock, 1, 64, LAUNCH_FAILED), "deadlock", in_both},
    {"livelock", SIMT_BAD(livelock, 1, 64, LAUNCH_FAILED), "livelock", in_both},
    {"waits without hint", SIMT_BAD(waits_without_hint, 1, 64, LAUNCH_FAILED),
     "without spin_hint", checked},
    {"blocks that do not fit", blocks_that_do_not_fit, "livelock", in_both},

    {"use after free", use_after_free, "illegal address", in_both},
    {"null pointer", null_pointer, "illegal address", in_both},
    {"pageable memory", pageable_memory, "which is not device memory", checked},
    {"unregistered memory", unregistered_memory, "which is not device memory", checked},
    {"pinned memory is bounded", pinned_memory_is_bounded, "pinned host memory", in_both},
    {"constants are constant", SIMT_BAD(writes_constants, 1, 64, ILLEGAL_ADDRESS),
     "which is constant", checked},
    {"trap", SIMT_BAD(traps, 1, 64, LAUNCH_FAILED), "__trap", in_both},
};

}  // namespace
