// Products of f32 rows with weight matrices, y = x W^T, on tensor cores.
//
// Weights are the long operand: tiles of 16 weight rows against tiles of 8 input rows. A product has one
// order of summation, whatever the number of rows, the tiles and the kernel: the columns are cut into
// eight slices of whole chunks of 32 columns, each slice is added up chunk by chunk, and the slices are
// added in their order. So a row's result does not depend on its neighbours.
//
// Both operands are split into bf16 parts whose products an f32 sum holds exactly. The parts of a weight
// are exact; those of an input leave out what no f32 sum would notice.
//
// A norm's 1 / rms of a row is a factor of all of its products. It is found on the way, from the same
// pieces of the row, and applied to the sums: so no row has to be read before the weights are. Only the
// gain goes into the operand.
#pragma once
#include "rows.cuh"
#include "tensor.cuh"

constexpr u32 product_threads = 256;
constexpr u32 product_warps = product_threads / warp_lanes;
// One warp's in the kernels for few rows, one after the other in those for many.
constexpr u32 slices = product_warps;
constexpr u32 chunk_columns = 32;
constexpr u32 weight_tile = 16;
constexpr u32 row_tile = 8;

// ---- Rows ----------------------------------------------------------------------------------------

// The rows of one block: as many as `size` from `begin` on.
struct RowGroup {
  u32 begin, len;
};

// Column x of the grid has the rows x * size and the following.
DEVICE RowGroup group_of_block(const RowCount &rows, u32 size) {
  const u32 begin = blockIdx.x * size, count = count_rows(rows);
  return RowGroup{begin, begin < count ? min(count - begin, size) : 0};
}

// ---- Slices --------------------------------------------------------------------------------------

// The input of a product may be two halves side by side, each with a norm of its own. Each then has
// half of the slices.
struct ColumnSlice {
  u32 half;
  u32 columns;         // of the half
  u32 begin, end;      // those of the slice
  u32 weight_columns;  // of the halves before

  DEVICE u32 chunks() const { return (end - begin + chunk_columns - 1) / chunk_columns; }
};

// `columns` are those of a half.
DEVICE ColumnSlice slice_of(u32 slice, u32 columns, u32 halves) {
  const u32 slices_of_half = slices / halves;
  const u32 half = slice / slices_of_half, index = slice % slices_of_half;
  const u32 chunks = (columns + chunk_columns - 1) / chunk_columns;
  const u32 each = (chunks + slices_of_half - 1) / slices_of_half * chunk_columns;
  const u32 begin = min(index * each, columns);
  return ColumnSlice{half, columns, begin, min(begin + each, columns), half * columns};
}

// ---- Parts ---------------------------------------------------------------------------------------

// Eight values as pairs of bf16: the value is the sum of its parts, up to what the last one rounds off.
template <u32 count>
struct Parts {
  u32 pairs[count][4];
};

template <u32 count>
DEVICE void split(Parts<count> &parts, f32 (&values)[piece_elements]) {
#pragma unroll
  for (u32 pair = 0; pair < 4; pair++) {
    f32 low = values[2 * pair], high = values[2 * pair + 1];
#pragma unroll
    for (u32 part = 0; part < count; part++) {
      const u32 rounded = bf16_pair(low, high);
      parts.pairs[part][pair] = rounded;
      low = subtract_rn(low, bf16_low(rounded));
      high = subtract_rn(high, bf16_high(rounded));
    }
  }
}

// ---- Kinds of weights ----------------------------------------------------------------------------

// A row of a weight matrix.
struct WeightRow {
  u64 address;
  u32 dtype;
};

// Rows beyond the last are the last once more; nobody looks at their products.
DEVICE WeightRow weight_row(const Matrix &weight, u32 row) {
  return WeightRow{row_address(weight, min(row, weight.rows - 1)), weight.dtype};
}

// 16-bit weights that can be loaded in vectors, as all other rows of the product can then.
template <u32 dtype>
struct NarrowWeights {
  static constexpr bool vectors = true;
  typedef u64 Row;
  typedef uint4 Loaded;

