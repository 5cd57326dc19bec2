// Matrices as the host describes them, and their elements.
#pragma once
#include "device.cuh"

// As in src/tensor.
enum Dtype : u32 { dtype_f32 = 0, dtype_f16 = 1, dtype_bf16 = 2 };

DEVICE u32 dtype_bytes(u32 dtype) { return dtype == dtype_f32 ? 4 : 2; }

// Rows of contiguous elements, `row_stride` elements apart. There is none where the address is 0.
struct Matrix {
  u64 address;
  u64 row_stride;
  u32 rows;
  u32 columns;
  u32 dtype;
  u32 padding;
};
static_assert(sizeof(Matrix) == 32, "as in src/backend/cuda/products.rs");

DEVICE u64 row_address(const Matrix &matrix, u64 row) {
  return matrix.address + row * matrix.row_stride * dtype_bytes(matrix.dtype);
}

DEVICE f32 *f32_row(const Matrix &matrix, u64 row) {
  return reinterpret_cast<f32 *>(row_address(matrix, row));
}

DEVICE f32 load_element(u64 row, u32 dtype, u32 column) {
  switch (dtype) {
    case dtype_f32: return reinterpret_cast<const f32 *>(row)[column];
    case dtype_f16: return to_f32(reinterpret_cast<const f16 *>(row)[column]);
    default: return to_f32(reinterpret_cast<const bf16 *>(row)[column]);
  }
}

DEVICE void store_element(u64 row, u32 dtype, u32 column, f32 value) {
  switch (dtype) {
    case dtype_f32: reinterpret_cast<f32 *>(row)[column] = value; break;
    case dtype_f16: reinterpret_cast<f16 *>(row)[column] = to_f16(value); break;
    default: reinterpret_cast<bf16 *>(row)[column] = to_bf16(value); break;
  }
}

// What a store of this type leaves of a value.
DEVICE f32 rounded_to(u32 dtype, f32 value) {
  switch (dtype) {
    case dtype_f32: return value;
    case dtype_f16: return to_f32(to_f16(value));
    default: return to_f32(to_bf16(value));
  }
}

// The element of a row vector that may not be there.
DEVICE f32 element_or(const Matrix &vector, u32 column, f32 otherwise) {
  return vector.address != 0 ? load_element(vector.address, vector.dtype, column) : otherwise;
}

constexpr u32 piece_elements = 8;

// Eight elements of a row as they are stored: 16-bit elements fill the first four words.
struct Piece {
  u32 words[8];
  u32 dtype;
};

// Whether pieces of the row can be loaded in vectors of 16 bytes.
DEVICE bool has_vectors(u64 row, u32 columns) {
  return row % 16 == 0 && columns % piece_elements == 0;
}

// The elements column .. column + 8 of a row, zeros from `end` on. Vectors are loaded only where
// `has_vectors` is true of the row and `column` and `end` are multiples of 8.
DEVICE Piece load_piece(u64 row, u32 dtype, bool vectors, u32 column, u32 end) {
  Piece piece = {{0, 0, 0, 0, 0, 0, 0, 0}, dtype};
  if (vectors) {
    if (column < end) {
      const uint4 *address = reinterpret_cast<const uint4 *>(row + u64(column) * dtype_bytes(dtype));
      const uint4 first = address[0];
      piece.words[0] = first.x;
      piece.words[1] = first.y;
      piece.words[2] = first.z;
      piece.words[3] = first.w;
      if (dtype == dtype_f32) {
        const uint4 second = address[1];
        piece.words[4] = second.x;
        piece.words[5] = second.y;
        piece.words[6] = second.z;
        piece.words[7] = second.w;
      }
    }
  } else {
    piece.dtype = dtype_f32;
#pragma unroll
    for (u32 i = 0; i < piece_elements; i++) {
      if (column + i < end) piece.words[i] = __float_as_uint(load_element(row, dtype, column + i));
    }
  }
  return piece;
}

DEVICE void widen(f32 (&values)[piece_elements], const Piece &piece) {
  if (piece.dtype == dtype_f32) {
#pragma unroll
    for (u32 i = 0; i < piece_elements; i++) values[i] = __uint_as_float(piece.words[i]);
  } else if (piece.dtype == dtype_f16) {
#pragma unroll
    for (u32 i = 0; i < piece_elements / 2; i++) {
      values[2 * i] = f16_low(piece.words[i]);
      values[2 * i + 1] = f16_high(piece.words[i]);
    }
  } else {
#pragma unroll
    for (u32 i = 0; i < piece_elements / 2; i++) {
      values[2 * i] = bf16_low(piece.words[i]);
      values[2 * i + 1] = bf16_high(piece.words[i]);
    }
  }
}

// Stores as many of the values as `len` says; in vectors only where `has_vectors` is true of the row.
DEVICE void store_piece(f32 *to, bool vectors, u32 len, const f32 (&values)[piece_elements]) {
  if (vectors) {
    float4 *vector = reinterpret_cast<float4 *>(to);
    vector[0] = make_float4(values[0], values[1], values[2], values[3]);
    vector[1] = make_float4(values[4], values[5], values[6], values[7]);
  } else {
#pragma unroll
    for (u32 i = 0; i < piece_elements; i++) {
      if (i < len) to[i] = values[i];
    }
  }
}
