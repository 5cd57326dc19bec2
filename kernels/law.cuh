// The law of a row of logits: its filters, and draws from it. On equal logits it is, bit for bit, the
// law of the CPU (src/sampling, src/backend/cpu/distribution.rs). Weights are integers, so no sum
// depends on an order; and all that a filter leaves is a boundary, which is unique: it is looked for
// with histograms of keys, and where few keys are left, among these.
//
// A row may be shared out: each block of a team has a slice of its tiles, and at meetings they tell
// each other on boards what they have. A block that works alone is a team of one.
//
// Drafting needs Row, Parameters, uniform and draw_column.
#pragma once
#include "tensor.cuh"

// ---- Numbers -------------------------------------------------------------------------------------

// What a random number is for; as in src/sampling/philox.rs.
enum Purpose : u32 {
  for_draft = 0,
  for_acceptance = 1,
  for_emission = 2,
  for_block_acceptance = 3,
};

// The random number for the token at an absolute position: Philox4x32-10. Numbers of different lanes are
// independent.
DEVICE u64 uniform(u64 seed, u64 position, Purpose purpose, u32 lane = 0) {
  u32 counter[4] = {u32(position), u32(position >> 32), purpose, lane};
  u32 key[2] = {u32(seed), u32(seed >> 32)};
#pragma unroll
  for (u32 round = 0; round < 10; round++) {
    const u64 left = u64(0xd2511f53) * counter[0], right = u64(0xcd9e8d57) * counter[2];
    counter[0] = u32(right >> 32) ^ counter[1] ^ key[0];
    counter[1] = u32(right);
    counter[2] = u32(left >> 32) ^ counter[3] ^ key[1];
    counter[3] = u32(left);
    key[0] += 0x9e3779b9;
    key[1] += 0xbb67ae85;
  }
  return u64(counter[1]) << 32 | counter[0];
}

// number * total / 2^64, rounded down: exact for any total below 2^127.
DEVICE u128 scaled(u64 number, u128 total) {
  return u128(number) * u64(total >> 64) + (u128(number) * u64(total) >> 64);
}

// ---- Logits --------------------------------------------------------------------------------------

// A row of logits.
struct Row {
  const u8 *logits;      // of column `first` on; in global or in shared memory
  const i32 *token_ids;  // one per column, or NULL; where it is negative, the logit counts as -inf
  u32 dtype;
  u32 first;
  u32 columns;
};

// Logits that are skipped or summed as a whole: the blocks of the CPU.
constexpr u32 tile_logits = 256;
constexpr u32 lane_logits = tile_logits / warp_lanes;
constexpr u32 no_column = 0xffffffff;

DEVICE u32 tiles_of(u32 columns) { return (columns + tile_logits - 1) / tile_logits; }

DEVICE f32 infinity() { return __uint_as_float(0x7f800000); }

DEVICE f32 logit_at(const Row &row, u32 column) {
  const u32 place = column - row.first;
  switch (row.dtype) {
    case dtype_f32: return reinterpret_cast<const f32 *>(row.logits)[place];
    case dtype_f16: return to_f32(reinterpret_cast<const f16 *>(row.logits)[place]);
    default: return to_f32(reinterpret_cast<const bf16 *>(row.logits)[place]);
  }
}

// The logit of any column; -inf where there is no candidate.
DEVICE f32 candidate_at(const Row &row, u32 column) {
  if (column >= row.columns) return -infinity();
  if (row.token_ids != nullptr && row.token_ids[column] < 0) return -infinity();
  return logit_at(row, column);
}

template <class Element>
DEVICE void load_elements(const Row &row, u32 tile, f32 (&logits)[lane_logits]) {
  const u32 column = tile * tile_logits + lane_index();
  const Element *elements = reinterpret_cast<const Element *>(row.logits) + (column - row.first);
#pragma unroll
  for (u32 i = 0; i < lane_logits; i++) {
    const bool is_there = column + i * warp_lanes < row.columns;
    logits[i] = is_there ? to_f32(elements[i * warp_lanes]) : -infinity();
  }
}

// A tile of the row: element i of a lane is that of column tile * 256 + i * 32 + lane.
DEVICE void load_tile(const Row &row, u32 tile, f32 (&logits)[lane_logits]) {
  switch (row.dtype) {
    case dtype_f32: load_elements<f32>(row, tile, logits); break;
    case dtype_f16: load_elements<f16>(row, tile, logits); break;
    default: load_elements<bf16>(row, tile, logits); break;
  }
  if (row.token_ids == nullptr) return;
  const u32 column = tile * tile_logits + lane_index();
#pragma unroll
  for (u32 i = 0; i < lane_logits; i++) {
    const u32 place = column + i * warp_lanes;
    if (place < row.columns && row.token_ids[place] < 0) logits[i] = -infinity();
  }
}

// A number whose order is that of the floats; both zeros have the same, and no NaN lies between those
// of the infinities.
DEVICE u32 order(f32 value) {
  const u32 bits = __float_as_uint(add_rn(value, 0.0f));
  return bits >> 31 == 0 ? bits | 0x80000000 : ~bits;
}
DEVICE f32 from_order(u32 key) {
  return __uint_as_float(key >> 31 == 1 ? key & 0x7fffffff : ~key);
}

