// The phases that draft trees; src/backend/draft_trees.rs says what each of them computes.
#include "draw.cuh"
#include "rows.cuh"

constexpr u32 tree_threads = 256;
constexpr u32 tree_warps = tree_threads / warp_lanes;
// The most nodes of a tree, and the most children of a node.
constexpr u32 most_nodes = 1024;
constexpr u32 most_children = 256;
constexpr i32 no_node = -1;

// ---- Given shapes --------------------------------------------------------------------------------

struct ShapeArguments {
  u64 tables;
  u32 nodes;
  u32 stride;  // elements from one table to the next
  u16 parents[most_nodes];
};
static_assert(sizeof(ShapeArguments) == 2064, "as in src/backend/cuda/draft_trees.rs");

// What follows from the parents of a tree by level, one element for each node: tables that lie behind each
// other.
struct Shape {
  i32 *first;
  u32 stride;

  DEVICE i32 *table(u32 index) const { return first + index * stride; }
  DEVICE i32 *parents() const { return table(0); }
  DEVICE i32 *first_child() const { return table(1); }
  DEVICE i32 *next_sibling() const { return table(2); }
  DEVICE i32 *depth() const { return table(3); }
  // The number of a node among those with children.
  DEVICE i32 *number() const { return table(4); }
  // The node with a number.
  DEVICE i32 *inner() const { return table(5); }
  // How many drafts lie no deeper than a depth.
  DEVICE i32 *within() const { return table(6); }
};

// The only block of its launch; each thread has a node.
KERNEL(1024, store_shape, ShapeArguments) {
  __shared__ u16 parents[most_nodes];
  __shared__ u16 depths[most_nodes];
  __shared__ u32 first_child[most_nodes];
  __shared__ u32 inner_of_warp[most_nodes / warp_lanes];
  const u32 node = threadIdx.x, nodes = arguments.nodes;
  const bool is_there = node < nodes;
  if (is_there) {
    parents[node] = arguments.parents[node];
    first_child[node] = ~0u;
  }
  __syncthreads();
  u32 depth = 0;
  i32 next = no_node;
  if (is_there && node != 0) {
    atomicMin(&first_child[parents[node]], node);
    for (u32 above = node; above != 0; above = parents[above]) depth++;
    for (u32 other = node + 1; other < nodes && next == no_node; other++) {
      if (parents[other] == parents[node]) next = i32(other);
    }
  }
  if (is_there) depths[node] = u16(depth);
  __syncthreads();
  const bool is_inner = is_there && first_child[node] != ~0u;
  const u32 lanes = __ballot_sync(all_lanes, is_inner);
  if (lane_index() == 0) inner_of_warp[warp_index()] = __popc(lanes);
  __syncthreads();
  if (!is_there) return;
  u32 number = __popc(lanes & ((1u << lane_index()) - 1));
  for (u32 warp = 0; warp < warp_index(); warp++) number += inner_of_warp[warp];
  const Shape shape = {reinterpret_cast<i32 *>(arguments.tables), arguments.stride};
  shape.parents()[node] = node == 0 ? no_node : i32(parents[node]);
  shape.first_child()[node] = is_inner ? i32(first_child[node]) : no_node;
  shape.next_sibling()[node] = next;
  shape.depth()[node] = i32(depth);
  shape.number()[node] = is_inner ? i32(number) : no_node;
  if (is_inner) shape.inner()[number] = i32(node);
  if (node + 1 == nodes || depths[node + 1] != depth) shape.within()[depth] = i32(node);
  // Depths that no node has.
  if (node > depths[nodes - 1]) shape.within()[node] = i32(nodes - 1);
}

// ---- Levels --------------------------------------------------------------------------------------

struct Level {
  RowCount rows;
  RowArrays of;
  i32 *paths;  // of each row the slots from below the root to itself
  u32 width;   // rows of a tree
  u32 depth;   // of the rows' nodes
  u32 stride;  // elements from one path to the next; 0: there are none
  u32 slots;   // of a tree
  u32 first_slot;  // of the level
  u32 shared;  // rows that share a law, one after the other

