// The way into an attention: norm, query / key / value maps, norms of the heads, rotary embedding, append
// to the pages. Layers that read the same rows have their keys and values in one launch.
//
// With few rows this is one launch. Each block has a few rows of one head's weights, and the last block
// of a head finishes it. With many rows the products come first and the heads in a second launch.
#include "embedding.cuh"
#include "paging.cuh"

// The map to the heads of queries, or to those of a layer's keys or values.
struct HeadMap {
  Matrix weight;
  Matrix bias;
  Norm norm;  // of each head
};

// Layers that a launch has keys and values of.
constexpr u32 max_layers = 8;

// The first map is that to queries. Behind it are those of each layer: to keys, to values.
constexpr u32 query_map = 0, max_maps = 1 + 2 * max_layers;

struct Rotary {
  u64 inverse_frequency;
  u64 long_inverse_frequency;
  i64 long_from;
  u32 half;  // of the elements that are turned
  f32 scale;
};

struct ProjectArguments {
  RowCount rows;
  u64 sequence;
  u64 position;
  u64 rope_position;
  u64 token;
  u64 counters;     // those of the groups, see below
  u64 inverse_rms;  // of the residual stream's rows, from the products to the heads of many rows
  Matrix hidden;
  Norm norm;
  Embedding embedding;
  HeadMap maps[max_maps];
  Matrix queries;  // [rows, num_heads * head_dim]
  Matrix kv;       // [rows, num_layers * 2 * num_kv_heads * head_dim], in the order of a page
  Rotary rotary;
  Paging paging;    // its layer is the first one
  Matrix embedded;  // the rows of the embedding, if they have been brought together
  u32 num_heads;    // 0: no queries are wanted
  u32 num_layers;   // that keys and values are wanted of
  u32 residual_is_normed;
  u32 most_last_blocks;
};
static_assert(sizeof(HeadMap) == 104, "as in src/backend/cuda/project.rs");
static_assert(sizeof(ProjectArguments) == 2760, "as in src/backend/cuda/project.rs");

// ---- The input -----------------------------------------------------------------------------------

template <u32 rows>
struct InputRows {
  InputRow halves[2][rows];

  DEVICE Piece load(u32 half, u32 row, u32 column, u32 end) const {
    const InputRow input = halves[half][row];
    return load_piece(input.address, input.dtype, input.vectors, column, end);
  }
};

DEVICE Norms norms_of(const ProjectArguments &arguments) {
  const bool has_embedding = arguments.embedding.num_segments > 0;
  const f32 hidden = arguments.norm.epsilon;
  return Norms{has_embedding ? 2u : 1u, arguments.hidden.columns,
               has_embedding ? arguments.embedding.norm.epsilon : hidden, hidden};
}

// Brings the rows of the embedding together, widened: those of the host may lie in its own memory, which
// every block of the products would read again. Each block has one row.
KERNEL(256, embed_rows, ProjectArguments) {
  const u32 row = blockIdx.x, columns = arguments.embedded.columns;
  if (row >= count_rows(arguments.rows)) return;
  const InputRow input = embedded_row(arguments.embedding, entry(arguments.token, row), columns);
  f32 *to = f32_row(arguments.embedded, row);
  for (u32 column = threadIdx.x * piece_elements; column < columns;
       column += product_threads * piece_elements) {
    f32 values[piece_elements];
    widen(values, load_piece(input.address, input.dtype, input.vectors, column, columns));
    store_piece(to + column, has_vectors(u64(to), columns), columns - column, values);
  }
}

// Looks up the rows of a group; the block's threads meet.
template <u32 rows>
DEVICE void find_rows(InputRows<rows> &inputs, const ProjectArguments &arguments, const Norms &norms,
                      const RowGroup &group) {
  const u32 columns = norms.columns;
  for (u32 i = threadIdx.x; i < norms.halves * group.len; i += product_threads) {
    const u32 half = i / group.len, row = i % group.len;
    if (half + 1 == norms.halves) {
      const u64 address = row_address(arguments.hidden, group.begin + row);
      inputs.halves[half][row] = InputRow{address, dtype_f32, has_vectors(address, columns)};
    } else if (arguments.embedded.address != 0) {
      const u64 address = row_address(arguments.embedded, group.begin + row);
      inputs.halves[half][row] = InputRow{address, dtype_f32, has_vectors(address, columns)};
    } else {
      const i32 token = entry(arguments.token, group.begin + row);
      inputs.halves[half][row] = embedded_row(arguments.embedding, token, columns);
    }
  }
  __syncthreads();
}