  static DEVICE Row open(const WeightRow &row, const ColumnSlice &slice) {
    return row.address + u64(slice.weight_columns) * sizeof(bf16);
  }
  static DEVICE Loaded load(Row row, u32 column, u32 end) {
    if (column >= end) return make_uint4(0, 0, 0, 0);
    return load_streaming(reinterpret_cast<const void *>(row + u64(column) * sizeof(bf16)));
  }
  // To shared memory, together with what cp_async_commit waits for.
  static DEVICE void copy(Loaded *to, Row row, u32 column, u32 end) {
    const bool is_there = column < end;
    cp_async16(to, reinterpret_cast<const void *>(row + (is_there ? u64(column) * sizeof(bf16) : 0)),
               is_there);
  }
};

struct Bf16Weights : NarrowWeights<dtype_bf16> {
  static constexpr u32 parts = 1, input_parts = 2;

  static DEVICE void split_weights(Parts<parts> &split, const Loaded &loaded) {
    split.pairs[0][0] = loaded.x;
    split.pairs[0][1] = loaded.y;
    split.pairs[0][2] = loaded.z;
    split.pairs[0][3] = loaded.w;
  }
};

// The 11 bits of an f16 are two bf16.
struct F16Weights : NarrowWeights<dtype_f16> {
  static constexpr u32 parts = 2, input_parts = 2;

  static DEVICE void split_weights(Parts<parts> &parts, const Loaded &loaded) {
    f32 values[piece_elements];
    widen(values, Piece{{loaded.x, loaded.y, loaded.z, loaded.w, 0, 0, 0, 0}, dtype_f16});
    split(parts, values);
  }
};

// Weights of f32, and all others whose rows or whose inputs do not lie as vectors.
struct AnyWeights {
  static constexpr bool vectors = false;
  static constexpr u32 parts = 3, input_parts = 3;

  struct Row {
    u64 address;
    u32 dtype;
    bool vectors;
  };
  struct alignas(16) Loaded {
    u32 words[8];
  };

  static DEVICE Row open(const WeightRow &row, const ColumnSlice &slice) {
    const u64 address = row.address + u64(slice.weight_columns) * dtype_bytes(row.dtype);
    return Row{address, row.dtype, row.dtype == dtype_f32 && has_vectors(address, slice.columns)};
  }
  static DEVICE Loaded load(const Row &row, u32 column, u32 end) {
    const Piece piece = load_piece(row.address, row.dtype, row.vectors, column, end);
    Loaded loaded;
#pragma unroll
    for (u32 i = 0; i < piece_elements; i++) loaded.words[i] = piece.words[i];
    return loaded;
  }
  static DEVICE void copy(Loaded *to, const Row &row, u32 column, u32 end) {
    if (row.vectors) {
      const bool is_there = column < end;
      const uint4 *from = reinterpret_cast<const uint4 *>(row.address + (is_there ? column * 4ull : 0));
      cp_async16(&to->words[0], from, is_there);
      cp_async16(&to->words[4], from + (is_there ? 1 : 0), is_there);
    } else {
      *to = load(row, column, end);
    }
  }
  static DEVICE void split_weights(Parts<parts> &parts, const Loaded &loaded) {
    f32 values[piece_elements];
#pragma unroll
    for (u32 i = 0; i < piece_elements; i++) values[i] = __uint_as_float(loaded.words[i]);
    split(parts, values);
  }
};

// ---- Inputs --------------------------------------------------------------------------------------

// Rows of a scratch matrix, from the first one of a group on.
struct ScratchRows {
  u64 first;
  u64 row_bytes;
  bool vectors;

  DEVICE Piece load(u32, u32 row, u32 column, u32 end) const {
    return load_piece(first + row * row_bytes, dtype_f32, vectors, column, end);
  }
};

template <class Kind>
DEVICE ScratchRows scratch_rows(const Matrix &matrix, u32 first) {
  const bool vectors = has_vectors(matrix.address, matrix.columns) && matrix.row_stride % 4 == 0;
  return ScratchRows{row_address(matrix, first), matrix.row_stride * sizeof(f32),
                     Kind::vectors || vectors};
}

