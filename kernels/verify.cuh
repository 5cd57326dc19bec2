// What the kernels of verification share: the data of a call, and the records that come of decided
// rows. The rules are those of src/verify, the records those of src/backend/verify.rs.
#pragma once
#include "law.cuh"
#include "processing.cuh"

// ---- Data ----------------------------------------------------------------------------------------

enum Rule : u32 {
  rule_greedy = 0,
  rule_follow = 1,
  rule_rejection = 2,
  rule_rejection_distinct = 3,
  rule_block = 4,
  rule_typical = 5,
  rule_threshold = 6,
  rule_relaxed = 7,
  rule_synthetic = 8,
};

enum State : u32 {
  absent,
  invalid,
  ended,  // by its limit, before anything is emitted
  taking_part,
};

// What the plan found out about a sequence. Its parameters are aligned to their size.
struct alignas(16) Sequence {
  u64 first_row, draft_row;
  Parameters target, draft;
  i32 position, num_drafts, limit;
  u32 state;
  u64 processed_row;  // the root's among the processed ones, or `not_processed`
  u64 padding;
};
static_assert(sizeof(Sequence) == 80, "no padding but that stated");
constexpr u64 not_processed = ~u64(0);

struct Emission {
  i32 accepted, emitted;
};

constexpr u32 no_node = 0xffff;

// Where a node of a tree stands.
struct Family {
  u16 parent, depth;
  u16 rank;  // among its siblings
  u16 first_child, next_sibling;
  u16 is_stop;  // whether its token ends the emission
};

// How a row was decided, beside its token in the low half: that of an accepted draft in a chain, and
// what follows if the path ends here in a tree.
constexpr u64 is_accepted = u64(1) << 32;
constexpr u64 is_stop = u64(1) << 33;
constexpr u64 has_no_candidate = u64(1) << 34;

// The host's arrays are as in src/backend/verify.rs; what may be absent is NULL then. Strides of
// logits are in bytes, others in elements.
struct VerifyArguments {
  const u8 *logits, *draft_logits;
  const i32 *token_ids, *row_begin, *draft_row_begin, *num_drafts, *draft_tokens, *position, *limit;
  const f32 *temperature;
  const i32 *top_k;
  const f32 *top_p, *min_p;
  const u64 *seed;
  const f32 *draft_temperature;
  const i32 *draft_top_k;
  const f32 *draft_top_p, *draft_min_p;
  const f64 *uniforms;
  const i32 *stop_tokens, *parents;
  const f32 *acceptance;
  i32 *decisions;
  u64 *counters;

  // The workspace. B sequences have K + 1 nodes each.
  Sequence *sequences;   // [B]
  i32 *drafts;           // [B, K]
  Family *families;      // [B, K + 1], NULL for chains where nobody asks
  u32 *followed;         // [B, K + 1], whether a rule follows the node; NULL: where it is the token
  u64 *numbers;          // [B, K + 1, 2], of the test and of the emitted token
  u64 *outcomes;         // [B, K + 1]; of verify_argmax at first the largest logit and its column
  Emission *emissions;   // [B]
  u32 *arrivals;         // [B], of rows that are decided
  u32 *records;          // [1], that are written
  u32 *meetings;         // [teams]
  Board *boards;         // [teams, 2, team_size]
  f32 *peaks;            // [teams, 2, tiles], of the longer one of a target's and a drafter's row
  u64 *draft_sums;       // [teams, draft tiles]
  u128 *overlaps;        // [teams, target tiles]
  u64 *weights;          // [teams, 2, padded V], NULL where they are in shared memory

  Processing processing;
  u64 rows, row_stride, draft_rows, draft_row_stride;
  u64 token_ids_stride, draft_tokens_stride, position_stride, decision_stride, parents_stride;
  i64 log2_alpha;
  u32 num_sequences, max_drafts, vocabulary, candidates;
  u32 dtype, draft_dtype, draft_rows_per_sequence, num_stop_tokens;
  i32 padding;
  u32 rule, teams, team_size;
  u32 has_distribution;  // of drafts
  u32 slice_is_copied;   // to shared memory
  u32 splits;            // of each row, for verify_argmax
  u32 is_lossy;
  i32 top_n;
  f32 tolerance, epsilon, threshold_single, threshold_accumulated;
  u32 unused;
};
static_assert(sizeof(VerifyArguments) == sizeof(Processing) + 49 * 8 + 22 * 4,
              "as the host lays it out");