// The logit as what it counts as: NaN is -inf.
DEVICE f32 candidate(f32 logit) { return logit == logit ? logit : -infinity(); }

// A key whose order is that of the logits and, of equal ones, against that of the columns: no two columns
// have the same one.
DEVICE u64 key_of_candidate(f32 logit, u32 column) {
  return u64(order(candidate(logit))) << 32 | u32(~column);
}

DEVICE u32 column_of_candidate(u64 key) { return ~u32(key); }

DEVICE u64 warp_max_key(u64 key) {
  const u32 high = warp_max(u32(key >> 32));
  return u64(high) << 32 | warp_max(u32(key >> 32) == high ? u32(key) : 0);
}

// ---- Weights -------------------------------------------------------------------------------------

// How tokens are drawn; as in src/sampling/law.rs.
struct Parameters {
  f32 temperature;
  i32 top_k;
  f32 top_p;
  f32 min_p;
};

// Whether the largest logit is taken; so it is for a temperature that is NaN.
DEVICE bool is_greedy(const Parameters &parameters) { return !(parameters.temperature >= 1e-5f); }

constexpr u64 weight_one = u64(1) << 42;
constexpr f32 largest_weight = 4398046511104.0f;  // 2^42

// What the weights of a row are. A filter that keeps the relative weights from `least` on keeps what
// the CPU keeps from a logit on, as a relative weight never falls when its logit rises.
struct Law {
  f32 peak;    // the largest logit, if that is finite
  f32 factor;  // log2(e) / T
  f32 floor;   // smaller logits have weight 0
  f32 least;   // and so have smaller relative weights
  u32 certain;  // the column that has all the weight, or no_column
  u64 sum;
};

// The law of a row before its filters.
DEVICE Law unfiltered(f32 largest, f32 temperature) {
  constexpr f64 log2_e = 1.4426950408889634074;
  const bool is_finite = largest < infinity();
  const f32 most = __uint_as_float(0x7f7fffff);
  // What is -inf is no candidate, not even at an infinite temperature. Where a logit is +inf, all
  // that are it weigh the same and all others nothing.
  return Law{is_finite ? largest : most,
             __double2float_rn(__ddiv_rn(log2_e, f64(temperature))),
             is_finite ? -most : infinity(),
             0.0f,
             no_column,
             0};
}

// 2^(the power of the logit) * 2^42 as the CPU's polynomial has it, 0 if the law does not keep it.
DEVICE f32 relative(f32 logit, const Law &law) {
  constexpr f32 integer = 12582912.0f + 42.0f;  // adding it rounds to an integer in the lowest bits
  f32 power = multiply_rn(subtract_rn(logit, law.peak), law.factor);
  power = fmaxf(fminf(power, 0.0f), -64.0f);
  const f32 shifted = add_rn(power, integer);
  f32 fraction = subtract_rn(power, subtract_rn(shifted, integer));
  fraction = subtract_rn(add_rn(fraction, 3.0f), 3.0f);  // multiples of 2^-22
  f32 sum = 0.00015453163f;
  sum = fused_multiply_add(sum, fraction, 0.0013390863f);
  sum = fused_multiply_add(sum, fraction, 0.009618083f);
  sum = fused_multiply_add(sum, fraction, 0.05550357f);
  sum = fused_multiply_add(sum, fraction, 0.2402265f);
  sum = fused_multiply_add(sum, fraction, 0.69314718056f);
  sum = fused_multiply_add(sum, fraction, 1.0f);
  const f32 weight = __uint_as_float(__float_as_uint(sum) + (__float_as_uint(shifted) << 23));
  return logit >= law.floor && weight >= law.least ? weight : 0.0f;
}

// A relative weight rounded to an integer, halves to even, is high * 2^21 + low: adding numbers that
// leave no place for the rest takes it apart. Both parts of 256 weights sum to less than 2^31.
DEVICE void add_parts(f32 relative, u32 &highs, i32 &lows) {
  constexpr f32 multiples = 26388279066624.0f;  // 1.5 * 2^44, whose last place is 2^21
  constexpr f32 ones = 12582912.0f;             // 1.5 * 2^23
  const f32 high = add_rn(relative, multiples);
  const f32 low = add_rn(subtract_rn(relative, subtract_rn(high, multiples)), ones);
  highs += __float_as_uint(high) - 0x55c00000;
  lows += i32(__float_as_uint(low) - 0x4b400000);
}
DEVICE u64 joined(u32 highs, i32 lows) { return (u64(highs) << 21) + i64(lows); }

DEVICE u64 whole(f32 relative) {
  u32 high = 0;
  i32 low = 0;
  add_parts(relative, high, low);
  return joined(high, low);
}

DEVICE u64 weight_of(const Law &law, f32 logit, u32 column) {
  if (law.certain != no_column) return column == law.certain ? weight_one : 0;
  return whole(relative(logit, law));
}