template <class Kind>
DEVICE Gain gain_of_half(const ProjectArguments &arguments, const Norms &norms, u32 half) {
  return gain_of<Kind>(half + 1 == norms.halves ? arguments.norm : arguments.embedding.norm);
}

// ---- Heads ---------------------------------------------------------------------------------------

// One of the heads of a map, or of the blocks of its columns.
struct PartOfMap {
  u32 map;
  u32 index;
};

// The part number `index` of all, where the queries have `of_queries` and each other map `of_others`.
DEVICE PartOfMap part_of_map(u32 index, u32 of_queries, u32 of_others) {
  if (index < of_queries) return PartOfMap{query_map, index};
  index -= of_queries;
  return PartOfMap{1 + index / of_others, index % of_others};
}

DEVICE u32 heads_of_map(const ProjectArguments &arguments, u32 map) {
  return map == query_map ? arguments.num_heads : arguments.paging.num_kv_heads;
}

DEVICE PartOfMap head_of(const ProjectArguments &arguments, u32 index) {
  return part_of_map(index, arguments.num_heads, arguments.paging.num_kv_heads);
}

DEVICE u32 count_heads(const ProjectArguments &arguments) {
  return arguments.num_heads + arguments.num_layers * 2 * arguments.paging.num_kv_heads;
}

// The number of a map's first head among those of keys and values, which is its place in a page.
DEVICE u32 first_plane(const ProjectArguments &arguments, u32 map) {
  return (map - 1) * arguments.paging.num_kv_heads;
}

// A row of a map's results.
DEVICE f32 *output_row(const ProjectArguments &arguments, u32 map, u32 row) {
  if (map == query_map) return f32_row(arguments.queries, row);
  return f32_row(arguments.kv, row) + first_plane(arguments, map) * arguments.paging.head_dim;
}

DEVICE bool is_map_to_values(u32 map) { return map != query_map && map % 2 == 0; }

// Sine and cosine of any finite angle. The angle is brought to one eighth of a circle in double
// precision, where the Taylor polynomials are exact enough for a float.
DEVICE void sine_cosine(f32 angle, f32 &sine, f32 &cosine) {
  constexpr f64 quarters_per_radian = 0.63661977236758134308;
  constexpr f64 quarter = 1.57079632679489655800, quarter_low = 6.12323399573676603587e-17;
  const f64 quarters = rint(__dmul_rn(f64(angle), quarters_per_radian));
  f64 x = __fma_rn(-quarters, quarter, f64(angle));
  x = __fma_rn(-quarters, quarter_low, x);
  const f64 square = __dmul_rn(x, x);
  f64 s = 1.0 / 362880;
  s = __fma_rn(s, square, -1.0 / 5040);
  s = __fma_rn(s, square, 1.0 / 120);
  s = __fma_rn(s, square, -1.0 / 6);
  s = __fma_rn(s, __dmul_rn(square, x), x);
  f64 c = -1.0 / 3628800;
  c = __fma_rn(c, square, 1.0 / 40320);
  c = __fma_rn(c, square, -1.0 / 720);
  c = __fma_rn(c, square, 1.0 / 24);
  c = __fma_rn(c, square, -0.5);
  c = __fma_rn(c, square, 1.0);
  const u32 quadrant = u32(i64(quarters)) & 3;
  const f64 swapped_sine = quadrant & 1 ? c : s, swapped_cosine = quadrant & 1 ? s : c;
  sine = f32(quadrant & 2 ? -swapped_sine : swapped_sine);
  cosine = f32((quadrant + 1) & 2 ? -swapped_cosine : swapped_cosine);
}

// Where a head's keys or values of a row belong; 0 where the table names no page of the pool.
DEVICE u64 page_place(const ProjectArguments &arguments, const PartOfMap &head, u32 row) {
  const Paging &paging = arguments.paging;
  const u32 sequence = u32(entry(arguments.sequence, row));
  const u32 position = u32(entry(arguments.position, row));
  const RowPages pages = pages_of_row(paging, sequence, row, position);
  return key_place(paging, pages, position, first_plane(arguments, head.map) + head.index);
}

