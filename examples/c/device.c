#include "device.h"
#include "speculators.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What precedes a piece of shared memory; as long as its alignment. */
typedef struct device_block {
    _Alignas(64) struct device_block *next;
} device_block;

bool device_open(device *d, bool cuda, int32_t id) {
    *d = (device){.type = SPEC_DEVICE_CPU, .memory_type = SPEC_DEVICE_CPU};
    if (!cuda) {
        return true;
    }
    d->type = SPEC_DEVICE_CUDA;
    d->memory_type = SPEC_DEVICE_CUDA_HOST;
    d->id = id;
    /* The primary context is the one that the library uses by itself. */
    CUcontext primary;
    return cuda_open(&d->cuda) && CUDA(&d->cuda, cuDeviceGet(&d->handle, id)) &&
           CUDA(&d->cuda, cuDevicePrimaryCtxRetain(&primary, d->handle)) &&
           CUDA(&d->cuda, cuCtxSetCurrent(primary)) &&
           CUDA(&d->cuda, cuStreamCreate(&d->stream, CU_STREAM_NON_BLOCKING));
}

void *device_share(device *d, size_t bytes) {
    const size_t size = sizeof(device_block) + (bytes + 63) / 64 * 64;
    void *memory = NULL;
    if (d->type == SPEC_DEVICE_CUDA) {
        const unsigned flags = CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP;
        if (!CUDA(&d->cuda, cuMemHostAlloc(&memory, size, flags))) {
            return NULL;
        }
    } else if ((memory = aligned_alloc(64, size)) == NULL) {
        perror("shared memory");
        return NULL;
    }
    memset(memory, 0, size);
    device_block *block = memory;
    block->next = d->blocks;
    d->blocks = block;
    return block + 1;
}

bool device_wait(const device *d) {
    return d->type == SPEC_DEVICE_CPU || CUDA(&d->cuda, cuStreamSynchronize(d->stream));
}

void device_close(device *d) {
    while (d->blocks != NULL) {
        device_block *block = d->blocks;
        d->blocks = block->next;
        if (d->type == SPEC_DEVICE_CUDA) {
            CUDA(&d->cuda, cuMemFreeHost(block));
        } else {
            free(block);
        }
    }
    if (d->stream != NULL) {
        CUDA(&d->cuda, cuStreamDestroy(d->stream));
        CUDA(&d->cuda, cuDevicePrimaryCtxRelease(d->handle));
    }
    cuda_close(&d->cuda);
}
