// Verification: which drafts stand, and which token follows them. `verify_plan` reads the host's
// arrays, each element once, and checks them; where something is done to logits before, `process_rows`
// does it, by arrays that have been checked. Then all rows are decided at a time, as the numbers of a
// node do not depend on what happened at others: by `verify_rows`, or by `verify_argmax` where all
// sequences are greedy, or by `verify_path` where more than one draft is tested at a row. Who decides
// the last row of a sequence goes down its chain or tree and writes the record; who writes the last
// record adds to the counters.
#include "verify.cuh"

// ---- The plan ------------------------------------------------------------------------------------

template <class Value>
DEVICE Value element_or(const Value *values, u32 index, Value otherwise) {
  return values != nullptr ? values[index] : otherwise;
}

DEVICE bool are_numbers(const Parameters &parameters) {
  return parameters.temperature == parameters.temperature &&
         parameters.top_p == parameters.top_p && parameters.min_p == parameters.min_p;
}

// The first of `rows` rows, if they all are among the matrix's `all`; otherwise false.
DEVICE bool rows_within(i64 first, i64 rows, u64 all) {
  return first >= 0 && u64(first) + u64(rows) <= all;
}

// The parent of a node, as the host says.
DEVICE i32 parent_entry(const VerifyArguments &arguments, u32 index, u32 node) {
  if (arguments.parents == nullptr) return i32(node) - 1;
  return arguments.parents[index * arguments.parents_stride + node];
}

// Writes where each node stands, and tells whether it is a tree; for a warp.
DEVICE bool plan_families(const VerifyArguments &arguments, u32 index, u32 num_drafts) {
  Family *families = arguments.families + u64(index) * nodes_of(arguments);
  const i32 *drafts = arguments.drafts + u64(index) * arguments.max_drafts;
  bool is_valid = true;
  for (u32 node = lane_index(); node <= num_drafts; node += warp_lanes) {
    const i32 parent = node == 0 ? 0 : parent_entry(arguments, index, node);
    const bool is_before = node == 0 || (parent >= 0 && parent < i32(node));
    is_valid &= is_before;
    families[node].parent = u16(is_before ? parent : 0);
  }
  __syncwarp();
  for (u32 node = lane_index(); node <= num_drafts; node += warp_lanes) {
    Family family{families[node].parent, 0, 0, no_node, no_node, 0};
    for (u32 above = node; above != 0; above = families[above].parent) family.depth++;
    if (arguments.parents == nullptr) {
      if (node < num_drafts) family.first_child = u16(node + 1);
    } else {
      for (u32 other = 1; other <= num_drafts; other++) {
        const u32 parent = families[other].parent;
        if (parent == node && family.first_child == no_node) family.first_child = u16(other);
        if (node == 0 || parent != family.parent || other == node) continue;
        if (other < node) family.rank++;
        if (other > node && family.next_sibling == no_node) family.next_sibling = u16(other);
      }
    }
    if (node != 0) family.is_stop = is_stop_token(arguments, drafts[node - 1]) ? 1 : 0;
    // The parents stay as they are: others still read them.
    families[node].depth = family.depth;
    families[node].rank = family.rank;
    families[node].first_child = family.first_child;
    families[node].next_sibling = family.next_sibling;
    families[node].is_stop = family.is_stop;
  }
  __syncwarp();
  return __all_sync(all_lanes, is_valid);
}

// Copies the drafts and tells whether each is a token or struck out; for a warp.
DEVICE bool plan_drafts(const VerifyArguments &arguments, u32 index, u32 num_drafts) {
  bool is_valid = true;
  for (u32 node = lane_index(); node < num_drafts; node += warp_lanes) {
    const i32 draft = arguments.draft_tokens[index * arguments.draft_tokens_stride + node];
    is_valid &= draft >= -1 && draft < i32(arguments.vocabulary);
    arguments.drafts[u64(index) * arguments.max_drafts + node] = draft;
  }
  return __all_sync(all_lanes, is_valid);
}

// The seed's number for an element of `uniforms`.
DEVICE u64 seeded_number(const VerifyArguments &arguments, u32 index, u64 seed, i32 position, u32 i) {
  const bool is_test = i % 2 == 0;
  const u32 node = is_test ? i / 2 + 1 : i / 2;
  u32 depth = node, rank = 0;
  if (arguments.families != nullptr) {
    const Family &family = arguments.families[u64(index) * nodes_of(arguments) + node];
    depth = family.depth;
    rank = family.rank;
  }
  Purpose purpose = for_emission;
  u32 lane = 0;
  if (is_test) {
    const bool is_block = arguments.rule == rule_block;
    purpose = is_block ? for_block_acceptance : for_acceptance;
    lane = is_block ? node - 1 : rank;
  }
  return uniform(seed, u64(position) + depth + (is_test ? 0 : 1), purpose, lane);
}