// A token is kept by top-p if those above it weigh less than this: as src/sampling/law.rs.
DEVICE u64 top_p_limit(f32 top_p, u64 sum) {
  if (top_p <= 0.0f) return 1;
  const u32 bits = __float_as_uint(top_p), exponent = bits >> 23;
  const u32 significand = exponent == 0 ? bits : (bits & 0x7fffff) | 0x800000;
  const u32 halvings = exponent == 0 ? 149 : 150 - exponent;
  if (halvings >= 128) return 1;
  const u128 product = u128(significand) * sum;
  const u64 limit = u64((product + ((u128(1) << halvings) - 1)) >> halvings);
  return limit != 0 ? limit : 1;
}

// The binary logarithm of a number that is not 0, in units of 2^-32, with so many binary digits after the
// point; as in src/sampling/law.rs.
DEVICE i64 log2_digits(u64 value, u32 digits) {
  const u32 power = 63 - u32(__clzll(i64(value)));
  u64 significand = value << (63 - power);
  i64 logarithm = i64(power) << 32;
#pragma unroll 1
  for (u32 digit = 0; digit < digits; digit++) {
    const u128 square = u128(significand) * significand;
    const bool is_two = u32(square >> 127) != 0;
    significand = u64(square >> (is_two ? 64 : 63));
    if (is_two) logarithm |= i64(1) << (31 - digit);
  }
  return logarithm;
}

constexpr u32 all_digits = 32;

// The natural logarithm of the probability of a logit, as src/sampling/law.rs has it.
DEVICE f32 log_probability(f32 logit, f32 largest, f32 temperature, u64 sum) {
  constexpr f64 unit = 0.693147180559945309417 / 4294967296.0;
  f64 behind = 0.0;
  // Where the largest is +inf, all that are it are equal.
  if (logit != largest) {
    behind = __ddiv_rn(__dadd_rn(f64(logit), -f64(largest)), f64(temperature));
  }
  const i64 of_sum = log2_digits(sum, all_digits) - (i64(42) << 32);
  return __double2float_rn(__dadd_rn(behind, -__dmul_rn(f64(of_sum), unit)));
}

// ---- Teams ---------------------------------------------------------------------------------------

// The most blocks of a team: a lane for each.
constexpr u32 most_members = warp_lanes;

constexpr u32 bucket_bits = 10;
constexpr u32 buckets = 1 << bucket_bits;
// As many keys are told one by one.
constexpr u32 few = 1024;

// What a block tells its team at a meeting.
struct alignas(16) Board {
  u128 rest, common;  // what verification adds up
  u64 sum;            // of the weights of the slice
  u64 weight;         // of the column that was asked for, if it lies in the slice
  u32 count;          // of keys
  u32 column;         // the first in the slice that was looked for, or no_column
  u32 padding[2];
  u32 keys[few];            // all of them if they are few
  u64 histogram[buckets];   // of the keys, if there are any
};
static_assert(sizeof(Board) == 64 + 4 * few + 8 * buckets, "no padding but that stated");

// A team of several lives in the shared memory of each of its blocks.
struct Team {
  u32 rank, size;
  u32 meetings;     // so far, of several
  u32 *arrivals;    // zero before the first meeting
  Board *boards;    // two for each member, used by turns: who is late may still read the last one
  f32 *peaks;       // of all tiles, twice for the same reason
  u32 peak_stride;

  // A block that works alone.
  static DEVICE Team alone() { return Team{0, 1, 0, nullptr, nullptr, nullptr, 0}; }

  DEVICE Board &own_board() const { return boards[(meetings & 1) * size + rank]; }
  DEVICE f32 *own_peaks() const { return peaks + (meetings & 1) * peak_stride; }
  // After a meeting: what was told there.
  DEVICE const Board &board(u32 member) const { return boards[(~meetings & 1) * size + member]; }
  DEVICE const f32 *told_peaks() const { return peaks + (~meetings & 1) * peak_stride; }

  // Waits until all members are here, and see what each has written.
  DEVICE void meet() {
    __syncthreads();
    if (size == 1) return;
    if (threadIdx.x == 0) {
      const u32 all = ++meetings * size;
      add_acquire_release(arrivals, 1);
      while (i32(load_acquire(arrivals) - all) < 0) spin_hint();
    }
    __syncthreads();
  }
};

// The tiles of a row that a block works on, begin .. end, and what it keeps of each.
struct Slice {
  u32 begin, end;
  f32 *peaks;
  u64 *sums;

  DEVICE u32 tiles() const { return end - begin; }
  DEVICE bool has(u32 column) const {
    return column / tile_logits >= begin && column / tile_logits < end;
  }
};

// The peaks of all tiles of a row, as told at a meeting.
struct Peaks {
  const f32 *of_tile;
  u32 tiles;
  u32 highest, lowest;  // the order of the largest, and of the smallest that is not -inf

  DEVICE bool has_candidate() const { return highest > order(-infinity()); }
};

// Shared memory of a block that works on laws.
template <u32 threads>
struct alignas(16) LawScratch {
  static constexpr u32 warps = threads / warp_lanes;
  static_assert(threads % warp_lanes == 0 && buckets % threads == 0, "whole warps and shares");

