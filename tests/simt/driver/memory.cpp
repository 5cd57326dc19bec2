// Allocation, copies and fills.
#include "../runtime/memory.h"

#include <cstring>

#include "../runtime/settings.h"
#include "state.h"

namespace simt {
namespace {

// Whether this is the allocation that SIMT_FAIL_ALLOCATION names.
bool must_fail() {
  int64_t &countdown = settings().fail_allocation;
  return countdown > 0 && --countdown == 0;
}

CUresult allocate_memory(void **base, size_t bytes, MemoryKind kind) {
  SIMT_REQUIRE(base != nullptr && bytes != 0, CUDA_ERROR_INVALID_VALUE);
  if (must_fail() || live_device_bytes() + bytes > device().memory) return CUDA_ERROR_OUT_OF_MEMORY;
  *base = allocate(bytes, kind);
  return *base != nullptr ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

void *pointer(CUdeviceptr address) { return reinterpret_cast<void *>(address); }

// With unified addresses, pinned host memory is as good as device memory.
bool accessible(const void *address, size_t bytes) {
  return bytes == 0 || find_range(address, bytes) != nullptr;
}

CUresult copy_now(void *to, const void *from, size_t bytes) {
  std::memmove(to, from, bytes);
  const Allocation *source = find_range(from, bytes);
  if (source == nullptr || source->initialised.empty()) {
    mark_initialised(to, bytes);
    return CUDA_SUCCESS;
  }
  Allocation *target = find_range(to, bytes);
  if (target != nullptr && !target->initialised.empty() && bytes != 0) {
    std::memmove(&target->initialised[size_t(static_cast<char *>(to) - target->base)],
                 &source->initialised[size_t(static_cast<const char *>(from) - source->base)], bytes);
  }
  return CUDA_SUCCESS;
}

// The two ends of a copy that the device reaches; they may be released before the copy runs.
struct Ends {
  const void *to, *from;  // null: the host's own memory
};

CUresult copy_checked(void *to, const void *from, size_t bytes, Ends ends) {
  if ((ends.to != nullptr && !accessible(ends.to, bytes)) ||
      (ends.from != nullptr && !accessible(ends.from, bytes))) {
    std::fprintf(stderr, "simulator: a copy of %zu bytes runs after its memory was released\n", bytes);
    return CUDA_ERROR_ILLEGAL_ADDRESS;
  }
  return copy_now(to, from, bytes);
}

Operation copy_operation(void *to, const void *from, size_t bytes, Ends ends) {
  return {"copy of " + std::to_string(bytes) + " bytes",
          [=] { return copy_checked(to, from, bytes, ends); }};
}

CUresult host_to_device(CUdeviceptr to, const void *from, size_t bytes, CUstream stream) {
  void *target = pointer(to);
  SIMT_REQUIRE(accessible(target, bytes), CUDA_ERROR_INVALID_VALUE);
  if (accessible(from, bytes)) {  // pinned: read when the copy runs
    return enqueue(stream, copy_operation(target, from, bytes, {target, from}));
  }
  if (stream->capture) {  // read whenever the graph runs
    return enqueue(stream, copy_operation(target, from, bytes, {target, nullptr}));
  }
  // Pageable: staged before the call returns.
  const char *first = static_cast<const char *>(from);
  auto staged = std::make_shared<std::vector<char>>(first, first + bytes);
  return enqueue(stream, {"copy of " + std::to_string(bytes) + " bytes", [=] {
                            return copy_checked(target, staged->data(), bytes, {target, nullptr});
                          }});
}

CUresult device_to_host(void *to, CUdeviceptr from, size_t bytes, CUstream stream) {
  const void *source = pointer(from);
  SIMT_REQUIRE(accessible(source, bytes), CUDA_ERROR_INVALID_VALUE);
  const bool pinned = accessible(to, bytes);
  const CUresult status =
      enqueue(stream, copy_operation(to, source, bytes, {pinned ? to : nullptr, source}));
  if (status != CUDA_SUCCESS || pinned || stream->capture) return status;
  return drain_stream(stream);  // pageable: the call returns when the bytes are there
}

CUresult device_to_device(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
  void *target = pointer(to);
  const void *source = pointer(from);
  SIMT_REQUIRE(accessible(target, bytes) && accessible(source, bytes), CUDA_ERROR_INVALID_VALUE);
  return enqueue(stream, copy_operation(target, source, bytes, {target, source}));
}

// With the rules of a call that works on the legacy stream and waits for it.
CUresult synchronous(const std::function<CUresult(CUstream)> &enqueue_it) {
  if (const CUresult status = unsafe_call_status()) return status;
  if (const CUresult status = legacy_stream_status()) return status;
  CUstream legacy = stream_of(nullptr);
  if (const CUresult status = enqueue_it(legacy)) return status;
  return drain_stream(legacy);
}

template <class Value>
CUresult fill(CUdeviceptr to, Value value, size_t count, CUstream stream) {
  Value *target = static_cast<Value *>(pointer(to));
  SIMT_REQUIRE(to % sizeof(Value) == 0 && accessible(target, count * sizeof(Value)),
               CUDA_ERROR_INVALID_VALUE);
  return enqueue(stream, {"fill of " + std::to_string(count * sizeof(Value)) + " bytes", [=] {
                            SIMT_REQUIRE(accessible(target, count * sizeof(Value)),
                                         CUDA_ERROR_ILLEGAL_ADDRESS);
                            for (size_t i = 0; i < count; i++) target[i] = value;
                            mark_initialised(target, count * sizeof(Value));
                            return CUDA_SUCCESS;
                          }});
}

CUresult pointer_attribute(void *result, CUpointer_attribute which, const Allocation &allocation,
                           CUdeviceptr address) {
  const bool on_device = allocation.kind == MemoryKind::device;
  switch (which) {
    case CU_POINTER_ATTRIBUTE_CONTEXT:
      *static_cast<CUcontext *>(result) = current_context();
      return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
      *static_cast<uint32_t *>(result) = on_device ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST;
      return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
      *static_cast<CUdeviceptr *>(result) = address;
      return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
      if (on_device) return CUDA_ERROR_INVALID_VALUE;
      *static_cast<void **>(result) = pointer(address);
      return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
      *static_cast<uint32_t *>(result) = 0;
      return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
      *static_cast<int *>(result) = 0;
      return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
      *static_cast<void **>(result) = allocation.base;
      return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
      *static_cast<size_t *>(result) = allocation.bytes;
      return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_MAPPED:
      *static_cast<uint8_t *>(result) = 1;
      return CUDA_SUCCESS;
  }
  return CUDA_ERROR_INVALID_VALUE;
}

}  // namespace
}  // namespace simt

using namespace simt;

DRIVER_API cuMemAlloc_v2(CUdeviceptr *address, size_t bytes) {
  SIMT_ENTER_CONTEXT();
  if (const CUresult status = unsafe_call_status()) return status;
  return allocate_memory(reinterpret_cast<void **>(address), bytes, MemoryKind::device);
}

DRIVER_API cuMemFree_v2(CUdeviceptr address) {
  SIMT_ENTER_CONTEXT();
  if (const CUresult status = unsafe_call_status()) return status;
  if (address == 0) return CUDA_SUCCESS;
  if (const CUresult status = drain_everything()) return status;
  return release(pointer(address), MemoryKind::device) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

DRIVER_API cuMemAllocAsync(CUdeviceptr *address, size_t bytes, CUstream handle) {
  SIMT_ENTER_CONTEXT();
  CUstream stream = stream_of(handle);
  SIMT_REQUIRE(is_stream(stream), CUDA_ERROR_INVALID_HANDLE);
  // The library must not allocate while it is captured; real captures would take this as a node.
  SIMT_REQUIRE(!stream->capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
  return allocate_memory(reinterpret_cast<void **>(address), bytes, MemoryKind::device);
}

DRIVER_API cuMemFreeAsync(CUdeviceptr address, CUstream handle) {
  SIMT_ENTER_CONTEXT();
  CUstream stream = stream_of(handle);
  SIMT_REQUIRE(is_stream(stream), CUDA_ERROR_INVALID_HANDLE);
  SIMT_REQUIRE(!stream->capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
  SIMT_REQUIRE(accessible(pointer(address), 1), CUDA_ERROR_INVALID_VALUE);
  return enqueue(stream, {"release", [=] {
                            return release(pointer(address), MemoryKind::device)
                                       ? CUDA_SUCCESS
                                       : CUDA_ERROR_INVALID_VALUE;
                          }});
}

DRIVER_API cuMemHostAlloc(void **base, size_t bytes, unsigned) {
  SIMT_ENTER_CONTEXT();
  if (const CUresult status = unsafe_call_status()) return status;
  return allocate_memory(base, bytes, MemoryKind::pinned);
}
DRIVER_API cuMemAllocHost_v2(void **base, size_t bytes) { return cuMemHostAlloc(base, bytes, 0); }

DRIVER_API cuMemFreeHost(void *base) {
  SIMT_ENTER_CONTEXT();
  if (const CUresult status = unsafe_call_status()) return status;
  if (const CUresult status = drain_everything()) return status;
  return release(base, MemoryKind::pinned) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

DRIVER_API cuMemHostRegister_v2(void *base, size_t bytes, unsigned) {
  SIMT_ENTER_CONTEXT();
  if (const CUresult status = unsafe_call_status()) return status;
  SIMT_REQUIRE(base != nullptr && bytes != 0, CUDA_ERROR_INVALID_VALUE);
  return register_host_memory(base, bytes) ? CUDA_SUCCESS : CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
}

DRIVER_API cuMemHostUnregister(void *base) {
  SIMT_ENTER_CONTEXT();
  if (const CUresult status = unsafe_call_status()) return status;
  if (const CUresult status = drain_everything()) return status;
  return unregister_host_memory(base) ? CUDA_SUCCESS : CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
}

DRIVER_API cuMemHostGetDevicePointer_v2(CUdeviceptr *address, void *host, unsigned) {
  SIMT_ENTER_CONTEXT();
  const Allocation *allocation = find_range(host, 1);
  SIMT_REQUIRE(allocation != nullptr && allocation->kind != MemoryKind::device,
               CUDA_ERROR_INVALID_VALUE);
  *address = reinterpret_cast<CUdeviceptr>(host);
  return CUDA_SUCCESS;
}

DRIVER_API cuMemGetInfo_v2(size_t *available, size_t *total) {
  SIMT_ENTER_CONTEXT();
  *total = device().memory;
  *available = *total - live_device_bytes();
  return CUDA_SUCCESS;
}

DRIVER_API cuMemGetAddressRange_v2(CUdeviceptr *base, size_t *bytes, CUdeviceptr address) {
  SIMT_ENTER_CONTEXT();
  const Allocation *allocation = find_range(pointer(address), 1);
  SIMT_REQUIRE(allocation != nullptr, CUDA_ERROR_NOT_FOUND);
  if (base != nullptr) *base = reinterpret_cast<CUdeviceptr>(allocation->base);
  if (bytes != nullptr) *bytes = allocation->bytes;
  return CUDA_SUCCESS;
}

DRIVER_API cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, CUstream stream) {
  SIMT_ENTER_CONTEXT();
  SIMT_REQUIRE(is_stream(stream_of(stream)), CUDA_ERROR_INVALID_HANDLE);
  return host_to_device(to, from, bytes, stream_of(stream));
}

DRIVER_API cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, CUstream stream) {
  SIMT_ENTER_CONTEXT();
  SIMT_REQUIRE(is_stream(stream_of(stream)), CUDA_ERROR_INVALID_HANDLE);
  return device_to_host(to, from, bytes, stream_of(stream));
}

DRIVER_API cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
  SIMT_ENTER_CONTEXT();
  SIMT_REQUIRE(is_stream(stream_of(stream)), CUDA_ERROR_INVALID_HANDLE);
  return device_to_device(to, from, bytes, stream_of(stream));
}

DRIVER_API cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t bytes) {
  SIMT_ENTER_CONTEXT();
  return synchronous([=](CUstream stream) { return host_to_device(to, from, bytes, stream); });
}

DRIVER_API cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t bytes) {
  SIMT_ENTER_CONTEXT();
  return synchronous([=](CUstream stream) { return device_to_host(to, from, bytes, stream); });
}