// Copies the host's numbers, or makes those of the seed, and tells whether they are in [0, 1); for a
// warp.
DEVICE bool plan_numbers(const VerifyArguments &arguments, u32 index, u32 nodes, i32 position) {
  const u64 first = u64(index) * nodes_of(arguments) * 2;
  const u64 seed = element_or<u64>(arguments.seed, index, 0);
  bool is_valid = true;
  for (u32 i = lane_index(); i < 2 * nodes; i += warp_lanes) {
    u64 number = 0;
    if (arguments.uniforms != nullptr) {
      const f64 given = arguments.uniforms[first + i];
      const bool is_in_range = given >= 0.0 && given < 1.0;
      is_valid &= is_in_range;
      // Exact, and below 2^64.
      if (is_in_range) number = u64(given * 18446744073709551616.0);
    } else if (i != 2 * nodes - 2) {
      number = seeded_number(arguments, index, seed, position, i);
    }
    arguments.numbers[first + i] = number;
  }
  return __all_sync(all_lanes, is_valid);
}

DEVICE Parameters target_parameters(const VerifyArguments &arguments, u32 index) {
  return Parameters{element_or(arguments.temperature, index, 0.0f),
                    element_or(arguments.top_k, index, 0), element_or(arguments.top_p, index, 1.0f),
                    element_or(arguments.min_p, index, 0.0f)};
}
DEVICE Parameters draft_parameters(const VerifyArguments &arguments, u32 index) {
  return Parameters{element_or(arguments.draft_temperature, index, 0.0f),
                    element_or(arguments.draft_top_k, index, 0),
                    element_or(arguments.draft_top_p, index, 1.0f),
                    element_or(arguments.draft_min_p, index, 0.0f)};
}

// Reads the arrays of a sequence, for a warp.
DEVICE Sequence plan_sequence(const VerifyArguments &arguments, u32 index) {
  Sequence sequence{};
  // The position may lie in the record, which is not written before the next launch.
  sequence.position = arguments.position[index * arguments.position_stride];
  const i32 num_drafts = element_or(arguments.num_drafts, index, i32(arguments.max_drafts));
  sequence.num_drafts = num_drafts;
  if (num_drafts < 0) {
    sequence.state = absent;
    return sequence;
  }
  sequence.state = invalid;
  sequence.processed_row = not_processed;
  const i64 first_row = arguments.row_begin != nullptr ? i64(arguments.row_begin[index])
                                                       : i64(u64(index) * nodes_of(arguments));
  if (num_drafts > i32(arguments.max_drafts) ||
      !rows_within(first_row, i64(num_drafts) + 1, arguments.rows)) {
    return sequence;
  }
  sequence.first_row = u64(first_row);
  sequence.target = target_parameters(arguments, index);
  bool is_valid = sequence.position >= 0 &&
                  i64(sequence.position) + num_drafts + 1 <= i64(0x7fffffff) &&
                  are_numbers(sequence.target);
  is_valid &= plan_drafts(arguments, index, u32(num_drafts));
  if (arguments.families != nullptr) {
    __syncwarp();  // the drafts are read
    is_valid &= plan_families(arguments, index, u32(num_drafts));
  }
  if (arguments.processing.rows != nullptr) {
    const ProcessingPlan plan = plan_processing(
        arguments.processing, index, sequence.first_row, u32(num_drafts) + 1, arguments.vocabulary,
        arguments.num_stop_tokens != 0);
    is_valid &= plan.is_valid;
    if (plan.is_needed) sequence.processed_row = u64(index) * nodes_of(arguments);
  }
  if (!is_greedy(sequence.target) || arguments.rule == rule_synthetic) {
    is_valid &= plan_numbers(arguments, index, u32(num_drafts) + 1, sequence.position);
  }
  if (arguments.has_distribution) {
    const i64 draft_row =
        arguments.draft_row_begin != nullptr
            ? i64(arguments.draft_row_begin[index])
            : i64(u64(index) * arguments.draft_rows_per_sequence);
    sequence.draft = draft_parameters(arguments, index);
    is_valid &= are_numbers(sequence.draft) &&
                (num_drafts == 0 || rows_within(draft_row, num_drafts, arguments.draft_rows));
    sequence.draft_row = u64(draft_row);
  }
  if (!is_valid) return sequence;
  sequence.limit = element_or(arguments.limit, index, 0x7fffffff);
  sequence.state = sequence.limit <= 0 ? ended : taking_part;
  return sequence;
}

constexpr u32 plan_threads = 256;

