/* The part of the CUDA driver's interface that the examples use. The driver is looked up when a
 * program asks for it, so that everything builds with a C compiler alone and starts on machines
 * without CUDA. Names and signatures are those of NVIDIA's own cuda.h. */
#ifndef CUDA_H
#define CUDA_H

#include <stdbool.h>
#include <stddef.h>

typedef int CUresult; /* 0 is success */
typedef int CUdevice;
typedef unsigned long long CUdeviceptr;
typedef struct CUctx_st *CUcontext;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st *CUevent;
typedef struct CUgraph_st *CUgraph;
typedef struct CUgraphExec_st *CUgraphExec;

enum {
    CU_MEMHOSTALLOC_PORTABLE = 1,
    CU_MEMHOSTALLOC_DEVICEMAP = 2,
    CU_STREAM_NON_BLOCKING = 1,
    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1
};

typedef struct cuda_driver {
    void *library;
    CUresult (*cuGetErrorName)(CUresult error, const char **name);
    CUresult (*cuInit)(unsigned flags);
    CUresult (*cuDeviceGet)(CUdevice *device, int ordinal);
    CUresult (*cuDeviceGetName)(char *name, int length, CUdevice device);
    CUresult (*cuDevicePrimaryCtxRetain)(CUcontext *context, CUdevice device);
    CUresult (*cuDevicePrimaryCtxRelease)(CUdevice device);
    CUresult (*cuCtxSetCurrent)(CUcontext context);
    CUresult (*cuMemAlloc)(CUdeviceptr *address, size_t bytes);
    CUresult (*cuMemFree)(CUdeviceptr address);
    CUresult (*cuMemHostAlloc)(void **address, size_t bytes, unsigned flags);
    CUresult (*cuMemFreeHost)(void *address);
    CUresult (*cuMemcpyHtoDAsync)(CUdeviceptr to, const void *from, size_t bytes, CUstream stream);
    CUresult (*cuMemcpyDtoHAsync)(void *to, CUdeviceptr from, size_t bytes, CUstream stream);
    CUresult (*cuMemsetD8Async)(CUdeviceptr to, unsigned char value, size_t count, CUstream stream);
    CUresult (*cuStreamCreate)(CUstream *stream, unsigned flags);
    CUresult (*cuStreamDestroy)(CUstream stream);
    CUresult (*cuStreamSynchronize)(CUstream stream);
    CUresult (*cuStreamBeginCapture)(CUstream stream, int mode);
    CUresult (*cuStreamEndCapture)(CUstream stream, CUgraph *graph);
    CUresult (*cuGraphInstantiate)(CUgraphExec *executable, CUgraph graph, unsigned long long flags);
    CUresult (*cuGraphLaunch)(CUgraphExec executable, CUstream stream);
    CUresult (*cuGraphExecDestroy)(CUgraphExec executable);
    CUresult (*cuGraphDestroy)(CUgraph graph);
    CUresult (*cuEventCreate)(CUevent *event, unsigned flags);
    CUresult (*cuEventDestroy)(CUevent event);
    CUresult (*cuEventRecord)(CUevent event, CUstream stream);
    CUresult (*cuEventElapsedTime)(float *milliseconds, CUevent start, CUevent end);
} cuda_driver;

/* Looks the driver up and initialises it; false (and a message) if it is not there or fails. */
bool cuda_open(cuda_driver *cuda);
void cuda_close(cuda_driver *cuda);

/* Whether a call succeeded; says so if not. */
bool cuda_check(const cuda_driver *cuda, const char *call, CUresult result);

/* cuda_check with the text of the call: CUDA(driver, cuMemFree(address)). */
#define CUDA(cuda, call) cuda_check((cuda), #call, (cuda)->call)

#endif