  u64 histogram[buckets];
  u32 keys[few];
  u64 of_warp[warps];
  Peaks peaks;
  Law law;  // that is being found
  u64 above;
  u32 bucket;
  u32 count;
};

// ---- Sums over lanes, warps and members ----------------------------------------------------------

template <class Value>
DEVICE Value shuffle(Value value, u32 lane) {
  return __shfl_sync(all_lanes, value, lane);
}
DEVICE u128 shuffle(u128 value, u32 lane) {
  return u128(__shfl_sync(all_lanes, u64(value >> 64), lane)) << 64 |
         __shfl_sync(all_lanes, u64(value), lane);
}
template <class Value>
DEVICE Value shuffle_up(Value value, u32 distance) {
  return __shfl_up_sync(all_lanes, value, distance);
}
DEVICE u128 shuffle_up(u128 value, u32 distance) {
  return u128(__shfl_up_sync(all_lanes, u64(value >> 64), distance)) << 64 |
         __shfl_up_sync(all_lanes, u64(value), distance);
}

// The sum of the values of the lanes up to this one.
template <class Value>
DEVICE Value warp_prefix(Value value) {
  const u32 lane = thread_index() % warp_lanes;
#pragma unroll
  for (u32 distance = 1; distance < warp_lanes; distance *= 2) {
    const Value below = shuffle_up(value, distance);
    if (lane >= distance) value += below;
  }
  return value;
}

// A sum over the block of what each warp has; `value` is the same in all lanes.
template <u32 threads>
DEVICE u64 sum_of_warps(u64 value, LawScratch<threads> &scratch) {
  if (lane_index() == 0) scratch.of_warp[warp_index()] = value;
  __syncthreads();
  u64 sum = 0;
#pragma unroll 4
  for (u32 warp = 0; warp < threads / warp_lanes; warp++) sum += scratch.of_warp[warp];
  __syncthreads();  // the next sum may write
  return sum;
}

template <u32 threads>
DEVICE u32 block_max(u32 value, LawScratch<threads> &scratch) {
  const u32 of_warp = warp_max(value);
  if (lane_index() == 0) scratch.of_warp[warp_index()] = of_warp;
  __syncthreads();
  const u32 lane = lane_index();
  const u32 largest = warp_max(u32(scratch.of_warp[lane % (threads / warp_lanes)]));
  __syncthreads();  // the next maximum may write
  return largest;
}
template <u32 threads>
DEVICE u32 block_min(u32 value, LawScratch<threads> &scratch) {
  return ~block_max(~value, scratch);
}

// A sum over the team, with that of the members before this one.
template <class Value>
struct Share {
  Value before, own, all;
};

// `value` is what this lane's member has told; 0 for lanes without a member.
template <class Value>
DEVICE Share<Value> share_of(const Team &team, Value value) {
  const Value prefix = warp_prefix(value);
  const Value own = shuffle(value, team.rank);
  return Share<Value>{shuffle(prefix, team.rank) - own, own, shuffle(prefix, warp_lanes - 1)};
}

// ---- Boundaries ----------------------------------------------------------------------------------

// What is counted, and in which order: logits one by one, or weights by the relative weights.
enum class Measure : u32 { count, weight };

DEVICE u32 key_of(Measure measure, f32 logit, const Law &law) {
  return measure == Measure::count ? order(logit) : __float_as_uint(relative(logit, law));
}
DEVICE u64 mass_of(Measure measure, u32 key) {
  return measure == Measure::count ? 1 : whole(__uint_as_float(key));
}

// Keys low ..= high, in buckets of 1 << shift.
struct Keys {
  u32 low, high, shift;

  static DEVICE Keys between(u32 low, u32 high) {
    const u32 bits = 32 - __clz(i32(high - low));
    return Keys{low, high, bits > bucket_bits ? bits - bucket_bits : 0};
  }
  DEVICE bool has(u32 key) const { return key >= low && key <= high; }
  DEVICE u32 bucket(u32 key) const { return (key - low) >> shift; }
  // The keys of one bucket.
  DEVICE Keys of_bucket(u32 bucket) const {
    const u32 begin = low + (bucket << shift);
    return between(begin, min(high, begin + ((1u << shift) - 1)));
  }
};

// The highest key with which the mass from above reaches a limit is looked for.
struct Search {
  Measure measure;
  Keys keys;
  u64 limit;
};

// It was found, or all keys together do not reach the limit.
struct Boundary {
  bool is_there;
  u32 key;
};

// Adds to a sum in shared memory, which has no such instruction for 64 bits.
DEVICE void add_shared(u64 *sum, u64 value) {
  u32 *words = reinterpret_cast<u32 *>(sum);
  const u32 low = u32(value);
  const u32 before = atomicAdd(&words[0], low);
  const u32 high = u32(value >> 32) + (before + low < before ? 1 : 0);
  if (high != 0) atomicAdd(&words[1], high);
}

template <u32 threads>
DEVICE void clear_histogram(LawScratch<threads> &scratch) {
  for (u32 bucket = threadIdx.x; bucket < buckets; bucket += threads) {
    scratch.histogram[bucket] = 0;
  }
  if (threadIdx.x == 0) scratch.count = 0;
  __syncthreads();
}

