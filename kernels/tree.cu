// What is told of trees: links, depths, positions, the paths to leaves, and masks: what
// src/backend/cpu/tree.rs does. Nothing that the host's arrays say is trusted: a tree is sound if every
// parent comes before its child, so that going up ends at the root.
#include "device.cuh"

constexpr u32 most_nodes = 1024;

// As in src/tree/mask.rs.
constexpr u32 flag_size = 1, flag_parents = 2, flag_paths = 4;

// A sequence with more does not fit anywhere.
constexpr u64 most_elements = u64(1) << 31;

constexpr u64 most_position = 0x7fffffff;

// What the call does not have is NULL. Strides and sizes of the mask are in bytes, others in elements.
struct TreeArguments {
  const i32 *parents, *num_nodes, *position, *prefix_length;
  i32 *to_parents, *first_child, *next_sibling, *depth, *to_position;
  i64 *wide_position;
  i32 *paths, *num_paths, *flags, *mask_begin;
  u8 *mask;
  u64 parents_stride, position_stride, links_stride, wide_stride;
  u64 row_stride, sequence_stride;  // of a mask whose rows all have `columns` columns
  u64 columns;
  u64 capacity;  // of a ragged mask, in elements
  u32 max_nodes;
  u32 path_rows, path_length;
  u32 element_bytes;  // what stands for a column, or a word of bits
  u32 has_bits;
  u32 seen, unseen;  // elements that are not bits
  u32 is_ragged, has_prefix;
  u32 unused;
};
static_assert(sizeof(TreeArguments) == 23 * 8 + 10 * 4, "as in src/backend/cuda/tree.rs");

// What the arrays say of a sequence, before its parents are looked at.
struct Extent {
  u64 prefix;
  u32 nodes;  // 0: it takes no part, or something is out of range
  i32 position;
  u32 is_wrong;
};

DEVICE Extent extent_of(const TreeArguments &arguments, u32 sequence) {
  const Extent wrong = {0, 0, 0, 1};
  const u32 max_nodes = arguments.max_nodes;
  const i32 nodes =
      arguments.num_nodes != nullptr ? arguments.num_nodes[sequence] : i32(max_nodes);
  if (nodes <= 0) return Extent{0, 0, 0, 0};
  const i32 position = arguments.position != nullptr
                           ? arguments.position[sequence * arguments.position_stride]
                           : 0;
  if (u32(nodes) > max_nodes || position < 0) return wrong;
  if (u64(position) + u32(nodes) - 1 > most_position) return wrong;
  if (!arguments.has_prefix) return Extent{0, u32(nodes), position, 0};
  const i32 prefix =
      arguments.prefix_length != nullptr ? arguments.prefix_length[sequence] : position;
  if (prefix < 0) return wrong;
  if (!arguments.is_ragged && u64(prefix) + max_nodes > arguments.columns) return wrong;
  return Extent{u64(prefix), u32(nodes), position, 0};
}

DEVICE u64 ragged_elements(const TreeArguments &arguments, const Extent &extent) {
  const u64 columns = extent.nodes * (extent.prefix + extent.nodes);
  const u64 bits = 8 * arguments.element_bytes;
  return min(arguments.has_bits ? (columns + bits - 1) / bits : columns, most_elements);
}

// What a block knows of the nodes of its sequence.
struct Tree {
  i32 parents[most_nodes];
  u32 depth[most_nodes];
  u32 first_child[most_nodes];  // all bits set: there is none
  u32 leaves[most_nodes];       // ascending
  u64 elements_before;          // of the ragged masks of sequences before
  u32 num_leaves;
  u32 deepest;
};
constexpr u32 no_node = 0xffffffff;

// Where a sequence begins among ragged ones.
DEVICE u64 ragged_begin(const TreeArguments &arguments, u32 sequence, Tree &tree) {
  if (threadIdx.x == 0) tree.elements_before = 0;
  __syncthreads();
  u64 sum = 0;
  for (u32 other = threadIdx.x; other < sequence; other += blockDim.x) {
    sum += ragged_elements(arguments, extent_of(arguments, other));
  }
  if (sum != 0) atomicAdd(&tree.elements_before, sum);
  __syncthreads();
  return tree.elements_before;
}

// Whether the parents are those of a tree.
DEVICE bool load_parents(const TreeArguments &arguments, u32 sequence, u32 nodes, Tree &tree) {
  const i32 *parents = arguments.parents + sequence * arguments.parents_stride;
  bool is_wrong = false;
  for (u32 node = threadIdx.x; node < nodes; node += blockDim.x) {
    const i32 parent = parents[node];
    tree.parents[node] = parent;
    is_wrong |= node == 0 ? parent != -1 : u32(parent) >= node;
  }
  return __syncthreads_or(is_wrong) == 0;
}