  DEVICE u32 trees() const { return count_rows(rows) / width; }
  DEVICE u32 laws() const { return count_rows(rows) / shared; }
  DEVICE u32 slot(u32 row) const { return row / width * slots + first_slot + row % width; }
};
static_assert(sizeof(Level) == 96, "as in src/backend/cuda/draft_trees.rs");

// Lays out a row of the next level, by one thread.
DEVICE void continue_row(const Level &level, u32 parent, const Level &next, u32 to, i32 token) {
  next.of.sequence[to] = level.of.sequence[parent];
  next.of.position[to] = level.of.position[parent] + 1;
  // The host's rope positions are any numbers.
  next.of.rope_position[to] = i32(u32(level.of.rope_position[parent]) + 1);
  next.of.token[to] = token;
  next.of.source[to] = i32(parent);
  const i32 *above = level.paths + u64(parent) * level.stride;
  i32 *path = next.paths + u64(to) * next.stride;
  for (u32 depth = 0; depth < min(level.depth, next.stride); depth++) path[depth] = above[depth];
  if (next.stride != 0) path[level.depth] = i32(next.slot(to));
}

// A level of a tree whose shape is given.
struct FixedLevel {
  Level level;
  Shape shape;
  const i32 *num_drafts;
  const i32 *drafting;
  i32 *draft_tokens;
  u64 draft_tokens_stride;
  u32 first_number;  // of the level's nodes
  u32 max_drafts;
};
static_assert(sizeof(FixedLevel) == 152, "as in src/backend/cuda/draft_trees.rs");

// A row of a level with what is known of its node.
struct Parent {
  u32 sequence;
  u32 node;
  i32 drafts;  // that the sequence proposes
  bool is_there;  // whether there is a token for the node

  DEVICE bool proposes(i32 child) const { return child != no_node && child <= drafts; }
};

DEVICE Parent parent_of(const FixedLevel &fixed, u32 row) {
  const Level &level = fixed.level;
  const u32 sequence = u32(level.of.sequence[row]);
  const u32 node = u32(fixed.shape.inner()[fixed.first_number + row % level.width]);
  const i32 *tokens = fixed.draft_tokens + sequence * fixed.draft_tokens_stride;
  return Parent{sequence, node, fixed.num_drafts[sequence], node == 0 || tokens[node - 1] >= 0};
}

// The tokens of the children of the rows of each law.
struct ChildTokens {
  i32 *ids;       // [laws, count]
  Matrix values;  // [laws, count]
  ColumnTokens tokens;

  // The token of a rank, if there is a candidate for it; otherwise -1.
  DEVICE i32 token(u32 law, u32 rank) const {
    const u32 count = values.columns;
    if (rank >= count) return -1;
    if (rank > 0 && !(f32_row(values, law)[rank] > -infinity())) return -1;
    const i32 column = ids[u64(law) * count + rank];
    return tokens.ids != nullptr ? tokens.table(law)[column] : column;
  }
};
static_assert(sizeof(ChildTokens) == 64, "as in src/backend/cuda/draft_trees.rs");

struct TellArguments {
  FixedLevel fixed;
  Matrix draft_logits;  // of the host, if it wants them
  Matrix logits;
  ColumnTokens candidates;
  i32 *draft_candidates;  // the same, with as many columns; or NULL
};
static_assert(sizeof(TellArguments) == 248, "as in src/backend/cuda/draft_trees.rs");

// The blocks of a law share its columns; each thread has the same ones for all rows.
KERNEL(256, tell_logits, TellArguments) {
  const FixedLevel &fixed = arguments.fixed;
  const u32 law = blockIdx.x, shared = fixed.level.shared;
  if (law >= fixed.level.laws()) return;
  const Matrix &wanted = arguments.draft_logits;
  const u32 columns = arguments.logits.columns;
  f32 *logits = f32_row(arguments.logits, law);
#pragma unroll 1
  for (u32 row = law * shared; row < (law + 1) * shared; row++) {
    const Parent parent = parent_of(fixed, row);
    if (!parent.is_there || !parent.proposes(fixed.shape.first_child()[parent.node])) continue;
    const u64 wanted_row = u64(parent.sequence) * fixed.max_drafts + parent.node;
    const u64 to = row_address(wanted, wanted_row);
    i32 *ids = arguments.draft_candidates;
    for (u32 column = blockIdx.y * blockDim.x + threadIdx.x; column < columns;
         column += gridDim.y * blockDim.x) {
      if (ids != nullptr) ids[wanted_row * columns + column] = arguments.candidates.table(law)[column];
      if (wanted.address == 0) continue;
      const f32 logit = logits[column];
      store_element(to, wanted.dtype, column, logit);
      logits[column] = rounded_to(wanted.dtype, logit);
    }
  }
}

