// What all kernels share: the names of types, conversions, and the instructions that CUDA C++ has no
// word for. The only file with inline PTX, and the only one that tells nvcc and NVRTC from g++ (SIMT),
// under which the kernels run in the simulator.
//
// Where bits matter, sums and products are written with add_rn, multiply_rn and fused_multiply_add:
// the compiler may fuse the operators + and *.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed char i8;
typedef short i16;
typedef int i32;
typedef long long i64;
typedef float f32;
typedef double f64;
typedef unsigned __int128 u128;  // NVRTC: --device-int128

#define DEVICE __device__ __forceinline__

#ifdef SIMT

#define KERNEL(threads, name, Arguments) SIMT_KERNEL(threads, name, Arguments)
#define KERNEL_RESIDENT(threads, blocks, name, Arguments) SIMT_KERNEL(threads, name, Arguments)
#define DYNAMIC_SHARED(Type, name) Type *name = simt::dynamic_shared<Type>()

#else

// A kernel `name` that is launched with at most `threads` threads in a block and takes one struct:
//
//     KERNEL(256, gather_rows, GatherArguments) { ... arguments.rows ... }
#define KERNEL(threads, name, Arguments)                       \
  extern "C" __global__ void __launch_bounds__(threads) name(  \
      const __grid_constant__ Arguments arguments)
// The same, for as many registers as leave a multiprocessor room for `blocks` blocks.
#define KERNEL_RESIDENT(threads, blocks, name, Arguments)              \
  extern "C" __global__ void __launch_bounds__(threads, blocks) name(  \
      const __grid_constant__ Arguments arguments)
// The shared memory whose size the launch gives, as an array of `Type`, aligned to 128 bytes.
#define DYNAMIC_SHARED(Type, name)                                      \
  extern __shared__ __align__(128) unsigned char name##_dynamic_bytes[]; \
  Type *name = reinterpret_cast<Type *>(name##_dynamic_bytes)

#endif

constexpr u32 warp_lanes = 32;
constexpr u32 all_lanes = 0xffffffff;

// threadIdx.x, read anew. What is computed from threadIdx.x the compiler moves out of loops and keeps, a
// register for each; where a loop has none to spare, it is computed from this.
DEVICE u32 thread_index() {
#ifdef SIMT
  return threadIdx.x;
#else
  u32 index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return index;
#endif
}

DEVICE u32 lane_index() { return threadIdx.x % warp_lanes; }
DEVICE u32 warp_index() { return threadIdx.x / warp_lanes; }

// ---- Arithmetic that the compiler may not fuse or split ------------------------------------------

DEVICE f32 fused_multiply_add(f32 a, f32 b, f32 c) { return __fmaf_rn(a, b, c); }
DEVICE f32 multiply_rn(f32 a, f32 b) { return __fmul_rn(a, b); }
DEVICE f32 add_rn(f32 a, f32 b) { return __fadd_rn(a, b); }
DEVICE f32 subtract_rn(f32 a, f32 b) { return __fsub_rn(a, b); }
DEVICE f32 divide_rn(f32 a, f32 b) { return __fdiv_rn(a, b); }

// ---- Elements of tensors -------------------------------------------------------------------------

struct bf16 {
  u16 bits;
};
struct f16 {
  u16 bits;
};
static_assert(sizeof(bf16) == 2 && sizeof(f16) == 2, "elements as they are stored");

DEVICE f32 to_f32(f32 value) { return value; }
DEVICE f32 to_f32(bf16 value) { return __uint_as_float(u32(value.bits) << 16); }
DEVICE f32 to_f32(f16 value) {
#ifdef SIMT
  return f32(simt::bits_of<_Float16>(value.bits));
#else
  f32 wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
  return wide;
#endif
}

// The nearest bf16, the even one of two; a NaN stays a NaN with its sign and leading bits.
DEVICE bf16 to_bf16(f32 value) {
  const u32 bits = __float_as_uint(value);
  const u32 rounded = bits + 0x7fff + (bits >> 16 & 1);
  const bool nan = (bits & 0x7fffffff) > 0x7f800000;
  return bf16{u16(nan ? bits >> 16 | 0x40 : rounded >> 16)};
}

// The nearest f16, the even one of two; beyond the largest an infinity; a NaN stays a NaN.
DEVICE f16 to_f16(f32 value) {
#ifdef SIMT
  return f16{simt::bits_of<u16>(_Float16(value))};
#else
  u16 bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return f16{bits};
#endif
}

template <class Element>
DEVICE Element from_f32(f32 value);
template <>
DEVICE f32 from_f32<f32>(f32 value) {
  return value;
}
template <>
DEVICE bf16 from_f32<bf16>(f32 value) {
  return to_bf16(value);
}
template <>
DEVICE f16 from_f32<f16>(f32 value) {
  return to_f16(value);
}

// Two bf16 in a word, the first in the low half.
DEVICE f32 bf16_low(u32 pair) { return __uint_as_float(pair << 16); }
DEVICE f32 bf16_high(u32 pair) { return __uint_as_float(pair & 0xffff0000); }
// As to_bf16, but a NaN becomes any NaN.
DEVICE u32 bf16_pair(f32 low, f32 high) {
#ifdef SIMT
  return u32(to_bf16(low).bits) | u32(to_bf16(high).bits) << 16;
#else
  u32 pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#endif
}
DEVICE f32 f16_low(u32 pair) { return to_f32(f16{u16(pair)}); }
DEVICE f32 f16_high(u32 pair) { return to_f32(f16{u16(pair >> 16)}); }
DEVICE u32 f16_pair(f32 low, f32 high) {
  return u32(to_f16(low).bits) | u32(to_f16(high).bits) << 16;
}

// ---- Loads and stores ----------------------------------------------------------------------------

// 16 bytes that no one writes during the launch and that are read once: weights. They do not displace
// what is in the first-level cache.
DEVICE uint4 load_streaming(const void *address) {
#ifdef SIMT
  return *static_cast<const uint4 *>(address);
#else
  uint4 value;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(address));
  return value;
#endif
}

