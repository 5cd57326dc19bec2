// What the lanes of a warp exchange: shuffles, votes, matches and reductions. Each is a meeting at
// which the last lane to arrive computes the results of all.
#pragma once

#include <cstring>
#include <type_traits>

#include "execution.h"

namespace simt {

// What a shuffle gives where the source lane does not take part; hardware leaves it undefined.
constexpr uint64_t undefined_word = 0xbad5bad5bad5bad5;

struct Shuffle {
  uint64_t value, result;
  int operand, width;
};

enum class Direction { index, up, down, exclusive_or };

template <Direction direction>
int source_lane(int lane, const Shuffle &shuffle) {
  const int first = lane & ~(shuffle.width - 1), last = first + shuffle.width - 1;
  switch (direction) {
    case Direction::index: return first + (shuffle.operand & (shuffle.width - 1));
    case Direction::up: return lane - shuffle.operand < first ? lane : lane - shuffle.operand;
    case Direction::down: return lane + shuffle.operand > last ? lane : lane + shuffle.operand;
    case Direction::exclusive_or: return (lane ^ shuffle.operand) > last ? lane
                                                                         : lane ^ shuffle.operand;
  }
}

template <Direction direction>
void shuffle_lanes(void **lanes, uint32_t mask) {
  for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    Shuffle &shuffle = *static_cast<Shuffle *>(lanes[lane]);
    const int source = source_lane<direction>(lane, shuffle);
    shuffle.result =
        mask >> source & 1 ? static_cast<Shuffle *>(lanes[source])->value : undefined_word;
  }
}

template <Direction direction, class Value>
Value shuffle(uint32_t mask, Value value, int operand, int width, const char *file,
                             int line) {
  static_assert(sizeof(Value) <= sizeof(uint64_t));
  Shuffle exchange{0, 0, operand, width};
  __builtin_memcpy(&exchange.value, &value, sizeof value);
  simt_warp_meet(mask, shuffle_lanes<direction>, &exchange, false, file, line);
  __builtin_memcpy(static_cast<void *>(&value), &exchange.result, sizeof value);
  return value;
}

template <class Value>
struct Reduction {
  Value value, result;
};

// `Operation` is associative and commutative, so the order of the lanes does not matter.
template <class Value, class Operation>
void reduce_lanes(void **lanes, uint32_t mask) {
  Value result = static_cast<Reduction<Value> *>(lanes[__builtin_ctz(mask)])->value;
  for (uint32_t rest = mask & (mask - 1); rest != 0; rest &= rest - 1) {
    result = Operation()(result, static_cast<Reduction<Value> *>(lanes[__builtin_ctz(rest)])->value);
  }
  for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
    static_cast<Reduction<Value> *>(lanes[__builtin_ctz(rest)])->result = result;
  }
}

template <class Operation, class Value>
Value reduce(uint32_t mask, Value value, const char *file, int line) {
  Reduction<Value> reduction{value, value};
  simt_warp_meet(mask, reduce_lanes<Value, Operation>, &reduction, false, file, line);
  return reduction.result;
}

struct Add {
  template <class Value>
  Value operator()(Value left, Value right) const {
    return Value(left + right);
  }
};
struct Min {
  template <class Value>
  Value operator()(Value left, Value right) const {
    return right < left ? right : left;
  }
};
struct Max {
  template <class Value>
  Value operator()(Value left, Value right) const {
    return left < right ? right : left;
  }
};
struct And {
  uint32_t operator()(uint32_t left, uint32_t right) const { return left & right; }
};
struct Or {
  uint32_t operator()(uint32_t left, uint32_t right) const { return left | right; }
};
struct Xor {
  uint32_t operator()(uint32_t left, uint32_t right) const { return left ^ right; }
};

// The result of five steps of v += shuffle_xor(v, 16, 8, 4, 2, 1), to the bit, in one meeting.
template <class Operation>
void butterfly_lanes(void **lanes, uint32_t) {
  float values[32], next[32];
  for (int lane = 0; lane < 32; lane++) values[lane] = *static_cast<float *>(lanes[lane]);
  for (int distance = 16; distance != 0; distance >>= 1) {
    for (int lane = 0; lane < 32; lane++) {
      next[lane] = Operation()(values[lane], values[lane ^ distance]);
    }
    __builtin_memcpy(values, next, sizeof values);
  }
  for (int lane = 0; lane < 32; lane++) *static_cast<float *>(lanes[lane]) = values[lane];
}