// A norm of rows; the gain of all ones where there is no weight. Where epsilon is negative, rows are not
// normed at all.
struct Norm {
  Matrix weight;
  f32 epsilon;
  u32 padding;
};
static_assert(sizeof(Norm) == 40, "as in src/backend/cuda/products.rs");

struct Gain {
  u64 address;
  u32 dtype;
  bool vectors;

  DEVICE Piece load(u32 column, u32 end) const {
    if (address != 0) return load_piece(address, dtype, vectors, column, end);
    const u32 one = 0x3f800000;
    return Piece{{one, one, one, one, one, one, one, one}, dtype_f32};
  }
};

template <class Kind>
DEVICE Gain gain_of(const Norm &norm) {
  const Matrix &weight = norm.weight;
  return Gain{weight.address, weight.dtype,
              Kind::vectors || has_vectors(weight.address, weight.columns)};
}

DEVICE f32 inverse_rms(f32 squares, u32 columns, f32 epsilon) {
  if (epsilon < 0.0f) return 1.0f;
  return divide_rn(1.0f, __fsqrt_rn(add_rn(divide_rn(squares, f32(columns)), epsilon)));
}

DEVICE f32 add_squares(f32 squares, const f32 (&values)[piece_elements]) {
#pragma unroll
  for (u32 i = 0; i < piece_elements; i++) {
    squares = fused_multiply_add(values[i], values[i], squares);
  }
  return squares;
}

// The sum over the four lanes that share a row.
DEVICE f32 sum_of_four(f32 value) {
  value = add_rn(value, __shfl_xor_sync(all_lanes, value, 1));
  return add_rn(value, __shfl_xor_sync(all_lanes, value, 2));
}

// ---- Chunks --------------------------------------------------------------------------------------
//
// Of a chunk's 32 columns a lane takes eight in a row, 8 (lane % 4) and the following, of the weight
// rows lane / 4 and lane / 4 + 8 of each tile and of the input row lane / 4. That is one vector of 16-bit
// weights. Which columns meet in which product of the chunk does not matter, as long as both operands
// agree.

DEVICE u32 lane_row() { return lane_index() / 4; }
DEVICE u32 lane_column() { return lane_index() % 4 * piece_elements; }

// Adds the products of a chunk: weight rows as the rows of `sums`, input rows as its columns.
template <class Kind>
DEVICE void multiply(f32 (&sums)[4], const Parts<Kind::parts> &upper, const Parts<Kind::parts> &lower,
                     const Parts<Kind::input_parts> &input) {
#pragma unroll
  for (u32 k = 0; k < 4; k += 2) {
#pragma unroll
    for (u32 i = 0; i < Kind::parts; i++) {
      const u32 left[4] = {upper.pairs[i][k], lower.pairs[i][k], upper.pairs[i][k + 1],
                           lower.pairs[i][k + 1]};
#pragma unroll
      for (u32 j = 0; i + j < Kind::input_parts; j++) {
        const u32 right[2] = {input.pairs[j][k], input.pairs[j][k + 1]};
        mma_m16n8k16_bf16(sums, left, right);
      }
    }
  }
}

// ---- The last blocks -----------------------------------------------------------------------------
//
// What can only be done when all blocks are done is shared out among the last ones to come. They wait
// for the others, which is safe as long as there are fewer of them than the device holds at a time: the
// host says how many may wait.

// How many of them there are for `work` pieces of work, if each column of the grid has its own.
DEVICE u32 count_last_blocks(u32 work, u32 most) {
  return max(min(min(work, gridDim.y), most / gridDim.x), 1u);
}

// Waits for all blocks of the column if the block is among the last `count`: these see what all have
// written. Returns its number among them, `count` for other blocks. Both words are zero before.
DEVICE u32 join_last_blocks(u32 (&words)[2], u32 count) {
  __shared__ u32 number;
  const u32 blocks = gridDim.y;
  __syncthreads();
  if (threadIdx.x == 0) {
    const u32 before = add_acquire_release(&words[0], 1);
    number = before < blocks - count ? count : before - (blocks - count);
    if (number < count) {
      while (load_acquire(&words[0]) != blocks) spin_hint();
    }
  }
  __syncthreads();
  return number;
}

