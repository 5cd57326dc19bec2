// Verification by rules that test more than one draft at a row, or ask for more than its draws: siblings
// one after the other, prefixes of a chain, and the rules that are not lossless. All weights of p, and of
// the law q that the drafts were drawn from, lie in memory, each block of a team having those of its
// slice: what a rejected sibling leaves is written over them. On equal numbers the decisions are those
// of the CPU (src/verify, src/backend/cpu/remainder.rs), bit for bit.
#include "verify.cuh"

constexpr u32 path_threads = 512;
constexpr u32 path_warps = path_threads / warp_lanes;

// A residual weighs less than 2 to this power in all.
constexpr u32 residual_bits = 62;

// How probable the drafts of a chain are by p as against q, at most 1.
struct PrefixWeight {
  bool is_one;
  u64 fraction;  // in units of 2^-64, if it is less

  DEVICE bool is_zero() const { return !is_one && fraction == 0; }
  DEVICE bool is_above(u64 number) const { return is_one || number < fraction; }
};

// The shared memory of a block: what all of its threads know. Thread 0 writes it between barriers.
struct Path {
  LawScratch<path_threads> scratch;
  u128 of_warp[path_warps];
  Team team;
  Slice slice, draft_slice;
  u64 *ours, *theirs;  // of the columns of the slice
  u128 *rests;         // of the tiles of the slice

  u32 index, node;
  Row row;
  Weighed p;
  bool has_candidate;
  u64 our_sum, their_sum;  // what the weights are fractions of; 0 where there is no q
};

// What a team has decided, for the block that is to write it down.
struct Choice {
  bool is_made;
  u32 column;
};

DEVICE u32 first_column(const Path &path) { return path.slice.begin * tile_logits; }
DEVICE u32 slots(const Path &path) { return path.slice.tiles() * tile_logits; }

// ---- Sums over the team --------------------------------------------------------------------------

// Adds up what each thread has; the team meets.
DEVICE Share<u128> share_sum(Path &path, u128 of_thread) {
  const u128 of_warp = shuffle(warp_prefix(of_thread), warp_lanes - 1);
  if (lane_index() == 0) path.of_warp[warp_index()] = of_warp;
  __syncthreads();
  const u32 lane = lane_index();
  const u128 of_block =
      shuffle(warp_prefix(lane < path_warps ? path.of_warp[lane] : u128(0)), warp_lanes - 1);
  if (path.team.size == 1) {
    __syncthreads();  // the next sum may write
    return Share<u128>{0, of_block, of_block};
  }
  if (threadIdx.x == 0) path.team.own_board().rest = of_block;
  path.team.meet();
  return share_of<u128>(path.team, lane < path.team.size ? path.team.board(lane).rest : u128(0));
}

// A pair of numbers that the block knows which has the column, told to all; the team meets.
struct Pair {
  u64 ours, theirs;
};
DEVICE Pair weights_at(Path &path, u32 column) {
  __syncthreads();  // they are written
  const bool is_own = path.slice.has(column);
  const u32 place = column - first_column(path);
  const bool has_theirs = is_own && path.their_sum != 0;  // otherwise they were not written
  const Pair own{is_own ? path.ours[place] : 0, has_theirs ? path.theirs[place] : 0};
  if (path.team.size == 1) {
    __syncthreads();  // they may be written again
    return own;
  }
  if (threadIdx.x == 0) {
    path.team.own_board().rest = own.ours;
    path.team.own_board().common = own.theirs;
  }
  path.team.meet();
  const u32 lane = lane_index();
  const bool is_member = lane < path.team.size;
  const u128 ours = is_member ? path.team.board(lane).rest : u128(0);
  const u128 theirs = is_member ? path.team.board(lane).common : u128(0);
  return Pair{u64(share_of<u128>(path.team, ours).all), u64(share_of<u128>(path.team, theirs).all)};
}

// ---- Laws ----------------------------------------------------------------------------------------

