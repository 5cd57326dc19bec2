#include "cuda.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

/* The names under which a driver has the functions, with the version of their signature. */
static const struct {
    const char *name;
    size_t place;
} functions[] = {
#define PLACE(name, field) {name, offsetof(cuda_driver, field)}
    PLACE("cuGetErrorName", cuGetErrorName),
    PLACE("cuInit", cuInit),
    PLACE("cuDeviceGet", cuDeviceGet),
    PLACE("cuDeviceGetName", cuDeviceGetName),
    PLACE("cuDevicePrimaryCtxRetain", cuDevicePrimaryCtxRetain),
    PLACE("cuDevicePrimaryCtxRelease_v2", cuDevicePrimaryCtxRelease),
    PLACE("cuCtxSetCurrent", cuCtxSetCurrent),
    PLACE("cuMemAlloc_v2", cuMemAlloc),
    PLACE("cuMemFree_v2", cuMemFree),
    PLACE("cuMemHostAlloc", cuMemHostAlloc),
    PLACE("cuMemFreeHost", cuMemFreeHost),
    PLACE("cuMemcpyHtoDAsync_v2", cuMemcpyHtoDAsync),
    PLACE("cuMemcpyDtoHAsync_v2", cuMemcpyDtoHAsync),
    PLACE("cuMemsetD8Async", cuMemsetD8Async),
    PLACE("cuStreamCreate", cuStreamCreate),
    PLACE("cuStreamDestroy_v2", cuStreamDestroy),
    PLACE("cuStreamSynchronize", cuStreamSynchronize),
    PLACE("cuStreamBeginCapture_v2", cuStreamBeginCapture),
    PLACE("cuStreamEndCapture", cuStreamEndCapture),
    PLACE("cuGraphInstantiateWithFlags", cuGraphInstantiate),
    PLACE("cuGraphLaunch", cuGraphLaunch),
    PLACE("cuGraphExecDestroy", cuGraphExecDestroy),
    PLACE("cuGraphDestroy", cuGraphDestroy),
    PLACE("cuEventCreate", cuEventCreate),
    PLACE("cuEventDestroy_v2", cuEventDestroy),
    PLACE("cuEventRecord", cuEventRecord),
    PLACE("cuEventElapsedTime", cuEventElapsedTime),
#undef PLACE
};

bool cuda_open(cuda_driver *cuda) {
    memset(cuda, 0, sizeof *cuda);
    cuda->library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (cuda->library == NULL) {
        fprintf(stderr, "the CUDA driver: %s\n", dlerror());
        return false;
    }
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        /* ISO C has no conversion from what dlsym returns to a function. */
        void *function = dlsym(cuda->library, functions[i].name);
        if (function == NULL) {
            fprintf(stderr, "the CUDA driver: expected the function %s\n", functions[i].name);
            return false;
        }
        memcpy((char *)cuda + functions[i].place, &function, sizeof function);
    }
    return CUDA(cuda, cuInit(0));
}

void cuda_close(cuda_driver *cuda) {
    if (cuda->library != NULL) {
        dlclose(cuda->library);
    }
    memset(cuda, 0, sizeof *cuda);
}

bool cuda_check(const cuda_driver *cuda, const char *call, CUresult result) {
    const char *name = NULL;
    if (result != 0) {
        cuda->cuGetErrorName(result, &name);
        fprintf(stderr, "%s: %s (%d)\n", call, name == NULL ? "unknown error" : name, result);
    }
    return result == 0;
}
