/* Where the library works, and memory that it shares with an engine on the CPU. For a library on
 * the CPU any memory will do. On a CUDA device it is page-locked host memory, which both read and
 * write where it is: slow, but nothing has to be copied, so that one program serves both. */
#ifndef DEVICE_H
#define DEVICE_H

#include "cuda.h"

#include <stdint.h>

typedef struct device {
    int32_t type;        /* of the library's context: SPEC_DEVICE_CPU or SPEC_DEVICE_CUDA */
    int32_t id;
    int32_t memory_type; /* of tensors in shared memory: SPEC_DEVICE_CPU or SPEC_DEVICE_CUDA_HOST */
    CUstream stream;     /* where the library's work goes; NULL on the CPU */
    CUdevice handle;
    cuda_driver cuda;
    struct device_block *blocks;
} device;

/* Opens the CPU, or the CUDA device with this number; false (and a message) if that fails. */
bool device_open(device *d, bool cuda, int32_t id);

/* Shared memory, aligned to 64 bytes, all zero, which lives until the device is closed; NULL (and
 * a message) if there is none. */
void *device_share(device *d, size_t bytes);

/* Waits until the work on the stream is done: the host may then read what it has written, and
 * write what it has read. */
bool device_wait(const device *d);

/* Gives everything back. The library's handles must have been released. */
void device_close(device *d);

#endif