// The column of the largest logit, of equal ones the first; the team meets.
DEVICE u32 told_first(Path &path, const Row &row, const Slice &slice) {
  const u32 first = first_of_largest(row, slice, path.scratch);
  if (path.team.size == 1) return first;
  if (threadIdx.x == 0) path.team.own_board().column = first;
  path.team.meet();
  return warp_min(lane_index() < path.team.size ? path.team.board(lane_index()).column : no_column);
}

// The law of a row, and whether it has a candidate: without one it is certain of its lowest id. The
// team meets.
DEVICE Weighed find_law(Path &path, const Row &row, const Slice &slice, const Parameters &parameters,
                        bool &has_candidate) {
  scan(row, slice, path.team, path.scratch);
  has_candidate = path.scratch.peaks.has_candidate();
  if (has_candidate && !is_greedy(parameters)) {
    return weigh(row, slice, parameters, no_column, path.team, path.scratch);
  }
  const u32 certain = has_candidate ? told_first(path, row, slice) : 0;
  return weigh_certain<path_threads>(certain, slice, no_column);
}

// Writes the weights of a law whose columns are the vocabulary.
DEVICE void write_weights(const Path &path, const Row &row, const Law &law, u64 *weights) {
  for (u32 place = threadIdx.x; place < slots(path); place += path_threads) {
    const u32 column = first_column(path) + place;
    weights[place] = column < row.columns ? weight_of(law, candidate_at(row, column), column) : 0;
  }
}

// Finds p at the node, and writes its weights; the team meets.
DEVICE void load_target(const VerifyArguments &arguments, Path &path) {
  const Sequence &sequence = arguments.sequences[path.index];
  const Row row = target_row(arguments, sequence, path.node);
  bool has_candidate;
  const Weighed p = find_law(path, row, path.slice, sequence.target, has_candidate);
  tell(path.row, row);
  if (threadIdx.x == 0) {
    path.p = p;
    path.has_candidate &= has_candidate;
    path.our_sum = p.law.sum;
    path.their_sum = 0;
  }
  write_weights(path, row, p.law, path.ours);
  __syncthreads();
}

// Writes the weights of candidates where their tokens are.
DEVICE void scatter_weights(const Path &path, const Row &row, const Law &law) {
  for (u32 place = threadIdx.x; place < slots(path); place += path_threads) path.theirs[place] = 0;
  __syncthreads();
  for (u32 column = threadIdx.x; column < row.columns; column += path_threads) {
    const u32 token = u32(row.token_ids[column]);  // beyond all tiles where it is negative
    if (token >= path.row.columns || !path.slice.has(token)) continue;
    const u64 weight = weight_of(law, candidate_at(row, column), column);
    if (weight != 0) path.theirs[token - first_column(path)] = weight;
  }
}

// Finds q at the node, for drafts with a distribution, and writes its weights over the vocabulary; the
// team meets.
DEVICE void load_draft(const VerifyArguments &arguments, Path &path) {
  const Sequence &sequence = arguments.sequences[path.index];
  const Row row = candidate_row(arguments, sequence, path.node);
  bool is_known;
  const Weighed q = find_law(path, row, path.draft_slice, sequence.draft, is_known);
  if (row.token_ids != nullptr) {
    scatter_weights(path, row, q.law);
  } else {
    write_weights(path, row, q.law, path.theirs);
  }
  tell(path.their_sum, is_known ? q.law.sum : 0);
}

// The law that is certain of a token.
DEVICE void load_certain(Path &path, u32 token) {
  for (u32 place = threadIdx.x; place < slots(path); place += path_threads) {
    path.theirs[place] = first_column(path) + place == token ? weight_one : 0;
  }
  tell(path.their_sum, u64(weight_one));
}

// ---- What is left of p ---------------------------------------------------------------------------

// max(p - q, 0) at a token, in units of one over both sums.
DEVICE u128 excess(u64 ours, u64 our_sum, u64 theirs, u64 their_sum) {
  const u128 left = u128(ours) * their_sum, right = u128(theirs) * our_sum;
  return left > right ? left - right : 0;
}

DEVICE u32 bits_of(u128 value) {
  const u64 high = u64(value >> 64);
  return high != 0 ? 128 - u32(__clzll(i64(high))) : 64 - u32(__clzll(i64(u64(value))));
}