// A word in pinned host memory that the host polls. `store_system_release` also lets the host see what
// this thread wrote before, and what it has seen of others.
DEVICE void store_system(u32 *address, u32 value) {
#ifdef SIMT
  simt::atomic_store(address, value, 0);
#else
  asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
#endif
}
DEVICE void store_system(u64 *address, u64 value) {
#ifdef SIMT
  simt::atomic_store(address, value, 0);
#else
  asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(address), "l"(value) : "memory");
#endif
}
DEVICE void store_system_release(u32 *address, u32 value) {
#ifdef SIMT
  simt::atomic_store(address, value, SIMT_RELEASE);
#else
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
#endif
}

// ---- Blocks that talk to each other --------------------------------------------------------------
//
// What a thread wrote before a release is seen by the thread that acquires the released value. Together
// with __syncthreads before the one and after the other it holds for their blocks.

DEVICE u32 load_acquire(const u32 *address) {
#ifdef SIMT
  return simt::atomic_load(address, SIMT_ACQUIRE);
#else
  u32 value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
  return value;
#endif
}
DEVICE u64 load_acquire(const u64 *address) {
#ifdef SIMT
  return simt::atomic_load(address, SIMT_ACQUIRE);
#else
  u64 value;
  asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(address) : "memory");
  return value;
#endif
}

DEVICE void store_release(u32 *address, u32 value) {
#ifdef SIMT
  simt::atomic_store(address, value, SIMT_RELEASE);
#else
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
#endif
}
DEVICE void store_release(u64 *address, u64 value) {
#ifdef SIMT
  simt::atomic_store(address, value, SIMT_RELEASE);
#else
  asm volatile("st.release.gpu.global.u64 [%0], %1;" ::"l"(address), "l"(value) : "memory");
#endif
}

// These return the value before.
DEVICE u32 add_release(u32 *address, u32 value) {
#ifdef SIMT
  return simt::atomic_update(address, SIMT_RELEASE, [value](u32 old) { return old + value; });
#else
  u32 old;
  asm volatile("atom.add.release.gpu.global.u32 %0, [%1], %2;"
               : "=r"(old)
               : "l"(address), "r"(value)
               : "memory");
  return old;
#endif
}
DEVICE u32 add_acquire_release(u32 *address, u32 value) {
#ifdef SIMT
  return simt::atomic_update(address, SIMT_ACQUIRE | SIMT_RELEASE,
                             [value](u32 old) { return old + value; });
#else
  u32 old;
  asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], %2;"
               : "=r"(old)
               : "l"(address), "r"(value)
               : "memory");
  return old;
