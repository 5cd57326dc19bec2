// Runs the blocks of one launch: which thread runs next, and what happens when one fails.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "block.h"
#include "stacks.h"
#include "twins.h"

namespace simt {

// As the driver's error codes.
enum class Fault : uint32_t {
  none = 0,
  illegal_address = 700,
  cooperative_launch_too_large = 720,
  misaligned_address = 716,
  launch_failed = 719,
};

struct Launch {
  const Twin *twin;
  simt_index grid, block;
  const void *arguments;
  uint32_t dynamic_shared_bytes;
  bool cooperative;
  uint64_t most_resident;  // blocks that the device has room for
};

// Runs the launch to its end. Reports a fault on stderr.
Fault run(const Launch &launch);

struct Statistics {
  uint64_t launches, threads, switches;
  double seconds;
};
extern Statistics statistics;

// ---- For the operations of a running thread ---------------------------------------------------------

// What runs now. All of it belongs to the one launch that runs; the driver sees to it that there is no
// other.
struct Execution {
  Launch launch;
  Random random;
  Random *draw;  // null: everything in order
  Block *block;  // of the running thread
  void *scheduler_stack;
  size_t stack_bytes;  // of each thread
  uint64_t progress;  // changes whenever a thread got anywhere
  int64_t preempt;
  bool exchanging;  // lanes of a warp: what is accessed meanwhile is checked by other means
  std::vector<Block *> live;
  // The fault that ended the launch, and its report.
  Fault fault;
  std::string report;
};
extern Execution execution;

inline Thread &current_thread() { return *static_cast<Thread *>(simt_current); }

// Removes a thread of the block from those that can run; null if there is none.
inline Thread *take_ready(Block &block) {
  return execution.draw == nullptr ? block.take_next() : block.take_drawn(*execution.draw);
}

// Lets `next` run; null: what the scheduler chooses. Comes back when this thread is woken.
void start_or_leave(Thread &thread, Thread *next);
// Whether another block goes on, where that is drawn.
bool leaves_block();

// Lets other threads run until this one is woken. Its state tells what it waits for.
inline void suspend() {
  Thread &thread = current_thread();
  Thread *next =
      execution.draw != nullptr && leaves_block() ? nullptr : take_ready(*thread.owner);
  if (next == nullptr || next->state == ThreadState::fresh || next == &thread) {
    start_or_leave(thread, next);
    return;
  }
  next->state = ThreadState::ready;
  simt_current = next;
  statistics.switches++;
  simt_switch_stack(&thread.stack_top, next->stack_top);
}
// Ends the launch from within a thread. `detail` is added to where the thread is.
[[noreturn]] void fail(Fault fault, const std::string &what, const std::string &detail = {});
void complete_barrier_without(Block &block);

// "file:line (function)", the innermost first, of an instruction; empty if it is not known.
std::string describe_code(const void *instruction);
std::string describe_place(const Place &place);
// "block (0,1,0), thread (3,0,0)"
std::string describe_thread(const Thread &thread);

}  // namespace simt
