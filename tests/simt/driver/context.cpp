// Contexts. Memory, streams and modules are shared by all of them.
#include "state.h"

namespace simt {
namespace {

// Without destructors: hosts call from the ends of their threads.
constexpr int most_contexts = 64;
thread_local CUcontext context_stack[most_contexts];
thread_local int context_depth = 0;

CUresult push(CUcontext context) {
  if (context_depth == most_contexts) return CUDA_ERROR_OUT_OF_MEMORY;
  context_stack[context_depth++] = context;
  return CUDA_SUCCESS;
}

bool exists(CUcontext context) {
  if (context == &driver().primary) return driver().primary_references > 0;
  return driver().contexts.count(context) != 0;
}

CUresult create(CUcontext *context, unsigned flags, CUdevice device) {
  SIMT_ENTER();
  SIMT_REQUIRE(context != nullptr, CUDA_ERROR_INVALID_VALUE);
  SIMT_REQUIRE(device == 0, CUDA_ERROR_INVALID_DEVICE);
  *context = new CUctx_st{false, flags};
  driver().contexts.insert(*context);
  return push(*context);
}

}  // namespace

CUcontext current_context() {
  return context_depth == 0 ? nullptr : context_stack[context_depth - 1];
}

CUresult context_status() {
  const CUcontext context = current_context();
  if (context == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  return exists(context) ? CUDA_SUCCESS : CUDA_ERROR_CONTEXT_IS_DESTROYED;
}

}  // namespace simt

using namespace simt;

DRIVER_API cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
  SIMT_ENTER();
  SIMT_REQUIRE(context != nullptr, CUDA_ERROR_INVALID_VALUE);
  SIMT_REQUIRE(device == 0, CUDA_ERROR_INVALID_DEVICE);
  driver().primary_references++;
  *context = &driver().primary;
  return CUDA_SUCCESS;
}

DRIVER_API cuDevicePrimaryCtxRelease_v2(CUdevice device) {
  std::lock_guard<std::recursive_mutex> lock(driver().mutex);
  SIMT_REQUIRE(device == 0, CUDA_ERROR_INVALID_DEVICE);
  SIMT_REQUIRE(driver().primary_references > 0, CUDA_ERROR_INVALID_CONTEXT);
  driver().primary_references--;
  return CUDA_SUCCESS;
}

DRIVER_API cuDevicePrimaryCtxReset_v2(CUdevice device) {
  SIMT_REQUIRE(device == 0, CUDA_ERROR_INVALID_DEVICE);
  forget_work();
  return CUDA_SUCCESS;
}

DRIVER_API cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *active) {
  SIMT_ENTER();
  SIMT_REQUIRE(device == 0, CUDA_ERROR_INVALID_DEVICE);
  *flags = driver().primary.flags;
  *active = driver().primary_references > 0;
  return CUDA_SUCCESS;
}

DRIVER_API cuDevicePrimaryCtxSetFlags_v2(CUdevice device, unsigned flags) {
  SIMT_ENTER();
  SIMT_REQUIRE(device == 0, CUDA_ERROR_INVALID_DEVICE);
  driver().primary.flags = flags;
  return CUDA_SUCCESS;
}

DRIVER_API cuCtxCreate_v2(CUcontext *context, unsigned flags, CUdevice device) {
  return create(context, flags, device);
}
DRIVER_API cuCtxCreate_v3(CUcontext *context, void *, int, unsigned flags, CUdevice device) {
  return create(context, flags, device);
}
DRIVER_API cuCtxCreate_v4(CUcontext *context, void *, unsigned flags, CUdevice device) {
  return create(context, flags, device);
}

DRIVER_API cuCtxDestroy_v2(CUcontext context) {
  std::lock_guard<std::recursive_mutex> lock(driver().mutex);
  SIMT_REQUIRE(driver().contexts.erase(context) != 0, CUDA_ERROR_INVALID_CONTEXT);
  if (current_context() == context) context_depth--;
  delete context;
  return CUDA_SUCCESS;
}

DRIVER_API cuCtxGetCurrent(CUcontext *context) {
  SIMT_REQUIRE(driver().initialised, CUDA_ERROR_NOT_INITIALIZED);
  *context = current_context();
  return CUDA_SUCCESS;
}

DRIVER_API cuCtxSetCurrent(CUcontext context) {
  SIMT_REQUIRE(driver().initialised, CUDA_ERROR_NOT_INITIALIZED);
  if (context_depth != 0) context_depth--;
  return context != nullptr ? push(context) : CUDA_SUCCESS;
}

DRIVER_API cuCtxPushCurrent_v2(CUcontext context) {
  SIMT_REQUIRE(driver().initialised, CUDA_ERROR_NOT_INITIALIZED);
  SIMT_REQUIRE(context != nullptr, CUDA_ERROR_INVALID_CONTEXT);
  return push(context);
}

DRIVER_API cuCtxPopCurrent_v2(CUcontext *context) {
  SIMT_REQUIRE(driver().initialised, CUDA_ERROR_NOT_INITIALIZED);
  SIMT_REQUIRE(context_depth != 0, CUDA_ERROR_INVALID_CONTEXT);
  if (context != nullptr) *context = current_context();
  context_depth--;
  return CUDA_SUCCESS;
}

DRIVER_API cuCtxGetDevice(CUdevice *device) {
  SIMT_ENTER_CONTEXT();
  *device = 0;
  return CUDA_SUCCESS;
}

DRIVER_API cuCtxGetApiVersion(CUcontext, unsigned *version) {
  SIMT_ENTER();
  *version = 13000;
  return CUDA_SUCCESS;
}

DRIVER_API cuCtxGetFlags(unsigned *flags) {
  SIMT_ENTER_CONTEXT();
  *flags = current_context()->flags;
  return CUDA_SUCCESS;
}

DRIVER_API cuCtxSetFlags(unsigned flags) {
  SIMT_ENTER_CONTEXT();
  current_context()->flags = flags;
  return CUDA_SUCCESS;
}

DRIVER_API cuCtxGetStreamPriorityRange(int *least, int *greatest) {
  SIMT_ENTER_CONTEXT();
  if (least != nullptr) *least = 0;
  if (greatest != nullptr) *greatest = -5;
  return CUDA_SUCCESS;
}

DRIVER_API cuCtxSynchronize() {
  SIMT_ENTER_CONTEXT();
  if (const CUresult status = context_wait_status()) return status;
  return drain_everything();
}