// The buckets of a thread, from the highest on: thread 0 has the highest.
template <u32 threads>
DEVICE u32 bucket_of(u32 index) {
  return buckets - 1 - (threadIdx.x * (buckets / threads) + index);
}

// The highest bucket with which the mass from above reaches `limit`, in scratch.bucket, and the mass
// above it, in scratch.above; no bucket if all do not reach it. Each thread has seen to its own
// buckets, and the answer stands until the next barrier but one.
template <u32 threads>
DEVICE bool find_bucket(u64 limit, LawScratch<threads> &scratch) {
  u64 mass = 0;
#pragma unroll
  for (u32 i = 0; i < buckets / threads; i++) mass += scratch.histogram[bucket_of<threads>(i)];
  const u64 prefix = warp_prefix(mass);
  if (lane_index() == warp_lanes - 1) scratch.of_warp[warp_index()] = prefix;
  if (threadIdx.x == 0) scratch.bucket = buckets;
  __syncthreads();
  u64 above = prefix - mass;
#pragma unroll 4
  for (u32 warp = 0; warp < warp_index(); warp++) above += scratch.of_warp[warp];
  if (above < limit && above + mass >= limit) {
    u32 i = 0;
    for (; above + scratch.histogram[bucket_of<threads>(i)] < limit; i++) {
      above += scratch.histogram[bucket_of<threads>(i)];
    }
    scratch.bucket = bucket_of<threads>(i);
    scratch.above = above;
  }
  __syncthreads();
  return scratch.bucket < buckets;
}

// Goes on with the keys of the bucket that was found. Whether they are a single one.
template <u32 threads>
DEVICE bool enter_bucket(Search &search, const LawScratch<threads> &scratch) {
  const bool is_single = search.keys.shift == 0;
  search.keys = search.keys.of_bucket(scratch.bucket);
  search.limit -= scratch.above;
  return is_single;
}

// Searches the first `count` keys in scratch.keys, which the threads may just have written.
template <u32 threads>
DEVICE Boundary search_keys(u32 count, Search search, LawScratch<threads> &scratch) {
#pragma unroll 1
  for (;;) {
    clear_histogram(scratch);
    for (u32 i = threadIdx.x; i < count; i += threads) {
      const u32 key = scratch.keys[i];
      if (!search.keys.has(key)) continue;
      add_shared(&scratch.histogram[search.keys.bucket(key)], mass_of(search.measure, key));
    }
    __syncthreads();
    if (!find_bucket(search.limit, scratch)) return Boundary{false, 0};
    if (enter_bucket(search, scratch)) return Boundary{true, search.keys.low};
  }
}

// Counts a key into the histogram, and keeps it if it is one of the first.
template <u32 threads>
DEVICE void note(u32 key, const Search &search, LawScratch<threads> &scratch) {
  if (!search.keys.has(key)) return;
  const u32 place = atomicAdd(&scratch.count, 1);
  if (place < few) scratch.keys[place] = key;
  add_shared(&scratch.histogram[search.keys.bucket(key)], mass_of(search.measure, key));
}

// Goes over the slice. `weighs`: writes the sum of each tile and returns that of the slice, by
// weights. `notes`: notes the keys that are searched for; the histogram was cleared.
template <u32 threads>
DEVICE u64 pass(const Row &row, const Slice &slice, bool weighs, bool notes, const Search &search,
                LawScratch<threads> &scratch) {
  const Law &law = scratch.law;
  u64 sum = 0;
#pragma unroll 1
  for (u32 tile = slice.begin + warp_index(); tile < slice.end; tile += threads / warp_lanes) {
    const f32 peak = slice.peaks[tile - slice.begin];
    // A relative weight up to one half rounds to 0.
    const bool has_weight = weighs && relative(peak, law) > 0.5f;
    const bool has_keys = notes && key_of(search.measure, peak, law) >= search.keys.low;
    u64 tile_sum = 0;
    if (has_weight || has_keys) {
      f32 logits[lane_logits];
      load_tile(row, tile, logits);
      u32 keys[lane_logits];
      if (search.measure == Measure::weight) {
#pragma unroll
        for (u32 i = 0; i < lane_logits; i++) keys[i] = __float_as_uint(relative(logits[i], law));
      } else {
#pragma unroll
        for (u32 i = 0; i < lane_logits; i++) keys[i] = order(logits[i]);
      }
      if (weighs) {
        u32 highs = 0;
        i32 lows = 0;
#pragma unroll
        for (u32 i = 0; i < lane_logits; i++) add_parts(__uint_as_float(keys[i]), highs, lows);
        tile_sum = joined(warp_sum(highs), i32(warp_sum(u32(lows))));
      }
      u32 hits = 0;
#pragma unroll
      for (u32 i = 0; i < lane_logits; i++) hits |= notes && search.keys.has(keys[i]) ? 1u << i : 0;
      // They are few. Read again, they take no registers above.
      for (; hits != 0; hits &= hits - 1) {
        const u32 i = u32(__ffs(i32(hits))) - 1;
        const u32 column = tile * tile_logits + i * warp_lanes + lane_index();
        note(key_of(search.measure, candidate_at(row, column), law), search, scratch);
      }
    }
    if (weighs && lane_index() == 0) slice.sums[tile - slice.begin] = tile_sum;
    sum += tile_sum;
  }
  return weighs ? sum_of_warps(sum, scratch) : 0;
}

