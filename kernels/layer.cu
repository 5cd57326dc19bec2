// The linear maps of a decoder layer that stand alone: those added to the residual stream, and the first
// half of its gated MLP; and the norm before maps that are not of a layer.
#include "activation.cuh"
#include "products.cuh"

// ---- The norm of rows ----------------------------------------------------------------------------

struct NormArguments {
  RowCount rows;
  Matrix from;
  Norm norm;
  Matrix to;
};
static_assert(sizeof(NormArguments) == 120, "as in src/backend/cuda/layer.rs");

// For maps that share the rows of one norm, or whose kernels know none. Each block has a row.
KERNEL(256, norm_rows, NormArguments) {
  const u32 row = blockIdx.x, columns = arguments.to.columns;
  if (row >= count_rows(arguments.rows)) return;
  const u64 from = row_address(arguments.from, row);
  widen_normed(from, arguments.from.dtype, has_vectors(from, columns), columns, arguments.norm,
               f32_row(arguments.to, row));
}

// ---- A linear map --------------------------------------------------------------------------------

struct LinearArguments {
  RowCount rows;
  Matrix weight;
  Matrix bias;
  Matrix input;
  Matrix output;
  u32 adds;  // to what is in the output
  u32 padding;
};
static_assert(sizeof(LinearArguments) == 152, "as in src/backend/cuda/products.rs");

DEVICE void store_linear(const LinearArguments &arguments, u32 row, u32 column, f32 value) {
  f32 *place = f32_row(arguments.output, row) + column;
  value = add_rn(value, element_or(arguments.bias, column, 0.0f));
  *place = arguments.adds ? add_rn(*place, value) : value;
}

template <class Kind, class Shape>
DEVICE void linear(const LinearArguments &arguments) {
  __shared__ Meeting<Shape> meeting;
  const u32 first_column = blockIdx.y * Shape::columns;
  const ColumnSlice slice = slice_of(warp_index(), arguments.weight.columns, 1);
  WeightStream<Kind, Shape> weights;
  weights.open([&](u32 row) { return weight_row(arguments.weight, first_column + row); }, slice);
  const RowGroup group = group_of_block(arguments.rows, Shape::rows);
  if (group.len == 0) return;
  const ScratchRows rows = scratch_rows<Kind>(arguments.input, group.begin);
  Sums<Shape> sums = {};
  accumulate<Kind, Shape, false>(sums, weights, slice, rows, Gain{}, group.len);
  const Norms norms = {1, arguments.weight.columns, 0.0f, 0.0f};
  combine<Shape, false, false>(meeting, sums, norms, group.len, [&](u32 row, u32 column, f32 value) {
    column += first_column;
    if (column < arguments.weight.rows) store_linear(arguments, group.begin + row, column, value);
  });
}

template <class Kind>
DEVICE void linear_many(const LinearArguments &arguments) {
  __shared__ Stage<Kind> stage;
  const u32 first_column = blockIdx.y * block_weights;
  const RowGroup group = group_of_block(arguments.rows, block_rows);
  if (group.len == 0) return;
  const Norms norms = {1, arguments.weight.columns, 0.0f, 0.0f};
  multiply_block<Kind, false, false>(
      stage, norms, [&](u32 row) { return weight_row(arguments.weight, first_column + row); },
      scratch_rows<Kind>(arguments.input, group.begin), [](u32) { return Gain{}; }, group.len,
      [](u32, u32) { return static_cast<f32 *>(nullptr); },
      [&](u32 row, u32 column, f32 value) {
        column += first_column;
        if (column < arguments.weight.rows) store_linear(arguments, group.begin + row, column, value);
      });
}

typedef Shape<1, 2, 4> Linear16;
typedef Shape<2, 4, 1> Linear32;

KERNEL_RESIDENT(256, 2, linear_bf16_16, LinearArguments) { linear<Bf16Weights, Linear16>(arguments); }
KERNEL_RESIDENT(256, 2, linear_bf16_32, LinearArguments) { linear<Bf16Weights, Linear32>(arguments); }
KERNEL_RESIDENT(256, 2, linear_bf16_many, LinearArguments) { linear_many<Bf16Weights>(arguments); }
KERNEL_RESIDENT(256, 2, linear_f16_16, LinearArguments) { linear<F16Weights, Linear16>(arguments); }
KERNEL_RESIDENT(256, 1, linear_f16_32, LinearArguments) { linear<F16Weights, Linear32>(arguments); }
KERNEL_RESIDENT(256, 1, linear_f16_many, LinearArguments) { linear_many<F16Weights>(arguments); }
KERNEL_RESIDENT(256, 1, linear_any_16, LinearArguments) { linear<AnyWeights, Linear16>(arguments); }
KERNEL_RESIDENT(256, 1, linear_any_32, LinearArguments) { linear<AnyWeights, Linear32>(arguments); }
KERNEL_RESIDENT(256, 1, linear_any_many, LinearArguments) { linear_many<AnyWeights>(arguments); }

// ---- The gate of an attention --------------------------------------------------------------------

struct GateRowsArguments {
  RowCount rows;
  Matrix gates;
  Matrix values;
};
static_assert(sizeof(GateRowsArguments) == 80, "as in src/backend/cuda/layer.rs");

