/* spec_tensor_from_dlpack keeps what a DLTensor says and refuses what a spec_tensor cannot say.
 * Compiled as C99 and as C++17. */
#include "dlpack_like.h"

#include <speculators.h>

#include <string.h>

#include "check.h"

static float values[64];

static DLTensor matrix(int64_t *shape, int64_t *strides) {
  DLTensor tensor;
  memset(&tensor, 0, sizeof tensor);
  tensor.data = values;
  tensor.device.device_type = kDLCPU;
  tensor.ndim = 2;
  tensor.dtype.code = SPEC_DTYPE_FLOAT;
  tensor.dtype.bits = 32;
  tensor.dtype.lanes = 1;
  tensor.shape = shape;
  tensor.strides = strides;
  return tensor;
}

static void keeps_what_the_tensor_says(void) {
  int64_t shape[2] = {3, 5}, strides[2] = {8, 1};
  DLTensor source = matrix(shape, strides);
  spec_tensor tensor;
  source.byte_offset = 16;
  CHECK(spec_tensor_from_dlpack(&source, &tensor) == SPEC_OK);
  CHECK(tensor.data == values + 4);
  CHECK(tensor.device_type == SPEC_DEVICE_CPU && tensor.device_id == 0);
  CHECK(tensor.dtype_code == SPEC_DTYPE_FLOAT && tensor.dtype_bits == 32);
  CHECK(tensor.dtype_lanes == 1 && tensor.ndim == 2);
  CHECK(tensor.shape[0] == 3 && tensor.shape[1] == 5);
  CHECK(tensor.shape[2] == 0 && tensor.shape[3] == 0);
  CHECK(tensor.strides[0] == 8 && tensor.strides[1] == 1);
}

static void a_tensor_without_strides_is_compact(void) {
  int64_t shape[2] = {3, 5};
  DLTensor source = matrix(shape, 0);
  spec_tensor tensor;
  source.device.device_type = kDLCUDA;
  source.device.device_id = 3;
  CHECK(spec_tensor_from_dlpack(&source, &tensor) == SPEC_OK);
  CHECK(tensor.device_type == 2 && tensor.device_id == 3);
  CHECK(tensor.strides[0] == 0 && tensor.strides[1] == 0);
}

static void the_stride_of_a_single_column_is_of_no_consequence(void) {
  int64_t shape[2] = {3, 1}, strides[2] = {0, 0};
  DLTensor source = matrix(shape, strides);
  spec_tensor tensor;
  CHECK(spec_tensor_from_dlpack(&source, &tensor) == SPEC_OK);
  CHECK(tensor.strides[0] == 0 && tensor.strides[1] == 1);
}

static spec_status refusal(const DLTensor *source) {
  spec_tensor tensor, before;
  spec_status status;
  memset(&tensor, 0x5a, sizeof tensor);
  before = tensor;
  status = spec_tensor_from_dlpack(source, &tensor);
  CHECK(memcmp(&tensor, &before, sizeof tensor) == 0);
  return status;
}

static void refuses_what_a_spec_tensor_cannot_say(void) {
  int64_t shape[2] = {3, 5}, strides[2] = {1, 3};
  DLTensor good = matrix(shape, 0), source = good;
  CHECK(spec_tensor_from_dlpack(&good, 0) == SPEC_ERROR_INVALID_ARGUMENT);
  CHECK(refusal(0) == SPEC_ERROR_INVALID_ARGUMENT);
  source.strides = strides;
  CHECK(refusal(&source) == SPEC_ERROR_INVALID_ARGUMENT);
  source = good, source.shape = 0;
  CHECK(refusal(&source) == SPEC_ERROR_INVALID_ARGUMENT);
  source = good, source.byte_offset = 2;
  CHECK(refusal(&source) == SPEC_ERROR_INVALID_ARGUMENT);
  source = good, source.data = 0, source.byte_offset = 4;
  CHECK(refusal(&source) == SPEC_ERROR_INVALID_ARGUMENT);
  source = good, source.ndim = 5;
  CHECK(refusal(&source) == SPEC_ERROR_UNSUPPORTED);
  source = good, source.ndim = 0;
  CHECK(refusal(&source) == SPEC_ERROR_UNSUPPORTED);
  source = good, source.dtype.lanes = 4;
  CHECK(refusal(&source) == SPEC_ERROR_UNSUPPORTED);
  source = good, source.dtype.bits = 4;
  CHECK(refusal(&source) == SPEC_ERROR_UNSUPPORTED);
}

int main(void) {
  keeps_what_the_tensor_says();
  a_tensor_without_strides_is_compact();
  the_stride_of_a_single_column_is_of_no_consequence();
  refuses_what_a_spec_tensor_cannot_say();
  return check_result();
}