// The scratch of a law: behind what a proposal keeps there between launches, a sum and a peak for each tile.
struct RowScratch {
  u64 first;
  u64 row_bytes;

  DEVICE u64 *sums(u32 row) const { return reinterpret_cast<u64 *>(first + row * row_bytes) + 2; }
  DEVICE f32 *peaks(u32 row, u32 columns) const {
    return reinterpret_cast<f32 *>(sums(row) + tiles_of(columns));
  }
};

DEVICE Row row_of(const Matrix &logits, u32 row) {
  return Row{reinterpret_cast<const u8 *>(row_address(logits, row)), nullptr, dtype_f32, 0,
             logits.columns};
}

struct DrawArguments {
  FixedLevel fixed;
  Sampling sampling;
  Matrix logits;
  ChildTokens children;
  RowScratch scratch;
  u32 distance;  // positions from a row to its children
  u32 padding;
};
static_assert(sizeof(DrawArguments) == 312, "as in src/backend/cuda/draft_trees.rs");

struct DrawScratch {
  LawScratch<tree_threads> law;
  u32 taken[most_children];
  u32 count;  // children to draw
  u64 left;   // of the sum of the weights
};

// Draws the child of a rank, for all threads of the block; no_column if no weight is left.
DEVICE u32 draw_sibling(const Row &row, const Slice &slice, const Law &law, u64 number, u32 rank,
                        DrawScratch &scratch) {
  if (scratch.left == 0) return no_column;
  // Every warp draws the same. A share of what is left is less than that.
  u64 target = u64(scaled(number, scratch.left));
  const u32 tile = seek(slice.sums, slice.tiles(), target);
  const u32 column = seek_in_tile(tile, target, [&](u32 place) {
    for (u32 i = 0; i < rank; i++) {
      if (scratch.taken[i] == place) return u64(0);
    }
    return weight_of(law, candidate_at(row, place), place);
  });
  __syncthreads();  // all have drawn
  if (threadIdx.x == 0) {
    const u64 weight = weight_of(law, candidate_at(row, column), column);
    scratch.taken[rank] = column;
    scratch.left -= weight;
    slice.sums[column / tile_logits] -= weight;
  }
  __syncthreads();
  return column;
}

// Counts the most children that a row of a law has, at most `most`.
DEVICE void count_children(const FixedLevel &fixed, u32 law, u32 most, u32 &largest) {
  if (threadIdx.x == 0) largest = 0;
  __syncthreads();
  const u32 shared = fixed.level.shared;
  for (u32 number = threadIdx.x; number < shared; number += blockDim.x) {
    const Parent parent = parent_of(fixed, law * shared + number);
    i32 child = fixed.shape.first_child()[parent.node];
    u32 count = 0;
    for (; parent.proposes(child) && count < most; child = fixed.shape.next_sibling()[child]) count++;
    atomicMax(&largest, count);
  }
  __syncthreads();
}

// Each block has a law.
KERNEL_RESIDENT(256, 2, draw_siblings, DrawArguments) {
  __shared__ DrawScratch scratch;
  const FixedLevel &fixed = arguments.fixed;
  const u32 index = blockIdx.x;
  if (index >= fixed.level.laws()) return;
  const u32 row = index * fixed.level.shared;
  const u32 sequence = u32(fixed.level.of.sequence[row]);
  const Parameters parameters = parameters_of(arguments.sampling, sequence);
  if (is_greedy(parameters)) return;
  const u32 columns = arguments.logits.columns, most = arguments.children.values.columns;
  count_children(fixed, index, most, scratch.count);
  const Row logits = row_of(arguments.logits, index);
  const Slice slice{0, tiles_of(columns), arguments.scratch.peaks(index, columns),
                    arguments.scratch.sums(index)};
  Team team = Team::alone();
  scan(logits, slice, team, scratch.law);
  if (!scratch.law.peaks.has_candidate()) return;
  const Law law = weigh(logits, slice, parameters, no_column, team, scratch.law).law;
  if (threadIdx.x == 0) scratch.left = law.sum;
  __syncthreads();
  i32 *ids = arguments.children.ids + u64(index) * most;
  f32 *values = f32_row(arguments.children.values, index);
  const i64 position = i64(fixed.level.of.position[row]) + arguments.distance;
  for (u32 rank = 0; rank < scratch.count; rank++) {
    const u64 number =
        number_of(arguments.sampling, sequence, position, fixed.level.depth, rank);
    const u32 column = draw_sibling(logits, slice, law, number, rank, scratch);
    if (threadIdx.x == 0) {
      if (column != no_column) ids[rank] = i32(column);
      values[rank] = column != no_column ? 0.0f : -infinity();
    }
  }
}

