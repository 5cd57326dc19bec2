#include "clocks.h"

#include <algorithm>

namespace simt {

// ---- Knowledge --------------------------------------------------------------------------------------

void Knowledge::add_warp(uint32_t block, uint32_t warp, uint32_t before) {
  Entry &entry = entries_[uint64_t(block) * warps_ + warp];
  entry.before = std::max(entry.before, before);
}

void Knowledge::add_lanes(uint32_t block, uint32_t warp, uint32_t lanes, uint32_t before) {
  Entry &entry = entries_[uint64_t(block) * warps_ + warp];
  entry.lanes |= lanes;
  entry.lanes_before = std::max(entry.lanes_before, before);
}

void Knowledge::add(const Knowledge &other) {
  for (size_t i = 0; i < entries_.size(); i++) {
    Entry &entry = entries_[i];
    const Entry &added = other.entries_[i];
    entry.before = std::max(entry.before, added.before);
    entry.lanes |= added.lanes;
    entry.lanes_before = std::max(entry.lanes_before, added.lanes_before);
  }
}

bool Knowledge::includes(const Knowledge &other) const {
  bool includes = true;
  for (size_t i = 0; i < entries_.size(); i++) {
    const Entry &entry = entries_[i], &asked = other.entries_[i];
    includes &= asked.before <= entry.before && asked.lanes_before <= entry.lanes_before &&
                (asked.lanes & ~entry.lanes) == 0;
  }
  return includes;
}

void learn(SharedKnowledge &known, const SharedKnowledge &other) {
  if (other == nullptr || known == other) return;
  if (known == nullptr || other->includes(*known)) {
    known = other;
    return;
  }
  if (known->includes(*other)) return;
  if (known.use_count() != 1) known = std::make_shared<Knowledge>(*known);
  known->add(*other);
}

// ---- Warps ------------------------------------------------------------------------------------------

void WarpClock::meet(uint32_t lanes, uint32_t alive) {
  epoch++;
  if ((alive & ~lanes) == 0) {
    all_met = epoch;
    partial_meetings.clear();
  } else {
    partial_meetings.push_back({epoch, lanes});
  }
}

bool WarpClock::ordered_by_partial_meetings(uint32_t lane, uint32_t at, uint32_t other) const {
  uint32_t reached = 1u << lane;
  for (const PartialMeeting &meeting : partial_meetings) {
    if (meeting.epoch > at && (meeting.lanes & reached) != 0) reached |= meeting.lanes;
  }
  return (reached >> other & 1) != 0;
}

uint32_t WarpClock::met_with(uint32_t lane) const {
  uint32_t met = 1u << lane;
  for (auto meeting = partial_meetings.rbegin(); meeting != partial_meetings.rend(); ++meeting) {
    if ((meeting->lanes & met) != 0) met |= meeting->lanes;
  }
  return met;
}

// ---- Blocks -----------------------------------------------------------------------------------------

void BlockClocks::reset(const Block &block, uint64_t blocks_in_grid) {
  block_ = uint32_t(block.number);
  blocks_in_grid_ = blocks_in_grid;
  warps_.assign(block.warps.size(), WarpClock{});
  threads_.assign(block.threads.size(), ThreadClock{});
}

// Collects into `common` what the lanes acquired, or gives it to them.
void BlockClocks::share_knowledge(uint32_t warp, uint32_t lanes, SharedKnowledge &common, bool give) {
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    SharedKnowledge &known = threads_[warp * warp_lanes + uint32_t(__builtin_ctz(rest))].known;
    if (give) known = common;
    else learn(common, known);
  }
}

void BlockClocks::meet(const Block &block, uint32_t warp, uint32_t lanes) {
  warps_[warp].meet(lanes, block.warps[warp].alive);
  SharedKnowledge common;
  share_knowledge(warp, lanes, common, false);
  if (common != nullptr) share_knowledge(warp, lanes, common, true);
}

void BlockClocks::complete_barrier(const Block &block, const Barrier &barrier) {
  uint32_t known[most_warps] = {};
  SharedKnowledge common;
  for (uint32_t i = 0; i < warps_.size(); i++) {
    if (barrier.arrivals[i] == 0) continue;
    for (uint32_t other = 0; other < warps_.size(); other++) {
      known[other] = std::max(known[other], warps_[i].known[other]);
    }
    known[i] = std::max(known[i], warps_[i].epoch + 1);
    share_knowledge(i, barrier.arrivals[i], common, false);
  }
  // Threads that have exited count as arrived at every barrier of the whole block.
  for (uint32_t i = 0; i < warps_.size(); i++) {
    if (barrier.expected == 0 && block.warps[i].alive == 0) known[i] = warps_[i].epoch + 1;
  }
  for (uint32_t i = 0; i < warps_.size(); i++) {
    if (barrier.arrivals[i] == 0) continue;
    warps_[i].meet(~0u, block.warps[i].alive);
    std::copy(known, known + most_warps, warps_[i].known);
    if (common != nullptr) share_knowledge(i, barrier.arrivals[i], common, true);
  }
}

SharedKnowledge BlockClocks::publish(const Thread &thread) {
  WarpClock &mine = warps_[thread.warp];
  const SharedKnowledge &known = threads_[thread.linear].known;
  auto published = known != nullptr
                       ? std::make_shared<Knowledge>(*known)
                       : std::make_shared<Knowledge>(blocks_in_grid_, uint32_t(warps_.size()));
  for (uint32_t i = 0; i < warps_.size(); i++) {
    published->add_warp(block_, i, i == thread.warp ? mine.all_met : mine.known[i]);
  }
  published->add_lanes(block_, thread.warp, mine.met_with(thread.lane), mine.epoch + 1);
  mine.epoch++;  // what the thread does from now on is not published
  return published;
}

void BlockClocks::atomic(const Thread &thread, SharedKnowledge &word, uint32_t access,
                         uint32_t order) {
  ThreadClock &mine = threads_[thread.linear];
  // What a store that follows would overwrite is seen first.
  if ((access & SIMT_READ) != 0 && word != nullptr) {
    learn((order & SIMT_ACQUIRE) != 0 ? mine.known : mine.pending, word);
  }
  if ((access & SIMT_WRITE) == 0) return;
  if ((access & SIMT_READ) == 0) word = nullptr;  // a store ends what was published before
  if ((order & SIMT_RELEASE) != 0) learn(word, publish(thread));
  else if (mine.fenced != nullptr) learn(word, mine.fenced);
}

void BlockClocks::fence(const Thread &thread) {
  ThreadClock &mine = threads_[thread.linear];
  learn(mine.known, mine.pending);
  mine.pending = nullptr;
  mine.fenced = publish(thread);
}

}  // namespace simt
