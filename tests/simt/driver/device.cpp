// Initialisation, the device and its attributes, names of errors, and the lookup of functions.
#include <dlfcn.h>

#include <cstdio>
#include <cstring>

#include "../runtime/settings.h"
#include "state.h"

namespace simt {
namespace {

constexpr size_t gibibyte = size_t(1) << 30;
constexpr int mebibyte = 1 << 20;

constexpr Device devices[] = {
    {"h100", "Simulated H100", 90, 132, 232448, 233472, 2048, 32, 50 * mebibyte, 80 * gibibyte},
    {"a100", "Simulated A100", 80, 108, 166912, 167936, 2048, 32, 40 * mebibyte, 80 * gibibyte},
    {"rtx4090", "Simulated RTX 4090", 89, 128, 101376, 102400, 1536, 24, 72 * mebibyte,
     24 * gibibyte},
};

const char *error_name(CUresult error) {
#define SIMT_NAME(name) \
  case name: return #name
  switch (error) {
    SIMT_NAME(CUDA_SUCCESS);
    SIMT_NAME(CUDA_ERROR_INVALID_VALUE);
    SIMT_NAME(CUDA_ERROR_OUT_OF_MEMORY);
    SIMT_NAME(CUDA_ERROR_NOT_INITIALIZED);
    SIMT_NAME(CUDA_ERROR_INVALID_DEVICE);
    SIMT_NAME(CUDA_ERROR_INVALID_IMAGE);
    SIMT_NAME(CUDA_ERROR_INVALID_CONTEXT);
    SIMT_NAME(CUDA_ERROR_NO_BINARY_FOR_GPU);
    SIMT_NAME(CUDA_ERROR_INVALID_HANDLE);
    SIMT_NAME(CUDA_ERROR_ILLEGAL_STATE);
    SIMT_NAME(CUDA_ERROR_NOT_FOUND);
    SIMT_NAME(CUDA_ERROR_NOT_READY);
    SIMT_NAME(CUDA_ERROR_ILLEGAL_ADDRESS);
    SIMT_NAME(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES);
    SIMT_NAME(CUDA_ERROR_LAUNCH_TIMEOUT);
    SIMT_NAME(CUDA_ERROR_CONTEXT_IS_DESTROYED);
    SIMT_NAME(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
    SIMT_NAME(CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
    SIMT_NAME(CUDA_ERROR_MISALIGNED_ADDRESS);
    SIMT_NAME(CUDA_ERROR_LAUNCH_FAILED);
    SIMT_NAME(CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE);
    SIMT_NAME(CUDA_ERROR_NOT_SUPPORTED);
    SIMT_NAME(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    SIMT_NAME(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    SIMT_NAME(CUDA_ERROR_STREAM_CAPTURE_MERGE);
    SIMT_NAME(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED);
    SIMT_NAME(CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
    SIMT_NAME(CUDA_ERROR_STREAM_CAPTURE_ISOLATION);
    SIMT_NAME(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
    SIMT_NAME(CUDA_ERROR_CAPTURED_EVENT);
    SIMT_NAME(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
  }
#undef SIMT_NAME
  return nullptr;
}

int attribute(CUdevice_attribute which) {
  const Device &device = simt::device();
  switch (which) {
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X:
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y: return 1024;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z: return 64;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X: return 0x7fffffff;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y:
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z: return 65535;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: return default_shared_per_block;
    case CU_DEVICE_ATTRIBUTE_TOTAL_CONSTANT_MEMORY: return 65536;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: return 32;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK:
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR: return registers_per_multiprocessor;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: return 1'500'000;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: return multiprocessors();
    case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE: return 2'600'000;
    case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: return 5120;
    case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE: return device.l2_bytes;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR:
      return device.threads_per_multiprocessor;
    case CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT: return 3;
    case CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY:
    case CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS:
    case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING:
    case CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM:
    case CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH:
    case CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED: return 1;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: return device.capability / 10;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: return device.capability % 10;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR:
      return device.shared_per_multiprocessor;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: return device.shared_per_block;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR: return device.blocks_per_multiprocessor;
    case CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK: return reserved_shared_per_block;
  }
  return 0;
}

}  // namespace

const Device &device() {
  for (const Device &device : devices) {
    if (settings().device == device.setting) return device;
  }
  static const bool reported =
      std::fprintf(stderr, "simulator: SIMT_DEVICE is h100, a100 or rtx4090\n") > 0;
  (void)reported;
  return devices[0];
}

int multiprocessors() {
  const int64_t asked = settings().multiprocessors;
  return asked > 0 ? int(asked) : device().multiprocessors;
}

Driver &driver() {
  static Driver *driver = new Driver;  // alive until the process ends: hosts clean up late
  return *driver;
}

CUresult entry_status() {
  if (!driver().initialised) return CUDA_ERROR_NOT_INITIALIZED;
  return driver().sticky;
}

}  // namespace simt

using namespace simt;

DRIVER_API cuInit(unsigned flags) {
  std::lock_guard<std::recursive_mutex> lock(driver().mutex);
  SIMT_REQUIRE(flags == 0, CUDA_ERROR_INVALID_VALUE);
  if (!driver().initialised) {
    driver().initialised = true;
    const int64_t seed = settings().seed;
    driver().random = Random(uint64_t(seed < 0 ? 1 : seed));
    load_twins();
    start_background();
  }
  return CUDA_SUCCESS;
}

DRIVER_API cuDriverGetVersion(int *version) {
  SIMT_REQUIRE(version != nullptr, CUDA_ERROR_INVALID_VALUE);
  *version = 13000;
  return CUDA_SUCCESS;
}

DRIVER_API cuDeviceGet(CUdevice *device, int ordinal) {
  SIMT_ENTER();
  SIMT_REQUIRE(ordinal == 0, CUDA_ERROR_INVALID_DEVICE);
  *device = 0;
  return CUDA_SUCCESS;
}

DRIVER_API cuDeviceGetCount(int *count) {
  SIMT_ENTER();
  *count = 1;
  return CUDA_SUCCESS;
}

DRIVER_API cuDeviceGetName(char *name, int bytes, CUdevice device) {
  SIMT_ENTER();
  SIMT_REQUIRE(device == 0, CUDA_ERROR_INVALID_DEVICE);
  std::snprintf(name, size_t(bytes), "%s", simt::device().name);
  return CUDA_SUCCESS;
}

DRIVER_API cuDeviceGetUuid(CUuuid *uuid, CUdevice device) {
  SIMT_ENTER();
  SIMT_REQUIRE(device == 0, CUDA_ERROR_INVALID_DEVICE);
  std::memset(uuid, 0x51, sizeof *uuid);
  return CUDA_SUCCESS;
}
DRIVER_API cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device) { return cuDeviceGetUuid(uuid, device); }

DRIVER_API cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) {
  SIMT_ENTER();
  SIMT_REQUIRE(device == 0, CUDA_ERROR_INVALID_DEVICE);
  *bytes = simt::device().memory;
  return CUDA_SUCCESS;
}

DRIVER_API cuDeviceGetAttribute(int *value, CUdevice_attribute which, CUdevice device) {
  SIMT_ENTER();
  SIMT_REQUIRE(device == 0, CUDA_ERROR_INVALID_DEVICE);
  *value = attribute(which);
  return CUDA_SUCCESS;
}

DRIVER_API cuGetErrorName(CUresult error, const char **name) {
  *name = error_name(error);
  return *name != nullptr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

DRIVER_API cuGetErrorString(CUresult error, const char **text) { return cuGetErrorName(error, text); }

// Gives the newest version of a function, as the real one does for a new `cuda_version`.
DRIVER_API cuGetProcAddress_v2(const char *symbol, void **function, int, uint64_t,
                               CUdriverProcAddressQueryResult *found) {
  SIMT_REQUIRE(symbol != nullptr && function != nullptr, CUDA_ERROR_INVALID_VALUE);
  Dl_info info;
  void *library = nullptr;
  if (dladdr(reinterpret_cast<void *>(&cuInit), &info) != 0) {
    library = dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
  }
  *function = nullptr;
  if (library != nullptr) {
    for (const char *suffix : {"_v4", "_v3", "_v2", ""}) {
      *function = dlsym(library, (std::string(symbol) + suffix).c_str());
      if (*function != nullptr) break;
    }
    dlclose(library);
  }
  if (found != nullptr) {
    *found = *function != nullptr ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
  }
  return *function != nullptr ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

DRIVER_API cuGetProcAddress(const char *symbol, void **function, int version, uint64_t flags) {
  return cuGetProcAddress_v2(symbol, function, version, flags, nullptr);
}