struct BranchArguments {
  FixedLevel fixed;
  ChildTokens children;
  Level next;         // of width 0 if there is none
  u32 first_child;    // the nodes of the next level
  u32 last_child;
  u32 first_grandchild;  // the first node below them
  u32 next_number;       // of the first node with children on the next level
};
static_assert(sizeof(BranchArguments) == 328, "as in src/backend/cuda/draft_trees.rs");

// Each warp has a row, and looks for its children among the nodes of the next level.
KERNEL(256, branch_rows, BranchArguments) {
  const FixedLevel &fixed = arguments.fixed;
  const Level &level = fixed.level, &next = arguments.next;
  // A node is there if more drafts are proposed than stand before it.
  const u32 trees = next.width != 0 ? u32(fixed.drafting[arguments.first_grandchild - 1]) : 0;
  if (blockIdx.x == 0 && threadIdx.x == 0 && next.width != 0) {
    *next.of.count = i32(trees * next.width);
  }
  const u32 row = blockIdx.x * tree_warps + warp_index();
  if (row >= count_rows(level.rows)) return;
  const Parent parent = parent_of(fixed, row);
  i32 *tokens = fixed.draft_tokens + parent.sequence * fixed.draft_tokens_stride;
  u32 siblings = 0;
  for (u32 first = arguments.first_child; first <= arguments.last_child; first += warp_lanes) {
    const u32 child = first + lane_index();
    const bool is_child = child <= arguments.last_child && i32(child) <= parent.drafts &&
                          fixed.shape.parents()[child] == i32(parent.node);
    const u32 lanes = __ballot_sync(all_lanes, is_child);
    const u32 rank = siblings + __popc(lanes & ((1u << lane_index()) - 1));
    siblings += __popc(lanes);
    if (!is_child) continue;
    const i32 token = parent.is_there ? arguments.children.token(row / level.shared, rank) : -1;
    tokens[child - 1] = token;
    const i32 number = fixed.shape.number()[child];
    const u32 tree = row / level.width;
    if (number == no_node || tree >= trees) continue;
    const u32 to = tree * next.width + u32(number) - arguments.next_number;
    continue_row(level, row, next, to, max(token, 0));
  }
}

// ---- Dynamic trees -------------------------------------------------------------------------------

// The candidates of all trees.
struct Pool {
  i32 *tokens;
  f32 *scores;
  i32 *expanded;  // of each slot the candidate that its node is
  i32 *order;     // scratch
  u32 width;
  u32 stride;  // candidates of a tree

  DEVICE u32 first(u32 depth) const { return depth == 1 ? 0 : width + (depth - 2) * width * width; }
  DEVICE u32 len(u32 depth) const { return depth == 1 ? width : width * width; }
};
static_assert(sizeof(Pool) == 40, "as in src/backend/cuda/draft_trees.rs");

struct ScoreArguments {
  Level level;
  Pool pool;
  const i32 *depth;  // how deep the tree of each sequence may be
  Matrix logits;
  ChildTokens children;
  RowScratch scratch;
};
static_assert(sizeof(ScoreArguments) == 256, "as in src/backend/cuda/draft_trees.rs");