// A warp for each sequence. Clears what the next launch counts with.
KERNEL(plan_threads, verify_plan, VerifyArguments) {
  if (blockIdx.x == 0) {
    if (threadIdx.x == 0) *arguments.records = 0;
    for (u32 team = threadIdx.x; team < arguments.teams; team += plan_threads) {
      arguments.meetings[team] = 0;
    }
  }
  const u32 index = blockIdx.x * (plan_threads / warp_lanes) + warp_index();
  if (index >= arguments.num_sequences) return;
  const Sequence sequence = plan_sequence(arguments, index);
  for (u32 node = lane_index(); node < nodes_of(arguments); node += warp_lanes) {
    arguments.outcomes[u64(index) * nodes_of(arguments) + node] = 0;
  }
  if (lane_index() == 0) {
    arguments.sequences[index] = sequence;
    arguments.arrivals[index] = 0;
  }
}

// ---- Greedy sequences only -----------------------------------------------------------------------

// The largest logit that a lane has seen, and the first column that has it.
struct Largest {
  f32 logit;
  u32 column;

  DEVICE void see(f32 other, u32 other_column) {
    if (other > logit) {
      logit = other;
      column = other_column;
    }
  }
  // A number that is larger for larger logits and, of equal ones, for lower columns; 0 for nothing.
  DEVICE u64 key() const {
    return column == no_column ? 0 : u64(order(logit)) << 32 | u32(~column);
  }
};

// Looks at a tile with loads of 16 bytes: the row is aligned to them, and the tile is full.
template <class Element>
DEVICE void see_vectors(const Row &row, u32 tile, Largest &largest) {
  constexpr u32 per_vector = 16 / sizeof(Element);
  constexpr u32 vectors = lane_logits / per_vector;
  const u8 *logits = row.logits + u64(tile) * tile_logits * sizeof(Element);
  uint4 words[vectors];
#pragma unroll
  for (u32 i = 0; i < vectors; i++) {
    words[i] = load_streaming(logits + (i * warp_lanes + lane_index()) * 16);
  }
#pragma unroll
  for (u32 i = 0; i < vectors; i++) {
    const u32 column = tile * tile_logits + (i * warp_lanes + lane_index()) * per_vector;
    const u32 word[4] = {words[i].x, words[i].y, words[i].z, words[i].w};
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
      if constexpr (sizeof(Element) == 4) {
        largest.see(__uint_as_float(word[j]), column + j);
      } else {
        largest.see(to_f32(Element{u16(word[j])}), column + 2 * j);
        largest.see(to_f32(Element{u16(word[j] >> 16)}), column + 2 * j + 1);
      }
    }
  }
}

// Looks at any tile.
DEVICE void see_tile(const Row &row, u32 tile, Largest &largest) {
  f32 logits[lane_logits];
  load_tile(row, tile, logits);
#pragma unroll
  for (u32 i = 0; i < lane_logits; i++) {
    largest.see(logits[i], tile * tile_logits + i * warp_lanes + lane_index());
  }
}

template <class Element>
DEVICE void see_tiles(const Row &row, u32 tile, u32 end, u32 step, Largest &largest) {
  const bool is_aligned = u64(row.logits) % 16 == 0;
  for (; tile < end; tile += step) {
    if (is_aligned && (tile + 1) * tile_logits <= row.columns) {
      see_vectors<Element>(row, tile, largest);
    } else {
      see_tile(row, tile, largest);
    }
  }
}

// The largest key of a block, for its first warp.
template <u32 threads>
DEVICE u64 largest_key(const Largest &largest) {
  constexpr u32 warps = threads / warp_lanes;
  __shared__ u64 of_warp[warps];
  const auto of_lanes = [](u64 key) {
    const u32 high = warp_max(u32(key >> 32));
    const u32 low = warp_max(u32(key >> 32) == high ? u32(key) : 0);
    return u64(high) << 32 | low;
  };
  const u64 key = of_lanes(largest.key());
  if (lane_index() == 0) of_warp[warp_index()] = key;
  __syncthreads();
  return of_lanes(lane_index() < warps ? of_warp[lane_index()] : 0);
}

// Turns the largest logits of a sequence's rows into outcomes; for a warp.
DEVICE void settle_largest(const VerifyArguments &arguments, const Sequence &sequence, u32 index) {
  u64 *outcomes = arguments.outcomes + u64(index) * nodes_of(arguments);
  const i32 *drafts = arguments.drafts + u64(index) * arguments.max_drafts;
  for (i32 node = i32(lane_index()); node <= sequence.num_drafts; node += i32(warp_lanes)) {
    const u64 key = outcomes[node];
    const i32 token = key == 0 ? 0 : i32(~u32(key));
    u64 outcome = u32(token);
    if (key == 0) outcome |= has_no_candidate;
    if (node < sequence.num_drafts && drafts[node] == token) outcome |= is_accepted;
    if (is_stop_token(arguments, token)) outcome |= is_stop;
    outcomes[node] = outcome;
  }
  __syncwarp();
}

