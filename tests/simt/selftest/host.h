// A host of the simulator's tests: the driver's functions, as a program that links to libcuda sees
// them, and a little comfort.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "../driver/cuda_types.h"

extern "C" {
CUresult cuInit(unsigned);
CUresult cuDevicePrimaryCtxRetain(CUcontext *, CUdevice);
CUresult cuCtxPushCurrent_v2(CUcontext);
CUresult cuCtxSynchronize();
CUresult cuDeviceGetAttribute(int *, CUdevice_attribute, CUdevice);
CUresult cuMemAlloc_v2(CUdeviceptr *, size_t);
CUresult cuMemFree_v2(CUdeviceptr);
CUresult cuMemHostAlloc(void **, size_t, unsigned);
CUresult cuMemFreeHost(void *);
CUresult cuMemHostRegister_v2(void *, size_t, unsigned);
CUresult cuMemHostUnregister(void *);
CUresult cuMemcpyHtoD_v2(CUdeviceptr, const void *, size_t);
CUresult cuMemcpyDtoH_v2(void *, CUdeviceptr, size_t);
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr, const void *, size_t, CUstream);
CUresult cuMemcpyDtoHAsync_v2(void *, CUdeviceptr, size_t, CUstream);
CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr, CUdeviceptr, size_t, CUstream);
CUresult cuMemcpy(CUdeviceptr, CUdeviceptr, size_t);
CUresult cuMemsetD8_v2(CUdeviceptr, unsigned char, size_t);
CUresult cuMemsetD32Async(CUdeviceptr, unsigned, size_t, CUstream);
CUresult cuPointerGetAttribute(void *, CUpointer_attribute, CUdeviceptr);
CUresult cuModuleLoadData(CUmodule *, const void *);
CUresult cuModuleGetFunction(CUfunction *, CUmodule, const char *);
CUresult cuModuleUnload(CUmodule);
CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int);
CUresult cuLaunchKernel(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                        unsigned, CUstream, void **, void **);
CUresult cuLaunchCooperativeKernel(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned,
                                   unsigned, unsigned, CUstream, void **);
CUresult cuStreamCreate(CUstream *, unsigned);
CUresult cuStreamDestroy_v2(CUstream);
CUresult cuStreamSynchronize(CUstream);
CUresult cuStreamQuery(CUstream);
CUresult cuStreamWaitEvent(CUstream, CUevent, unsigned);
CUresult cuStreamBeginCapture_v2(CUstream, CUstreamCaptureMode);
CUresult cuStreamEndCapture(CUstream, CUgraph *);
CUresult cuStreamIsCapturing(CUstream, CUstreamCaptureStatus *);
CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode *);
CUresult cuEventCreate(CUevent *, unsigned);
CUresult cuEventRecord(CUevent, CUstream);
CUresult cuEventQuery(CUevent);
CUresult cuGraphInstantiateWithFlags(CUgraphExec *, CUgraph, unsigned long long);
CUresult cuGraphLaunch(CUgraphExec, CUstream);
CUresult cuGraphExecDestroy(CUgraphExec);
CUresult cuGraphDestroy(CUgraph);
CUresult cuGetErrorName(CUresult, const char **);
CUresult cuGetProcAddress_v2(const char *, void **, int, uint64_t, CUdriverProcAddressQueryResult *);
int simt_is_simulator();
int simt_configure(const char *, const char *);
void simt_reset_error();
void simt_statistics(uint64_t *, uint64_t *, uint64_t *, double *);
}

// A failed expectation ends the test, which runs in a process of its own.
#define EXPECT(condition)                                                                     \
  do {                                                                                        \
    if (!(condition)) {                                                                       \
      std::fprintf(stderr, "%s:%d: expected %s\n", __FILE__, __LINE__, #condition);           \
      std::exit(1);                                                                           \
    }                                                                                         \
  } while (0)
#define EXPECT_OK(call) expect_result(__FILE__, __LINE__, #call, call, CUDA_SUCCESS)
#define EXPECT_RESULT(call, result) expect_result(__FILE__, __LINE__, #call, call, result)

void expect_result(const char *file, int line, const char *call, CUresult result, CUresult expected);

// Device memory that is released with the object.
class Buffer {
 public:
  explicit Buffer(size_t bytes) : bytes_(bytes) { EXPECT_OK(cuMemAlloc_v2(&address_, bytes)); }
  template <class Element>
  explicit Buffer(const std::vector<Element> &elements) : Buffer(elements.size() * sizeof(Element)) {
    EXPECT_OK(cuMemcpyHtoD_v2(address_, elements.data(), bytes_));
  }
  ~Buffer() { cuMemFree_v2(address_); }
  Buffer(const Buffer &) = delete;
  Buffer &operator=(const Buffer &) = delete;

  template <class Element>
  Element *as() const {
    return reinterpret_cast<Element *>(address_);
  }
  CUdeviceptr address() const { return address_; }
  template <class Element>
  std::vector<Element> read() const {
    std::vector<Element> elements(bytes_ / sizeof(Element));
    EXPECT_OK(cuMemcpyDtoH_v2(elements.data(), address_, bytes_));
    return elements;
  }

 private:
  CUdeviceptr address_ = 0;
  size_t bytes_;
};

// The function of a kernel in selftest/good.cu or selftest/bad.cu.
CUfunction function(const char *name);

struct Shape {
  unsigned blocks, threads, dynamic_shared = 0;
  CUstream stream = nullptr;
  bool cooperative = false;
};

// By value, as kernels take it.
template <class Arguments>
CUresult try_launch(const char *name, Shape shape, Arguments arguments) {
  void *parameters[] = {&arguments};
  if (shape.cooperative) {
    return cuLaunchCooperativeKernel(function(name), shape.blocks, 1, 1, shape.threads, 1, 1,
                                     shape.dynamic_shared, shape.stream, parameters);
  }
  return cuLaunchKernel(function(name), shape.blocks, 1, 1, shape.threads, 1, 1, shape.dynamic_shared,
                        shape.stream, parameters, nullptr);
}
template <class Arguments>
void launch(const char *name, Shape shape, const Arguments &arguments) {
  EXPECT_OK(try_launch(name, shape, arguments));
}

CUstream new_stream();

struct Test {
  const char *name;
  void (*run)();
  // What the simulator must report on stderr; empty: nothing.
  const char *report;
  bool checked_only;
  const char *setting = nullptr;  // is 1 before the driver is initialised
};

// Adds tests to the list that main runs.
struct Tests {
  Tests(std::initializer_list<Test> tests);
};