// Takes q from what is left of p, and a token from q if its siblings are distinct; the team meets.
DEVICE void reject(Path &path, u32 token, bool is_distinct) {
  const u64 our_sum = path.our_sum, their_sum = path.their_sum;
  if (our_sum != 0 && their_sum != 0) {
    const u32 bits = bits_of(u128(our_sum) * their_sum);
    const u32 shift = bits > residual_bits ? bits - residual_bits : 0;
    u64 sum = 0;
    for (u32 place = threadIdx.x; place < slots(path); place += path_threads) {
      u64 ours = path.ours[place];
      if (ours == 0) continue;
      ours = u64(excess(ours, our_sum, path.theirs[place], their_sum) >> shift);
      path.ours[place] = ours;
      sum += ours;
    }
    const u64 left = u64(share_sum(path, sum).all);
    tell(path.our_sum, left);
  }
  if (!is_distinct || token == no_column) return;
  const u64 theirs = weights_at(path, token).theirs;
  if (threadIdx.x == 0) {
    path.their_sum -= theirs;
    if (path.slice.has(token)) path.theirs[token - first_column(path)] = 0;
  }
  __syncthreads();
}

// Takes a token from what is left of p as it is; the team meets.
DEVICE void remove(Path &path, u32 token) {
  const u64 ours = weights_at(path, token).ours;
  if (threadIdx.x == 0) {
    path.our_sum -= ours;
    if (path.slice.has(token)) path.ours[token - first_column(path)] = 0;
  }
  __syncthreads();
}

// A weight of p times that of the prefix, rounded down.
DEVICE u64 weighted(u64 ours, const PrefixWeight &weight) {
  return weight.is_one ? ours : u64(scaled(weight.fraction, ours));
}

// The excess of w p over q at a place of the slice; without q it is what is left of p.
DEVICE u128 excess_at(const Path &path, u32 place, bool over_draft, const PrefixWeight &weight) {
  if (!over_draft) return path.ours[place];
  const u64 ours = weighted(path.ours[place], weight);
  return excess(ours, path.our_sum, path.theirs[place], path.their_sum);
}

// The excess of the tiles of the slice, and of all; the team meets.
DEVICE Share<u128> measure_excess(Path &path, bool over_draft, const PrefixWeight &weight) {
  u128 of_thread = 0;
  for (u32 tile = warp_index(); tile < path.slice.tiles(); tile += path_warps) {
    u128 sum = 0;
#pragma unroll 1
    for (u32 i = 0; i < lane_logits; i++) {
      sum += excess_at(path, tile * tile_logits + i * warp_lanes + lane_index(), over_draft, weight);
    }
    sum = shuffle(warp_prefix(sum), warp_lanes - 1);
    if (lane_index() == 0) {
      path.rests[tile] = sum;
      of_thread += sum;
    }
  }
  return share_sum(path, of_thread);
}

// The token that a number stands for in an excess that is not nothing.
DEVICE Choice draw_excess(Path &path, const Share<u128> &share, u64 number, bool over_draft,
                          const PrefixWeight &weight) {
  u128 target = scaled(number, share.all);
  if (target < share.before || target - share.before >= share.own) return Choice{false, 0};
  if (warp_index() != 0) return Choice{true, 0};  // the first warp tells
  target -= share.before;
  const u32 tiles = path.slice.tiles();
  const u32 tile = min(seek(path.rests, tiles, target), tiles - 1);
  const u32 place = seek_in_tile(tile, target, [&](u32 place) -> u128 {
    return excess_at(path, place, over_draft, weight);
  });
  return Choice{true, first_column(path) + (place == no_column ? 0 : place)};
}

DEVICE PrefixWeight whole_weight() { return PrefixWeight{true, 0}; }

// A token drawn from p, whose weights are written anew if something was taken from them; the team
// meets.
DEVICE Choice draw_target(Path &path, u64 number, bool is_changed) {
  if (is_changed) {
    __syncthreads();  // the weights are read
    write_weights(path, path.row, path.p.law, path.ours);
    __syncthreads();
  }
  return draw_excess(path, measure_excess(path, false, whole_weight()), number, false, whole_weight());
}