// For each of the last blocks when it is done: both words are zero again when all are.
DEVICE void leave_last_blocks(u32 (&words)[2], u32 count) {
  if (threadIdx.x == 0 && add_acquire_release(&words[1], 1) == count - 1) words[0] = words[1] = 0;
}

// Writes the normed form of a row over it, by all threads of the block.
DEVICE void norm_in_place(const Matrix &matrix, u32 row, const Matrix &gain, f32 factor) {
  f32 *values = f32_row(matrix, row);
  for (u32 column = threadIdx.x; column < matrix.columns; column += product_threads) {
    values[column] = multiply_rn(multiply_rn(values[column], factor), element_or(gain, column, 1.0f));
  }
}

// Writes a row of any type as f32, normed, by all threads of the block.
DEVICE void widen_normed(u64 from, u32 dtype, bool from_vectors, u32 columns, const Norm &norm, f32 *to) {
  const bool to_vectors = has_vectors(u64(to), columns);
  f32 squares = 0.0f;
  for (u32 column = threadIdx.x * piece_elements; column < columns;
       column += product_threads * piece_elements) {
    f32 values[piece_elements];
    widen(values, load_piece(from, dtype, from_vectors, column, columns));
    squares = add_squares(squares, values);
    store_piece(to + column, to_vectors, columns - column, values);
  }
  if (norm.epsilon < 0.0f) return;
  const f32 factor = inverse_rms(block_sum<product_threads>(squares), columns, norm.epsilon);
  const Gain gain = {norm.weight.address, norm.weight.dtype, has_vectors(norm.weight.address, columns)};
  for (u32 column = threadIdx.x * piece_elements; column < columns;
       column += product_threads * piece_elements) {
    f32 values[piece_elements], gains[piece_elements];
    widen(values, load_piece(u64(to), dtype_f32, to_vectors, column, columns));
    widen(gains, gain.load(column, columns));
#pragma unroll
    for (u32 i = 0; i < piece_elements; i++) {
      values[i] = multiply_rn(multiply_rn(values[i], factor), gains[i]);
    }
    store_piece(to + column, to_vectors, columns - column, values);
  }
}

// ---- Few rows ------------------------------------------------------------------------------------
//
// A block has all rows of a group and a few tiles of weights, which it reads once, straight into
// registers; each of its warps has a slice.

// What a block works on at a time, and how many chunks of weights each warp has under way.
template <u32 weight_tiles_, u32 row_tiles_, u32 depth_>
struct Shape {
  static constexpr u32 weight_tiles = weight_tiles_, row_tiles = row_tiles_, depth = depth_;
  static constexpr u32 columns = weight_tiles * weight_tile;  // of the result
  static constexpr u32 rows = row_tiles * row_tile;
};

template <class Shape>
struct Sums {
  f32 products[Shape::weight_tiles][Shape::row_tiles][4];
  f32 squares[Shape::row_tiles];
};

template <class Kind, class Shape>
struct WeightStream {
  typename Kind::Row rows[Shape::weight_tiles][2];
  typename Kind::Loaded ahead[Shape::depth][Shape::weight_tiles][2];

  // Asks for the first chunks. `weights(i)` is the block's i-th weight row.
  template <class WeightRows>
  DEVICE void open(const WeightRows &weights, const ColumnSlice &slice) {
#pragma unroll
    for (u32 tile = 0; tile < Shape::weight_tiles; tile++) {
#pragma unroll
      for (u32 i = 0; i < 2; i++) {
        rows[tile][i] = Kind::open(weights(tile * weight_tile + i * 8 + lane_row()), slice);
      }
    }
#pragma unroll
    for (u32 place = 0; place < Shape::depth; place++) load(place, place, slice);
  }

  DEVICE void load(u32 place, u32 chunk, const ColumnSlice &slice) {
    const u32 column = slice.begin + chunk * chunk_columns + lane_column();
#pragma unroll
    for (u32 tile = 0; tile < Shape::weight_tiles; tile++) {
#pragma unroll
      for (u32 i = 0; i < 2; i++) {
        ahead[place][tile][i] = Kind::load(rows[tile][i], column, slice.end);
      }
    }
  }
};