// The score of a child with a logit, of which the largest in its row is `largest`.
DEVICE f32 score_below(f32 parent, f32 logit, f32 largest, u64 sum) {
  constexpr f32 log2_e = 1.44269504f;
  constexpr i64 one = i64(42) << 32;
  // Where the largest is +inf, all that are it are equal.
  const f32 behind = logit == largest ? 0.0f : subtract_rn(logit, largest);
  const f32 of_sum = multiply_rn(f32(log2_digits(sum, all_digits) - one), 2.3283064365386963e-10f);  // 2^-32
  return add_rn(parent, subtract_rn(multiply_rn(behind, log2_e), of_sum));
}

// Each block has a law.
KERNEL_RESIDENT(256, 2, score_children, ScoreArguments) {
  __shared__ LawScratch<tree_threads> scratch;
  const Level &level = arguments.level;
  const Pool &pool = arguments.pool;
  const u32 law = blockIdx.x, shared = level.shared;
  if (law >= level.laws()) return;
  const u32 tree = law * shared / level.width, depth = level.depth + 1;
  const u32 columns = arguments.logits.columns;
  const Row logits = row_of(arguments.logits, law);
  const Slice slice{0, tiles_of(columns), arguments.scratch.peaks(law, columns),
                    arguments.scratch.sums(law)};
  Team team = Team::alone();
  scan(logits, slice, team, scratch);
  const bool is_too_deep = i32(depth) > arguments.depth[level.of.sequence[law * shared]];
  const bool is_scored = scratch.peaks.has_candidate() && !is_too_deep;
  u64 sum = weight_one;
  if (is_scored) {
    const Parameters plain = {1.0f, 0, 1.0f, 0.0f};
    sum = weigh(logits, slice, plain, no_column, team, scratch).law.sum;
  }
  const u64 of_tree = u64(tree) * pool.stride;
  const f32 *values = f32_row(arguments.children.values, law);
  for (u32 i = threadIdx.x; i < shared * pool.width; i += blockDim.x) {
    const u32 row = law * shared + i / pool.width, rank = i % pool.width;
    const f32 parent =
        level.depth == 0 ? 0.0f : pool.scores[of_tree + u32(pool.expanded[level.slot(row)])];
    const f32 value = rank < arguments.children.values.columns ? values[rank] : -infinity();
    const u64 to = of_tree + pool.first(depth) + row % level.width * pool.width + rank;
    pool.tokens[to] = max(arguments.children.token(law, rank), 0);
    pool.scores[to] = is_scored ? score_below(parent, value, values[0], sum) : -infinity();
  }
}

struct ExpandArguments {
  Level level;
  Level next;
  Pool pool;
};
static_assert(sizeof(ExpandArguments) == 232, "as in src/backend/cuda/draft_trees.rs");

DEVICE u64 block_max_key(u64 key, u64 (&of_warp)[tree_warps]) {
  key = warp_max_key(key);
  if (lane_index() == 0) of_warp[warp_index()] = key;
  __syncthreads();
  key = warp_max_key(of_warp[lane_index() % tree_warps]);
  __syncthreads();  // the next maximum may write
  return key;
}

// Each block has a tree, and takes one candidate after the other.
KERNEL(256, expand_best, ExpandArguments) {
  __shared__ u64 of_warp[tree_warps];
  __shared__ u32 best[most_children];
  const Level &level = arguments.level, &next = arguments.next;
  const Pool &pool = arguments.pool;
  const u32 tree = blockIdx.x, trees = level.trees();
  if (tree == 0 && threadIdx.x == 0) *next.of.count = i32(trees * next.width);
  if (tree >= trees) return;
  const u32 first = pool.first(next.depth), len = pool.len(next.depth);
  const u64 of_tree = u64(tree) * pool.stride;
  const f32 *scores = pool.scores + of_tree + first;
  u64 last = ~u64(0);
  for (u32 number = 0; number < next.width; number++) {
    u64 key = 0;
    for (u32 i = threadIdx.x; i < len; i += blockDim.x) {
      const u64 own = key_of_candidate(scores[i], i);
      if (own < last && own > key) key = own;
    }
    last = block_max_key(key, of_warp);
    if (threadIdx.x == 0) best[number] = column_of_candidate(last);
  }
  __syncthreads();
  for (u32 number = threadIdx.x; number < next.width; number += blockDim.x) {
    const u32 to = tree * next.width + number, candidate = first + best[number];
    pool.expanded[next.slot(to)] = i32(candidate);
    const u32 parent = tree * level.width + best[number] / pool.width;
    continue_row(level, parent, next, to, pool.tokens[of_tree + candidate]);
  }
}

