// How probable the emitted tokens were: of each token of the records the logarithm of its probability, its
// rank and the most probable tokens, by the logits as they are and by what they were decided by. On equal
// logits they are those of the CPU (src/backend/cpu/verify/logprobs.rs), bit for bit.
#include "select.cuh"
#include "verify.cuh"

constexpr u32 logprob_threads = 512;

// Where one kind of them is written; as in src/backend/verify.rs. NULL is not wanted.
struct Logprobs {
  f32 *values;
  i32 *token_ids, *ranks;
  u64 alternatives;
};

struct LogprobArguments {
  VerifyArguments verify;
  Logprobs raw, processed;
  f32 *peaks;  // [blocks, tiles]
  u64 *sums;   // [blocks, tiles]
};
static_assert(sizeof(LogprobArguments) == sizeof(VerifyArguments) + 80, "as the host lays it out");

struct LogprobScratch {
  LawScratch<logprob_threads> law;
  SelectScratch selected;
  u32 above;
};

// A token of a record, and the row that it was drawn from.
struct Emitted {
  Row row;
  Parameters parameters;
  u32 token;
  bool is_raw;
};

// What a token's place holds in one kind of them.
struct Place {
  f32 *values;
  i32 *token_ids, *rank;
  u32 alternatives;
};

DEVICE Place place_of(const Logprobs &wanted, u64 place) {
  const u64 len = wanted.alternatives + 1;
  return Place{wanted.values + place * len,
               wanted.token_ids == nullptr ? nullptr : wanted.token_ids + place * len,
               wanted.ranks == nullptr ? nullptr : wanted.ranks + place, u32(wanted.alternatives)};
}

// Says that nothing was emitted, or that there are no more alternatives.
DEVICE void clear_place(const Place &place, u32 first, f32 value) {
  for (u32 i = first + threadIdx.x; i <= place.alternatives; i += logprob_threads) {
    place.values[i] = value;
    if (place.token_ids != nullptr) place.token_ids[i] = -1;
  }
}

// How many logits are larger than this one; the row has been scanned.
DEVICE u32 count_above(const Row &row, f32 logit, LogprobScratch &scratch) {
  if (threadIdx.x == 0) scratch.above = 0;
  __syncthreads();
  const Peaks &peaks = scratch.law.peaks;
  for (u32 tile = warp_index(); tile < peaks.tiles; tile += logprob_threads / warp_lanes) {
    if (!(peaks.of_tile[tile] > logit)) continue;
    f32 logits[lane_logits];
    load_tile(row, tile, logits);
    u32 above = 0;
#pragma unroll
    for (u32 i = 0; i < lane_logits; i++) {
      above += __popc(__ballot_sync(all_lanes, logits[i] > logit));
    }
    if (lane_index() == 0) atomicAdd(&scratch.above, above);
  }
  __syncthreads();
  return scratch.above;
}

// Writes what is wanted of a token. What the law leaves out has the logarithm -inf; raw, all candidates
// are in, however little they weigh.
DEVICE void tell_token(const Emitted &emitted, const Slice &slice, const Place &place,
                       LogprobScratch &scratch) {
  const Row &row = emitted.row;
  Team team = Team::alone();
  scan(row, slice, team, scratch.law);
  const bool has_candidate = scratch.law.peaks.has_candidate();
  const f32 largest = from_order(scratch.law.peaks.highest);
  Law law{};
  if (has_candidate) {
    law = weigh(row, slice, emitted.parameters, no_column, team, scratch.law).law;
  }
  const auto logit_of = [&](u32 column) { return candidate(candidate_at(row, column)); };
  const auto logarithm = [&](u32 column) {
    const f32 logit = logit_of(column);
    const bool is_in = has_candidate && (weight_of(law, logit, column) != 0 ||
                                         (emitted.is_raw && logit > -infinity()));
    return is_in ? log_probability(logit, largest, emitted.parameters.temperature, law.sum)
                 : -infinity();
  };
  if (place.rank != nullptr) {
    const u32 above = count_above(row, logit_of(emitted.token), scratch);
    if (threadIdx.x == 0) *place.rank = i32(above) + 1;
  }
  if (threadIdx.x == 0) {
    place.values[0] = logarithm(emitted.token);
    if (place.token_ids != nullptr) place.token_ids[0] = i32(emitted.token);
  }
  const u32 count = min(place.alternatives, row.columns);
  clear_place(place, count + 1, -infinity());
  if (count == 0) return;
  select_largest<logprob_threads>(
      row.columns, count, scratch.selected, logit_of, [&](u32 rank, u32 column) {
        const f32 value = logarithm(column);
        place.values[rank + 1] = value;
        place.token_ids[rank + 1] = value > -infinity() ? i32(column) : -1;
      });
}

// Writes a place of a sequence.
DEVICE void tell_place(const LogprobArguments &arguments, bool is_raw, u32 index, u32 place,
                       LogprobScratch &scratch) {
  const VerifyArguments &verify = arguments.verify;
  const u32 nodes = nodes_of(verify), tiles = tiles_of(verify.vocabulary);
  const Place to = place_of(is_raw ? arguments.raw : arguments.processed, u64(index) * nodes + place);
  constexpr u32 head = 8;
  const i32 *record = verify.decisions + index * verify.decision_stride;
  if (i32(place) >= record[1]) {
    clear_place(to, 0, __uint_as_float(0x7fc00000));
    if (threadIdx.x == 0 && to.rank != nullptr) *to.rank = 0;
    return;
  }
  const Sequence &sequence = verify.sequences[index];
  const u32 node = u32(record[head + nodes + place]);
  const bool is_plain = is_raw || is_greedy(sequence.target);
  const Emitted emitted{
      is_raw ? logits_row(verify, sequence, node) : target_row(verify, sequence, node),
      is_plain ? Parameters{1.0f, 0, 1.0f, 0.0f} : sequence.target, u32(record[head + place]), is_raw};
  const Slice slice{0, tiles, arguments.peaks + u64(blockIdx.x) * tiles,
                    arguments.sums + u64(blockIdx.x) * tiles};
  tell_token(emitted, slice, to, scratch);
}

// Each block has one place after the other.
KERNEL_RESIDENT(512, 1, tell_logprobs, LogprobArguments) {
  __shared__ LogprobScratch scratch;
  const u32 nodes = nodes_of(arguments.verify);
  const bool has_raw = arguments.raw.values != nullptr;
  const u32 kinds = has_raw && arguments.processed.values != nullptr ? 2 : 1;
  const u64 places = u64(arguments.verify.num_sequences) * nodes;
  for (u64 item = blockIdx.x; item < places * kinds; item += gridDim.x) {
    const u64 place = item % places;
    const bool is_raw = has_raw && item < places;
    tell_place(arguments, is_raw, u32(place / nodes), u32(place % nodes), scratch);
    __syncthreads();  // scratch is used again
  }
}
