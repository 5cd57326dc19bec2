// The words of CUDA C++ that g++ does not know, the indices of a thread, and the barriers of a block.
#pragma once

#include "vectors.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __restrict__ __restrict
#define __align__(bytes) __attribute__((aligned(bytes)))

// Static shared memory is the zero-initialised data of the twin's library, exchanged whenever another
// block runs. A section of its own would say it better, but g++ ignores sections of statics in
// templates.
#define __shared__ static
// Not for templates, for the same reason.
#define __constant__ static __attribute__((section("simt_constant")))

// A function that does its own checking: the accesses in its body are the simulator's, not the
// kernel's.
#ifdef SIMT_CHECKED
#define SIMT_UNCHECKED __attribute__((no_sanitize("thread"), noinline))
#else
#define SIMT_UNCHECKED
#endif

// The place of the call, for reports. As default arguments they name the caller's line.
#define SIMT_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

namespace simt {

// Read with inline assembly, for two reasons: the compiler may keep the result, because it is constant
// for a thread though not for the processor; and the checkers do not see it as the kernel's access.
inline const simt_thread_view *self() {
  const simt_thread_view *thread;
  asm("movq simt_current@GOTPCREL(%%rip), %0\n\tmovq (%0), %0" : "=r"(thread));
  return thread;
}

inline uint32_t constant_word(const uint32_t *word) {
  uint32_t value;
  asm("movl (%1), %0" : "=r"(value) : "r"(word));
  return value;
}

template <class Pointer>
Pointer constant_pointer(const Pointer *pointer) {
  Pointer value;
  asm("movq (%1), %0" : "=r"(value) : "r"(pointer));
  return value;
}

inline const simt_block_view *block() { return constant_pointer(&self()->block); }

inline uint3 constant_index(const simt_index *index) {
  return {constant_word(&index->x), constant_word(&index->y), constant_word(&index->z)};
}

template <class Element>
Element *dynamic_shared() {
  return reinterpret_cast<Element *>(constant_pointer(&block()->dynamic_shared));
}

}  // namespace simt

#define threadIdx (simt::constant_index(&simt::self()->index))
#define blockIdx (simt::constant_index(&simt::block()->block_index))
#define blockDim (simt::constant_index(&simt::block()->block_size))
#define gridDim (simt::constant_index(&simt::block()->grid_size))
#define warpSize 32

inline void __syncthreads(SIMT_PLACE) { simt_barrier(0, 0, false, file, line); }
inline int __syncthreads_count(int predicate, SIMT_PLACE) {
  return int(simt_barrier(0, 0, predicate != 0, file, line) & SIMT_BARRIER_COUNT);
}
inline int __syncthreads_and(int predicate, SIMT_PLACE) {
  return (simt_barrier(0, 0, predicate != 0, file, line) & SIMT_BARRIER_ALL) != 0;
}
inline int __syncthreads_or(int predicate, SIMT_PLACE) {
  return (simt_barrier(0, 0, predicate != 0, file, line) & SIMT_BARRIER_ANY) != 0;
}
inline void __syncwarp(uint32_t mask = ~0u, SIMT_PLACE) {
  simt_warp_meet(mask, nullptr, nullptr, true, file, line);
}

#ifdef SIMT_CHECKED
inline void __threadfence_block() { simt_check_fence(); }
inline void __threadfence() { simt_check_fence(); }
inline void __threadfence_system() { simt_check_fence(); }
#else
// One processor runs all threads in program order.
inline void __threadfence_block() { asm volatile("" ::: "memory"); }
inline void __threadfence() { asm volatile("" ::: "memory"); }
inline void __threadfence_system() { asm volatile("" ::: "memory"); }
#endif

inline void __nanosleep(unsigned, SIMT_PLACE) { simt_spin(file, line); }
[[noreturn]] inline void __trap(SIMT_PLACE) { simt_fail(file, line, "__trap"); }
// The weakest answer that hardware may give.
inline uint32_t __activemask() { return 1u << simt::constant_word(&simt::self()->lane); }