#endif
}
DEVICE u64 add_acquire_release(u64 *address, u64 value) {
#ifdef SIMT
  return simt::atomic_update(address, SIMT_ACQUIRE | SIMT_RELEASE,
                             [value](u64 old) { return old + value; });
#else
  u64 old;
  asm volatile("atom.add.acq_rel.gpu.global.u64 %0, [%1], %2;"
               : "=l"(old)
               : "l"(address), "l"(value)
               : "memory");
  return old;
#endif
}
DEVICE u64 max_acquire_release(u64 *address, u64 value) {
#ifdef SIMT
  return simt::atomic_update(address, SIMT_ACQUIRE | SIMT_RELEASE,
                             [value](u64 old) { return old < value ? value : old; });
#else
  u64 old;
  asm volatile("atom.max.acq_rel.gpu.global.u64 %0, [%1], %2;"
               : "=l"(old)
               : "l"(address), "l"(value)
               : "memory");
  return old;
#endif
}

// Belongs into every loop that waits for another block.
DEVICE void spin_hint() { __nanosleep(32); }

// Whether this block is the last of `blocks` to come here; every thread gets the answer. The last one
// sees what all of them wrote before, and leaves `counter` zero, as it must be before the launch.
DEVICE bool last_block(u32 *counter, u32 blocks) {
  __shared__ u32 is_last;
  __syncthreads();
  if (threadIdx.x == 0) {
    is_last = add_acquire_release(counter, 1) == blocks - 1;
    if (is_last) *counter = 0;
  }
  __syncthreads();
  return is_last != 0;
}

// Waits for all blocks of a cooperative launch, which see what any of them wrote before. `word` is zero
// before the first launch that uses it; its top bit turns over each time, so that launches may follow
// each other without setting it again.
DEVICE void grid_barrier(u32 *word) {
  __syncthreads();
  if (threadIdx.x == 0) {
    const u32 blocks = gridDim.x * gridDim.y * gridDim.z;
    const bool first = blockIdx.x + blockIdx.y + blockIdx.z == 0;
    const u32 before = add_acquire_release(word, first ? 0x80000000 - (blocks - 1) : 1);
    while (((load_acquire(word) ^ before) & 0x80000000) == 0) spin_hint();
  }
  __syncthreads();
}

// A barrier of some of the warps of a block: the `threads` threads, whole warps, that name `number`, from
// 1 to 15.
DEVICE void barrier_of_warps(u32 number, u32 threads) {
#ifdef SIMT
  simt_barrier(number, threads, false, __FILE__, __LINE__);
#else
  asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
#endif
}

// ---- Copies from global to shared memory that go on while the thread works -----------------------

// 16 bytes, both addresses aligned to them. Where `present` is false the destination becomes zero and
// the source is not read, though it must be a valid address.
DEVICE void cp_async16(void *shared, const void *global, bool present = true) {
#ifdef SIMT
  simt_copy_async(shared, global, 16, present ? 16 : 0);
#else
  const u32 destination = u32(__cvta_generic_to_shared(shared));
  const i32 bytes = present ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(destination), "l"(global),
               "r"(bytes)
               : "memory");
