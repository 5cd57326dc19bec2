// The draws of one launch or of the streams; the same seed gives the same draws.
#pragma once

#include <cstdint>

namespace simt {

class Random {
 public:
  explicit Random(uint64_t seed = 1) : state_(seed * 0x9e3779b97f4a7c15 | 1) {}

  uint64_t next() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return state_;
  }

  // Below `count`, which is at least 1.
  uint64_t below(uint64_t count) { return (next() >> 16) % count; }

  // The place of one of the set bits.
  uint32_t set_bit(uint32_t bits) {
    const uint32_t turn = uint32_t(next() >> 32) & 31;
    const uint32_t turned = bits >> turn | bits << (-turn & 31);
    return (uint32_t(__builtin_ctz(turned)) + turn) & 31;
  }

 private:
  uint64_t state_;
};

}  // namespace simt
