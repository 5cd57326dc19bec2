// What a kernel's twin and the runtime in libcuda.so.1 know about each other. A twin is a kernel file
// compiled by g++; it refers to the symbols below and to nothing else of the simulator.
#pragma once

#include <cstddef>
#include <cstdint>

struct simt_index {
  uint32_t x, y, z;
};

// What the threads of a block share; constant while the block lives.
struct simt_block_view {
  simt_index block_index, block_size, grid_size;
  uint32_t dynamic_shared_bytes;
  char *dynamic_shared;
};

// What a thread may know about itself; constant while the thread lives.
struct simt_thread_view {
  simt_index index;
  uint32_t linear;  // its number within the block
  uint32_t warp, lane;
  const simt_block_view *block;
};

// Runs once for a whole warp, by the lane that arrives last. `lanes[i]` is what lane i handed over;
// only the lanes named by `mask` have handed over anything.
typedef void (*simt_warp_function)(void **lanes, uint32_t mask);

// The bits of `access`, of `order` and of the result of a barrier below.
enum : uint32_t {
  SIMT_READ = 1,
  SIMT_WRITE = 2,
  SIMT_ACQUIRE = 1,
  SIMT_RELEASE = 2,
  SIMT_BARRIER_ALL = 1u << 30,
  SIMT_BARRIER_ANY = 1u << 31,
  SIMT_BARRIER_COUNT = SIMT_BARRIER_ALL - 1,
};

struct simt_twin {
  const char *name;
  const char *source;  // the kernel file
  void (*run)(const void *arguments);
  uint32_t argument_bytes;
  uint32_t most_threads;  // its launch bounds
  // Static shared memory of all kernels of the file: the writable zero-initialised data of the twin's
  // library. Nothing else that changes may live there.
  char *shared_begin, *shared_end;
  bool checked;  // compiled with calls to the checkers
};

extern "C" {
extern simt_thread_view *simt_current;

void simt_register(const simt_twin *twin);

// The threads of the warp that `mask` names meet. `orders_memory`: as __syncwarp does.
void simt_warp_meet(uint32_t mask, simt_warp_function function, void *data, bool orders_memory,
                    const char *file, int line);
// `threads` 0: all that have not exited. Returns the SIMT_BARRIER_ bits of the votes.
uint32_t simt_barrier(uint32_t barrier, uint32_t threads, bool vote, const char *file, int line);
void simt_spin(const char *file, int line);
[[noreturn]] void simt_fail(const char *file, int line, const char *what);

void simt_copy_async(void *shared, const void *global, uint32_t bytes, uint32_t source_bytes);
void simt_copy_async_commit();
void simt_copy_async_wait(uint32_t pending_groups);
void simt_ldmatrix_x4(uint32_t *fragment, const void *shared_row, bool transposed, const char *file,
                      int line);
// `half`: the operands are f16, otherwise bf16.
void simt_mma_m16n8k16(float *sums, const uint32_t *left, const uint32_t *right, bool half,
                       const char *file, int line);

// Of a checked twin only.
void simt_check_access(const void *address, uint32_t bytes, uint32_t access);
void simt_check_atomic(const void *address, uint32_t bytes, uint32_t access, uint32_t order);
void simt_check_fence();
}