DEVICE u32 nodes_of(const VerifyArguments &arguments) { return arguments.max_drafts + 1; }

// ---- Records -------------------------------------------------------------------------------------

// Whether a token ends the emission; for a lane alone.
DEVICE bool is_stop_token(const VerifyArguments &arguments, i32 token) {
  bool found = false;
#pragma unroll 4
  for (u32 i = 0; i < arguments.num_stop_tokens; i++) found |= arguments.stop_tokens[i] == token;
  return found;
}

// Adds what all sequences emitted to the host's counters; for a warp.
DEVICE void add_counters(const VerifyArguments &arguments) {
  u64 rounds = 0, drafts = 0, emitted = 0;
  for (u32 index = lane_index(); index < arguments.num_sequences; index += warp_lanes) {
    const Emission emission = arguments.emissions[index];
    if (emission.emitted == 0) continue;
    rounds += 1;
    drafts += u64(arguments.sequences[index].num_drafts);
    emitted += u64(emission.emitted);
  }
  rounds = shuffle(warp_prefix(rounds), warp_lanes - 1);
  drafts = shuffle(warp_prefix(drafts), warp_lanes - 1);
  emitted = shuffle(warp_prefix(emitted), warp_lanes - 1);
  if (lane_index() == 0) {
    arguments.counters[0] += rounds;
    arguments.counters[1] += drafts;
    arguments.counters[2] += emitted;
  }
  for (u32 draft = lane_index(); draft < arguments.max_drafts; draft += warp_lanes) {
    u64 accepted = 0;
    for (u32 index = 0; index < arguments.num_sequences; index++) {
      accepted += arguments.emissions[index].accepted > i32(draft) ? 1 : 0;
    }
    arguments.counters[3 + draft] += accepted;
  }
}

constexpr i32 flag_no_candidate = 1, flag_stopped = 2, flag_limit = 4, flag_invalid = 8,
              flag_lossy = 16;

// Where a path ends.
struct Walk {
  i32 accepted, emitted, flags, dropped;
};

// Goes down the chain while drafts are accepted, with all rows decided; for a warp.
DEVICE Walk walk_chain(const Sequence &sequence, const u64 *outcomes) {
  Walk result{0, 0, 0, 0};
  for (i32 begin = 0; begin <= sequence.num_drafts; begin += i32(warp_lanes)) {
    const i32 node = begin + i32(lane_index());
    const bool is_there = node <= sequence.num_drafts;
    const u64 outcome = is_there ? outcomes[node] : 0;
    const bool is_end = is_there && ((outcome & is_accepted) == 0 || (outcome & is_stop) != 0 ||
                                     node + 1 == sequence.limit);
    const u32 ends = __ballot_sync(all_lanes, is_end);
    const u32 without = __ballot_sync(all_lanes, (outcome & has_no_candidate) != 0);
    const u32 end = ends != 0 ? __ffs(ends) - 1 : warp_lanes - 1;
    const u32 emitted = all_lanes >> (warp_lanes - 1 - end);
    if ((without & emitted) != 0) result.flags |= flag_no_candidate;
    if (ends == 0) continue;
    const u64 last = shuffle(outcome, end);
    result.emitted = begin + i32(end) + 1;
    result.accepted = result.emitted - ((last & is_accepted) != 0 ? 0 : 1);
    if ((last & is_accepted) != 0) result.dropped = sequence.num_drafts - result.accepted;
    if ((last & is_stop) != 0) result.flags |= flag_stopped;
    if (result.emitted == sequence.limit) result.flags |= flag_limit;
    break;
  }
  return result;
}

// A sequence's tree, with all rows decided.
struct Tree {
  const Family *families;
  const u32 *followed;
  const i32 *drafts;
  const u64 *outcomes;
  i32 num_drafts, limit;