// Each block has a row.
KERNEL(256, gate_rows, GateRowsArguments) {
  const u32 row = blockIdx.x;
  if (row >= count_rows(arguments.rows)) return;
  const f32 *gates = f32_row(arguments.gates, row);
  f32 *values = f32_row(arguments.values, row);
  for (u32 i = threadIdx.x; i < arguments.values.columns; i += product_threads) {
    values[i] = multiply_rn(values[i], sigmoid(gates[i]));
  }
}

// ---- The first half of a gated MLP ---------------------------------------------------------------

struct GateUpArguments {
  RowCount rows;
  Matrix hidden;
  Norm norm;
  Matrix gate;
  Matrix gate_bias;
  Matrix up;
  Matrix up_bias;
  Matrix output;
  u32 activation;
  u32 padding;
};
static_assert(sizeof(GateUpArguments) == 256, "as in src/backend/cuda/products.rs");

DEVICE void store_gated(const GateUpArguments &arguments, u32 row, u32 column, f32 gate, f32 up) {
  gate = add_rn(gate, element_or(arguments.gate_bias, column, 0.0f));
  up = add_rn(up, element_or(arguments.up_bias, column, 0.0f));
  f32_row(arguments.output, row)[column] = multiply_rn(activate(arguments.activation, gate), up);
}

// Rows of the gate in the first tile of weights, rows of the other map in the second.
template <class Kind, class Shape>
DEVICE void gate_up(const GateUpArguments &arguments) {
  __shared__ Meeting<Shape> meeting;
  const u32 first_column = blockIdx.y * weight_tile;
  const ColumnSlice slice = slice_of(warp_index(), arguments.gate.columns, 1);
  WeightStream<Kind, Shape> weights;
  weights.open(
      [&](u32 row) {
        const Matrix &weight = row < weight_tile ? arguments.gate : arguments.up;
        return weight_row(weight, first_column + row % weight_tile);
      },
      slice);
  const RowGroup group = group_of_block(arguments.rows, Shape::rows);
  if (group.len == 0) return;
  const ScratchRows rows = scratch_rows<Kind>(arguments.hidden, group.begin);
  Sums<Shape> sums = {};
  const Gain gain = gain_of<Kind>(arguments.norm);
  accumulate<Kind, Shape, true>(sums, weights, slice, rows, gain, group.len);
  const Norms norms = {1, arguments.gate.columns, arguments.norm.epsilon, 0.0f};
  combine<Shape, true, true>(
      meeting, sums, norms, group.len, [&](u32 row, u32 column, f32 gate, f32 up) {
        column += first_column;
        if (column < arguments.gate.rows) {
          store_gated(arguments, group.begin + row, column, gate, up);
        }
      });
}

template <class Kind>
DEVICE void gate_up_many(const GateUpArguments &arguments) {
  __shared__ Stage<Kind> stage;
  const u32 first_column = blockIdx.y * (block_weights / 2);
  const RowGroup group = group_of_block(arguments.rows, block_rows);
  if (group.len == 0) return;
  const Norms norms = {1, arguments.gate.columns, arguments.norm.epsilon, 0.0f};
  multiply_block<Kind, true, true>(
      stage, norms,
      [&](u32 row) {
        const Matrix &weight = row / weight_tile % 2 == 0 ? arguments.gate : arguments.up;
        return weight_row(weight, first_column + row / warp_columns * weight_tile + row % weight_tile);
      },
      scratch_rows<Kind>(arguments.hidden, group.begin),
      [&](u32) { return gain_of<Kind>(arguments.norm); }, group.len,
      [](u32, u32) { return static_cast<f32 *>(nullptr); },
      [&](u32 row, u32 column, f32 gate, f32 up) {
        column += first_column;
        if (column < arguments.gate.rows) {
          store_gated(arguments, group.begin + row, column, gate, up);
        }
      });
}

typedef Shape<2, 2, 2> GateUp16;
typedef Shape<2, 4, 1> GateUp32;
typedef Shape<2, 2, 4> GateUpF16x16;
typedef Shape<2, 4, 2> GateUpF16x32;

KERNEL_RESIDENT(256, 2, gate_up_bf16_16, GateUpArguments) { gate_up<Bf16Weights, GateUp16>(arguments); }
KERNEL_RESIDENT(256, 2, gate_up_bf16_32, GateUpArguments) { gate_up<Bf16Weights, GateUp32>(arguments); }
KERNEL_RESIDENT(256, 1, gate_up_bf16_many, GateUpArguments) { gate_up_many<Bf16Weights>(arguments); }
KERNEL_RESIDENT(256, 1, gate_up_f16_16, GateUpArguments) { gate_up<F16Weights, GateUpF16x16>(arguments); }
KERNEL_RESIDENT(256, 1, gate_up_f16_32, GateUpArguments) { gate_up<F16Weights, GateUpF16x32>(arguments); }
KERNEL_RESIDENT(256, 1, gate_up_f16_many, GateUpArguments) { gate_up_many<F16Weights>(arguments); }
KERNEL_RESIDENT(256, 1, gate_up_any_16, GateUpArguments) { gate_up<AnyWeights, GateUp16>(arguments); }
KERNEL_RESIDENT(256, 1, gate_up_any_32, GateUpArguments) { gate_up<AnyWeights, GateUp32>(arguments); }
KERNEL_RESIDENT(256, 1, gate_up_any_many, GateUpArguments) { gate_up_many<AnyWeights>(arguments); }