// Adds up a slice. `rows.load(half, row, column, end)` gives pieces of the input rows.
template <class Kind, class Shape, bool normed, class Rows>
DEVICE void accumulate(Sums<Shape> &sums, WeightStream<Kind, Shape> &weights, const ColumnSlice &slice,
                       const Rows &rows, const Gain &gain, u32 count) {
  const u32 tiles = (count + row_tile - 1) / row_tile, chunks = slice.chunks();
  u32 column = slice.begin + lane_column();
  // As with weights, rows beyond the last are the last once more.
  const auto load_rows = [&](u32 tile, u32 column) {
    return rows.load(slice.half, min(tile * row_tile + lane_row(), count - 1), column, slice.end);
  };
  Piece input_ahead = load_rows(0, column), gain_ahead = {};
  if (normed) gain_ahead = gain.load(column, slice.end);
  for (u32 first = 0; first < chunks; first += Shape::depth) {
#pragma unroll
    for (u32 place = 0; place < Shape::depth; place++) {
      if (first + place < chunks) {
        f32 gains[piece_elements];
        if (normed) {
          widen(gains, gain_ahead);
          gain_ahead = gain.load(column + chunk_columns, slice.end);
        }
        Parts<Kind::parts> weight[Shape::weight_tiles][2];
#pragma unroll
        for (u32 tile = 0; tile < Shape::weight_tiles; tile++) {
          Kind::split_weights(weight[tile][0], weights.ahead[place][tile][0]);
          Kind::split_weights(weight[tile][1], weights.ahead[place][tile][1]);
        }
#pragma unroll
        for (u32 tile = 0; tile < Shape::row_tiles; tile++) {
          if (tile < tiles) {
            f32 values[piece_elements];
            widen(values, input_ahead);
            const bool is_last = tile + 1 == tiles;
            input_ahead = load_rows(is_last ? 0 : tile + 1, is_last ? column + chunk_columns : column);
            if (normed) {
              sums.squares[tile] = add_squares(sums.squares[tile], values);
#pragma unroll
              for (u32 i = 0; i < piece_elements; i++) values[i] = multiply_rn(values[i], gains[i]);
            }
            Parts<Kind::input_parts> input;
            split(input, values);
#pragma unroll
            for (u32 t = 0; t < Shape::weight_tiles; t++) {
              multiply<Kind>(sums.products[t][tile], weight[t][0], weight[t][1], input);
            }
          }
        }
        weights.load(place, first + place + Shape::depth, slice);
        column += chunk_columns;
      }
    }
  }
}

// Where the warps of a block bring together what they have: 16 rows at a time.
constexpr u32 rows_at_once = 2 * row_tile;

template <class Shape>
struct Meeting {
  f32 products[slices][rows_at_once][Shape::columns + 4];  // the 4 keep banks apart
  f32 squares[slices][Shape::rows];
};

// The norms of the halves of an input.
struct Norms {
  u32 halves;
  u32 columns;  // of a half
  f32 first_epsilon, second_epsilon;

  DEVICE u32 begin_of(u32 half) const { return half * (slices / halves); }
  DEVICE u32 end_of(u32 half) const { return begin_of(half + 1); }
  DEVICE f32 epsilon_of(u32 half) const { return half == 0 ? first_epsilon : second_epsilon; }
};

template <class Shape>
DEVICE f32 inverse_rms(const Meeting<Shape> &meeting, const Norms &norms, u32 half, u32 row) {
  f32 squares = 0.0f;
  for (u32 slice = norms.begin_of(half); slice < norms.end_of(half); slice++) {
    squares = add_rn(squares, meeting.squares[slice][row]);
  }
  return inverse_rms(squares, norms.columns, norms.epsilon_of(half));
}

// The product of row `row`, which is the `place`-th of those at once, with weight row `column`.
template <class Shape, bool normed>
DEVICE f32 product_of(const Meeting<Shape> &meeting, const Norms &norms, u32 row, u32 column) {
  const u32 place = row % rows_at_once;
  const auto sum_of_half = [&](u32 half) {
    f32 sum = 0.0f;
    for (u32 slice = norms.begin_of(half); slice < norms.end_of(half); slice++) {
      sum = add_rn(sum, meeting.products[slice][place][column]);
    }
    return sum;
  };
  if (!normed) return sum_of_half(0);
  const f32 first = multiply_rn(sum_of_half(0), inverse_rms(meeting, norms, 0, row));
  if (norms.halves == 1) return first;
  return fused_multiply_add(sum_of_half(1), inverse_rms(meeting, norms, 1, row), first);
}

