/* The part of DLPack that spec_tensor_from_dlpack reads, with DLPack's names and layout. */
#ifndef DLPACK_LIKE_H
#define DLPACK_LIKE_H

#include <stdint.h>

#define DLPACK_MAJOR_VERSION 1

typedef enum { kDLCPU = 1, kDLCUDA = 2 } DLDeviceType;

typedef struct {
  DLDeviceType device_type;
  int32_t device_id;
} DLDevice;

typedef struct {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
} DLDataType;

typedef struct {
  void *data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t *shape;
  int64_t *strides;
  uint64_t byte_offset;
} DLTensor;

#endif
