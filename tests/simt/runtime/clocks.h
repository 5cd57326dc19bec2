// What happens before what. Two accesses by different threads are ordered only by barriers, by
// __syncwarp, and by the releases and acquires of atomic operations; everything else is a race.
//
// Time is counted by warps: the epoch of a warp grows whenever something might get ordered against what
// its threads did so far. An access is stamped with its thread and the epoch of its warp. Whether it
// happened before the present of another thread follows from what that thread's warp learnt at barriers
// (within a block), from the meetings of lanes (within a warp), and from what the thread acquired (across
// blocks). Where the exact set of ordered accesses would be costly, a larger one is kept: a race may be
// missed, but none is reported that is not there.
#pragma once

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "block.h"

namespace simt {

constexpr uint32_t thread_bits = 10;
// Launches with more blocks are not checked for races.
constexpr uint64_t most_stamped_blocks = uint64_t(1) << (32 - thread_bits);

struct Stamp {
  uint32_t who;    // block << thread_bits | thread
  uint32_t epoch : 30;  // of its warp; 0: there was no access
  uint32_t atomic : 1;
  uint32_t in_flight : 1;  // the destination of a cp.async that has not landed
  uint32_t code;  // the instruction, as an offset in the twin's library

  bool present() const { return epoch != 0; }
  uint32_t block() const { return who >> thread_bits; }
  uint32_t thread() const { return who & ((1u << thread_bits) - 1); }
  uint32_t warp() const { return thread() / warp_lanes; }
  uint32_t lane() const { return thread() % warp_lanes; }
};

// What a thread knows of the warps of all blocks through what it acquired.
class Knowledge {
 public:
  Knowledge(uint64_t blocks, uint32_t warps) : warps_(warps), entries_(blocks * warps) {}

  bool covers(const Stamp &stamp) const {
    const Entry &entry = entries_[uint64_t(stamp.block()) * warps_ + stamp.warp()];
    return stamp.epoch < entry.before ||
           ((entry.lanes >> stamp.lane() & 1) != 0 && stamp.epoch < entry.lanes_before);
  }
  // Adds the accesses of all lanes of a warp before an epoch.
  void add_warp(uint32_t block, uint32_t warp, uint32_t before);
  // Adds those of some lanes.
  void add_lanes(uint32_t block, uint32_t warp, uint32_t lanes, uint32_t before);
  void add(const Knowledge &other);
  bool includes(const Knowledge &other) const;

 private:
  struct Entry {
    uint32_t before = 0;
    uint32_t lanes = 0, lanes_before = 0;
  };
  uint32_t warps_;
  std::vector<Entry> entries_;
};
// Shared by all who know the same; never changed while it is shared.
typedef std::shared_ptr<Knowledge> SharedKnowledge;

// Changes `known` to what `known` or `other` covers.
void learn(SharedKnowledge &known, const SharedKnowledge &other);

struct PartialMeeting {
  uint32_t epoch;  // the first after it
  uint32_t lanes;
};

struct WarpClock {
  uint32_t epoch = 1;
  uint32_t all_met = 1;  // what any lane did before this epoch happened before what any does now
  std::vector<PartialMeeting> partial_meetings;  // since then
  uint32_t known[most_warps] = {};  // of the other warps of the block: what they did before this epoch

  void meet(uint32_t lanes, uint32_t alive);
  // Whether what `lane` did at `at` happened before what `other` does now.
  bool ordered(uint32_t lane, uint32_t at, uint32_t other) const {
    return lane == other || at < all_met || ordered_by_partial_meetings(lane, at, other);
  }
  bool ordered_by_partial_meetings(uint32_t lane, uint32_t at, uint32_t other) const;
  // Lanes with whom `lane` has met since all met.
  uint32_t met_with(uint32_t lane) const;
};

// What releases and acquires did to a thread.
struct ThreadClock {
  SharedKnowledge known;
  SharedKnowledge fenced;   // what it knew at its last fence: a later relaxed store publishes it
  SharedKnowledge pending;  // what relaxed loads saw: the next fence makes it known
};

// The clocks of the threads of one block.
class BlockClocks {
 public:
  void reset(const Block &block, uint64_t blocks_in_grid);

  Stamp stamp(const Thread &thread, uint32_t code) const {
    return {block_ << thread_bits | thread.linear, warps_[thread.warp].epoch, 0, 0, code};
  }
  bool happened_before(const Stamp &stamp, const Thread &thread) const {
    if (stamp.block() == block_) {
      const WarpClock &mine = warps_[thread.warp];
      const bool ordered = stamp.warp() == thread.warp
                               ? mine.ordered(stamp.lane(), stamp.epoch, thread.lane)
                               : stamp.epoch < mine.known[stamp.warp()];
      if (ordered) return true;
    }
    const SharedKnowledge &known = threads_[thread.linear].known;
    return known != nullptr && known->covers(stamp);
  }

  void meet(const Block &block, uint32_t warp, uint32_t lanes);
  void complete_barrier(const Block &block, const Barrier &barrier);

  // An atomic operation on the word whose published knowledge is `word`.
  void atomic(const Thread &thread, SharedKnowledge &word, uint32_t access, uint32_t order);
  void fence(const Thread &thread);

 private:
  // What `thread` may publish now.
  SharedKnowledge publish(const Thread &thread);
  void share_knowledge(uint32_t warp, uint32_t lanes, SharedKnowledge &common, bool give);

  uint32_t block_ = 0;
  uint64_t blocks_in_grid_ = 0;
  std::vector<WarpClock> warps_;
  std::vector<ThreadClock> threads_;
};

}  // namespace simt