// Norms and turns a row's head, by a warp; a query in place, keys and values into their page.
DEVICE void finish_head(const ProjectArguments &arguments, const PartOfMap &head, u32 row) {
  const Norm &norm = arguments.maps[head.map].norm;
  const Rotary &rotary = arguments.rotary;
  const u32 head_dim = arguments.paging.head_dim, lane = lane_index();
  const f32 *from = output_row(arguments, head.map, row) + head.index * head_dim;
  u64 to = u64(from);
  u32 dtype = dtype_f32;
  if (head.map != query_map) {
    to = page_place(arguments, head, row);
    dtype = arguments.paging.pages.dtype;
    if (to == 0) return;
  }
  const bool is_normed = norm.epsilon >= 0.0f;
  f32 factor = 1.0f;
  if (is_normed) {
    f32 squares = 0.0f;
    for (u32 i = lane; i < head_dim; i += warp_lanes) {
      squares = fused_multiply_add(from[i], from[i], squares);
    }
    factor = inverse_rms(warp_sum(squares), head_dim, norm.epsilon);
  }
  const auto element = [&](u32 i) {
    if (!is_normed) return from[i];
    return multiply_rn(multiply_rn(from[i], factor), element_or(norm.weight, i, 1.0f));
  };
  const u32 half = is_map_to_values(head.map) ? 0 : rotary.half;
  const i32 position = entry(arguments.rope_position, row);
  const bool is_long = position >= rotary.long_from;
  const f32 *frequencies = reinterpret_cast<const f32 *>(is_long ? rotary.long_inverse_frequency
                                                                 : rotary.inverse_frequency);
  for (u32 i = lane; i < half; i += warp_lanes) {
    f32 sine, cosine;
    sine_cosine(multiply_rn(f32(position), frequencies[i]), sine, cosine);
    sine = multiply_rn(sine, rotary.scale);
    cosine = multiply_rn(cosine, rotary.scale);
    const f32 a = element(i), b = element(i + half);
    store_element(to, dtype, i, subtract_rn(multiply_rn(a, cosine), multiply_rn(b, sine)));
    store_element(to, dtype, i + half, add_rn(multiply_rn(b, cosine), multiply_rn(a, sine)));
  }
  for (u32 i = 2 * half + lane; i < head_dim; i += warp_lanes) {
    store_element(to, dtype, i, element(i));
  }
}

// ---- Few rows ------------------------------------------------------------------------------------

// The counters of a group of rows.
struct GroupCounters {
  u32 *of_heads;
  u32 (&last_blocks)[2];
};

DEVICE GroupCounters counters_of_group(const ProjectArguments &arguments) {
  const u32 heads = count_heads(arguments);
  u32 *words = reinterpret_cast<u32 *>(arguments.counters) + blockIdx.x * (heads + 2);
  return GroupCounters{words + 2, *reinterpret_cast<u32(*)[2]>(words)};
}

template <class Kind, class Shape>
DEVICE void project(const ProjectArguments &arguments) {
  __shared__ Meeting<Shape> meeting;
  __shared__ InputRows<Shape::rows> inputs;
  const Norms norms = norms_of(arguments);
  const u32 head_dim = arguments.paging.head_dim;
  const u32 blocks_of_head = (head_dim + Shape::columns - 1) / Shape::columns;
  const u32 head_index = blockIdx.y / blocks_of_head;
  const PartOfMap head = head_of(arguments, head_index);
  const HeadMap &map = arguments.maps[head.map];
  const u32 begin = blockIdx.y % blocks_of_head * Shape::columns;  // in the head
  const u32 first_column = head.index * head_dim + begin;

  const ColumnSlice slice = slice_of(warp_index(), norms.columns, norms.halves);
  WeightStream<Kind, Shape> weights;
  weights.open([&](u32 row) { return weight_row(map.weight, first_column + row); }, slice);
  const RowGroup group = group_of_block(arguments.rows, Shape::rows);
  if (group.len == 0) return;
  find_rows(inputs, arguments, norms, group);
  Sums<Shape> sums = {};
  const Gain gain = gain_of_half<Kind>(arguments, norms, slice.half);
  accumulate<Kind, Shape, true>(sums, weights, slice, inputs, gain, group.len);
  combine<Shape, true, false>(meeting, sums, norms, group.len, [&](u32 row, u32 column, f32 value) {
    if (begin + column >= head_dim) return;
    column += first_column;
    output_row(arguments, head.map, group.begin + row)[column] =
        add_rn(value, element_or(map.bias, column, 0.0f));
  });

  const GroupCounters counters = counters_of_group(arguments);
  if (last_block(&counters.of_heads[head_index], blocks_of_head)) {
    for (u32 row = warp_index(); row < group.len; row += product_warps) {
      finish_head(arguments, head, group.begin + row);
    }
  }
  if (arguments.residual_is_normed) {
    // Until all blocks are done, they read the residual stream as it was.
    const u32 count = count_last_blocks(group.len, arguments.most_last_blocks);
    const u32 number = join_last_blocks(counters.last_blocks, count);
    if (number == count) return;
    for (u32 row = number; row < group.len; row += count) {
      const f32 factor = inverse_rms(meeting, norms, norms.halves - 1, row);
      norm_in_place(arguments.hidden, group.begin + row, arguments.norm.weight, factor);
    }
    leave_last_blocks(counters.last_blocks, count);
  }
}