// A token drawn from what is left of p after `rejected` drafts; from p where nothing is.
DEVICE Choice draw_left(Path &path, u64 number, bool over_draft, bool is_changed) {
  const Share<u128> share = measure_excess(path, over_draft, whole_weight());
  if (share.all == 0) return draw_target(path, number, is_changed);
  return draw_excess(path, share, number, over_draft, whole_weight());
}

// ---- Rules for the children of a node ------------------------------------------------------------

// The children of a node, with what is needed to walk through them.
struct Children {
  const Family *families;
  const i32 *drafts;
  const u64 *numbers;
  u32 *followed;

  DEVICE u32 token(u32 child) const {
    const i32 token = drafts[child - 1];
    return token < 0 ? no_column : u32(token);
  }
  DEVICE u64 test_number(u32 child) const { return numbers[2 * (child - 1)]; }
  DEVICE u64 emission_number(u32 node) const { return numbers[2 * node + 1]; }
};

DEVICE Children children_of(const VerifyArguments &arguments, u32 index) {
  const u64 first = u64(index) * nodes_of(arguments);
  return Children{arguments.families + first, arguments.drafts + u64(index) * arguments.max_drafts,
                  arguments.numbers + first * 2, arguments.followed + first};
}

// Writes which children of a node are followed; for the lane that settles the node.
template <class Follows>
DEVICE void mark_children(const Children &children, u32 node, Follows follows) {
  for (u32 child = children.families[node].first_child; child != no_node;
       child = children.families[child].next_sibling) {
    children.followed[child] = follows(child) ? 1 : 0;
  }
}

// What a team decides at a node: which token follows, if no child does, and which children do.
struct Decision {
  Choice choice;
  u32 child;  // the one that is followed; no_node: those that the rule marks
};

// Recursive rejection: tests siblings one after the other.
DEVICE Decision decide_rejection(const VerifyArguments &arguments, Path &path,
                                 const Children &children) {
  const bool is_distinct = arguments.rule == rule_rejection_distinct;
  const bool has_distribution = arguments.has_distribution != 0;
  u32 rejected = 0;
  load_target(arguments, path);
  const u32 first = children.families[path.node].first_child;
  if (has_distribution && first != no_node) load_draft(arguments, path);
#pragma unroll 1
  for (u32 child = first; child != no_node; child = children.families[child].next_sibling) {
    const u32 token = children.token(child);
    if (token != no_column) {
      const Pair pair = weights_at(path, token);
      const u64 number = children.test_number(child);
      const u64 theirs = has_distribution ? pair.theirs : weight_one;
      const u64 their_sum = has_distribution ? path.their_sum : weight_one;
      const bool passes = theirs != 0 && scaled(number, u128(theirs) * path.our_sum) <
                                             u128(pair.ours) * their_sum;
      if (passes) return Decision{Choice{path.team.rank == 0, 0}, child};
    }
    const bool is_last = children.families[child].next_sibling == no_node ||
                         (token == no_column && is_distinct);
    rejected++;
    if (!has_distribution) {
      if (token != no_column) remove(path, token);
    } else if (!(is_last && rejected == 1)) {
      reject(path, token, is_distinct);
    }
    if (is_last) break;
  }
  const u64 number = children.emission_number(path.node);
  if (rejected == 0) return Decision{draw_target(path, number, false), no_node};
  // After one draft the excess is exact, and stays unwritten.
  const bool over_draft = has_distribution && rejected == 1 && path.their_sum != 0;
  return Decision{draw_left(path, number, over_draft, true), no_node};
}