// ---- Links and paths -----------------------------------------------------------------------------

DEVICE void find_links(u32 nodes, Tree &tree) {
  for (u32 node = threadIdx.x; node < nodes; node += blockDim.x) {
    tree.first_child[node] = no_node;
    u32 depth = 0;
    for (i32 above = tree.parents[node]; above >= 0; above = tree.parents[above]) depth++;
    tree.depth[node] = depth;
  }
  if (threadIdx.x == 0) tree.num_leaves = tree.deepest = 0;
  __syncthreads();
  for (u32 node = threadIdx.x; node < nodes; node += blockDim.x) {
    if (node != 0) atomicMin(&tree.first_child[tree.parents[node]], node);
    atomicMax(&tree.deepest, tree.depth[node]);
  }
  __syncthreads();
  for (u32 node = threadIdx.x; node < nodes; node += blockDim.x) {
    if (tree.first_child[node] != no_node) continue;
    u32 before = 0;
    for (u32 other = 0; other < node; other++) before += tree.first_child[other] == no_node;
    tree.leaves[before] = node;
    atomicAdd(&tree.num_leaves, 1u);
  }
  __syncthreads();
}

DEVICE i32 next_sibling(const Tree &tree, u32 node, u32 nodes) {
  for (u32 other = node + 1; other < nodes; other++) {
    if (tree.parents[other] == tree.parents[node]) return i32(other);
  }
  return -1;
}

template <class Element>
DEVICE void store(Element *row, u32 node, Element value) {
  if (row != nullptr) row[node] = value;
}

template <class Element>
DEVICE Element *row_of(Element *first, u64 stride, u32 sequence) {
  return first != nullptr ? first + stride * sequence : nullptr;
}

DEVICE void write_links(const TreeArguments &arguments, u32 sequence, i32 position, u32 nodes,
                        const Tree &tree) {
  const u64 stride = arguments.links_stride;
  i32 *parents = row_of(arguments.to_parents, stride, sequence);
  i32 *first_child = row_of(arguments.first_child, stride, sequence);
  i32 *sibling = row_of(arguments.next_sibling, stride, sequence);
  i32 *depth = row_of(arguments.depth, stride, sequence);
  i32 *positions = row_of(arguments.to_position, stride, sequence);
  i64 *wide = row_of(arguments.wide_position, arguments.wide_stride, sequence);
  for (u32 node = threadIdx.x; node < arguments.max_nodes; node += blockDim.x) {
    const bool is_node = node < nodes;
    const i32 level = is_node ? i32(tree.depth[node]) : 0;
    const i32 place = is_node ? position + level : 0;
    store(parents, node, is_node ? tree.parents[node] : -1);
    store(first_child, node, is_node ? i32(tree.first_child[node]) : -1);
    if (sibling != nullptr) sibling[node] = is_node ? next_sibling(tree, node, nodes) : -1;
    store(depth, node, level);
    store(positions, node, place);
    store(wide, node, i64(place));
  }
}

// A node of a path; -1 behind its leaf.
DEVICE i32 node_of_path(const Tree &tree, u32 path, u32 step) {
  const u32 leaf = tree.leaves[path], depth = tree.depth[leaf];
  if (step > depth) return -1;
  i32 node = i32(leaf);
  for (u32 level = depth; level > step; level--) node = tree.parents[node];
  return node;
}

// The blocks of the sequence share the elements.
DEVICE void write_paths(const TreeArguments &arguments, u32 sequence, u32 paths, const Tree &tree) {
  const u32 length = arguments.path_length;
  const u64 elements = u64(arguments.path_rows) * length;
  i32 *to = arguments.paths + sequence * elements;
  for (u64 i = u64(blockIdx.y) * blockDim.x + threadIdx.x; i < elements;
       i += u64(gridDim.y) * blockDim.x) {
    const u32 path = u32(i / length);
    to[i] = path < paths ? node_of_path(tree, path, u32(i % length)) : -1;
  }
}

// ---- Masks ---------------------------------------------------------------------------------------

// What the rows of a sequence see.
struct Sight {
  u64 prefix;
  u32 nodes;  // of a sound tree; rows from here on see themselves alone
};

DEVICE bool sees(const Sight &sight, const Tree &tree, u64 row, u64 column) {
  if (row >= sight.nodes) return column == sight.prefix + row;
  if (column < sight.prefix) return true;
  const u64 wanted = column - sight.prefix;
  i32 node = i32(row);
  while (node > i32(wanted)) node = tree.parents[node];
  return node == i32(wanted);
}