  // Whether nothing is emitted after a node.
  DEVICE bool is_end(u32 node) const {
    return node != 0 && (i32(families[node].depth) == limit || families[node].is_stop != 0);
  }
  // Whether the path may lead from its parent to a node.
  DEVICE bool is_followed(u32 node) const {
    if (followed != nullptr) return followed[node] != 0;
    return drafts[node - 1] == i32(u32(outcomes[families[node].parent]));
  }
  DEVICE bool is_reached(u32 node) const {
    while (node != 0) {
      const u32 parent = families[node].parent;
      if (!is_followed(node) || is_end(parent)) return false;
      node = parent;
    }
    return true;
  }
  // Whether a node's path is longer than another's, or equally long and takes the earlier sibling
  // where they part.
  DEVICE bool is_better(u32 node, u32 other) const {
    const u32 depth = families[node].depth, other_depth = families[other].depth;
    if (depth != other_depth || node == other) return depth > other_depth;
    while (families[node].parent != families[other].parent) {
      node = families[node].parent;
      other = families[other].parent;
    }
    return node < other;
  }
  // The node of a path's last node at a depth above it.
  DEVICE u32 ancestor(u32 node, u32 depth) const {
    while (families[node].depth > depth) node = families[node].parent;
    return node;
  }
};

DEVICE Tree tree_of(const VerifyArguments &arguments, const Sequence &sequence, u32 index) {
  const u64 first = u64(index) * nodes_of(arguments);
  return Tree{arguments.families + first,
              arguments.followed == nullptr ? nullptr : arguments.followed + first,
              arguments.drafts + u64(index) * arguments.max_drafts, arguments.outcomes + first,
              sequence.num_drafts, sequence.limit};
}

// The last node of the longest path; for a warp.
DEVICE u32 last_node(const Tree &tree) {
  u32 best = 0;
  for (u32 node = lane_index(); node <= u32(tree.num_drafts); node += warp_lanes) {
    if (tree.is_reached(node) && tree.is_better(node, best)) best = node;
  }
#pragma unroll
  for (u32 distance = warp_lanes / 2; distance > 0; distance /= 2) {
    const u32 other = __shfl_xor_sync(all_lanes, best, distance);
    if (tree.is_better(other, best)) best = other;
  }
  return best;
}

// What the path to a node emits; for a warp.
DEVICE Walk walk_tree(const Tree &tree, u32 last) {
  const i32 depth = tree.families[last].depth;
  const bool is_end = tree.is_end(last);
  Walk result{depth, is_end ? depth : depth + 1, 0, 0};
  bool has_no = false;
  for (i32 above = i32(lane_index()); above < result.emitted; above += i32(warp_lanes)) {
    has_no |= (tree.outcomes[tree.ancestor(last, u32(above))] & has_no_candidate) != 0;
  }
  if (__any_sync(all_lanes, has_no)) result.flags |= flag_no_candidate;
  const bool stops =
      is_end ? tree.families[last].is_stop != 0 : (tree.outcomes[last] & is_stop) != 0;
  if (stops) result.flags |= flag_stopped;
  if (result.emitted == tree.limit) result.flags |= flag_limit;
  if (!is_end) return result;
  for (u32 node = last + 1; node <= u32(tree.num_drafts); node += warp_lanes) {
    u32 below = node + lane_index();
    const bool is_there = below <= u32(tree.num_drafts);
    while (is_there && below > last) below = tree.families[below].parent;
    result.dropped += __popc(__ballot_sync(all_lanes, is_there && below == last));
  }
  return result;
}