// Siblings share the number of the first.
DEVICE Decision decide_threshold(const VerifyArguments &arguments, Path &path,
                                 const Children &children) {
  load_target(arguments, path);
  const u32 first = children.families[path.node].first_child;
  const u64 sum = path.our_sum;
  bool is_changed = false;
  if (first != no_node) {
    const u64 single = top_p_limit(arguments.threshold_single, sum);
    const u128 share = scaled(children.test_number(first),
                              top_p_limit(arguments.threshold_accumulated, sum));
    u128 reached = 0;
#pragma unroll 1
    for (u32 child = first; child != no_node; child = children.families[child].next_sibling) {
      const u32 token = children.token(child);
      if (token == no_column) continue;
      const u64 weight = weight_of(path.p.law, candidate_at(path.row, token), token);
      reached += weight;
      if (weight != 0 && (share < reached || weight >= single)) {
        return Decision{Choice{path.team.rank == 0, 0}, child};
      }
      remove(path, token);
      is_changed = true;
    }
  }
  return Decision{draw_left(path, children.emission_number(path.node), false, is_changed), no_node};
}

// The entropy of p in units of 2^-32 bits; the team meets.
DEVICE i64 entropy(Path &path) {
  u128 sum = 0;
  for (u32 place = threadIdx.x; place < slots(path); place += path_threads) {
    const u64 weight = path.ours[place];
    if (weight != 0) sum += u128(weight) * u64(log2_digits(weight, 16) >> 16);
  }
  sum = share_sum(path, sum).all;
  if (path.p.law.certain != no_column) return 0;
  return log2_digits(path.p.law.sum, all_digits) - (i64(u64(sum / path.p.law.sum)) << 16);
}

// What is marked where a rule follows all children that pass.
struct Marks {
  u64 least;         // TYPICAL: weights
  i64 least_log;     // and their logarithms
  u32 kth;           // RELAXED: the order of logits
  f32 least_logit;
};

DEVICE bool is_marked(const VerifyArguments &arguments, const Path &path, const Marks &marks,
                      u32 token) {
  if (token == no_column) return false;
  const f32 logit = candidate(candidate_at(path.row, token));
  if (arguments.rule == rule_relaxed) {
    return logit > -infinity() && order(logit) >= marks.kth && logit >= marks.least_logit;
  }
  const u64 weight = weight_of(path.p.law, logit, token);
  return weight >= marks.least || (weight != 0 && log2_digits(weight, all_digits) >= marks.least_log);
}

// Finds what TYPICAL and RELAXED ask for; the team meets.
DEVICE Marks find_marks(const VerifyArguments &arguments, Path &path) {
  Marks marks{0, 0, 0, -infinity()};
  if (arguments.rule == rule_typical) {
    const u64 sum = path.p.law.sum;
    marks.least = top_p_limit(arguments.epsilon, sum);
    marks.least_log = log2_digits(sum, all_digits) + arguments.log2_alpha - entropy(path);
    return marks;
  }
  scan(path.row, path.slice, path.team, path.scratch);
  const u32 k = u32(max(arguments.top_n, 1));
  const f32 largest = from_order(path.scratch.peaks.highest);
  if (k < path.row.columns && path.scratch.peaks.has_candidate()) {
    const Search search = search_of_top_k(k, path.scratch);
    const Boundary found =
        search_row(path.row, path.slice, search, 1.0f, path.team, path.scratch);
    if (found.is_there) marks.kth = found.key;
  }
  marks.least_logit = subtract_rn(largest, arguments.tolerance);
  return marks;
}

// The draw of a token where no child is followed, which for greedy sequences is the argmax.
DEVICE Choice draw_own(const VerifyArguments &arguments, Path &path, const Children &children) {
  if (is_greedy(arguments.sequences[path.index].target)) {
    return Choice{path.team.rank == 0, path.p.law.certain};
  }
  return draw_target(path, children.emission_number(path.node), false);
}

// Whether the number of a test is below a probability.
DEVICE bool is_below(u64 number, f32 probability) {
  if (probability >= 1.0f) return true;
  return probability > 0.0f && number < u64(f64(probability) * 18446744073709551616.0);
}

