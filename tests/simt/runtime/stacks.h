// Stacks of the simulated threads, and the switch from one to another.
#pragma once

#include <cstddef>
#include <vector>

namespace simt {

// Saves the registers that a function must preserve on the current stack, whose top goes to `*saved`,
// and continues where `target` was saved. Written in assembly: a library function would also save the
// signal mask, with a system call each time.
extern "C" void simt_switch_stack(void **saved, void *target);

// A stack whose first switch enters `entry`, which must not return.
void *prepare_stack(char *low, size_t bytes, void (*entry)());

class StackPool {
 public:
  // Starts anew with stacks of `bytes` bytes; none that was taken is in use any more.
  void reset(size_t bytes);
  // Gives the one that was given back last, which is likely in the cache.
  char *take();
  void give_back(char *low) { free_.push_back(low); }

 private:
  size_t bytes_ = 0;
  std::vector<char *> chunks_;  // of many stacks each
  std::vector<char *> free_;
};

}  // namespace simt