constexpr u32 argmax_threads = 256;

// `splits` blocks for each node.
KERNEL(argmax_threads, verify_argmax, VerifyArguments) {
  const u32 split = blockIdx.x % arguments.splits, item = blockIdx.x / arguments.splits;
  const u32 index = item / nodes_of(arguments), node = item % nodes_of(arguments);
  const Sequence &sequence = arguments.sequences[index];
  if (sequence.state != taking_part) {
    if (split == 0 && node == 0 && warp_index() == 0) write_record(arguments, index);
    return;
  }
  if (node > u32(sequence.num_drafts)) return;

  const Row row = target_row(arguments, sequence, node);
  const u32 tiles = tiles_of(row.columns);
  const u32 begin = u32(u64(split) * tiles / arguments.splits);
  const u32 end = u32(u64(split + 1) * tiles / arguments.splits);
  constexpr u32 warps = argmax_threads / warp_lanes;
  Largest largest{-infinity(), no_column};
  switch (row.dtype) {
    case dtype_f32: see_tiles<f32>(row, begin + warp_index(), end, warps, largest); break;
    case dtype_f16: see_tiles<f16>(row, begin + warp_index(), end, warps, largest); break;
    default: see_tiles<bf16>(row, begin + warp_index(), end, warps, largest); break;
  }
  const u64 key = largest_key<argmax_threads>(largest);
  if (warp_index() != 0) return;
  u32 before = 0;
  if (lane_index() == 0) {
    atomicMax(&arguments.outcomes[u64(index) * nodes_of(arguments) + node], key);
    before = add_acquire_release(&arguments.arrivals[index], 1);
  }
  __syncwarp();
  if (shuffle(before, 0) != arguments.splits * (u32(sequence.num_drafts) + 1) - 1) return;
  settle_largest(arguments, sequence, index);
  write_record(arguments, index);
}

// ---- Sequences of all kinds ----------------------------------------------------------------------

constexpr u32 rows_threads = 512;
constexpr u32 rows_warps = rows_threads / warp_lanes;

// What was proposed below a node.
enum Proposal : u32 { nothing, struck_out, given };

// A node of a sequence that takes part.
struct Node {
  u32 index, node;
  Proposal proposal;
  u32 token;            // that was given, or no_column
  u64 test, emission;  // its numbers
};

// What is known of the law q that a draft was drawn from.
enum Draft : u32 {
  unknown,
  certain,           // it was taken as given
  identical,         // the candidates are the vocabulary
  of_candidates,
};

// A row and how it is looked at.
struct Question {
  Row row;
  Slice slice;
  Parameters parameters;
  u32 column;  // whose weight is asked for, or no_column
};

// The shared memory of a block: what all of its threads know. Thread 0 writes it between barriers.
struct Work {
  LawScratch<rows_threads> scratch;
  u128 rests_of_warp[rows_warps], commons_of_warp[rows_warps];
  Team team;
  Slice target_slice, draft_slice;
  u128 *rests;      // of the tiles of the target's slice: what p has above q
  u128 *overlaps;   // of all tiles of the target's row: what p and q share
  u64 *draft_sums;  // of all tiles of the drafter's row
  u8 *copy;         // of the target's slice

  Node node;
  bool has_candidate;  // a row without one is certain of its lowest id
  Draft draft;
  Question question;  // the one that is asked now
  Row whole;  // the target's
  Row target;  // the same with the slice in shared memory, if it is copied
  Row candidates;
  Weighed p, q;
};

// What a block has decided at a node, if it was the one to do so.
struct Choice {
  bool is_made;
  bool is_accepted;
  u32 column;
};

// Copies a tile of a row, as far as it goes, to the place of its first byte; for a warp. Both have
// the same alignment to 16 bytes.
DEVICE void copy_tile(const Row &row, u32 tile, u8 *place) {
  const u32 size = dtype_bytes(row.dtype);
  const u32 columns = min(tile_logits, row.columns - tile * tile_logits), bytes = columns * size;
  const u8 *from = row.logits + u64(tile) * tile_logits * size;
  // What stands before the first and behind the last whole 16 bytes is copied by elements.
  const u32 head = min(bytes, u32(0 - u64(from)) % 16), vectors = (bytes - head) / 16;
  for (u32 i = lane_index(); i < vectors; i += warp_lanes) {
    cp_async16(place + head + i * 16, from + head + i * 16);
  }
  const u32 rest = head + vectors * 16;
  const auto copy_element = [&](u32 at) {
    if (size == 4) {
      *reinterpret_cast<u32 *>(place + at) = *reinterpret_cast<const u32 *>(from + at);
    } else {
      *reinterpret_cast<u16 *>(place + at) = *reinterpret_cast<const u16 *>(from + at);
    }
  };
  const u32 at = lane_index() * size;
  if (at < head) copy_element(at);
  if (rest + at < bytes) copy_element(rest + at);
}