// Decides at a node, and writes which children are followed.
DEVICE void decide_node(const VerifyArguments &arguments, Path &path, bool &is_decided) {
  const Children children = children_of(arguments, path.index);
  const bool is_greedy_sequence = is_greedy(arguments.sequences[path.index].target);
  const bool is_lossless = arguments.is_lossy == 0;
  const u32 first = children.families[path.node].first_child;
  Decision decision{Choice{false, 0}, no_node};
  Marks marks{0, 0, 0, 0.0f};
  bool marks_all = false, marks_token = false;
  if (is_greedy_sequence && (is_lossless || arguments.rule == rule_typical ||
                             arguments.rule == rule_threshold)) {
    load_target(arguments, path);
    marks_token = true;
    decision.choice = Choice{path.team.rank == 0, path.p.law.certain};
  } else if (arguments.rule == rule_rejection || arguments.rule == rule_rejection_distinct) {
    decision = decide_rejection(arguments, path, children);
  } else if (arguments.rule == rule_threshold) {
    decision = decide_threshold(arguments, path, children);
  } else if (arguments.rule == rule_synthetic) {
    const f32 wanted = arguments.acceptance == nullptr || first == no_node
                           ? 0.0f
                           : arguments.acceptance[children.families[path.node].depth];
    const bool follows = first != no_node && children.token(first) != no_column &&
                         is_below(children.test_number(first), wanted);
    if (follows) {
      decision = Decision{Choice{path.team.rank == 0, 0}, first};
    } else {
      load_target(arguments, path);
      decision.choice = draw_own(arguments, path, children);
    }
  } else {
    load_target(arguments, path);
    if (first != no_node) {
      marks = find_marks(arguments, path);
      marks_all = true;
    }
    decision.choice = draw_own(arguments, path, children);
  }
  is_decided = false;
  if (!decision.choice.is_made || warp_index() != 0) return;
  const u32 column = decision.choice.column;
  if (lane_index() == 0) {
    mark_children(children, path.node, [&](u32 child) {
      const u32 token = children.token(child);
      if (marks_token) return token == column;
      if (marks_all) return is_marked(arguments, path, marks, token);
      return child == decision.child;
    });
  }
  __syncwarp();
  u64 outcome = column;
  if (!path.has_candidate) outcome |= has_no_candidate;
  const u32 rows = u32(arguments.sequences[path.index].num_drafts) + 1;
  is_decided = settle(arguments, path.index, path.node, outcome, rows);
}

// ---- Block verification --------------------------------------------------------------------------

// The weight of a prefix with one more draft.
DEVICE PrefixWeight extend(const PrefixWeight &weight, const Pair &pair, u64 our_sum, u64 their_sum) {
  u128 ours = u128(pair.ours) * their_sum, theirs = u128(pair.theirs) * our_sum;
  if (theirs == 0) return PrefixWeight{false, 0};
  if (!weight.is_one) ours = scaled(weight.fraction, ours);
  if (ours >= theirs) return whole_weight();
  // A quotient of numbers below 2^64 leaves room for the 64 digits of the fraction.
  const u32 bits = bits_of(theirs), shift = bits > 64 ? bits - 64 : 0;
  ours >>= shift;
  theirs >>= shift;
  if (ours >= theirs) return PrefixWeight{false, ~u64(0)};
  return PrefixWeight{false, u64((ours << 64) / theirs)};
}

// Whether a number is below s / (s + 1 - w), s being `excess` of `one`; always where both are nothing.
DEVICE bool is_below_chance(u64 number, u128 excess, u128 one, const PrefixWeight &weight) {
  const u128 missing = weight.is_one ? u128(0) : one - scaled(weight.fraction, one);
  const u128 all = excess + missing;
  return all == 0 || scaled(number, all) < excess;
}

// Finds p and q at a node; the team meets.
DEVICE void load_node(const VerifyArguments &arguments, Path &path, u32 node, u32 token) {
  tell(path.node, node);
  load_target(arguments, path);
  if (arguments.has_distribution != 0) {
    load_draft(arguments, path);
  } else if (token != no_column) {
    load_certain(path, token);
  }
}