// Tells the team which keys this block has noted, and returns how many there are in all; `sum` is
// told, too.
template <u32 threads>
DEVICE u32 tell_keys(Team &team, u64 &sum, LawScratch<threads> &scratch) {
  __syncthreads();  // all keys of the block are noted
  const u32 own = scratch.count;
  if (team.size == 1) {
    __syncthreads();  // the next keys may be noted
    return own;
  }
  Board &board = team.own_board();
  if (threadIdx.x == 0) {
    board.count = own;
    board.sum = sum;
  }
  if (own <= few) {
    for (u32 i = threadIdx.x; i < own; i += threads) board.keys[i] = scratch.keys[i];
  }
  if (own != 0) {
    for (u32 bucket = threadIdx.x; bucket < buckets; bucket += threads) {
      board.histogram[bucket] = scratch.histogram[bucket];
    }
  }
  team.meet();
  const bool is_member = lane_index() < team.size;
  sum = share_of(team, is_member ? team.board(lane_index()).sum : 0).all;
  return warp_sum(is_member ? team.board(lane_index()).count : 0);
}

// Puts the keys of all members, which are few, into scratch.keys.
template <u32 threads>
DEVICE void gather_keys(const Team &team, LawScratch<threads> &scratch) {
  if (team.size == 1) return;
  const u32 count = lane_index() < team.size ? team.board(lane_index()).count : 0;
  const u32 end = warp_prefix(count);
  for (u32 member = warp_index(); member < team.size; member += threads / warp_lanes) {
    const u32 members = shuffle(count, member), first = shuffle(end, member) - members;
    for (u32 i = lane_index(); i < members; i += warp_lanes) {
      scratch.keys[first + i] = team.board(member).keys[i];
    }
  }
}

// Puts the sums of the members' histograms into the block's own.
template <u32 threads>
DEVICE void merge_histograms(const Team &team, LawScratch<threads> &scratch) {
  if (team.size == 1) return;
  u64 mass[buckets / threads] = {};
  for (u32 member = 0; member < team.size; member++) {
    if (team.board(member).count == 0) continue;
#pragma unroll
    for (u32 i = 0; i < buckets / threads; i++) {
      mass[i] += team.board(member).histogram[bucket_of<threads>(i)];
    }
  }
#pragma unroll
  for (u32 i = 0; i < buckets / threads; i++) scratch.histogram[bucket_of<threads>(i)] = mass[i];
}

// Searches the row. By weights, the limit is that of top-p for the sum of the row. The team meets.
template <u32 threads>
DEVICE Boundary search_row(const Row &row, const Slice &slice, Search search, f32 top_p, Team &team,
                           LawScratch<threads> &scratch) {
  bool weighs = search.measure == Measure::weight;
#pragma unroll 1
  for (;;) {
    clear_histogram(scratch);
    u64 sum = pass(row, slice, weighs, true, search, scratch);
    const u32 count = tell_keys(team, sum, scratch);
    if (weighs) search.limit = top_p_limit(top_p, sum);
    weighs = false;
    if (count <= few) {
      gather_keys(team, scratch);
      return search_keys(count, search, scratch);
    }
    merge_histograms(team, scratch);
    if (!find_bucket(search.limit, scratch)) return Boundary{false, 0};
    if (enter_bucket(search, scratch)) return Boundary{true, search.keys.low};
  }
}

// ---- Laws ----------------------------------------------------------------------------------------

// Finds the largest logits of the tiles: scratch.peaks. The team meets.
template <u32 threads>
DEVICE void scan(const Row &row, const Slice &slice, Team &team, LawScratch<threads> &scratch) {
  for (u32 tile = slice.begin + warp_index(); tile < slice.end; tile += threads / warp_lanes) {
    f32 logits[lane_logits];
    load_tile(row, tile, logits);
    f32 most = -infinity();
#pragma unroll
    for (u32 i = 0; i < lane_logits; i++) most = fmaxf(most, logits[i]);
    const f32 peak = from_order(warp_max(order(most)));
    if (lane_index() == 0) {
      slice.peaks[tile - slice.begin] = peak;
      if (team.size > 1) team.own_peaks()[tile] = peak;
    }
  }
  team.meet();
  const f32 *peaks = team.size > 1 ? team.told_peaks() : slice.peaks;
  u32 highest = 0, lowest = ~0u;
  for (u32 tile = threadIdx.x; tile < tiles_of(row.columns); tile += threads) {
    const u32 key = order(peaks[tile]);
    highest = max(highest, key);
    if (key > order(-infinity())) lowest = min(lowest, key);
  }
  highest = block_max(highest, scratch);
  lowest = block_min(lowest, scratch);
  if (threadIdx.x == 0) {
    scratch.peaks = Peaks{peaks, tiles_of(row.columns), highest, lowest};
  }
  __syncthreads();
}