// Copies the slice; returns the row with its slice in shared memory. Each warp has copied the tiles
// that it will look at first.
DEVICE Row copied(Row row, Slice slice, u8 *copy) {
  const u32 size = dtype_bytes(row.dtype);
  u8 *begin = copy + u64(row.logits) % 16;
  for (u32 tile = slice.begin + warp_index(); tile < slice.end; tile += rows_warps) {
    copy_tile(row, tile, begin + (tile - slice.begin) * tile_logits * size);
  }
  cp_async_commit();
  cp_async_wait<0>();
  __syncwarp();
  return Row{begin, nullptr, row.dtype, slice.begin * tile_logits, row.columns};
}

// The first candidate in the slice that is the token, or no_column.
DEVICE u32 candidate_in_slice(Row row, Slice slice, u32 token, Work &work) {
  const u32 end = min(row.columns, slice.end * tile_logits);
  u32 first = no_column;
  for (u32 column = slice.begin * tile_logits + threadIdx.x; column < end; column += rows_threads) {
    if (row.token_ids[column] == i32(token)) first = min(first, column);
  }
  return block_min(first, work.scratch);
}

// The lowest column that a member has told, or no_column.
DEVICE u32 lowest_told(const Team &team, u32 own) {
  if (team.size == 1) return own;
  return warp_min(lane_index() < team.size ? team.board(lane_index()).column : no_column);
}

// min(p, q) of a token in units of one over both sums.
DEVICE u128 common_weight(u64 p, u64 q, u64 p_sum, u64 q_sum) {
  if (p == 0 || q == 0) return 0;
  const u128 ours = u128(p) * q_sum, theirs = u128(q) * p_sum;
  return ours < theirs ? ours : theirs;
}

// Adds to a sum in global memory, which those read who meet afterwards.
DEVICE void add_global(u128 *sum, u128 value) {
  u64 *words = reinterpret_cast<u64 *>(sum);
  const u64 low = u64(value);
  const u64 before = atomicAdd(&words[0], low);
  const u64 high = u64(value >> 64) + (before + low < before ? 1 : 0);
  if (high != 0) atomicAdd(&words[1], high);
}

// Adds min(p, q) of the candidates in the slice to the tiles that their tokens lie in.
DEVICE void scatter_overlaps(Work &work) {
  const Slice slice = work.draft_slice;
  for (u32 tile = slice.begin + warp_index(); tile < slice.end; tile += rows_warps) {
    if (slice.sums[tile - slice.begin] == 0) continue;
#pragma unroll 1
    for (u32 i = 0; i < lane_logits; i++) {
      const u32 column = tile * tile_logits + i * warp_lanes + lane_index();
      const u64 theirs = weight_of(work.q.law, candidate_at(work.candidates, column), column);
      if (theirs == 0) continue;
      const u32 token = u32(work.candidates.token_ids[column]);
      const u64 ours = weight_of(work.p.law, candidate_at(work.whole, token), token);
      const u128 common = common_weight(ours, theirs, work.p.law.sum, work.q.law.sum);
      if (common != 0) add_global(&work.overlaps[token / tile_logits], common);
    }
  }
}

// The sum of min(p, q) over a tile of the vocabulary that is the same tile of q's row; for a warp. The
// barriers are as in seek_in_tile.
DEVICE u128 tile_overlap(const Work &work, u32 tile) {
  u128 sum = 0;
#pragma unroll 1
  for (u32 i = 0; i < lane_logits; i++) {
    __syncwarp();
    const u32 column = tile * tile_logits + i * warp_lanes + lane_index();
    const u64 ours = weight_of(work.p.law, candidate_at(work.target, column), column);
    const u64 theirs = weight_of(work.q.law, candidate_at(work.candidates, column), column);
    sum += common_weight(ours, theirs, work.p.law.sum, work.q.law.sum);
  }
  return shuffle(warp_prefix(sum), warp_lanes - 1);
}

// What p and q share in a tile of the vocabulary; for a warp.
DEVICE u128 overlap(const Work &work, u32 tile) {
  switch (work.draft) {
    case identical: {
      const bool is_empty = work.target_slice.sums[tile - work.target_slice.begin] == 0 ||
                            work.draft_sums[tile] == 0;
      return is_empty ? u128(0) : tile_overlap(work, tile);
    }
    case of_candidates: return work.overlaps[tile];
    default:
      if (work.q.law.certain / tile_logits != tile) return 0;
      return common_weight(work.p.weight, weight_one, work.p.law.sum, weight_one);
  }
}

// What p has above q, and how it is shared out.
struct Residual {
  u128 sum;
  Share<u128> share;  // of what the tiles have left, which is more where an id stands twice
};

