// Launches: the limits of the device are checked at the call, the arguments are copied, and the kernel
// runs when its turn in the stream comes.
#include <algorithm>
#include <cstdio>

#include "../runtime/settings.h"
#include "state.h"

namespace simt {
namespace {

uint64_t volume(const simt_index &size) { return uint64_t(size.x) * size.y * size.z; }

CUresult limit_status(const CUfunc_st &function, const simt_index &grid, const simt_index &block,
                      uint32_t dynamic_shared) {
  const uint64_t threads = volume(block);
  SIMT_REQUIRE(volume(grid) != 0 && threads != 0, CUDA_ERROR_INVALID_VALUE);
  SIMT_REQUIRE(grid.x <= 0x7fffffff && grid.y <= 65535 && grid.z <= 65535, CUDA_ERROR_INVALID_VALUE);
  SIMT_REQUIRE(block.x <= 1024 && block.y <= 1024 && block.z <= 64 && threads <= 1024,
               CUDA_ERROR_INVALID_VALUE);
  SIMT_REQUIRE(int(threads) <= function.most_threads, CUDA_ERROR_INVALID_VALUE);
  SIMT_REQUIRE(dynamic_shared <= uint32_t(function.most_dynamic_shared), CUDA_ERROR_INVALID_VALUE);
  SIMT_REQUIRE(occupancy(function, int(threads), dynamic_shared) > 0,
               CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES);
  return CUDA_SUCCESS;
}

std::string describe(const CUfunc_st &function, const simt_index &grid, const simt_index &block) {
  char text[256];
  std::snprintf(text, sizeof text, "%s on (%u,%u,%u) blocks of (%u,%u,%u)", function.twin->name,
                grid.x, grid.y, grid.z, block.x, block.y, block.z);
  return text;
}

CUresult launch(CUfunction function, const simt_index &grid, const simt_index &block,
                uint32_t dynamic_shared, CUstream handle, void **parameters, void **extra,
                bool cooperative) {
  SIMT_ENTER_CONTEXT();
  SIMT_REQUIRE(function != nullptr && is_stream(stream_of(handle)), CUDA_ERROR_INVALID_HANDLE);
  SIMT_REQUIRE(extra == nullptr, CUDA_ERROR_NOT_SUPPORTED);
  SIMT_REQUIRE(parameters != nullptr && parameters[0] != nullptr, CUDA_ERROR_INVALID_VALUE);
  if (const CUresult status = limit_status(*function, grid, block, dynamic_shared)) return status;
  uint64_t resident = uint64_t(occupancy(*function, int(volume(block)), dynamic_shared)) *
                      uint64_t(multiprocessors());
  if (settings().resident > 0) resident = std::min(resident, uint64_t(settings().resident));
  SIMT_REQUIRE(!cooperative || volume(grid) <= resident, CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE);

  // Aligned as a struct with 64-bit fields must be.
  auto arguments = std::make_shared<std::vector<uint64_t>>((function->twin->argument_bytes + 7) / 8);
  std::copy_n(static_cast<const char *>(parameters[0]), function->twin->argument_bytes,
              reinterpret_cast<char *>(arguments->data()));
  Launch launch{function->twin, grid, block, nullptr, dynamic_shared, cooperative, resident};
  return enqueue(stream_of(handle), {describe(*function, grid, block), [launch, arguments]() mutable {
                                       launch.arguments = arguments->data();
                                       return CUresult(run(launch));
                                     }});
}

}  // namespace
}  // namespace simt

using namespace simt;

DRIVER_API cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                          unsigned block_x, unsigned block_y, unsigned block_z,
                          unsigned dynamic_shared, CUstream stream, void **parameters, void **extra) {
  return launch(function, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, dynamic_shared,
                stream, parameters, extra, false);
}

DRIVER_API cuLaunchCooperativeKernel(CUfunction function, unsigned grid_x, unsigned grid_y,
                                     unsigned grid_z, unsigned block_x, unsigned block_y,
                                     unsigned block_z, unsigned dynamic_shared, CUstream stream,
                                     void **parameters) {
  return launch(function, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, dynamic_shared,
                stream, parameters, nullptr, true);
}

DRIVER_API cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **parameters,
                            void **extra) {
  SIMT_REQUIRE(config != nullptr, CUDA_ERROR_INVALID_VALUE);
  bool cooperative = false;
  for (uint32_t i = 0; i < config->attribute_count; i++) {
    const CUlaunchAttribute &attribute = config->attributes[i];
    if (attribute.id == CU_LAUNCH_ATTRIBUTE_COOPERATIVE) {
      cooperative = attribute.value.cooperative != 0;
    }
    const auto &cluster = attribute.value.cluster;
    if (attribute.id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION &&
        cluster.x * cluster.y * cluster.z > 1) {
      return CUDA_ERROR_NOT_SUPPORTED;
    }
  }
  return launch(function, {config->grid_x, config->grid_y, config->grid_z},
                {config->block_x, config->block_y, config->block_z}, config->shared_bytes,
                config->stream, parameters, extra, cooperative);
}
