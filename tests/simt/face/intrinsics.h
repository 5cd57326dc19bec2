// Loads with cache hints, bit operations, and the arithmetic that CUDA names.
#pragma once

#include <cmath>
#include <type_traits>

#include "execution.h"

template <class Value>
Value __ldg(const Value *address) {
  return *address;
}
template <class Value>
Value __ldcs(const Value *address) {
  return *address;
}
template <class Value>
Value __ldcg(const Value *address) {
  return *address;
}
template <class Value>
Value __ldca(const Value *address) {
  return *address;
}
template <class Value>
void __stcs(Value *address, std::common_type_t<Value> value) {
  *address = value;
}
template <class Value>
void __stcg(Value *address, std::common_type_t<Value> value) {
  *address = value;
}

inline int __popc(uint32_t bits) { return __builtin_popcount(bits); }
inline int __popcll(unsigned long long bits) { return __builtin_popcountll(bits); }
inline int __clz(int bits) { return bits != 0 ? __builtin_clz(uint32_t(bits)) : 32; }
inline int __clzll(long long bits) {
  return bits != 0 ? __builtin_clzll(static_cast<unsigned long long>(bits)) : 64;
}
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __ffsll(long long bits) { return __builtin_ffsll(bits); }
inline uint32_t __brev(uint32_t bits) {
  bits = (bits >> 1 & 0x55555555) | (bits & 0x55555555) << 1;
  bits = (bits >> 2 & 0x33333333) | (bits & 0x33333333) << 2;
  bits = (bits >> 4 & 0x0f0f0f0f) | (bits & 0x0f0f0f0f) << 4;
  return __builtin_bswap32(bits);
}
inline unsigned long long __brevll(unsigned long long bits) {
  return static_cast<unsigned long long>(__brev(uint32_t(bits))) << 32 | __brev(uint32_t(bits >> 32));
}
inline uint32_t __umulhi(uint32_t left, uint32_t right) {
  return uint32_t(uint64_t(left) * right >> 32);
}
inline unsigned long long __umul64hi(unsigned long long left, unsigned long long right) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(left) * right >> 64);
}
inline uint32_t __byte_perm(uint32_t low, uint32_t high, uint32_t selector) {
  const uint64_t bytes = uint64_t(high) << 32 | low;
  uint32_t result = 0;
  for (int i = 0; i < 4; i++) {
    const uint32_t nibble = selector >> 4 * i & 15;
    uint32_t byte = uint32_t(bytes >> 8 * (nibble & 7)) & 255;
    if (nibble & 8) byte = byte & 128 ? 255 : 0;
    result |= byte << 8 * i;
  }
  return result;
}
inline uint32_t __funnelshift_l(uint32_t low, uint32_t high, uint32_t shift) {
  return uint32_t((uint64_t(high) << 32 | low) << (shift & 31) >> 32);
}
inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t shift) {
  return uint32_t((uint64_t(high) << 32 | low) >> (shift & 31));
}

namespace simt {

template <class To, class From>
To bits_of(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}

}  // namespace simt

inline uint32_t __float_as_uint(float value) { return simt::bits_of<uint32_t>(value); }
inline int __float_as_int(float value) { return simt::bits_of<int>(value); }
inline float __uint_as_float(uint32_t bits) { return simt::bits_of<float>(bits); }
inline float __int_as_float(int bits) { return simt::bits_of<float>(bits); }
inline long long __double_as_longlong(double value) { return simt::bits_of<long long>(value); }
inline double __longlong_as_double(long long bits) { return simt::bits_of<double>(bits); }

inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return __builtin_sqrtf(a); }
inline double __fma_rn(double a, double b, double c) { return __builtin_fma(a, b, c); }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return __builtin_sqrt(a); }
inline int __float2int_rn(float a) { return int(__builtin_rintf(a)); }
inline int __float2int_rz(float a) { return int(a); }
inline int __float2int_rd(float a) { return int(__builtin_floorf(a)); }
inline int __float2int_ru(float a) { return int(__builtin_ceilf(a)); }
inline uint32_t __float2uint_rn(float a) { return uint32_t(__builtin_rintf(a)); }
inline uint32_t __float2uint_rz(float a) { return uint32_t(a); }
inline float __int2float_rn(int a) { return float(a); }
inline float __uint2float_rn(uint32_t a) { return float(a); }
inline float __ull2float_rn(unsigned long long a) { return float(a); }
inline double __ull2double_rn(unsigned long long a) { return double(a); }
inline float __double2float_rn(double a) { return float(a); }

// Approximations on hardware; here the exact function, so that comparisons need a tolerance.
inline float rsqrtf(float a) { return 1.0f / __builtin_sqrtf(a); }
inline double rsqrt(double a) { return 1.0 / __builtin_sqrt(a); }
inline float __frsqrt_rn(float a) { return float(1.0 / __builtin_sqrt(double(a))); }
inline float __expf(float a) { return __builtin_expf(a); }
inline float __exp2f(float a) { return __builtin_exp2f(a); }
inline float __logf(float a) { return __builtin_logf(a); }
inline float __log2f(float a) { return __builtin_log2f(a); }
inline float __powf(float a, float b) { return __builtin_powf(a, b); }
inline float __sinf(float a) { return __builtin_sinf(a); }
inline float __cosf(float a) { return __builtin_cosf(a); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __saturatef(float a) { return a > 0.0f ? (a < 1.0f ? a : 1.0f) : 0.0f; }
inline void sincospif(float a, float *sine, float *cosine) {
  *sine = float(__builtin_sin(double(a) * M_PI));
  *cosine = float(__builtin_cos(double(a) * M_PI));
}

// As CUDA's own: arguments of two types are converted to the common one.
template <class Left, class Right>
constexpr std::common_type_t<Left, Right> min(Left left, Right right) {
  using Common = std::common_type_t<Left, Right>;
  return Common(right) < Common(left) ? Common(right) : Common(left);
}
template <class Left, class Right>
constexpr std::common_type_t<Left, Right> max(Left left, Right right) {
  using Common = std::common_type_t<Left, Right>;
  return Common(left) < Common(right) ? Common(right) : Common(left);
}