// Writes the outcomes of a chain of which so many drafts are accepted; for a lane.
DEVICE void write_chain(const VerifyArguments &arguments, const Path &path, u32 accepted, u32 column) {
  u64 *outcomes = arguments.outcomes + u64(path.index) * nodes_of(arguments);
  const i32 *drafts = arguments.drafts + u64(path.index) * arguments.max_drafts;
  for (u32 node = 0; node <= accepted; node++) {
    const u32 token = node < accepted ? u32(drafts[node]) : column;
    u64 outcome = token;
    if (node < accepted) outcome |= is_accepted;
    if (node == 0 && !path.has_candidate) outcome |= has_no_candidate;
    if (is_stop_token(arguments, i32(token))) outcome |= is_stop;
    outcomes[node] = outcome;
  }
}

// Decides a greedy chain: drafts are accepted while they are the argmax.
DEVICE void decide_greedy_chain(const VerifyArguments &arguments, Path &path, bool &is_decided) {
  const u32 drafts = u32(arguments.sequences[path.index].num_drafts);
  const i32 *tokens = arguments.drafts + u64(path.index) * arguments.max_drafts;
  const bool is_writer = path.team.rank == 0 && threadIdx.x == 0;
  bool is_going_on = true;
#pragma unroll 1
  for (u32 node = 0; node <= drafts && is_going_on; node++) {
    if (threadIdx.x == 0) path.has_candidate = true;
    tell(path.node, node);
    load_target(arguments, path);
    const u32 column = path.p.law.certain;
    is_going_on = node < drafts && tokens[node] == i32(column);
    if (!is_writer) continue;
    u64 outcome = column;
    if (is_going_on) outcome |= is_accepted;
    if (!path.has_candidate) outcome |= has_no_candidate;
    if (is_stop_token(arguments, i32(column))) outcome |= is_stop;
    arguments.outcomes[u64(path.index) * nodes_of(arguments) + node] = outcome;
  }
  __syncwarp();  // the warp reads what its first lane has written
  is_decided = path.team.rank == 0 && warp_index() == 0;
}

// How many drafts of a chain are accepted, and the weight of that prefix; the team goes down it.
struct Prefix {
  u32 accepted;
  PrefixWeight weight;
};
DEVICE Prefix longest_prefix(const VerifyArguments &arguments, Path &path, u32 drafts,
                             const i32 *tokens, const u64 *numbers) {
  Prefix longest{0, whole_weight()};
  PrefixWeight weight = whole_weight();
#pragma unroll 1
  for (u32 node = 0; node < drafts && !weight.is_zero(); node++) {
    const u32 token = tokens[node] < 0 ? no_column : u32(tokens[node]);
    load_node(arguments, path, node, token);
    const u64 our_sum = path.our_sum, their_sum = path.their_sum;
    if (node > 0) {
      const u64 number = numbers[2 * (node - 1)];
      bool passes = weight.is_above(number);
      if (their_sum != 0) {
        const u128 all = measure_excess(path, true, weight).all;
        passes = is_below_chance(number, all, u128(our_sum) * their_sum, weight);
      }
      if (passes) longest = Prefix{node, weight};
    }
    const bool is_drawn = token != no_column && their_sum != 0;
    weight = is_drawn ? extend(weight, weights_at(path, token), our_sum, their_sum)
                      : PrefixWeight{false, 0};
    const bool is_last = node + 1 == drafts && !weight.is_zero();
    if (is_last && weight.is_above(numbers[2 * node])) longest = Prefix{drafts, weight};
  }
  return longest;
}

// Decides a chain as a whole.
DEVICE void decide_chain(const VerifyArguments &arguments, Path &path, bool &is_decided) {
  const u32 drafts = u32(arguments.sequences[path.index].num_drafts);
  const i32 *tokens = arguments.drafts + u64(path.index) * arguments.max_drafts;
  const u64 *numbers = arguments.numbers + u64(path.index) * nodes_of(arguments) * 2;
  const Prefix prefix = longest_prefix(arguments, path, drafts, tokens, numbers);
  const u32 node = prefix.accepted;
  const u64 number = numbers[2 * node + 1];
  bool is_residual = false;
  if (node < drafts) {
    load_node(arguments, path, node, tokens[node] < 0 ? no_column : u32(tokens[node]));
    is_residual = path.their_sum != 0;
  } else {
    tell(path.node, node);
    load_target(arguments, path);
  }
  Choice choice{false, 0};
  if (is_residual) {
    const Share<u128> share = measure_excess(path, true, prefix.weight);
    if (share.all != 0) {
      choice = draw_excess(path, share, number, true, prefix.weight);
    } else {
      choice = draw_target(path, number, false);
    }
  } else {
    choice = draw_target(path, number, false);
  }
  is_decided = choice.is_made && warp_index() == 0;
  if (!is_decided) return;
  if (lane_index() == 0) write_chain(arguments, path, node, choice.column);
  __syncwarp();
}

