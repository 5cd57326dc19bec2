// Moves the keys and values of accepted nodes to the rows behind their root: what
// src/backend/cpu/compact.rs does. A thread has the same bytes of all rows of a path, so that threads do
// not meet.
#include "device.cuh"

constexpr u32 most_nodes = 1024;
// Planes of a launch.
constexpr u32 most_planes = 64;

// As in src/tree/compact.rs.
constexpr i32 flag_invalid = 1;

// What the call does not have is NULL. Strides of planes are in bytes, others in elements.
struct CompactArguments {
  const i32 *position, *row_count, *path, *table;
  i32 *source, *destination, *flags;
  u64 position_stride, row_count_stride, path_stride, table_stride, lists_stride;
  u64 page_stride, row_stride, head_stride, head_bytes;
  u32 max_nodes;
  u32 page_rows, num_pages;
  u32 heads, unit_bytes;
  u32 num_planes;
  u64 planes[most_planes];
};
static_assert(sizeof(CompactArguments) == (16 + most_planes) * 8 + 6 * 4,
              "as in src/backend/cuda/compact.rs");

// The rows of a path, by their bytes from the beginning of a plane.
struct Moves {
  u64 from[most_nodes];
  u64 to[most_nodes];
};

// The number of a row of a sequence; -1 if it has no such row.
DEVICE i64 row_number(const CompactArguments &arguments, u32 sequence, u64 row) {
  const u64 entry = row / arguments.page_rows;
  if (entry >= arguments.table_stride) return -1;
  const i32 *table = arguments.table;
  const i32 page = table != nullptr ? table[sequence * arguments.table_stride + entry] : i32(sequence);
  if (u32(page) >= arguments.num_pages) return -1;
  return i64(page) * arguments.page_rows + i64(row % arguments.page_rows);
}

DEVICE u64 row_offset(const CompactArguments &arguments, i64 row) {
  const u64 page = u64(row) / arguments.page_rows, place = u64(row) % arguments.page_rows;
  return page * arguments.page_stride + place * arguments.row_stride;
}

// Lays out the moves of a path, and lists them if this block is to. Returns how many there are; -1 if
// something is out of range. Every thread gets the answer.
DEVICE i32 lay_out(const CompactArguments &arguments, u32 sequence, bool lists, Moves &moves) {
  const i32 count = arguments.row_count[sequence * arguments.row_count_stride];
  const i32 position = arguments.position[sequence * arguments.position_stride];
  const i32 *path = arguments.path + sequence * arguments.path_stride;
  const bool is_well =
      count == 0 || (count > 0 && u32(count) <= arguments.max_nodes && position >= count);
  bool is_wrong = !is_well;
  const u32 nodes = is_well ? u32(count) : 0;
  const u64 root = u64(i64(position) - count);
  for (u32 step = threadIdx.x; step < nodes; step += blockDim.x) {
    const i32 node = path[step];
    const i32 least = step == 0 ? 0 : path[step - 1];
    const bool ascends = step == 0 ? node == 0 : node > least;
    if (!ascends || node < 0 || u32(node) >= arguments.max_nodes) {
      is_wrong = true;
      continue;
    }
    const i64 from = row_number(arguments, sequence, root + u32(node));
    const i64 to = row_number(arguments, sequence, root + step);
    is_wrong |= from < 0 || to < 0;
    moves.from[step] = from < 0 ? 0 : u64(from);
    moves.to[step] = to < 0 ? 0 : u64(to);
  }
  is_wrong = __syncthreads_or(is_wrong) != 0;
  const u32 sound = is_wrong ? 0 : nodes;
  if (lists) {
    i32 *source = arguments.source, *destination = arguments.destination;
    for (u32 step = threadIdx.x; step < arguments.max_nodes; step += blockDim.x) {
      const u64 place = sequence * arguments.lists_stride + step;
      if (source != nullptr) source[place] = step < sound ? i32(moves.from[step]) : -1;
      if (destination != nullptr) destination[place] = step < sound ? i32(moves.to[step]) : -1;
    }
    if (threadIdx.x == 0 && arguments.flags != nullptr) {
      arguments.flags[sequence] = is_wrong ? flag_invalid : 0;
    }
  }
  return is_wrong ? -1 : count;
}

// Moves a unit of the rows, some at a time: what is written was read before, as row i of a path comes
// from row i or from behind it, and goes to row i.
template <class Unit>
DEVICE void move_unit(u8 *base, const Moves &moves, u32 first, u32 count) {
  constexpr u32 at_once = 4;
  for (u32 step = first; step < count; step += at_once) {
    Unit held[at_once];
#pragma unroll
    for (u32 i = 0; i < at_once; i++) {
      if (step + i < count) held[i] = *reinterpret_cast<const Unit *>(base + moves.from[step + i]);
    }
#pragma unroll
    for (u32 i = 0; i < at_once; i++) {
      if (step + i < count) *reinterpret_cast<Unit *>(base + moves.to[step + i]) = held[i];
    }
  }
}

// The grid: sequences, planes, and blocks that share the units of a row.
KERNEL(128, compact_rows, CompactArguments) {
  __shared__ Moves moves;
  const u32 sequence = blockIdx.x, plane = blockIdx.y;
  const i32 count = lay_out(arguments, sequence, plane == 0 && blockIdx.z == 0, moves);
  if (count <= 0 || plane >= arguments.num_planes) return;
  // Each thread those that it has laid out and listed.
  for (u32 step = threadIdx.x; step < u32(count); step += blockDim.x) {
    moves.from[step] = row_offset(arguments, i64(moves.from[step]));
    moves.to[step] = row_offset(arguments, i64(moves.to[step]));
  }
  __syncthreads();
  // Nodes ascend: from the first that is not in its place on, none is.
  u32 first = 0;
  while (first < u32(count) && moves.from[first] == moves.to[first]) first++;
  const u64 head_units = arguments.head_bytes / arguments.unit_bytes;
  const u64 units = head_units * arguments.heads;
  for (u64 unit = u64(blockIdx.z) * blockDim.x + threadIdx.x; unit < units;
       unit += u64(gridDim.z) * blockDim.x) {
    const u64 offset =
        unit / head_units * arguments.head_stride + unit % head_units * arguments.unit_bytes;
    u8 *base = reinterpret_cast<u8 *>(arguments.planes[plane] + offset);
    switch (arguments.unit_bytes) {
      case 16: move_unit<uint4>(base, moves, first, u32(count)); break;
      case 8: move_unit<u64>(base, moves, first, u32(count)); break;
      case 4: move_unit<u32>(base, moves, first, u32(count)); break;
      case 2: move_unit<u16>(base, moves, first, u32(count)); break;
      default: move_unit<u8>(base, moves, first, u32(count)); break;
    }
  }
}
