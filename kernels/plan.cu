// Checks the arrays of a drafting call and lays out its rows: what src/backend/cpu/plan.rs does, by one
// block. Nothing that the host's arrays say is trusted, and what has passed is kept in the plan, so
// that the kernels after this one read the host's arrays no more, the tables of pages excepted.
//
// Sequences are taken in tiles, one for each thread. In a tile, first each thread looks at its own
// sequence, then all threads share the rows and the pages of the tile.
#include "rows.cuh"

constexpr u32 most_threads = 1024;
// The host has this many threads at least.
constexpr u32 most_classes = 1024;

// As in src/backend/phases.rs.
enum Fault : u32 {
  fault_none = 0,
  fault_rows = 1,
  fault_position = 2,
  fault_page = 3,
  fault_token = 4,
  fault_too_many_rows = 5,
};

// One element for each sequence, `stride` elements apart.
struct Column {
  i32 *first;
  u64 stride;

  DEVICE bool is_there() const { return first != nullptr; }
  DEVICE i32 *row(u32 sequence) const { return first + sequence * stride; }
};

// Arrays that the call does not have are NULL.
struct PlanArguments {
  Column position, row_count, next_token;
  Column row_index;
  Column block_table;
  Column draft_tokens;
  const i32 *row_begin;
  const i32 *wanted_drafts;
  const i32 *limit;
  const i32 *context_begin;
  const i32 *slot;
  const i32 *slot_pages;
  const i32 *tokens;
  const i32 *rope_position;
  i32 *num_proposed;
  RowArrays commit, draft;
  i32 *drafting;
  i32 *num_drafts;
  i32 *page_row;
  u64 *fault;  // its number in the low half, its sequence in the high one
  u32 num_sequences;
  u32 num_rows;
  u32 most_rows;  // to commit
  u32 max_drafts;   // of the call
  u32 most_drafts;  // of the kind, no more than those
  u32 max_position;
  u32 vocabulary;
  u32 num_slots;
  u32 pages_per_slot;
  u32 num_pages;
  u32 page_size;
  i32 padding_token;
  u32 has_embeddings;
  u32 drafts_in_pages;  // whether drafts take pages behind those of the committed rows
  u32 reads_own_tokens;  // rows go with their own tokens, and next tokens have rows
  u32 tree_nodes;  // 0: chains are drafted
  u32 tree_depth;  // of dynamic trees; 0: the shape is given
  u32 most_depth;  // of the kind
  i32 *depth;      // how deep the tree of each sequence may be, written where trees are dynamic
  const i32 *within;  // how many drafts of the given shape lie no deeper than each depth
};
static_assert(sizeof(PlanArguments) == 384, "as in src/backend/cuda/plan.rs");

// The sequences of a tile. What is found wrong with a row or a page of a sequence is kept as the number
// of the row and the fault in the lowest bits, so that the smallest is the first.
struct Tile {
  u64 page_end[most_threads];    // pages to check, summed up to this sequence
  u32 page_begin[most_threads];  // the first entry to check in the table
  u32 row_end[most_threads];     // rows to lay out, summed up to this sequence
  u32 rows[most_threads];        // what the sequence asks for, and the marks below
  u32 first_row[most_threads];   // its first row of the call, and the mark below
  u32 position[most_threads];    // of its first row, and the mark below
  i32 next_token[most_threads];
  u32 wrong[most_threads];
  u64 of_warp[most_threads / warp_lanes];
  u32 committed;  // rows of the call
};
constexpr u32 is_faulty = 0x80000000, does_not_fit = 0x40000000;  // marks of `rows`
constexpr u32 is_contiguous = 0x80000000;                         // the mark of `first_row`
constexpr u32 has_next_row = 0x80000000;  // the mark of `position`: the next token has a row, too

constexpr u32 fault_bits = 3;
constexpr u32 nothing_wrong = 0xffffffff;
constexpr u32 wrong_page = 0xfffffff8 | fault_page;  // behind all rows