// ---- The kernel ----------------------------------------------------------------------------------

// Carves what the block works with from its shared memory and its team's workspace.
DEVICE void carve(const VerifyArguments &arguments, u8 *memory, Path &path) {
  const u32 size = arguments.team_size, rank = blockIdx.x % size, team = blockIdx.x / size;
  const u32 tiles = tiles_of(arguments.vocabulary);
  const u32 draft_tiles = arguments.has_distribution ? tiles_of(arguments.candidates) : 0;
  const u32 most = (tiles + size - 1) / size, draft_most = (draft_tiles + size - 1) / size;
  const u32 peak_stride = max(tiles, draft_tiles);
  path.team = Team{rank, size, 0, arguments.meetings + team,
                   arguments.boards + u64(team) * 2 * size,
                   arguments.peaks + u64(team) * 2 * peak_stride, peak_stride};

  path.rests = reinterpret_cast<u128 *>(memory);
  u64 *sums = reinterpret_cast<u64 *>(path.rests + most), *draft_sums = sums + most;
  f32 *peaks = reinterpret_cast<f32 *>(draft_sums + draft_most), *draft_peaks = peaks + most;
  const u32 begin = rank * tiles / size, draft_begin = rank * draft_tiles / size;
  path.slice = Slice{begin, (rank + 1) * tiles / size, peaks, sums};
  path.draft_slice = Slice{draft_begin, (rank + 1) * draft_tiles / size, draft_peaks, draft_sums};
  if (arguments.weights == nullptr) {
    path.ours = reinterpret_cast<u64 *>(memory + (u64(most) * 28 + u64(draft_most) * 12 + 15) / 16 * 16);
    path.theirs = path.ours + u64(most) * tile_logits;
  } else {
    path.ours = arguments.weights + (u64(team) * 2 * tiles + begin) * tile_logits;
    path.theirs = path.ours + u64(tiles) * tile_logits;
  }
}

// `teams` teams of `team_size` blocks, all of them resident. A team has a row at a time, or a whole
// chain.
KERNEL_RESIDENT(path_threads, 1, verify_path, VerifyArguments) {
  __shared__ Path path;
  DYNAMIC_SHARED(u8, memory);
  const bool has_chains = arguments.rule == rule_block;
  const u32 items = has_chains ? 1 : nodes_of(arguments);
  if (threadIdx.x == 0) carve(arguments, memory, path);
  __syncthreads();
#pragma unroll 1
  for (u64 item = blockIdx.x / arguments.team_size; item < u64(arguments.num_sequences) * items;
       item += arguments.teams) {
    if (threadIdx.x == 0) {
      path.index = u32(item / items);
      path.node = u32(item % items);
      path.has_candidate = true;
    }
    __syncthreads();
    const u32 index = path.index, node = path.node;
    const Sequence &sequence = arguments.sequences[index];
    bool is_decided = false;
    if (sequence.state != taking_part) {
      is_decided = node == 0 && path.team.rank == 0 && warp_index() == 0;
    } else if (has_chains && is_greedy(sequence.target)) {
      decide_greedy_chain(arguments, path, is_decided);
    } else if (has_chains) {
      decide_chain(arguments, path, is_decided);
    } else if (node <= u32(sequence.num_drafts)) {
      decide_node(arguments, path, is_decided);
    }
    if (is_decided) write_record(arguments, index);
    __syncthreads();  // the first warp may still draw
  }
}