// Where the host wants to know the trees; what is not wanted is NULL.
struct Links {
  i32 *parents;
  i32 *first_child;
  i32 *next_sibling;
  i32 *depth;
  i32 *position;
  u64 stride;

  // Writes a node, or that it is not there.
  DEVICE void write(u64 place, bool is_there, i32 parent, i32 child, i32 sibling, i32 deep,
                    i32 root) const {
    if (parents != nullptr) parents[place] = is_there ? parent : no_node;
    if (first_child != nullptr) first_child[place] = is_there ? child : no_node;
    if (next_sibling != nullptr) next_sibling[place] = is_there ? sibling : no_node;
    if (depth != nullptr) depth[place] = is_there ? deep : 0;
    if (position != nullptr) position[place] = is_there ? i32(u32(root) + u32(deep)) : 0;
  }
};
static_assert(sizeof(Links) == 48, "as in src/backend/cuda/draft_trees.rs");

struct RankArguments {
  Level level;
  Pool pool;
  i32 *num_drafts;
  i32 *num_proposed;  // or NULL
  i32 *draft_tokens;
  u64 draft_tokens_stride;
  const i32 *position;
  u64 position_stride;
  Links links;
  u32 max_drafts;
  u32 padding;
};
static_assert(sizeof(RankArguments) == 240, "as in src/backend/cuda/draft_trees.rs");

struct RankScratch {
  u16 parents[most_nodes];
  u16 first_child[most_nodes];  // 0: none
  u16 depth[most_nodes];
  u32 of_warp[tree_warps];
};

// How many candidates have a key from a bound on.
DEVICE u32 count_from(const f32 *scores, u32 candidates, u64 bound) {
  u32 count = 0;
  for (u32 first = 0; first < candidates; first += tree_threads) {
    const u32 i = first + threadIdx.x;
    const bool is_in = i < candidates && key_of_candidate(scores[i], i) >= bound;
    count += u32(__syncthreads_count(is_in));
  }
  return count;
}

// The bound from which on as many candidates are left as are wanted, or all that there are.
DEVICE u64 bound_of_best(const f32 *scores, u32 candidates, u32 wanted) {
  // Behind the keys of what is no candidate.
  u64 low = u64(order(-infinity()) + 1) << 32, high = ~u64(0);
  u32 count = count_from(scores, candidates, low);
  u64 bound = low;
  // As keys differ, there is a bound that leaves neither too many nor too few.
  while (count > wanted || (count < wanted && bound != low)) {
    if (count > wanted) {
      low = bound;
    } else {
      high = bound;
    }
    bound = low + (high - low) / 2;
    count = count_from(scores, candidates, bound);
  }
  return bound;
}

// Numbers the candidates from a bound on as nodes, in their order; the others are 0. Returns how many there
// are.
DEVICE u32 number_nodes(const f32 *scores, u32 candidates, u64 bound, i32 *nodes,
                        u32 (&of_warp)[tree_warps]) {
  u32 before = 0;
  for (u32 first = 0; first < candidates; first += tree_threads) {
    const u32 i = first + threadIdx.x;
    const bool is_in = i < candidates && key_of_candidate(scores[i], i) >= bound;
    const u32 lanes = __ballot_sync(all_lanes, is_in);
    if (lane_index() == 0) of_warp[warp_index()] = __popc(lanes);
    __syncthreads();
    u32 node = before + __popc(lanes & ((1u << lane_index()) - 1)) + 1;
    for (u32 warp = 0; warp < tree_warps; warp++) {
      node += warp < warp_index() ? of_warp[warp] : 0;
      before += of_warp[warp];
    }
    if (i < candidates) nodes[i] = is_in ? i32(node) : 0;
    __syncthreads();  // the next counts may be written
  }
  return before;
}