template <class Operation>
float butterfly(float value, const char *file, int line) {
  simt_warp_meet(~0u, butterfly_lanes<Operation>, &value, false, file, line);
  return value;
}

struct FloatMax {
  // As fmaxf: a number wins over a NaN.
  float operator()(float left, float right) const { return __builtin_fmaxf(left, right); }
};

struct Match {
  uint64_t value;
  uint32_t equal;
};

inline void match_lanes(void **lanes, uint32_t mask) {
  for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
    Match &match = *static_cast<Match *>(lanes[__builtin_ctz(rest)]);
    match.equal = 0;
    for (uint32_t others = mask; others != 0; others &= others - 1) {
      const int other = __builtin_ctz(others);
      const bool equal = static_cast<Match *>(lanes[other])->value == match.value;
      match.equal |= uint32_t(equal) << other;
    }
  }
}

template <class Value>
uint32_t match(uint32_t mask, Value value, const char *file, int line) {
  static_assert(sizeof(Value) <= sizeof(uint64_t));
  Match match{0, 0};
  __builtin_memcpy(&match.value, &value, sizeof value);
  simt_warp_meet(mask, match_lanes, &match, false, file, line);
  return match.equal;
}

inline uint32_t ballot(uint32_t mask, bool predicate, const char *file, int line) {
  const uint32_t lane = constant_word(&self()->lane);
  return reduce<Or>(mask, uint32_t(predicate) << lane, file, line);
}

}  // namespace simt

template <class Value>
Value __shfl_sync(uint32_t mask, Value value, int source, int width = 32, SIMT_PLACE) {
  return simt::shuffle<simt::Direction::index>(mask, value, source, width, file, line);
}
template <class Value>
Value __shfl_up_sync(uint32_t mask, Value value, unsigned delta, int width = 32, SIMT_PLACE) {
  return simt::shuffle<simt::Direction::up>(mask, value, int(delta), width, file, line);
}
template <class Value>
Value __shfl_down_sync(uint32_t mask, Value value, unsigned delta, int width = 32, SIMT_PLACE) {
  return simt::shuffle<simt::Direction::down>(mask, value, int(delta), width, file, line);
}
template <class Value>
Value __shfl_xor_sync(uint32_t mask, Value value, int bits, int width = 32, SIMT_PLACE) {
  return simt::shuffle<simt::Direction::exclusive_or>(mask, value, bits, width, file, line);
}

inline uint32_t __ballot_sync(uint32_t mask, int predicate, SIMT_PLACE) {
  return simt::ballot(mask, predicate != 0, file, line);
}
inline int __any_sync(uint32_t mask, int predicate, SIMT_PLACE) {
  return simt::ballot(mask, predicate != 0, file, line) != 0;
}
inline int __all_sync(uint32_t mask, int predicate, SIMT_PLACE) {
  return simt::ballot(mask, predicate != 0, file, line) == mask;
}
template <class Value>
uint32_t __match_any_sync(uint32_t mask, Value value, SIMT_PLACE) {
  return simt::match(mask, value, file, line);
}
template <class Value>
uint32_t __match_all_sync(uint32_t mask, Value value, int *all, SIMT_PLACE) {
  *all = simt::match(mask, value, file, line) == mask;
  return *all ? mask : 0;
}

template <class Value>
Value __reduce_add_sync(uint32_t mask, Value value, SIMT_PLACE) {
  return simt::reduce<simt::Add>(mask, value, file, line);
}
template <class Value>
Value __reduce_min_sync(uint32_t mask, Value value, SIMT_PLACE) {
  return simt::reduce<simt::Min>(mask, value, file, line);
}
template <class Value>
Value __reduce_max_sync(uint32_t mask, Value value, SIMT_PLACE) {
  return simt::reduce<simt::Max>(mask, value, file, line);
}
inline uint32_t __reduce_and_sync(uint32_t mask, uint32_t value, SIMT_PLACE) {
  return simt::reduce<simt::And>(mask, value, file, line);
}
inline uint32_t __reduce_or_sync(uint32_t mask, uint32_t value, SIMT_PLACE) {
  return simt::reduce<simt::Or>(mask, value, file, line);
}
inline uint32_t __reduce_xor_sync(uint32_t mask, uint32_t value, SIMT_PLACE) {
  return simt::reduce<simt::Xor>(mask, value, file, line);
}
