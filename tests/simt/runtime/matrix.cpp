// ldmatrix and mma.m16n8k16, with the layouts of fragments that the PTX manual gives.
#include <cstdint>
#include <cstring>

#include "checks.h"
#include "execution.h"

namespace simt {
namespace {

struct MatrixLoad {
  uint32_t *fragment;
  const uint16_t *row;
};

void load_matrices(void **lanes, uint32_t) {
  for (uint32_t matrix = 0; matrix < 4; matrix++) {
    for (uint32_t lane = 0; lane < warp_lanes; lane++) {
      const auto *source = static_cast<const MatrixLoad *>(lanes[8 * matrix + lane / 4]);
      std::memcpy(&static_cast<MatrixLoad *>(lanes[lane])->fragment[matrix],
                  source->row + 2 * (lane % 4), sizeof(uint32_t));
    }
  }
}

void load_matrices_transposed(void **lanes, uint32_t) {
  for (uint32_t matrix = 0; matrix < 4; matrix++) {
    for (uint32_t lane = 0; lane < warp_lanes; lane++) {
      const uint32_t row = 2 * (lane % 4), column = lane / 4;
      const auto *low = static_cast<const MatrixLoad *>(lanes[8 * matrix + row]);
      const auto *high = static_cast<const MatrixLoad *>(lanes[8 * matrix + row + 1]);
      static_cast<MatrixLoad *>(lanes[lane])->fragment[matrix] =
          uint32_t(low->row[column]) | uint32_t(high->row[column]) << 16;
    }
  }
}

struct Product {
  float *sums;
  const uint32_t *left, *right;
};

float bf16_to_float(uint16_t bits) {
  const uint32_t wide = uint32_t(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

float f16_to_float(uint16_t bits) {
  _Float16 value;
  std::memcpy(&value, &bits, sizeof value);
  return float(value);
}

typedef float Row __attribute__((vector_size(8 * sizeof(float))));

// Products of two such elements are exact in f32. Each sum adds them in the order of the inner index.
template <float (*to_float)(uint16_t)>
void multiply(void **lanes, uint32_t) {
  float left[16][16];
  Row right[16], sums[16];
  for (uint32_t lane = 0; lane < warp_lanes; lane++) {
    const auto &product = *static_cast<const Product *>(lanes[lane]);
    const uint32_t group = lane / 4, pair = 2 * (lane % 4);
    for (uint32_t i = 0; i < 4; i++) {
      const uint32_t row = group + i % 2 * 8, column = pair + i / 2 * 8;
      left[row][column] = to_float(uint16_t(product.left[i]));
      left[row][column + 1] = to_float(uint16_t(product.left[i] >> 16));
      sums[group + i / 2 * 8][pair + i % 2] = product.sums[i];
    }
    for (uint32_t i = 0; i < 2; i++) {
      right[pair + i * 8][group] = to_float(uint16_t(product.right[i]));
      right[pair + i * 8 + 1][group] = to_float(uint16_t(product.right[i] >> 16));
    }
  }
  for (uint32_t row = 0; row < 16; row++) {
    Row sum = sums[row];
    for (uint32_t inner = 0; inner < 16; inner++) sum += left[row][inner] * right[inner];
    sums[row] = sum;
  }
  for (uint32_t lane = 0; lane < warp_lanes; lane++) {
    float *result = static_cast<Product *>(lanes[lane])->sums;
    const uint32_t group = lane / 4, pair = 2 * (lane % 4);
    for (uint32_t i = 0; i < 4; i++) result[i] = sums[group + i / 2 * 8][pair + i % 2];
  }
}

}  // namespace
}  // namespace simt

using namespace simt;

#define RUNTIME extern "C" __attribute__((visibility("default")))

RUNTIME void simt_ldmatrix_x4(uint32_t *fragment, const void *shared_row, bool transposed,
                              const char *file, int line) {
  if ((reinterpret_cast<uintptr_t>(shared_row) & 15) != 0) {
    fail(Fault::misaligned_address, "ldmatrix with a misaligned row",
         "  at\n" + describe_code(__builtin_return_address(0)));
  }
  check_matrix_row(shared_row, __builtin_return_address(0));
  MatrixLoad load{fragment, static_cast<const uint16_t *>(shared_row)};
  simt_warp_meet(~0u, transposed ? load_matrices_transposed : load_matrices, &load, false, file,
                 line);
}

RUNTIME void simt_mma_m16n8k16(float *sums, const uint32_t *left, const uint32_t *right, bool half,
                               const char *file, int line) {
  Product product{sums, left, right};
  simt_warp_meet(~0u, half ? multiply<f16_to_float> : multiply<bf16_to_float>, &product, false, file,
                 line);
}