// The column of the first logit of a tile that is equal to `value`, for all lanes.
DEVICE u32 first_in_tile(const Row &row, u32 tile, f32 value) {
  f32 logits[lane_logits];
  load_tile(row, tile, logits);
  u32 first = no_column;
#pragma unroll
  for (u32 i = 0; i < lane_logits; i++) {
    const u32 equal = __ballot_sync(all_lanes, logits[i] == value);
    if (first == no_column && equal != 0) {
      first = tile * tile_logits + i * warp_lanes + __ffs(equal) - 1;
    }
  }
  return first;
}

// The column of the largest logit, of equal ones the first, if it lies in the slice; else no_column.
template <u32 threads>
DEVICE u32 first_of_largest(const Row &row, const Slice &slice, LawScratch<threads> &scratch) {
  const Peaks &peaks = scratch.peaks;
  u32 tile = no_column;
  for (u32 t = threadIdx.x; t < peaks.tiles; t += threads) {
    if (order(peaks.of_tile[t]) == peaks.highest) tile = min(tile, t);
  }
  tile = block_min(tile, scratch);
  if (tile < slice.begin || tile >= slice.end) return no_column;
  return first_in_tile(row, tile, from_order(peaks.highest));
}

// The search for the k-th largest logit.
template <u32 threads>
DEVICE Search search_of_top_k(u32 k, LawScratch<threads> &scratch) {
  const Peaks &peaks = scratch.peaks;
  Search search{Measure::count, Keys::between(order(-__uint_as_float(0x7f7fffff)), peaks.highest), k};
  if (k > peaks.tiles) return search;
  // The k-th largest of the peaks is not above that of all, nor is the begin of its bucket.
  const Keys keys = Keys::between(peaks.lowest, peaks.highest);
  clear_histogram(scratch);
  for (u32 tile = threadIdx.x; tile < peaks.tiles; tile += threads) {
    const u32 key = order(peaks.of_tile[tile]);
    if (keys.has(key)) add_shared(&scratch.histogram[keys.bucket(key)], 1);
  }
  __syncthreads();
  if (find_bucket(k, scratch)) {
    search.keys = Keys::between(keys.of_bucket(scratch.bucket).low, peaks.highest);
  }
  return search;
}

// The search for the least relative weight that top-p keeps.
template <u32 threads>
DEVICE Search search_of_top_p(f32 top_p, u32 columns, LawScratch<threads> &scratch) {
  const Peaks &peaks = scratch.peaks;
  u64 of_peaks = 0;
  for (u32 tile = threadIdx.x; tile < peaks.tiles; tile += threads) {
    of_peaks += whole(relative(peaks.of_tile[tile], scratch.law));
  }
  of_peaks = sum_of_warps(shuffle(warp_prefix(of_peaks), warp_lanes - 1), scratch);
  // The weights below `cut` cannot sum to more than what top-p leaves out, as the peaks alone weigh
  // so much; a margin covers the rounding of these few operations.
  const f32 left_out = (1.0f - fmaxf(top_p, 0.0f)) * __ull2float_rn(of_peaks);
  const f32 cut = fmaxf(left_out / f32(columns) * 0.99f - 1.0f, 0.25f);
  const u32 low = __float_as_uint(cut), high = __float_as_uint(largest_weight);
  return Search{Measure::weight, Keys::between(low, high), 0};
}

// What a block knows of a row's law once the team has met.
struct Weighed {
  Law law;
  u64 before;  // the sum of the slices before this one
  u64 own;     // the sum of this slice
  u64 weight;  // of the column that was asked for
};

// All the weight on one column, `certain`; the slice's sums say so.
template <u32 threads>
DEVICE Weighed weigh_certain(u32 certain, const Slice &slice, u32 column) {
  const u32 place = certain / tile_logits;
  for (u32 tile = slice.begin + threadIdx.x; tile < slice.end; tile += threads) {
    slice.sums[tile - slice.begin] = tile == place ? weight_one : 0;
  }
  __syncthreads();
  return Weighed{Law{0.0f, 0.0f, 0.0f, 0.0f, certain, weight_one},
                 place < slice.begin ? weight_one : 0, slice.has(certain) ? weight_one : 0,
                 column == certain ? weight_one : 0};
}