// Which of the columns from this one on are seen. They may go on in the next rows.
DEVICE u32 bits_of_unit(const Sight &sight, const Tree &tree, u64 row, u64 column, u64 width,
                        u32 columns) {
  u32 bits = 0;
  for (u32 i = 0; i < columns; i++) {
    if (sees(sight, tree, row, column)) bits |= 1u << i;
    if (++column == width) {
      column = 0;
      row++;
    }
  }
  return bits;
}

DEVICE void store_unit(const TreeArguments &arguments, u8 *to, u32 bits) {
  if (arguments.has_bits) {
    *to = u8(bits);
    return;
  }
  const u32 element = bits != 0 ? arguments.seen : arguments.unseen;
  switch (arguments.element_bytes) {
    case 1: *to = u8(element); break;
    case 2: *reinterpret_cast<u16 *>(to) = u16(element); break;
    default: *reinterpret_cast<u32 *>(to) = element; break;
  }
}

// `rows` rows of `width` columns, without a gap between them where they are ragged. The blocks of the
// sequence share the units: bytes of bits, or elements.
DEVICE void write_mask(const TreeArguments &arguments, u8 *to, u64 rows, u64 width,
                       const Sight &sight, const Tree &tree) {
  const u32 unit_bytes = arguments.has_bits ? 1 : arguments.element_bytes;
  const u32 unit_columns = arguments.has_bits ? 8 : 1;
  // A row of units: all that is ragged is one.
  const u64 run = arguments.is_ragged ? rows * width : width;
  const u64 word = 8 * arguments.element_bytes;
  const u64 units =
      arguments.has_bits ? (run + word - 1) / word * arguments.element_bytes : run;
  const u64 all = arguments.is_ragged ? units : rows * units;
  for (u64 i = u64(blockIdx.y) * blockDim.x + threadIdx.x; i < all;
       i += u64(gridDim.y) * blockDim.x) {
    const u64 unit = i % units;
    const u64 first = unit * unit_columns;
    const u32 columns = first < run ? u32(min(u64(unit_columns), run - first)) : 0;
    const u64 row = i / units + (arguments.is_ragged ? first / width : 0);
    const u32 bits = bits_of_unit(sight, tree, row, first % width, width, columns);
    store_unit(arguments, to + i / units * arguments.row_stride + unit * unit_bytes, bits);
  }
}

// The blocks of a row of the grid share a sequence.
KERNEL(256, mask_trees, TreeArguments) {
  __shared__ Tree tree;
  const u32 sequence = blockIdx.x;
  const bool is_first = blockIdx.y == 0;
  Extent extent = extent_of(arguments, sequence);
  u64 begin = 0;
  if (arguments.is_ragged) {
    begin = ragged_begin(arguments, sequence, tree);
    const u64 end = begin + ragged_elements(arguments, extent);
    if (is_first && threadIdx.x == 0 && arguments.mask_begin != nullptr) {
      arguments.mask_begin[sequence] = i32(min(begin, arguments.capacity));
      const bool is_last = sequence == gridDim.x - 1;
      if (is_last) arguments.mask_begin[sequence + 1] = i32(min(end, arguments.capacity));
    }
    if (begin != end && end > arguments.capacity) extent = Extent{0, 0, 0, 1};
  }
  const bool is_sound = load_parents(arguments, sequence, extent.nodes, tree);
  const u32 nodes = is_sound ? extent.nodes : 0;
  const bool has_paths = arguments.paths != nullptr;
  if (is_first || has_paths) find_links(nodes, tree);
  const bool fits = !has_paths || (tree.num_leaves <= arguments.path_rows &&
                                   tree.deepest < arguments.path_length);
  if (has_paths) write_paths(arguments, sequence, fits ? tree.num_leaves : 0, tree);
  if (is_first) {
    write_links(arguments, sequence, extent.position, nodes, tree);
    if (threadIdx.x == 0) {
      const u32 flags = (extent.is_wrong ? flag_size : 0) | (is_sound ? 0 : flag_parents) |
                        (fits ? 0 : flag_paths);
      store(arguments.num_paths, sequence, fits ? i32(tree.num_leaves) : 0);
      store(arguments.flags, sequence, i32(flags));
    }
  }
  if (arguments.mask == nullptr) return;
  const Sight sight = {extent.prefix, nodes};
  if (arguments.is_ragged) {
    u8 *to = arguments.mask + begin * arguments.element_bytes;
    const u64 width = extent.prefix + extent.nodes;
    if (width != 0) write_mask(arguments, to, extent.nodes, width, sight, tree);
  } else {
    u8 *to = arguments.mask + sequence * arguments.sequence_stride;
    write_mask(arguments, to, arguments.max_nodes, arguments.columns, sight, tree);
  }
}