// A sum over the warps, told to all threads.
DEVICE u128 sum_of_warps(const u128 (&of_warp)[rows_warps]) {
  const u32 lane = lane_index();
  return shuffle(warp_prefix(lane < rows_warps ? of_warp[lane] : u128(0)), warp_lanes - 1);
}

// Writes what p has above q in each tile of the slice, and adds up for each warp.
DEVICE void measure_rests(Work &work) {
  const Slice &slice = work.target_slice;
  u128 &rests = work.rests_of_warp[warp_index()], &commons = work.commons_of_warp[warp_index()];
  if (lane_index() == 0) rests = commons = 0;
#pragma unroll 1
  for (u32 tile = slice.begin + warp_index(); tile < slice.end; tile += rows_warps) {
    const u128 common = overlap(work, tile);
    if (lane_index() != 0) continue;
    const u128 all = u128(slice.sums[tile - slice.begin]) * work.q.law.sum;
    const u128 rest = all > common ? all - common : 0;
    work.rests[tile - slice.begin] = rest;
    rests += rest;
    commons += common;
  }
  __syncthreads();
}

// Finds out what p has above q; the team meets.
DEVICE Residual measure_residual(Work &work) {
  Team &team = work.team;
  if (work.draft == of_candidates) {
    scatter_overlaps(work);
    team.meet();
  }
  measure_rests(work);
  u128 commons = sum_of_warps(work.commons_of_warp);
  const u128 rests = sum_of_warps(work.rests_of_warp);
  Share<u128> share{0, rests, rests};
  if (team.size > 1) {
    if (threadIdx.x == 0) {
      team.own_board().rest = rests;
      team.own_board().common = commons;
    }
    team.meet();
    const bool is_member = lane_index() < team.size;
    share = share_of<u128>(team, is_member ? team.board(lane_index()).rest : u128(0));
    commons = share_of<u128>(team, is_member ? team.board(lane_index()).common : u128(0)).all;
  }
  const u128 all = u128(work.p.law.sum) * work.q.law.sum;
  return Residual{all > commons ? all - commons : 0, share};
}

// For each token of a tile of the vocabulary the last candidate that is it, plus 1; 0 for none. Told
// to the whole block, in scratch.keys.
DEVICE void find_candidates(Work &work, u32 tile) {
  u32 *candidates = work.scratch.keys;
  for (u32 i = threadIdx.x; i < tile_logits; i += rows_threads) candidates[i] = 0;
  __syncthreads();
  const Row row = work.candidates;
  for (u32 column = threadIdx.x; column < row.columns; column += rows_threads) {
    const u32 token = u32(row.token_ids[column]);  // beyond all tiles where it is negative
    if (token / tile_logits == tile && work.draft_sums[column / tile_logits] != 0) {
      atomicMax(&candidates[token % tile_logits], column + 1);
    }
  }
  __syncthreads();
}

// The weight of a token by q, after find_candidates where q's row is one of candidates.
DEVICE u64 draft_weight(const Work &work, u32 token) {
  u32 column = token;
  if (work.draft == certain) return token == work.q.law.certain ? weight_one : 0;
  if (work.draft == of_candidates) {
    column = work.scratch.keys[token % tile_logits];
    if (column == 0) return 0;
    column -= 1;
  }
  return weight_of(work.q.law, candidate_at(work.candidates, column), column);
}

// The token that `target` falls on in what p has above q, given that it falls on this slice.
DEVICE u32 draw_residual(Work &work, u128 target) {
  const u32 tiles = work.target_slice.tiles();
  const u32 tile = work.target_slice.begin + min(seek(work.rests, tiles, target), tiles - 1);
  if (work.draft == of_candidates) find_candidates(work, tile);
  return seek_in_tile(tile, target, [&](u32 token) -> u128 {
    const u64 ours = weight_of(work.p.law, candidate_at(work.target, token), token);
    if (ours == 0) return 0;
    const u128 all = u128(ours) * work.q.law.sum;
    const u128 common = u128(draft_weight(work, token)) * work.p.law.sum;
    return all > common ? all - common : 0;
  });
}

// Draws from p. Following accepts the draft that is equal.
DEVICE Choice choose_by_draw(bool follows, const Work &work) {
  const Weighed &p = work.p;
  const u64 target = u64(scaled(work.node.emission, p.law.sum));
  if (target < p.before || target - p.before >= p.own) return Choice{};
  // A share of the sum is less than the sum.
  const u32 column = draw_in_slice(work.target, work.target_slice, p.law, target - p.before);
  return Choice{true, follows && column == work.node.token, column == no_column ? 0 : column};
}