// What a thread knows of its sequence.
struct Sequence {
  u32 rows;      // of the call; 0 where it takes no part
  u32 next_row;  // 1 where the next token has a row, too
  u32 fault;     // what is known to be wrong
  u32 fault_behind_rows;  // what is wrong if the rows are not
  u32 drafts;
  u32 page_row;
  u32 pages;  // to check
};

DEVICE bool is_below(i32 value, u32 bound) { return u32(value) < bound; }

// ---- Over the block ------------------------------------------------------------------------------

// The sum of the values of the threads up to this one, and of all. The block must meet before it asks
// for the next sums.
struct Prefix {
  u64 sum, all;
};
DEVICE Prefix block_prefix(u64 value, u64 (&of_warp)[most_threads / warp_lanes]) {
  const u32 warps = blockDim.x / warp_lanes;
  u64 sum = value;
#pragma unroll
  for (u32 distance = 1; distance < warp_lanes; distance *= 2) {
    const u64 below = __shfl_up_sync(all_lanes, sum, distance);
    if (lane_index() >= distance) sum += below;
  }
  if (lane_index() == warp_lanes - 1) of_warp[warp_index()] = sum;
  __syncthreads();
  u64 before = 0, all = 0;
  for (u32 warp = 0; warp < warps; warp++) {
    if (warp == warp_index()) before = all;
    all += of_warp[warp];
  }
  return Prefix{before + sum, all};
}