// Adds the slices and gives each product to `sink(row, column, value)`, a column to a lane; those of the
// second tile of weights as a second value of the first tile's columns if `paired`.
template <class Shape, bool normed, bool paired, class Sink>
DEVICE void combine(Meeting<Shape> &meeting, const Sums<Shape> &sums, const Norms &norms, u32 rows,
                    const Sink &sink) {
  constexpr u32 columns = paired ? weight_tile : Shape::columns;
  const u32 slice = warp_index(), right = lane_index() % 4 * 2;
  if (normed) {
#pragma unroll
    for (u32 tile = 0; tile < Shape::row_tiles; tile++) {
      const f32 squares = sum_of_four(sums.squares[tile]);
      if (lane_index() % 4 == 0) meeting.squares[slice][tile * row_tile + lane_row()] = squares;
    }
  }
#pragma unroll
  for (u32 first = 0; first < Shape::row_tiles; first += 2) {
    if (first * row_tile < rows) {
      if (first > 0) __syncthreads();
#pragma unroll
      for (u32 tile = 0; tile < Shape::weight_tiles; tile++) {
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
          const u32 row = i / 4 * row_tile + right + i % 2;
          const u32 column = tile * weight_tile + i % 4 / 2 * 8 + lane_row();
          meeting.products[slice][row][column] = sums.products[tile][first + i / 4][i % 4];
        }
      }
      __syncthreads();
#pragma unroll
      for (u32 output = 0; output < rows_at_once * columns; output += product_threads) {
        const u32 row = first * row_tile + (output + threadIdx.x) / columns;
        const u32 column = threadIdx.x % columns;
        if (row < rows) {
          const f32 value = product_of<Shape, normed>(meeting, norms, row, column);
          if constexpr (paired) {
            sink(row, column, value,
                 product_of<Shape, normed>(meeting, norms, row, column + weight_tile));
          } else {
            sink(row, column, value);
          }
        }
      }
    }
  }
}

// ---- Many rows -----------------------------------------------------------------------------------
//
// A block has 64 rows and 128 weight rows. Chunks of both come through shared memory, where a piece of
// eight columns is found as in the registers of the kernels for few rows.

constexpr u32 block_rows = 64;
constexpr u32 block_weights = 128;
constexpr u32 pieces = chunk_columns / piece_elements;  // of a row, in a chunk

// A block's warps stand four high in weights and two wide in rows, each with 32 of both.
constexpr u32 warp_columns = 32;
constexpr u32 warp_rows = 32;
constexpr u32 warp_weight_tiles = warp_columns / weight_tile;
constexpr u32 warp_row_tiles = warp_rows / row_tile;

DEVICE u32 first_weight_of_warp() { return warp_index() / 2 * warp_columns; }
DEVICE u32 first_row_of_warp() { return warp_index() % 2 * warp_rows; }

template <class Kind>
struct Stage {
  // Static shared memory has no room for two stages of three parts.
  static constexpr u32 input_stages = Kind::input_parts == 2 ? 2 : 1;

  typename Kind::Loaded weights[2][block_weights][pieces];
  uint4 inputs[input_stages][Kind::input_parts][block_rows][pieces];
  f32 inverse_rms[2][block_rows];
};

// The chunks of all slices, one after the other.
struct Cursor {
  u32 index;  // of the slice
  ColumnSlice slice;
  u32 column;

  static DEVICE Cursor begin(const Norms &norms) {
    const ColumnSlice slice = slice_of(0, norms.columns, norms.halves);
    return Cursor{0, slice, slice.begin};
  }
  DEVICE bool is_done() const { return index == slices; }
  DEVICE Cursor next(const Norms &norms) const {
    Cursor next = *this;
    next.column += chunk_columns;
    while (next.column >= next.slice.end && ++next.index < slices) {
      next.slice = slice_of(next.index, norms.columns, norms.halves);
      next.column = next.slice.begin;
    }
    return next;
  }
};

