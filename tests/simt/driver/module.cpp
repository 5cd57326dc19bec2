// Modules and their functions: an image says which kernels there are, and their twins run.
#include <cstdio>
#include <cstring>

#include "image.h"
#include "state.h"

struct CUmod_st {
  simt::Image image;
  std::map<std::string, std::unique_ptr<CUfunc_st>> functions;
};

namespace simt {
namespace {

// What a kernel is taken to use if no machine code tells: as much as its launch bounds allow, but no
// more than good kernels do.
constexpr int assumed_registers = 64;

bool runs_here(const Image &image) {
  if (image.capability == 0) return true;
  return image.capability / 10 == device().capability / 10 && image.capability <= device().capability;
}

bool contains(const Image &image, const std::string &name, const Twin *twin) {
  if (image.kernels.count(name) != 0) return true;
  if (image.kind == Image::Kind::fatbin) return true;
  return image.kind == Image::Kind::from_source && twin != nullptr &&
         twin->source_name == image.source_name;
}

bool agree(const Twin &twin, const KernelResources &resources) {
  return resources.parameter_bytes.size() == 1 &&
         resources.parameter_bytes.begin()->second == int(twin.argument_bytes);
}

CUfunc_st describe(const Twin &twin, const Image &image) {
  const int bound = int(twin.most_threads);
  CUfunc_st function{&twin, 0, 0, bound, default_shared_per_block};
  const auto found = image.kernels.find(twin.name);
  if (image.kind == Image::Kind::cubin && found != image.kernels.end()) {
    function.registers = found->second.registers;
    function.static_shared = found->second.static_shared;
    if (found->second.most_threads != 0) function.most_threads = found->second.most_threads;
  } else {
    function.registers = std::min(assumed_registers, registers_per_multiprocessor / bound);
    function.static_shared = int(std::min(twin.shared_bytes(), size_t(default_shared_per_block)));
  }
  return function;
}

}  // namespace

int occupancy(const CUfunc_st &function, int threads, size_t dynamic_shared) {
  constexpr int register_unit = 256;
  const int warps = (threads + 31) / 32;
  const int registers_per_warp =
      (function.registers * 32 + register_unit - 1) / register_unit * register_unit;
  const int by_threads = device().threads_per_multiprocessor / (warps * 32);
  const int by_registers = registers_per_multiprocessor / std::max(1, registers_per_warp) / warps;
  const size_t shared = size_t(function.static_shared) + dynamic_shared + reserved_shared_per_block;
  const int by_shared = int(size_t(device().shared_per_multiprocessor) / shared);
  return std::min({by_threads, by_registers, by_shared, device().blocks_per_multiprocessor});
}

}  // namespace simt

using namespace simt;

DRIVER_API cuModuleLoadData(CUmodule *module, const void *data) {
  SIMT_ENTER_CONTEXT();
  SIMT_REQUIRE(module != nullptr && data != nullptr, CUDA_ERROR_INVALID_VALUE);
  if (const CUresult status = unsafe_call_status()) return status;
  Image image = read_image(data);
  SIMT_REQUIRE(image.kind != Image::Kind::unknown, CUDA_ERROR_INVALID_IMAGE);
  SIMT_REQUIRE(runs_here(image), CUDA_ERROR_NO_BINARY_FOR_GPU);
  *module = new CUmod_st{std::move(image), {}};
  return CUDA_SUCCESS;
}
DRIVER_API cuModuleLoadDataEx(CUmodule *module, const void *data, unsigned, uint32_t *, void **) {
  return cuModuleLoadData(module, data);
}
DRIVER_API cuModuleLoadFatBinary(CUmodule *module, const void *data) {
  return cuModuleLoadData(module, data);
}

DRIVER_API cuModuleUnload(CUmodule module) {
  std::lock_guard<std::recursive_mutex> lock(driver().mutex);
  SIMT_REQUIRE(module != nullptr, CUDA_ERROR_INVALID_HANDLE);
  if (driver().sticky == CUDA_SUCCESS) drain_everything();  // launches may name its functions
  delete module;
  return driver().sticky;
}

DRIVER_API cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
  SIMT_ENTER_CONTEXT();
  SIMT_REQUIRE(function != nullptr && module != nullptr && name != nullptr, CUDA_ERROR_INVALID_VALUE);
  const Twin *twin = find_twin(name);
  if (!contains(module->image, name, twin)) return CUDA_ERROR_NOT_FOUND;
  if (twin == nullptr) {
    std::fprintf(stderr, "simulator: the module may have %s, but no twin was built\n", name);
    return CUDA_ERROR_NOT_FOUND;
  }
  if (module->image.kind == Image::Kind::cubin && !agree(*twin, module->image.kernels[name])) {
    std::fprintf(stderr, "simulator: %s takes other arguments in the cubin than in its twin\n", name);
    return CUDA_ERROR_INVALID_IMAGE;
  }
  std::unique_ptr<CUfunc_st> &entry = module->functions[name];
  if (entry == nullptr) entry = std::make_unique<CUfunc_st>(describe(*twin, module->image));
  *function = entry.get();
  return CUDA_SUCCESS;
}

DRIVER_API cuFuncGetAttribute(int *value, CUfunction_attribute which, CUfunction function) {
  SIMT_ENTER_CONTEXT();
  SIMT_REQUIRE(function != nullptr, CUDA_ERROR_INVALID_HANDLE);
  switch (which) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = function->most_threads; break;
    case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES: *value = function->static_shared; break;
    case CU_FUNC_ATTRIBUTE_NUM_REGS: *value = function->registers; break;
    case CU_FUNC_ATTRIBUTE_PTX_VERSION:
    case CU_FUNC_ATTRIBUTE_BINARY_VERSION: *value = device().capability; break;
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
      *value = function->most_dynamic_shared;
      break;
    default: *value = 0;
  }
  return CUDA_SUCCESS;
}

DRIVER_API cuFuncSetAttribute(CUfunction function, CUfunction_attribute which, int value) {
  SIMT_ENTER_CONTEXT();
  SIMT_REQUIRE(function != nullptr, CUDA_ERROR_INVALID_HANDLE);
  if (which == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) {
    SIMT_REQUIRE(value >= 0 && value + function->static_shared <= device().shared_per_block,
                 CUDA_ERROR_INVALID_VALUE);
    function->most_dynamic_shared = value;
  }
  return CUDA_SUCCESS;
}

DRIVER_API cuFuncSetCacheConfig(CUfunction, int) { return CUDA_SUCCESS; }

DRIVER_API cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction function, int threads,
                                                       size_t dynamic_shared) {
  SIMT_ENTER_CONTEXT();
  SIMT_REQUIRE(blocks != nullptr && function != nullptr && threads > 0, CUDA_ERROR_INVALID_VALUE);
  *blocks = occupancy(*function, threads, dynamic_shared);
  return CUDA_SUCCESS;
}
DRIVER_API cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, CUfunction function,
                                                                int threads, size_t dynamic_shared,
                                                                unsigned) {
  return cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, threads, dynamic_shared);
}