// Whether the draft's number is below p / q. All members of the team say the same, as the weights
// have been told.
DEVICE bool passes_test(const Work &work) {
  return work.node.proposal == given && work.q.weight > 0 &&
         scaled(work.node.test, u128(work.q.weight) * work.p.law.sum) <
             u128(work.p.weight) * work.q.law.sum;
}

// Tests the draft against q, and draws what replaces it from what p has above q; from p where that is
// nothing, or q is not known.
DEVICE Choice choose(const VerifyArguments &arguments, Work &work) {
  const bool tests = arguments.rule == rule_rejection && work.node.proposal != nothing;
  if (tests && work.draft != unknown) {
    if (passes_test(work)) return Choice{work.team.rank == 0, true, work.node.token};
    const Residual residual = measure_residual(work);
    const u128 target = scaled(work.node.emission, residual.sum);
    if (target < residual.share.all) {
      const u128 before = residual.share.before;
      if (target < before || target - before >= residual.share.own) return Choice{};
      const u32 token = draw_residual(work, target - before);
      return Choice{true, false, token == no_column ? 0 : token};
    }
  }
  return choose_by_draw(arguments.rule == rule_follow, work);
}

DEVICE void ask_target(const VerifyArguments &arguments, Work &work) {
  const Row row = arguments.slice_is_copied ? copied(work.whole, work.target_slice, work.copy)
                                            : work.whole;
  const Parameters parameters = arguments.sequences[work.node.index].target;
  tell(work.target, row);
  tell(work.question, Question{row, work.target_slice, parameters, work.node.token});
}

// Each member tells the first of its candidates that is the draft, at the meeting of the scan.
DEVICE void ask_draft(const VerifyArguments &arguments, Work &work) {
  const Sequence &sequence = arguments.sequences[work.node.index];
  tell(work.candidates, candidate_row(arguments, sequence, work.node.node));
  const Row &row = work.candidates;
  u32 column = work.node.token;
  if (row.token_ids != nullptr) {
    if (column != no_column) column = candidate_in_slice(row, work.draft_slice, column, work);
    const Slice &slice = work.target_slice;
    for (u32 tile = slice.begin + threadIdx.x; tile < slice.end; tile += rows_threads) {
      work.overlaps[tile] = 0;
    }
  }
  if (work.team.size > 1 && threadIdx.x == 0) work.team.own_board().column = column;
  tell(work.question, Question{row, work.draft_slice, sequence.draft, column});
}

// The column of the largest logit, of equal ones the first; the team meets.
DEVICE u32 told_first(Work &work) {
  const u32 first = first_of_largest(work.question.row, work.question.slice, work.scratch);
  if (work.team.size > 1) {
    if (threadIdx.x == 0) work.team.own_board().column = first;
    work.team.meet();
  }
  return lowest_told(work.team, first);
}

// The law of a row; one without a candidate is certain of its lowest id. The team meets.
DEVICE Weighed find_law(Work &work) {
  const Question &question = work.question;
  const bool has_candidate = work.scratch.peaks.has_candidate();
  if (has_candidate && !is_greedy(question.parameters)) {
    return weigh(question.row, question.slice, question.parameters, question.column, work.team,
                 work.scratch);
  }
  const u32 certain = has_candidate ? told_first(work) : 0;
  return weigh_certain<rows_threads>(certain, question.slice, question.column);
}

// Decides at a node; work.node and work.whole are told.
DEVICE Choice decide(const VerifyArguments &arguments, Work &work) {
  const bool tests = arguments.rule == rule_rejection && work.node.proposal != nothing;
  ask_target(arguments, work);
#pragma unroll 1
  for (bool is_draft = false;; is_draft = true) {
    scan(work.question.row, work.question.slice, work.team, work.scratch);
    const bool has_candidate = work.scratch.peaks.has_candidate();
    if (!is_draft) {
      tell(work.has_candidate, has_candidate);
      if (arguments.rule == rule_greedy || is_greedy(work.question.parameters)) {
        const u32 column = work.has_candidate ? told_first(work) : 0;
        return Choice{work.team.rank == 0, column == work.node.token, column};
      }
    } else {
      const Draft known = work.candidates.token_ids == nullptr ? identical : of_candidates;
      const u32 column = lowest_told(work.team, work.question.column);
      tell(work.draft, has_candidate ? known : unknown);
      tell(work.question.column, column);
    }
    tell(is_draft ? work.q : work.p, find_law(work));
    if (!tests || is_draft) break;
    if (!arguments.has_distribution) {
      // A draft that was taken as given is certain; nothing is known of one that was struck out.
      const Law law{0.0f, 0.0f, 0.0f, 0.0f, work.node.token, weight_one};
      tell(work.q, Weighed{law, 0, 0, weight_one});
      tell(work.draft, work.node.proposal == given ? certain : unknown);
      break;
    }
    ask_draft(arguments, work);
  }
  return choose(arguments, work);
}