DRIVER_API cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
  SIMT_ENTER_CONTEXT();
  return synchronous([=](CUstream stream) { return device_to_device(to, from, bytes, stream); });
}

// Whichever of the ends are on the device.
DRIVER_API cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
  SIMT_ENTER_CONTEXT();
  SIMT_REQUIRE(is_stream(stream_of(stream)), CUDA_ERROR_INVALID_HANDLE);
  if (!accessible(pointer(from), bytes)) {
    return host_to_device(to, pointer(from), bytes, stream_of(stream));
  }
  return device_to_host(pointer(to), from, bytes, stream_of(stream));
}
DRIVER_API cuMemcpy(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
  SIMT_ENTER_CONTEXT();
  return synchronous([=](CUstream stream) { return cuMemcpyAsync(to, from, bytes, stream); });
}

DRIVER_API cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t count, CUstream stream) {
  SIMT_ENTER_CONTEXT();
  SIMT_REQUIRE(is_stream(stream_of(stream)), CUDA_ERROR_INVALID_HANDLE);
  return fill<uint8_t>(to, value, count, stream_of(stream));
}

DRIVER_API cuMemsetD32Async(CUdeviceptr to, unsigned value, size_t count, CUstream stream) {
  SIMT_ENTER_CONTEXT();
  SIMT_REQUIRE(is_stream(stream_of(stream)), CUDA_ERROR_INVALID_HANDLE);
  return fill<uint32_t>(to, value, count, stream_of(stream));
}