// The first of `count` sums that exceeds `item`, which the last one does.
template <class Sum>
DEVICE u32 owner_of(u64 item, const Sum *sums, u32 count) {
  u32 low = 0, high = count - 1;
  while (low < high) {
    const u32 middle = (low + high) / 2;
    if (sums[middle] > item) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// ---- One sequence --------------------------------------------------------------------------------

// Where the pages of a sequence begin in the table, and how many entries it has: none if its slot does
// not exist.
struct PageRow {
  u32 first, len;
};
DEVICE PageRow page_row(const PlanArguments &arguments, u32 b) {
  if (arguments.block_table.is_there()) {
    const u32 stride = u32(arguments.block_table.stride);
    return PageRow{b * stride, stride};
  }
  const i32 slot = arguments.slot != nullptr ? arguments.slot[b] : i32(b);
  if (!is_below(slot, arguments.num_slots)) return PageRow{0, 0};
  return PageRow{u32(slot) * arguments.pages_per_slot, arguments.pages_per_slot};
}

// The tokens that a sequence proposes if all is well.
DEVICE u32 drafts_of(const PlanArguments &arguments, u32 b, i32 wanted, i64 limit, u32 position) {
  // The last proposal has no row, and the first one none of its own unless rows read their tokens.
  const i64 rowless = arguments.reads_own_tokens ? 0 : 1;
  const i64 room = i64(arguments.max_position) - position + rowless;
  i64 drafts = min(limit - 1, room);
  if (arguments.tree_nodes != 0) {
    // What bounds chains bounds the depth of trees.
    const u32 depth = u32(max(min(drafts, i64(arguments.most_depth)), i64(0)));
    if (arguments.tree_depth == 0) {
      drafts = arguments.within[min(depth, arguments.tree_nodes - 1)];
    } else {
      drafts = depth != 0 ? arguments.tree_nodes - 1 : 0;
      arguments.depth[b] = i32(min(depth, arguments.tree_depth));
    }
  }
  return u32(max(min(drafts, min(i64(wanted), i64(arguments.most_drafts))), i64(0)));
}

// Reads what the arrays say of a sequence, its rows and pages excepted, which are noted in the tile.
DEVICE Sequence read_sequence(const PlanArguments &arguments, u32 b, Tile &tile) {
  const PageRow pages = page_row(arguments, b);
  Sequence sequence = {0, 0, fault_none, fault_none, 0, pages.first, 0};
  const i32 count = *arguments.row_count.row(b);
  if (count == 0) return sequence;
  if (!is_below(count, arguments.num_rows + 1)) {
    sequence.fault = fault_rows;
    return sequence;
  }
  const i32 position = *arguments.position.row(b);
  const i32 next_token = *arguments.next_token.row(b);
  const i32 begin = arguments.context_begin != nullptr ? arguments.context_begin[b] : 0;
  const i32 first_row = arguments.row_begin != nullptr ? arguments.row_begin[b]
                                                       : i32(b * (arguments.max_drafts + 1));
  const bool contiguous = !arguments.row_index.is_there() || *arguments.row_index.row(b) < 0;
  const i32 wanted = arguments.wanted_drafts != nullptr ? arguments.wanted_drafts[b]
                                                        : i32(arguments.max_drafts);
  const i64 limit = arguments.limit != nullptr ? arguments.limit[b] : i64(1) << 32;

  // More rows than fit are too many, however many they are.
  sequence.rows = min(u32(count), arguments.most_rows + 1);
  if (!is_below(position, arguments.max_position) || begin < 0 || i64(begin) + count > position) {
    sequence.fault = fault_position;
    return sequence;
  }
  if (!is_below(first_row, arguments.num_rows)) {
    sequence.fault = fault_rows;
    return sequence;
  }
  sequence.drafts = drafts_of(arguments, b, wanted, limit, u32(position));
  sequence.next_row = arguments.reads_own_tokens != 0 && sequence.drafts != 0 ? 1 : 0;
  // The rows of trees do not enter the pool.
  const u32 chained = arguments.tree_nodes != 0 ? 0 : max(sequence.drafts, 1u) - 1;
  const u32 drafted = chained + sequence.next_row;
  const u32 last_position = u32(position) + (arguments.drafts_in_pages ? drafted : 0) - 1;
  const u32 first_page = u32(begin) / arguments.page_size;
  const u32 last_page = last_position / arguments.page_size;
  if (!is_below(next_token, arguments.vocabulary)) {
    sequence.fault_behind_rows = fault_token;
  } else if (last_page >= pages.len) {
    sequence.fault_behind_rows = fault_page;
  } else {
    sequence.pages = last_page - first_page + 1;
  }
  tile.page_begin[threadIdx.x] = pages.first + first_page;
  tile.first_row[threadIdx.x] = u32(first_row) | (contiguous ? is_contiguous : 0);
  tile.position[threadIdx.x] = u32(position - count) | (sequence.next_row ? has_next_row : 0);
  tile.next_token[threadIdx.x] = next_token;
  return sequence;
}

// ---- The rows and pages of a tile ----------------------------------------------------------------

// Decides one sequence after the other which rows still fit, where not all of them do.
DEVICE void choose_rows(Tile &tile, u32 count, u32 room) {
  u32 sum = 0, next_rows = 0;
  for (u32 i = 0; i < count; i++) {
    const u32 rows = tile.rows[i] & ~(is_faulty | does_not_fit);
    if (rows > room - sum) {
      tile.rows[i] |= does_not_fit;
    } else if (rows != 0 && (tile.rows[i] & is_faulty) == 0) {
      sum += rows;
      next_rows += (tile.position[i] & has_next_row) != 0 ? 1 : 0;
    }
    tile.row_end[i] = sum + next_rows;
  }
  tile.committed = sum;
}

// Rows of the call, and in the lower bits the rows of next tokens.
constexpr u32 next_row_bits = 16;
DEVICE u32 rows_of_call(u64 sums) { return u32(sums >> next_row_bits); }
DEVICE u32 next_rows(u64 sums) { return u32(sums) & ((1 << next_row_bits) - 1); }

// Gives the sequences that are not faulty their rows, in order, while there is room: one that does not
// fit is left out, a later one may still fit. Returns how many rows of the call there are in all.
DEVICE u32 place_rows(Tile &tile, u32 count, const Sequence &sequence, u32 room) {
  const u64 rows = sequence.rows;
  const u64 asked = rows << next_row_bits | sequence.next_row;
  const Prefix prefix = block_prefix(sequence.fault == fault_none ? asked : 0, tile.of_warp);
  const u64 before = (prefix.sum >> next_row_bits) - (sequence.fault == fault_none ? rows : 0);
  tile.rows[threadIdx.x] = u32(rows) | (sequence.fault != fault_none ? is_faulty : 0);
  tile.row_end[threadIdx.x] = rows_of_call(prefix.sum) + next_rows(prefix.sum);
  if (__syncthreads_or(before + rows > room) == 0) return rows_of_call(prefix.all);
  if (threadIdx.x == 0) choose_rows(tile, count, room);
  __syncthreads();
  return tile.committed;
}

DEVICE void note_wrong(Tile &tile, u32 i, u32 what) { atomicMin(&tile.wrong[i], what); }

// Checks row `row` of a sequence and writes it at `place`; its token goes with the row before, or with the
// row itself. The row of the next token has the source of the last row of the call and turns one step
// further.
DEVICE void lay_out_row(const PlanArguments &arguments, Tile &tile, u32 b, u32 i, u32 row, u32 rows,
                        u32 place) {
  const u32 first_row = tile.first_row[i];
  const u32 ahead = (tile.position[i] & has_next_row) != 0 && row + 1 == rows ? 1 : 0;
  const u32 of_call = row - ahead;
  i32 offset = i32(of_call);
  if ((first_row & is_contiguous) == 0) {
    offset = of_call < arguments.row_index.stride ? arguments.row_index.row(b)[of_call] : -1;
  }
  const u32 source = (first_row & ~is_contiguous) + u32(offset);
  if (offset < 0 || source >= arguments.num_rows) {
    note_wrong(tile, i, of_call << fault_bits | fault_rows);
    return;
  }
  i32 token = arguments.tokens[source];
  const i32 position = i32((tile.position[i] & ~has_next_row) + row);
  const i32 rope_position =
      arguments.rope_position != nullptr ? i32(u32(arguments.rope_position[source]) + ahead)
                                         : position;
  if (token == -1 && arguments.has_embeddings) {
    token = -1 - i32(source);
  } else if (!is_below(token, arguments.vocabulary)) {
    note_wrong(tile, i, of_call << fault_bits | fault_token);
    return;
  }
  const RowArrays &commit = arguments.commit;
  commit.sequence[place] = i32(b);
  commit.position[place] = position;
  commit.rope_position[place] = rope_position;
  commit.source[place] = i32(source);
  if (arguments.reads_own_tokens) {
    commit.token[place] = ahead != 0 ? tile.next_token[i] : token;
    return;
  }
  if (row != 0) commit.token[place - 1] = token;
  if (row + 1 == rows) commit.token[place] = tile.next_token[i];
}

DEVICE void lay_out_rows(const PlanArguments &arguments, Tile &tile, u32 first_sequence, u32 count,
                         u32 first_place, u32 rows) {
  for (u32 item = threadIdx.x; item < rows; item += blockDim.x) {
    const u32 i = owner_of(item, tile.row_end, count);
    const u32 begin = i == 0 ? 0 : tile.row_end[i - 1];
    lay_out_row(arguments, tile, first_sequence + i, i, item - begin, tile.row_end[i] - begin,
                first_place + item);
  }
}

DEVICE void check_pages(const PlanArguments &arguments, Tile &tile, u32 count, u64 pages) {
  const i32 *table = arguments.block_table.is_there() ? arguments.block_table.first
                                                      : arguments.slot_pages;
  for (u64 item = threadIdx.x; item < pages; item += blockDim.x) {
    const u32 i = owner_of(item, tile.page_end, count);
    const u64 index = item - (i == 0 ? 0 : tile.page_end[i - 1]);
    if (!is_below(table[tile.page_begin[i] + index], arguments.num_pages)) {
      note_wrong(tile, i, wrong_page);
    }
  }
}

// The rows of the call that a tile commits, and the places that their layout takes.
struct TileRows {
  u32 committed, placed;
};

// Lays out the rows of a tile behind those of the tiles before. Threads beyond the sequences of the tile
// have one that takes no part. What is found wrong on the way changes which
// sequences fit: then the rows are laid out again, and what is written in the end has been checked by the
// same read. Each time at least one more sequence is out.
DEVICE TileRows lay_out_tile(const PlanArguments &arguments, Tile &tile, u32 first_sequence, u32 count,
                             TileRows before, Sequence &sequence) {
  for (;;) {
    const u32 room = arguments.most_rows - before.committed;
    tile.wrong[threadIdx.x] = nothing_wrong;
    const u32 committed = place_rows(tile, count, sequence, room);
    const u32 rows = tile.row_end[count - 1];
    const bool fits = (tile.rows[threadIdx.x] & does_not_fit) == 0;
    const bool takes_part = fits && sequence.rows != 0 && sequence.fault == fault_none;
    const Prefix pages = block_prefix(takes_part ? sequence.pages : 0, tile.of_warp);
    tile.page_end[threadIdx.x] = pages.sum;
    __syncthreads();
    lay_out_rows(arguments, tile, first_sequence, count, before.placed, rows);
    check_pages(arguments, tile, count, pages.all);
    __syncthreads();
    u32 fault = fault_none;
    if (takes_part) {
      const u32 wrong = tile.wrong[threadIdx.x];
      fault = wrong != nothing_wrong ? wrong & ((1 << fault_bits) - 1) : sequence.fault_behind_rows;
      sequence.fault = fault;
    }
    if (__syncthreads_or(fault != fault_none) != 0) continue;
    if (!fits) sequence.fault = fault_too_many_rows;
    return TileRows{committed, rows};
  }
}

// ---- The rows that draft -------------------------------------------------------------------------

// How many sequences propose how many tokens: element d - 1 is the class of d tokens.
struct Classes {
  u32 count[most_classes];
  u32 next[most_classes];  // the place of the class's next sequence
};

// Counts, from the counts of the classes, how many sequences draft in each step. Returns those of the
// first.
DEVICE u32 count_drafting(const PlanArguments &arguments, Classes &classes, Tile &tile) {
  const bool has_class = threadIdx.x < arguments.max_drafts;
  const u32 index = arguments.max_drafts - 1 - threadIdx.x;
  const u32 count = has_class ? classes.count[index] : 0;
  const Prefix prefix = block_prefix(count, tile.of_warp);
  if (has_class) {
    arguments.drafting[index] = i32(prefix.sum);
    classes.next[index] = u32(prefix.sum) - count;
  }
  __syncthreads();
  return u32(prefix.all);
}

// Writes the sequences that draft in their order: those with the most tokens to propose first, of those
// with as many the first first. Warps take turns, so that the places follow the order of sequences.
DEVICE void sort_drafting(const PlanArguments &arguments, Classes &classes) {
  for (u32 tile = 0; tile < arguments.num_sequences; tile += blockDim.x) {
    const u32 b = tile + threadIdx.x;
    const u32 drafts = b < arguments.num_sequences ? u32(arguments.num_drafts[b]) : 0;
    const u32 rest = arguments.num_sequences - tile;
    for (u32 turn = 0; turn * warp_lanes < min(blockDim.x, rest); turn++) {
      if (warp_index() == turn) {
        const u32 peers = __match_any_sync(all_lanes, drafts);
        const u32 leader = __ffs(peers) - 1;
        u32 place = 0;
        if (drafts != 0 && lane_index() == leader) {
          place = classes.next[drafts - 1];
          classes.next[drafts - 1] = place + __popc(peers);
        }
        place = __shfl_sync(all_lanes, place, leader);
        place += __popc(peers & ((1u << lane_index()) - 1));
        if (drafts != 0) arguments.draft.sequence[place] = i32(b);
      }
      __syncthreads();
    }
  }
}

// Fills the rows of the sequences that draft from their last committed rows, which `draft.source` has
// by sequence.
DEVICE void lay_out_drafting(const PlanArguments &arguments, u32 drafting) {
  const RowArrays &draft = arguments.draft, &commit = arguments.commit;
  for (u32 place = threadIdx.x; place < drafting; place += blockDim.x) {
    draft.position[place] = draft.source[draft.sequence[place]];
  }
  __syncthreads();
  for (u32 place = threadIdx.x; place < drafting; place += blockDim.x) {
    const i32 row = draft.position[place];
    draft.source[place] = row;
    draft.position[place] = commit.position[row];
    draft.rope_position[place] = commit.rope_position[row];
    draft.token[place] = commit.token[row];
  }
}

// ---- The call ------------------------------------------------------------------------------------

DEVICE void pad_proposals(const PlanArguments &arguments) {
  const u32 places = arguments.num_sequences * arguments.max_drafts;
  for (u32 i = threadIdx.x; i < places; i += blockDim.x) {
    const u32 b = i / arguments.max_drafts;
    arguments.draft_tokens.row(b)[i % arguments.max_drafts] = arguments.padding_token;
  }
}

// The first fault since the host last took one stays.
DEVICE void report_fault(u64 *word, u32 fault, u32 sequence) {
  const u64 before = *static_cast<volatile u64 *>(word);
  if (u32(before) == fault_none) store_system(word, u64(sequence) << 32 | fault);
}

// The only block of its launch.
KERNEL_RESIDENT(1024, 1, plan_rows, PlanArguments) {
  __shared__ Tile tile;
  __shared__ Classes classes;
  __shared__ u32 first_fault;  // its sequence, and the fault in the lowest bits
  if (threadIdx.x < arguments.max_drafts) classes.count[threadIdx.x] = 0;
  if (threadIdx.x == 0) first_fault = nothing_wrong;

  // There is a tile at least, in which the threads meet before others change the above.
  TileRows done = {0, 0};
  for (u32 first = 0; first < arguments.num_sequences; first += blockDim.x) {
    const u32 count = min(arguments.num_sequences - first, blockDim.x);
    const u32 b = first + threadIdx.x;
    Sequence sequence = {};
    if (threadIdx.x < count) sequence = read_sequence(arguments, b, tile);
    const TileRows rows = lay_out_tile(arguments, tile, first, count, done, sequence);
    if (threadIdx.x < count) {
      const bool takes_part = sequence.fault == fault_none && sequence.rows != 0;
      const u32 drafts = takes_part ? sequence.drafts : 0;
      if (takes_part) arguments.draft.source[b] = i32(done.placed + tile.row_end[threadIdx.x] - 1);
      if (drafts != 0) atomicAdd(&classes.count[drafts - 1], 1);
      if (sequence.fault != fault_none) atomicMin(&first_fault, b << fault_bits | sequence.fault);
      arguments.num_drafts[b] = i32(drafts);
      if (arguments.num_proposed != nullptr) arguments.num_proposed[b] = i32(drafts);
      arguments.page_row[b] = i32(sequence.page_row);
    }
    done.committed += rows.committed;
    done.placed += rows.placed;
    __syncthreads();
  }

  if (arguments.max_drafts != 0) {
    const u32 drafting = count_drafting(arguments, classes, tile);
    sort_drafting(arguments, classes);
    lay_out_drafting(arguments, drafting);
    pad_proposals(arguments);
    if (threadIdx.x == 0) *arguments.draft.count = i32(drafting);
  }
  if (threadIdx.x == 0) {
    *arguments.commit.count = i32(done.placed);
    if (first_fault != nothing_wrong) {
      report_fault(arguments.fault, first_fault & ((1 << fault_bits) - 1),
                   first_fault >> fault_bits);
    }
  }
}