// Each block has a tree.
KERNEL(256, rank_candidates, RankArguments) {
  __shared__ RankScratch scratch;
  const Level &level = arguments.level;
  const Pool &pool = arguments.pool;
  const u32 tree = blockIdx.x;
  if (tree >= level.trees()) return;
  const u32 sequence = u32(level.of.sequence[tree * level.width]);
  const u32 candidates = pool.first(level.depth + 1) + pool.len(level.depth + 1);
  const u64 of_tree = u64(tree) * pool.stride;
  const f32 *scores = pool.scores + of_tree;
  i32 *nodes = pool.order + of_tree;
  const u32 wanted = u32(arguments.num_drafts[sequence]);
  const u64 bound = bound_of_best(scores, candidates, wanted);
  const u32 drafts = number_nodes(scores, candidates, bound, nodes, scratch.of_warp);
  for (u32 node = threadIdx.x; node <= drafts; node += blockDim.x) {
    scratch.first_child[node] = 0;
    scratch.parents[node] = scratch.depth[node] = 0;
  }
  __syncthreads();
  i32 *tokens = arguments.draft_tokens + sequence * arguments.draft_tokens_stride;
  for (u32 i = threadIdx.x; i < candidates; i += blockDim.x) {
    const u32 node = u32(nodes[i]);
    if (node == 0) continue;
    tokens[node - 1] = pool.tokens[of_tree + i];
    if (i < pool.width) {
      scratch.depth[node] = 1;
      continue;
    }
    // Slots are in the order of the expanded nodes, and so are their children.
    const u32 slot = (i - pool.width) / pool.width;
    scratch.parents[node] = u16(nodes[pool.expanded[u64(tree) * level.slots + slot]]);
    scratch.depth[node] = u16(2 + slot / pool.width);
  }
  __syncthreads();
  // Siblings are neighbours.
  for (u32 node = 1 + threadIdx.x; node <= drafts; node += blockDim.x) {
    const u16 parent = scratch.parents[node];
    if (node == 1 || scratch.parents[node - 1] != parent) scratch.first_child[parent] = u16(node);
  }
  __syncthreads();
  const i32 root = arguments.position[sequence * arguments.position_stride];
  for (u32 node = threadIdx.x; node <= arguments.max_drafts; node += blockDim.x) {
    const bool is_there = node <= drafts;
    const u32 parent = is_there ? scratch.parents[node] : 0, child = is_there ? scratch.first_child[node] : 0;
    const bool has_sibling = is_there && node != 0 && node < drafts && scratch.parents[node + 1] == parent;
    arguments.links.write(sequence * arguments.links.stride + node, is_there,
                         node == 0 ? no_node : i32(parent), child != 0 ? i32(child) : no_node,
                         has_sibling ? i32(node + 1) : no_node,
                         is_there ? i32(scratch.depth[node]) : 0, root);
  }
  if (threadIdx.x == 0) {
    arguments.num_drafts[sequence] = i32(drafts);
    if (arguments.num_proposed != nullptr) arguments.num_proposed[sequence] = i32(drafts);
  }
}

// ---- What the host wants to know -----------------------------------------------------------------

enum Described : u32 { described_chain = 0, described_shape = 1, described_root = 2 };

struct DescribeArguments {
  Shape shape;
  const i32 *num_drafts;
  const i32 *position;
  u64 position_stride;
  Links links;
  u32 max_drafts;
  u32 what;
};
static_assert(sizeof(DescribeArguments) == 96, "as in src/backend/cuda/draft_trees.rs");

// Each block has a sequence.
KERNEL(256, describe_tree, DescribeArguments) {
  const u32 sequence = blockIdx.x;
  const i32 root = arguments.position[sequence * arguments.position_stride];
  const i32 drafts = arguments.what == described_root ? 0 : arguments.num_drafts[sequence];
  for (u32 node = threadIdx.x; node <= arguments.max_drafts; node += blockDim.x) {
    const bool is_there = i32(node) <= drafts;
    i32 parent = i32(node) - 1, child = i32(node) + 1, sibling = no_node, depth = i32(node);
    if (arguments.what == described_shape && is_there) {
      parent = arguments.shape.parents()[node];
      child = arguments.shape.first_child()[node];
      sibling = arguments.shape.next_sibling()[node];
      depth = arguments.shape.depth()[node];
    }
    arguments.links.write(sequence * arguments.links.stride + node, is_there, parent,
                         child <= drafts ? child : no_node, sibling <= drafts ? sibling : no_node,
                         depth, root);
  }
}