DRIVER_API cuMemsetD8_v2(CUdeviceptr to, unsigned char value, size_t count) {
  SIMT_ENTER_CONTEXT();
  return synchronous([=](CUstream stream) { return fill<uint8_t>(to, value, count, stream); });
}

DRIVER_API cuMemsetD32_v2(CUdeviceptr to, unsigned value, size_t count) {
  SIMT_ENTER_CONTEXT();
  return synchronous([=](CUstream stream) { return fill<uint32_t>(to, value, count, stream); });
}

DRIVER_API cuPointerGetAttribute(void *result, CUpointer_attribute which, CUdeviceptr address) {
  SIMT_ENTER_CONTEXT();
  const Allocation *allocation = find_range(pointer(address), 1);
  SIMT_REQUIRE(result != nullptr && allocation != nullptr, CUDA_ERROR_INVALID_VALUE);
  return pointer_attribute(result, which, *allocation, address);
}

// Unlike the above, an address that is not known is no error: all its attributes are zero.
DRIVER_API cuPointerGetAttributes(unsigned count, const CUpointer_attribute *which, void **results,
                                  CUdeviceptr address) {
  SIMT_ENTER_CONTEXT();
  const Allocation *allocation = find_range(pointer(address), 1);
  for (unsigned i = 0; i < count; i++) {
    const bool four_bytes = which[i] == CU_POINTER_ATTRIBUTE_MEMORY_TYPE ||
                            which[i] == CU_POINTER_ATTRIBUTE_IS_MANAGED ||
                            which[i] == CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL;
    const size_t bytes = which[i] == CU_POINTER_ATTRIBUTE_MAPPED ? 1 : four_bytes ? 4 : 8;
    if (allocation == nullptr ||
        pointer_attribute(results[i], which[i], *allocation, address) != CUDA_SUCCESS) {
      std::memset(results[i], 0, bytes);
    }
  }
  return CUDA_SUCCESS;
}