// What a thread has of the products, and of the squares of the row whose pieces it brings in.
struct TileSums {
  f32 slice[warp_weight_tiles][warp_row_tiles][4];
  f32 total[warp_weight_tiles][warp_row_tiles][4];
  f32 slice_squares, total_squares;

  DEVICE void end_slice() {
#pragma unroll
    for (u32 i = 0; i < warp_weight_tiles; i++) {
#pragma unroll
      for (u32 j = 0; j < warp_row_tiles; j++) {
#pragma unroll
        for (u32 k = 0; k < 4; k++) {
          total[i][j][k] = add_rn(total[i][j][k], slice[i][j][k]);
          slice[i][j][k] = 0.0f;
        }
      }
    }
    total_squares = add_rn(total_squares, sum_of_four(slice_squares));
    slice_squares = 0.0f;
  }
};

// Adds the products of the chunk that is in the stage.
template <class Kind>
DEVICE void multiply_chunk(TileSums &sums, const Stage<Kind> &stage, u32 turn, u32 row_tiles) {
  Parts<Kind::parts> weight[warp_weight_tiles][2];
#pragma unroll
  for (u32 tile = 0; tile < warp_weight_tiles; tile++) {
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
      const u32 row = first_weight_of_warp() + tile * weight_tile + i * 8 + lane_row();
      Kind::split_weights(weight[tile][i], stage.weights[turn][row][lane_index() % pieces]);
    }
  }
#pragma unroll
  for (u32 tile = 0; tile < warp_row_tiles; tile++) {
    const u32 row = first_row_of_warp() + tile * row_tile + lane_row();
    if (first_row_of_warp() / row_tile + tile < row_tiles) {
      Parts<Kind::input_parts> input;
#pragma unroll
      for (u32 part = 0; part < Kind::input_parts; part++) {
        const uint4 pairs =
            stage.inputs[turn % stage.input_stages][part][row][lane_index() % pieces];
        input.pairs[part][0] = pairs.x;
        input.pairs[part][1] = pairs.y;
        input.pairs[part][2] = pairs.z;
        input.pairs[part][3] = pairs.w;
      }
#pragma unroll
      for (u32 t = 0; t < warp_weight_tiles; t++) {
        multiply<Kind>(sums.slice[t][tile], weight[t][0], weight[t][1], input);
      }
    }
  }
}

// Calls `function(weight tile, row tile, i, row, weight row)` for all sums of the thread.
template <class Function>
DEVICE void for_sums(const Function &function) {
#pragma unroll
  for (u32 tile = 0; tile < warp_row_tiles; tile++) {
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
      const u32 row = first_row_of_warp() + tile * row_tile + lane_index() % 4 * 2 + i % 2;
#pragma unroll
      for (u32 t = 0; t < warp_weight_tiles; t++) {
        const u32 weight = first_weight_of_warp() + t * weight_tile + i / 2 * 8 + lane_row();
        function(t, tile, i, row, weight);
      }
    }
  }
}

// The products of `count` rows with 128 weight rows; `weights(i)` is the i-th of them, `gains(half)` the
// gain of a half. `sink(row, weight, value)` gets each product; with `paired`, rows 32 i + 16 + j of the
// weights belong to rows 32 i + j, and the sink gets both products of column 16 i + j. Of an input with
// two halves, the product of the first one is kept at `held(row, weight)` meanwhile.
template <class Kind, bool normed, bool paired, class WeightRows, class Rows, class Gains, class Held,
          class Sink>