#endif
}
// Ends a group of copies of this thread.
DEVICE void cp_async_commit() {
#ifdef SIMT
  simt_copy_async_commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Waits until at most the last `pending` groups of this thread are under way. Other threads see the
// copied bytes after the next barrier.
template <u32 pending>
DEVICE void cp_async_wait() {
#ifdef SIMT
  simt_copy_async_wait(pending);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#endif
}

// ---- Matrix products of a warp -------------------------------------------------------------------

// Four 8x8 matrices of 16-bit elements from shared memory: lane 8 i + j gives the address of row j of
// matrix i (16 bytes, aligned), and lane l gets elements 2 (l % 4) and the next of row l / 4 of each.
DEVICE void ldmatrix_x4(u32 (&fragment)[4], const void *shared_row) {
#ifdef SIMT
  simt_ldmatrix_x4(fragment, shared_row, false, __FILE__, __LINE__);
#else
  const u32 address = u32(__cvta_generic_to_shared(shared_row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(address)
               : "memory");
#endif
}
// The same, each matrix transposed.
DEVICE void ldmatrix_x4_transposed(u32 (&fragment)[4], const void *shared_row) {
#ifdef SIMT
  simt_ldmatrix_x4(fragment, shared_row, true, __FILE__, __LINE__);
#else
  const u32 address = u32(__cvta_generic_to_shared(shared_row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(address)
               : "memory");
#endif
}

// sums (16x8) += left (16x16) * right (16x8), with f32 sums. With g = lane / 4 and t = lane % 4 the
// lane holds of sums rows g, g, g + 8, g + 8 at columns 2t, 2t + 1, 2t, 2t + 1; of left, in pairs,
// rows g, g + 8, g, g + 8 at columns 2t, 2t, 2t + 8, 2t + 8; of right, in pairs, column g at rows 2t
// and 2t + 8.
DEVICE void mma_m16n8k16_bf16(f32 (&sums)[4], const u32 (&left)[4], const u32 (&right)[2]) {
#ifdef SIMT
  simt_mma_m16n8k16(sums, left, right, false, __FILE__, __LINE__);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
#endif
}
DEVICE void mma_m16n8k16_f16(f32 (&sums)[4], const u32 (&left)[4], const u32 (&right)[2]) {
#ifdef SIMT
  simt_mma_m16n8k16(sums, left, right, true, __FILE__, __LINE__);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
#endif
}

// ---- Sums and maxima, in an order that does not depend on timing ---------------------------------

// Over the warp, in a butterfly: all lanes take part and all get the same bits.
DEVICE f32 warp_sum(f32 value) {
#ifdef SIMT
  return simt::butterfly<simt::Add>(value, __FILE__, __LINE__);
#else
#pragma unroll
  for (i32 distance = 16; distance != 0; distance >>= 1) {
    value = add_rn(value, __shfl_xor_sync(all_lanes, value, distance));
  }
  return value;
#endif
}
DEVICE f32 warp_max(f32 value) {
#ifdef SIMT
  return simt::butterfly<simt::FloatMax>(value, __FILE__, __LINE__);
#else
#pragma unroll
  for (i32 distance = 16; distance != 0; distance >>= 1) {
    value = fmaxf(value, __shfl_xor_sync(all_lanes, value, distance));
  }
  return value;
#endif
}
DEVICE u32 warp_sum(u32 value) { return __reduce_add_sync(all_lanes, value); }
DEVICE u32 warp_max(u32 value) { return __reduce_max_sync(all_lanes, value); }
DEVICE u32 warp_min(u32 value) { return __reduce_min_sync(all_lanes, value); }

// Over a block of `threads` threads, a multiple of 32; every thread gets the result.
template <u32 threads>
DEVICE f32 block_sum(f32 value) {
  constexpr u32 warps = threads / warp_lanes;
  static_assert(threads % warp_lanes == 0 && warps <= warp_lanes, "whole warps, at most 32");
  __shared__ f32 of_warp[warps];
  value = warp_sum(value);
  if (lane_index() == 0) of_warp[warp_index()] = value;
  __syncthreads();
  value = warp_sum(lane_index() < warps ? of_warp[lane_index()] : 0.0f);
  __syncthreads();  // the next sum may write
  return value;
}
template <u32 threads>
DEVICE f32 block_max(f32 value) {
  constexpr u32 warps = threads / warp_lanes;
  static_assert(threads % warp_lanes == 0 && warps <= warp_lanes, "whole warps, at most 32");
  __shared__ f32 of_warp[warps];
  value = warp_max(value);
  if (lane_index() == 0) of_warp[warp_index()] = value;
  __syncthreads();
  value = warp_max(of_warp[lane_index() % warps]);
  __syncthreads();  // the next maximum may write
  return value;
}