typedef Shape<1, 2, 3> Project16;
typedef Shape<2, 4, 1> Project32;
typedef Shape<2, 4, 2> ProjectF16x32;

KERNEL_RESIDENT(256, 2, project_bf16_16, ProjectArguments) { project<Bf16Weights, Project16>(arguments); }
KERNEL_RESIDENT(256, 2, project_bf16_32, ProjectArguments) { project<Bf16Weights, Project32>(arguments); }
KERNEL_RESIDENT(256, 2, project_f16_16, ProjectArguments) { project<F16Weights, Project16>(arguments); }
KERNEL_RESIDENT(256, 1, project_f16_32, ProjectArguments) { project<F16Weights, ProjectF16x32>(arguments); }
KERNEL_RESIDENT(256, 1, project_any_16, ProjectArguments) { project<AnyWeights, Project16>(arguments); }
KERNEL_RESIDENT(256, 1, project_any_32, ProjectArguments) { project<AnyWeights, Project32>(arguments); }

// ---- Many rows -----------------------------------------------------------------------------------

DEVICE u32 blocks_of_heads(const ProjectArguments &arguments, u32 heads) {
  return (heads * arguments.paging.head_dim + block_weights - 1) / block_weights;
}

template <class Kind>
DEVICE void project_many(const ProjectArguments &arguments) {
  __shared__ Stage<Kind> stage;
  __shared__ InputRows<block_rows> inputs;
  const PartOfMap block =
      part_of_map(blockIdx.y, blocks_of_heads(arguments, arguments.num_heads),
                  blocks_of_heads(arguments, arguments.paging.num_kv_heads));
  const HeadMap &map = arguments.maps[block.map];
  const u32 columns = heads_of_map(arguments, block.map) * arguments.paging.head_dim;
  const u32 first_column = block.index * block_weights;
  const RowGroup group = group_of_block(arguments.rows, block_rows);
  if (group.len == 0) return;
  const Norms norms = norms_of(arguments);
  find_rows(inputs, arguments, norms, group);
  const auto place = [&](u32 row, u32 column) {
    column += first_column;
    f32 *output = output_row(arguments, block.map, group.begin + row) + column;
    return column < columns ? output : nullptr;
  };
  multiply_block<Kind, true, false>(
      stage, norms, [&](u32 row) { return weight_row(map.weight, first_column + row); }, inputs,
      [&](u32 half) { return gain_of_half<Kind>(arguments, norms, half); }, group.len, place,
      [&](u32 row, u32 column, f32 value) {
        f32 *output = place(row, column);
        if (output == nullptr) return;
        *output = add_rn(value, element_or(map.bias, first_column + column, 0.0f));
      });
  if (blockIdx.y == 0 && threadIdx.x < group.len) {
    f32 *factors = reinterpret_cast<f32 *>(arguments.inverse_rms) + group.begin;
    factors[threadIdx.x] = stage.inverse_rms[norms.halves - 1][threadIdx.x];
  }
}

KERNEL_RESIDENT(256, 1, project_bf16_many, ProjectArguments) { project_many<Bf16Weights>(arguments); }
KERNEL_RESIDENT(256, 1, project_f16_many, ProjectArguments) { project_many<F16Weights>(arguments); }
KERNEL_RESIDENT(256, 1, project_any_many, ProjectArguments) { project_many<AnyWeights>(arguments); }

// The heads of a row, one to a warp; the blocks of the last row of the grid see to the residual stream.
KERNEL(256, finish_projection, ProjectArguments) {
  const u32 row = blockIdx.x;
  if (row >= count_rows(arguments.rows)) return;
  const u32 index = blockIdx.y * product_warps + warp_index();
  if (index < count_heads(arguments)) finish_head(arguments, head_of(arguments, index), row);
  if (arguments.residual_is_normed && blockIdx.y == gridDim.y - 1) {
    const f32 factor = reinterpret_cast<const f32 *>(arguments.inverse_rms)[row];
    norm_in_place(arguments.hidden, row, arguments.norm.weight, factor);
  }
}