// The law of a row with a candidate, by parameters that are not greedy: filters it, writes the sums
// of the slice's tiles, and tells the weight of a column. The team meets.
template <u32 threads>
DEVICE Weighed weigh(const Row &row, const Slice &slice, const Parameters &parameters, u32 column,
                     Team &team, LawScratch<threads> &scratch) {
  if (threadIdx.x == 0) {
    scratch.law = unfiltered(from_order(scratch.peaks.highest), parameters.temperature);
    if (parameters.min_p > 0.0f) {
      scratch.law.least = multiply_rn(fminf(parameters.min_p, 1.0f), largest_weight);
    }
  }
  __syncthreads();
#pragma unroll 1
  for (u32 filter = 0; filter < 2; filter++) {
    const bool is_top_k = filter == 0;
    const u32 k = u32(max(parameters.top_k, 0));
    if (is_top_k ? k == 0 || k >= row.columns : !(parameters.top_p < 1.0f)) continue;
    const Search search = is_top_k ? search_of_top_k(k, scratch)
                                   : search_of_top_p(parameters.top_p, row.columns, scratch);
    const Boundary found = search_row(row, slice, search, parameters.top_p, team, scratch);
    if (found.is_there && threadIdx.x == 0) {
      if (is_top_k) {
        scratch.law.floor = fmaxf(scratch.law.floor, from_order(found.key));
      } else {
        scratch.law.least = __uint_as_float(found.key);
      }
    }
    __syncthreads();
  }
  const Search none{Measure::weight, Keys{0, 0, 0}, 0};
  const u64 sum = pass(row, slice, true, false, none, scratch);
  Law law = scratch.law;
  law.sum = sum;
  u64 weight = 0;
  if (column < row.columns && slice.has(column)) {
    weight = weight_of(law, candidate_at(row, column), column);
  }
  if (team.size == 1) return Weighed{law, 0, law.sum, weight};
  if (threadIdx.x == 0) {
    team.own_board().sum = law.sum;
    team.own_board().weight = weight;
  }
  team.meet();
  const bool is_member = lane_index() < team.size;
  const Share<u64> share = share_of(team, is_member ? team.board(lane_index()).sum : 0);
  law.sum = share.all;
  weight = share_of(team, is_member ? team.board(lane_index()).weight : 0).all;
  return Weighed{law, share.before, share.own, weight};
}

// ---- Draws ---------------------------------------------------------------------------------------

// The first of `count` values in order with which they exceed `target`, for a warp; `count` if they do
// not. `target` becomes what is left of it there.
template <class Value>
DEVICE u32 seek(const Value *values, u32 count, Value &target) {
  const u32 each = (count + warp_lanes - 1) / warp_lanes;
  const u32 begin = min(count, lane_index() * each), end = min(count, begin + each);
  Value sum = 0;
#pragma unroll 1
  for (u32 i = begin; i < end; i++) sum += values[i];
  const Value prefix = warp_prefix(sum);
  const u32 lanes = __ballot_sync(all_lanes, target < prefix);
  if (lanes == 0) return count;
  const u32 lane = __ffs(lanes) - 1;
  target -= shuffle(prefix - sum, lane);
  u32 place = lane * each;
#pragma unroll 1
  // The lane's own values exceed what is left, so that the search ends among them.
  for (; place + 1 < count && target >= values[place]; place++) target -= values[place];
  return place;
}

// The column of a tile that `target` falls on, for a warp, given the weight of each column;
// no_column if they do not exceed it. What `weight` needs of shared memory is read anew for each column:
// the barriers see to that, as there are no registers to keep it.
template <class Value, class Weight>
DEVICE u32 seek_in_tile(u32 tile, Value target, Weight weight) {
  const u32 first = tile * tile_logits + lane_index() * lane_logits;
  Value sum = 0;
#pragma unroll 1
  for (u32 i = 0; i < lane_logits; i++) {
    __syncwarp();
    sum += weight(first + i);
  }
  const Value prefix = warp_prefix(sum);
  const u32 lanes = __ballot_sync(all_lanes, target < prefix);
  if (lanes == 0) return no_column;
  // Each lane looks among its own columns, and the first of those lanes is right.
  target -= prefix - sum;
  u32 column = first;
#pragma unroll 1
  for (u32 i = 0; i + 1 < lane_logits; i++) {
    __syncwarp();
    const Value own = weight(first + i);
    if (column != first + i || target < own) continue;
    target -= own;
    column++;
  }
  return shuffle(column, __ffs(lanes) - 1);
}

// The column of the slice that `target` falls on, for a warp, counted from the slice's begin.
DEVICE u32 draw_in_slice(const Row &row, const Slice &slice, const Law &law, u64 target) {
  const u32 place = seek(slice.sums, slice.tiles(), target);
  if (place == slice.tiles()) return no_column;
  return seek_in_tile(slice.begin + place, target, [&](u32 column) {
    return weight_of(law, candidate_at(row, column), column);
  });
}

// The column that a number stands for, told to all threads of a block that works alone on the row,
// whose columns are all there; column 0 where there is no candidate. `peaks` and `sums` have a place
// per tile, in global or shared memory. The block may use them and `scratch` again after a barrier.
template <u32 threads>
DEVICE u32 draw_column(const Row &row, const Parameters &parameters, u64 number, f32 *peaks,
                       u64 *sums, LawScratch<threads> &scratch) {
  Team team = Team::alone();
  const Slice slice{0, tiles_of(row.columns), peaks, sums};
  scan(row, slice, team, scratch);
  if (!scratch.peaks.has_candidate()) return 0;
  if (is_greedy(parameters)) return first_of_largest(row, slice, scratch);
  const Law law = weigh(row, slice, parameters, no_column, team, scratch).law;
  // Every warp draws the same: nothing needs to be told. A share of the sum is less than the sum.
  const u32 column = draw_in_slice(row, slice, law, u64(scaled(number, law.sum)));
  return column == no_column ? 0 : column;
}
