// Atomic operations. One thread runs at a time and is not interrupted here, so a plain read and a
// plain write are atomic; the checkers are told what they stand for.
#pragma once

#include <type_traits>

#include "execution.h"

namespace simt {

#ifdef SIMT_CHECKED
inline void check_atomic(const void *address, uint32_t bytes, uint32_t access, uint32_t order) {
  simt_check_atomic(address, bytes, access, order);
}
#else
inline void check_atomic(const void *, uint32_t, uint32_t, uint32_t) {}
#endif

// `operation` maps the old value to the new one.
template <class Value, class Operation>
SIMT_UNCHECKED Value atomic_update(Value *address, uint32_t order, Operation operation) {
  static_assert(std::is_integral_v<Value>, "sums of floats must have a fixed order");
  check_atomic(address, sizeof(Value), SIMT_READ | SIMT_WRITE, order);
  const Value old = *static_cast<volatile Value *>(address);
  *static_cast<volatile Value *>(address) = operation(old);
  return old;
}

template <class Value>
SIMT_UNCHECKED Value atomic_load(const Value *address, uint32_t order) {
  check_atomic(address, sizeof(Value), SIMT_READ, order);
  return *static_cast<const volatile Value *>(address);
}

template <class Value>
SIMT_UNCHECKED void atomic_store(Value *address, Value value, uint32_t order) {
  check_atomic(address, sizeof(Value), SIMT_WRITE, order);
  *static_cast<volatile Value *>(address) = value;
}

// The type of an operand that takes no part in the deduction of `Value`.
template <class Value>
using Operand = std::common_type_t<Value>;

}  // namespace simt

#define SIMT_ATOMIC(name, expression)                                            \
  template <class Value>                                                         \
  Value name(Value *address, simt::Operand<Value> operand) {                     \
    return simt::atomic_update(address, 0, [operand](Value old) -> Value {       \
      (void)old;                                                                 \
      return Value(expression);                                                  \
    });                                                                          \
  }
SIMT_ATOMIC(atomicAdd, old + operand)
SIMT_ATOMIC(atomicSub, old - operand)
SIMT_ATOMIC(atomicExch, operand)
SIMT_ATOMIC(atomicMin, operand < old ? operand : old)
SIMT_ATOMIC(atomicMax, old < operand ? operand : old)
SIMT_ATOMIC(atomicAnd, old & operand)
SIMT_ATOMIC(atomicOr, old | operand)
SIMT_ATOMIC(atomicXor, old ^ operand)
SIMT_ATOMIC(atomicInc, old >= operand ? 0 : old + 1)
SIMT_ATOMIC(atomicDec, old == 0 || old > operand ? operand : old - 1)
#undef SIMT_ATOMIC

template <class Value>
Value atomicCAS(Value *address, simt::Operand<Value> expected, simt::Operand<Value> desired) {
  return simt::atomic_update(address, 0, [expected, desired](Value old) {
    return old == expected ? desired : old;
  });
}