DEVICE void multiply_block(Stage<Kind> &stage, const Norms &norms, const WeightRows &weights,
                           const Rows &rows, const Gains &gains, u32 count, const Held &held,
                           const Sink &sink) {
  // The thread brings in one piece of an input row and two of weight rows.
  const u32 own_row = threadIdx.x / pieces, own_piece = threadIdx.x % pieces;
  const u32 own_column = own_piece * piece_elements;
  const u32 row_tiles = (count + row_tile - 1) / row_tile;
  typename Kind::Row weight_rows[2];
  const auto open_weights = [&](const ColumnSlice &slice) {
    weight_rows[0] = Kind::open(weights(own_row), slice);
    weight_rows[1] = Kind::open(weights(own_row + block_weights / 2), slice);
  };
  const auto copy_weights = [&](const Cursor &at, u32 turn) {
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
      Kind::copy(&stage.weights[turn][own_row + i * (block_weights / 2)][own_piece], weight_rows[i],
                 at.column + own_column, at.slice.end);
    }
    cp_async_commit();
  };
  const auto load_input = [&](const Cursor &at) {
    const u32 row = min(own_row, count - 1);
    return rows.load(at.slice.half, row, at.column + own_column, at.slice.end);
  };
  const auto load_gain = [&](const Cursor &at) {
    return gains(at.slice.half).load(at.column + own_column, at.slice.end);
  };

  TileSums sums = {};
  Cursor at = Cursor::begin(norms);
  open_weights(at.slice);
  copy_weights(at, 0);
  Piece input_ahead = load_input(at), gain_ahead = {};
  if (normed) gain_ahead = load_gain(at);
  for (u32 turn = 0; !at.is_done(); turn ^= 1) {
    const Cursor next = at.next(norms);
    f32 values[piece_elements];
    widen(values, input_ahead);
    if (normed) {
      sums.slice_squares = add_squares(sums.slice_squares, values);
      f32 gain[piece_elements];
      widen(gain, gain_ahead);
#pragma unroll
      for (u32 i = 0; i < piece_elements; i++) values[i] = multiply_rn(values[i], gain[i]);
    }
    if (!next.is_done()) {
      input_ahead = load_input(next);
      if (normed) gain_ahead = load_gain(next);
    }
    Parts<Kind::input_parts> input;
    split(input, values);
#pragma unroll
    for (u32 part = 0; part < Kind::input_parts; part++) {
      const u32(&pairs)[4] = input.pairs[part];
      stage.inputs[turn % stage.input_stages][part][own_row][own_piece] =
          make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    }
    cp_async_wait<0>();
    __syncthreads();  // the chunk is there, and all are done with the one before
    if (!next.is_done()) {
      if (next.slice.half != at.slice.half) open_weights(next.slice);
      copy_weights(next, turn ^ 1);
    }
    multiply_chunk(sums, stage, turn, row_tiles);
    if (stage.input_stages == 1) __syncthreads();
    if (next.index != at.index) sums.end_slice();
    if (next.is_done() || next.slice.half != at.slice.half) {
      if (normed) {
        const u32 half = at.slice.half;
        const f32 factor = inverse_rms(sums.total_squares, norms.columns, norms.epsilon_of(half));
        if (own_piece == 0) stage.inverse_rms[half][own_row] = factor;
        sums.total_squares = 0.0f;
      }
      if (!next.is_done()) {
        __syncthreads();
        for_sums([&](u32 t, u32 tile, u32 i, u32 row, u32 weight) {
          if (row < count) {
            f32 *place = held(row, weight);
            if (place != nullptr) {
              *place = multiply_rn(sums.total[t][tile][i], stage.inverse_rms[0][row]);
            }
          }
          sums.total[t][tile][i] = 0.0f;
        });
      }
    }
    at = next;
  }
  __syncthreads();
  const auto product_of = [&](f32 total, u32 row, u32 weight) {
    if (!normed) return total;
    if (norms.halves == 1) return multiply_rn(total, stage.inverse_rms[0][row]);
    const f32 *place = held(row, weight);
    const f32 first = place != nullptr ? *place : 0.0f;
    return fused_multiply_add(total, stage.inverse_rms[1][row], first);
  };
  for_sums([&](u32 t, u32 tile, u32 i, u32 row, u32 weight) {
    if (row >= count || (paired && t > 0)) return;
    const f32 value = product_of(sums.total[t][tile][i], row, weight);
    if constexpr (paired) {
      sink(row, weight / warp_columns * weight_tile + weight % weight_tile, value,
           product_of(sums.total[1][tile][i], row, weight + weight_tile));
    } else {
      sink(row, weight, value);
    }
  });
}
