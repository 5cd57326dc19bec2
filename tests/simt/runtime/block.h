// The state of one block of a launch: its threads, warps, barriers and shared memory.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "../face/abi.h"
#include "checks.h"
#include "random.h"

namespace simt {

constexpr uint32_t warp_lanes = 32;
constexpr uint32_t most_warps = 32;
constexpr uint32_t most_barriers = 16;

struct Block;
struct AsyncCopies;

enum class ThreadState : uint8_t { fresh, ready, in_meeting, at_barrier, spinning, finished };

// A place in the kernels' source.
struct Place {
  const char *file;
  int line;
  const void *code;  // the instruction after the call
  bool operator==(const Place &other) const;
};

struct Thread : simt_thread_view {
  void *stack_top;
  char *stack;  // its lowest byte; null until the thread first runs
  Block *owner;
  ThreadState state;
  Place place;  // where it last met others or waited
  // What it brought to the meeting that it waits in.
  uint32_t meeting_mask;
  simt_warp_function meeting_function;
  void *meeting_data;
  AsyncCopies *copies;
};

// Sets of lanes.
struct Warp {
  uint32_t existing, alive, ready, meeting, spinning;
};

struct Barrier {
  uint32_t arrived;           // threads
  uint32_t expected;          // as given by them; 0: all that are alive
  uint32_t votes;             // of those that arrived
  uint32_t result;            // of the last time that it completed
  Place place;                // of the first to arrive
  uint32_t arrivals[most_warps];  // lanes
};

// Shared memory whose size the launch gives. An unmapped page follows it.
class DynamicShared {
 public:
  ~DynamicShared();
  // Gives `bytes` poisoned bytes, aligned to 128.
  char *reset(size_t bytes);
  bool near(const void *address) const {
    const char *byte = static_cast<const char *>(address);
    return byte >= mapped_ && byte < mapped_ + mapped_bytes_;
  }

 private:
  char *mapped_ = nullptr;
  size_t mapped_bytes_ = 0;
};

struct Block {
  simt_block_view view;
  uint64_t number;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Barrier barriers[most_barriers];
  uint32_t alive;  // threads
  uint32_t ready_warps, spinning_warps;
  uint32_t current_warp;
  bool queued;  // among the blocks that can run
  std::vector<char> saved_shared;  // static shared memory while another block runs
  DynamicShared dynamic_shared;
  std::unique_ptr<BlockChecks, DeleteBlockChecks> checks;

  Warp &warp_of(const Thread &thread) { return warps[thread.warp]; }
  void wake(uint32_t warp, uint32_t lanes) {
    warps[warp].ready |= lanes;
    ready_warps |= 1u << warp;
  }
  // Removes a thread from those that can run. Null if there is none.
  Thread *take_next() {
    if (ready_warps == 0) return nullptr;
    if ((ready_warps >> current_warp & 1) == 0) {
      const uint32_t later = ready_warps & ~0u << current_warp;
      current_warp = uint32_t(__builtin_ctz(later != 0 ? later : ready_warps));
    }
    return take(uint32_t(__builtin_ctz(warps[current_warp].ready)));
  }
  Thread *take_drawn(Random &random) {
    if (ready_warps == 0) return nullptr;
    current_warp = random.set_bit(ready_warps);
    return take(random.set_bit(warps[current_warp].ready));
  }
  void start_spinning(const Thread &thread);
  // Whether there was any spinning thread.
  bool wake_spinning();

 private:
  // A lane of the current warp.
  Thread *take(uint32_t lane) {
    Warp &warp = warps[current_warp];
    warp.ready &= ~(1u << lane);
    if (warp.ready == 0) ready_warps &= ~(1u << current_warp);
    return &threads[current_warp * warp_lanes + lane];
  }
};

}  // namespace simt
