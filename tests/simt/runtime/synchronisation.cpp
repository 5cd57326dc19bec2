// Meetings of the lanes of a warp, barriers of a block, and threads that spin.
#include <cstdio>
#include <string>

#include "checks.h"
#include "execution.h"

namespace simt {
namespace {

[[noreturn]] void fail_at(const Place &place, const std::string &what) {
  fail(Fault::launch_failed, what, "  at\n" + describe_place(place));
}
[[noreturn]] void fail_at(const Place &place, const std::string &what, const Place &other) {
  fail(Fault::launch_failed, what,
       "  at\n" + describe_place(place) + "  and\n" + describe_place(other));
}

std::string hexadecimal(uint32_t bits) {
  char text[16];
  std::snprintf(text, sizeof text, "0x%08x", bits);
  return text;
}

// All lanes of `mask` wait; runs what they asked for and wakes all but the caller.
void hold_meeting(Thread &thread, uint32_t mask, bool orders_memory) {
  Block &block = *thread.owner;
  Warp &warp = block.warp_of(thread);
  Thread *lanes = &block.threads[thread.warp * warp_lanes];
  void *data[warp_lanes];
  for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    const Thread &other = lanes[lane];
    if (other.meeting_mask != mask || other.meeting_function != thread.meeting_function) {
      fail_at(thread.place,
              "lanes of a warp meet in different operations, or with different masks: " +
                  hexadecimal(mask) + " here, " + hexadecimal(other.meeting_mask) + " in lane " +
                  std::to_string(lane),
              other.place);
    }
    data[lane] = other.meeting_data;
  }
  if (thread.meeting_function != nullptr) {
    execution.exchanging = true;
    thread.meeting_function(data, mask);
    execution.exchanging = false;
  }
  if (orders_memory) note_warp_barrier(block, thread.warp, mask);
  warp.meeting &= ~mask;
  const uint32_t others = mask & ~(1u << thread.lane);
  if (others != 0) block.wake(thread.warp, others);
}

// Wakes all that wait; the last to arrive, if it is not null, does not wait.
void complete_barrier(Block &block, Barrier &barrier, const Thread *last) {
  barrier.result = barrier.votes;
  if (barrier.votes == barrier.arrived) barrier.result |= SIMT_BARRIER_ALL;
  if (barrier.votes != 0) barrier.result |= SIMT_BARRIER_ANY;
  note_block_barrier(block, barrier);
  if (last != nullptr) barrier.arrivals[last->warp] &= ~(1u << last->lane);
  for (uint32_t i = 0; i < block.warps.size(); i++) {
    if (barrier.arrivals[i] != 0) block.wake(i, barrier.arrivals[i]);
    barrier.arrivals[i] = 0;
  }
  barrier.arrived = barrier.votes = 0;
}

void check_arrival(const Barrier &barrier, uint32_t number, uint32_t threads,
                   const Place &place) {
  if (barrier.arrived == 0) return;
  // Barriers of some of the warps may stand in code of their own for each.
  if (number == 0 && !(barrier.place == place)) {
    fail_at(place, "divergent __syncthreads: other threads wait elsewhere", barrier.place);
  }
  if (barrier.expected != threads) fail_at(place, "a barrier with different numbers of threads");
}

}  // namespace

// A thread that exits no longer counts.
void complete_barrier_without(Block &block) {
  Barrier &barrier = block.barriers[0];
  if (barrier.arrived != 0 && barrier.expected == 0 && barrier.arrived == block.alive) {
    complete_barrier(block, barrier, nullptr);
  }
}

}  // namespace simt

using namespace simt;

#define RUNTIME extern "C" __attribute__((visibility("default")))

RUNTIME void simt_warp_meet(uint32_t mask, simt_warp_function function, void *data,
                            bool orders_memory, const char *file, int line) {
  Thread &thread = current_thread();
  Warp &warp = thread.owner->warp_of(thread);
  thread.place = {file, line, __builtin_return_address(0)};
  const uint32_t lane = 1u << thread.lane;
  if ((mask & lane) == 0) {
    fail_at(thread.place, "lane " + std::to_string(thread.lane) +
                                    " is not in the mask of its own warp operation, " +
                                    hexadecimal(mask));
  }
  if ((mask & ~warp.alive) != 0) {
    fail_at(thread.place, "a warp operation names lanes that have exited or never were: mask " +
                                    hexadecimal(mask) + ", alive " +
                                    hexadecimal(warp.alive));
  }
  thread.meeting_mask = mask;
  thread.meeting_function = function;
  thread.meeting_data = data;
  warp.meeting |= lane;
  execution.progress++;
  if ((warp.meeting & mask) == mask) {
    hold_meeting(thread, mask, orders_memory);
    return;
  }
  thread.state = ThreadState::in_meeting;
  suspend();
}

RUNTIME uint32_t simt_barrier(uint32_t number, uint32_t threads, bool vote, const char *file,
                              int line) {
  Thread &thread = current_thread();
  Block &block = *thread.owner;
  thread.place = {file, line, __builtin_return_address(0)};
  if (number >= most_barriers) fail_at(thread.place, "there are 16 barriers");
  Barrier &barrier = block.barriers[number];
  check_arrival(barrier, number, threads, thread.place);
  if (barrier.arrived == 0) {
    barrier.place = thread.place;
    barrier.expected = threads;
  }
  barrier.arrived++;
  barrier.votes += vote;
  barrier.arrivals[thread.warp] |= 1u << thread.lane;
  execution.progress++;
  if (barrier.arrived == (threads == 0 ? block.alive : threads)) {
    complete_barrier(block, barrier, &thread);
  } else {
    thread.state = ThreadState::at_barrier;
    suspend();
  }
  return barrier.result;
}

RUNTIME void simt_spin(const char *file, int line) {
  Thread &thread = current_thread();
  thread.place = {file, line, __builtin_return_address(0)};
  thread.state = ThreadState::spinning;
  thread.owner->start_spinning(thread);
  note_spin();
  suspend();
}