// Adds to a node what the plan has of it. Its place stays as it is: others may still read it.
DEVICE void fill_node(const VerifyArguments &arguments, const Sequence &sequence, Node &node) {
  node.proposal = nothing;
  node.token = no_column;
  node.test = node.emission = 0;
  if (node.node < u32(sequence.num_drafts)) {
    const i32 draft = arguments.drafts[u64(node.index) * arguments.max_drafts + node.node];
    node.proposal = draft < 0 ? struck_out : given;
    if (draft >= 0) node.token = u32(draft);
  }
  if (!is_greedy(sequence.target)) {
    const u64 *numbers = arguments.numbers + (u64(node.index) * nodes_of(arguments) + node.node) * 2;
    node.test = numbers[0];
    node.emission = numbers[1];
  }
}

// Carves what the block works with from its shared memory and its team's workspace.
DEVICE void carve(const VerifyArguments &arguments, u8 *memory, Work &work) {
  const u32 size = arguments.team_size, rank = blockIdx.x % size, team = blockIdx.x / size;
  const u32 tiles = tiles_of(arguments.vocabulary);
  const u32 draft_tiles = arguments.has_distribution ? tiles_of(arguments.candidates) : 0;
  const u32 most = (tiles + size - 1) / size, draft_most = (draft_tiles + size - 1) / size;
  const u32 peak_stride = max(tiles, draft_tiles);
  work.team = Team{rank, size, 0, arguments.meetings + team,
                   arguments.boards + u64(team) * 2 * size,
                   arguments.peaks + u64(team) * 2 * peak_stride, peak_stride};

  work.rests = reinterpret_cast<u128 *>(memory);
  u64 *sums = reinterpret_cast<u64 *>(work.rests + most);
  f32 *peaks = reinterpret_cast<f32 *>(sums + most), *draft_peaks = peaks + most;
  work.copy = memory + (u64(most) * 28 + u64(draft_most) * 4 + 15) / 16 * 16;
  work.target_slice = Slice{rank * tiles / size, (rank + 1) * tiles / size, peaks, sums};

  work.overlaps = arguments.overlaps + u64(team) * tiles;
  work.draft_sums = arguments.draft_sums + u64(team) * draft_tiles;
  const u32 draft_begin = rank * draft_tiles / size;
  work.draft_slice = Slice{draft_begin, (rank + 1) * draft_tiles / size, draft_peaks,
                           work.draft_sums + draft_begin};
}

// Decides at work.node. Whether all of the sequence is decided now, as far as the first warp knows.
DEVICE bool decide_node(const VerifyArguments &arguments, Work &work) {
  if (threadIdx.x == 0) {
    const Sequence &sequence = arguments.sequences[work.node.index];
    fill_node(arguments, sequence, work.node);
    work.whole = target_row(arguments, sequence, work.node.node);
  }
  __syncthreads();
  const Choice choice = decide(arguments, work);
  if (!choice.is_made || warp_index() != 0) return false;
  u64 outcome = choice.column;
  if (choice.is_accepted) outcome |= is_accepted;
  if (!work.has_candidate) outcome |= has_no_candidate;
  const u32 rows = u32(arguments.sequences[work.node.index].num_drafts) + 1;
  return settle(arguments, work.node.index, work.node.node, outcome, rows);
}

// `teams` teams of `team_size` blocks, all of them resident. A team has a row at a time. The registers of
// two blocks fit a multiprocessor: what all threads of a block know stays in its shared memory.
KERNEL_RESIDENT(rows_threads, 2, verify_rows, VerifyArguments) {
  __shared__ Work work;
  DYNAMIC_SHARED(u8, memory);
  const u32 nodes = nodes_of(arguments), team = blockIdx.x / arguments.team_size;
  if (threadIdx.x == 0) {
    carve(arguments, memory, work);
    work.node.index = team / nodes;
    work.node.node = team % nodes;
  }
  __syncthreads();
#pragma unroll 1
  while (work.node.index < arguments.num_sequences) {
    const Sequence &sequence = arguments.sequences[work.node.index];
    bool is_decided = false;
    if (sequence.state != taking_part) {
      const bool is_first = work.node.node == 0 && blockIdx.x % arguments.team_size == 0;
      is_decided = is_first && warp_index() == 0;
    } else if (work.node.node <= u32(sequence.num_drafts)) {
      is_decided = decide_node(arguments, work);
    }
    if (is_decided) write_record(arguments, work.node.index);
    __syncthreads();  // the first warp may still draw
    if (threadIdx.x == 0) {
      const u32 node = work.node.node + arguments.teams % nodes;
      work.node.index += arguments.teams / nodes + node / nodes;
      work.node.node = node % nodes;
    }
    __syncthreads();
  }
}