// Writes the record of a sequence whose rows are decided, or which takes no part; for a warp. The
// last one to do so adds to the counters.
DEVICE void write_record(const VerifyArguments &arguments, u32 index) {
  const Sequence &sequence = arguments.sequences[index];
  const u64 *outcomes = arguments.outcomes + u64(index) * nodes_of(arguments);
  const bool is_tree = arguments.families != nullptr && sequence.state == taking_part;
  const Tree tree = tree_of(arguments, sequence, index);
  Walk result{0, 0, 0, 0};
  u32 last = 0;
  if (is_tree) {
    last = last_node(tree);
    result = walk_tree(tree, last);
  } else if (sequence.state == taking_part) {
    result = walk_chain(sequence, outcomes);
  }
  if (sequence.state == invalid) result.flags = flag_invalid;
  if (sequence.state == ended) result.flags = flag_limit;
  const bool takes_part = sequence.state == taking_part || sequence.state == ended;
  if (takes_part && arguments.is_lossy != 0) result.flags |= flag_lossy;

  constexpr u32 head = 8;
  i32 *record = arguments.decisions + index * arguments.decision_stride;
  i32 *tokens = record + head, *path = tokens + nodes_of(arguments);
  const auto token_at = [&](i32 place) {
    if (!is_tree || place == result.accepted) {
      return i32(u32(outcomes[is_tree ? last : u32(place)]));
    }
    return tree.drafts[tree.ancestor(last, u32(place) + 1) - 1];
  };
  for (i32 place = i32(lane_index()); place < i32(nodes_of(arguments)); place += i32(warp_lanes)) {
    const bool is_emitted = place < result.emitted;
    tokens[place] = is_emitted ? token_at(place) : arguments.padding;
    path[place] = !is_emitted ? -1 : is_tree ? i32(tree.ancestor(last, u32(place))) : place;
  }
  if (lane_index() == 0) {
    record[0] = result.accepted;
    record[1] = result.emitted;
    if (result.emitted > 0) record[2] = token_at(result.emitted - 1);
    record[3] = i32(u32(sequence.position) + u32(result.emitted));
    record[4] = result.flags;
    record[5] = result.dropped;
    record[6] = record[7] = 0;
    arguments.emissions[index] = Emission{result.accepted, result.emitted};
  }
  if (arguments.counters == nullptr) return;
  u32 before = 0;
  if (lane_index() == 0) before = add_acquire_release(arguments.records, 1);
  __syncwarp();
  if (shuffle(before, 0) == arguments.num_sequences - 1) add_counters(arguments);
}

// Writes down how a row was decided. Whether all `rows` of the sequence are now; for a warp.
DEVICE bool settle(const VerifyArguments &arguments, u32 index, u32 node, u64 outcome, u32 rows) {
  u32 before = 0;
  if (lane_index() == 0) {
    if (is_stop_token(arguments, i32(u32(outcome)))) outcome |= is_stop;
    arguments.outcomes[u64(index) * nodes_of(arguments) + node] = outcome;
    before = add_acquire_release(&arguments.arrivals[index], 1);
  }
  __syncwarp();
  return shuffle(before, 0) == rows - 1;
}

// ---- Rows ----------------------------------------------------------------------------------------

// The host's logits of a node.
DEVICE Row logits_row(const VerifyArguments &arguments, const Sequence &sequence, u32 node) {
  const u8 *logits = arguments.logits + (sequence.first_row + node) * arguments.row_stride;
  return Row{logits, nullptr, arguments.dtype, 0, arguments.vocabulary};
}

// Where they are as processing makes them, if it makes anything of them.
DEVICE f32 *processed_logits(const VerifyArguments &arguments, const Sequence &sequence, u32 node) {
  return arguments.processing.rows +
         (sequence.processed_row + node) * arguments.processing.row_stride;
}

// The logits that a node is decided by.
DEVICE Row target_row(const VerifyArguments &arguments, const Sequence &sequence, u32 node) {
  if (sequence.processed_row == not_processed) return logits_row(arguments, sequence, node);
  const f32 *logits = processed_logits(arguments, sequence, node);
  return Row{reinterpret_cast<const u8 *>(logits), nullptr, dtype_f32, 0, arguments.vocabulary};
}

DEVICE Row candidate_row(const VerifyArguments &arguments, const Sequence &sequence, u32 node) {
  const u64 row = sequence.draft_row + node;
  const i32 *ids = arguments.token_ids;
  return Row{arguments.draft_logits + row * arguments.draft_row_stride,
             ids == nullptr ? nullptr : ids + row * arguments.token_ids_stride,
             arguments.draft_dtype, 0, arguments.candidates};
}

// Lets thread 0 write what all threads know, and read so far.
template <class Value>
DEVICE void tell(Value &shared, const Value &value) {
  __syncthreads();
  if (threadIdx.x == 0) shared = value;
  __syncthreads();
}
