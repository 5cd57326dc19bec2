// What the environment, or simt_configure, asks of the simulator. The README describes each.
#pragma once

#include <cstdint>
#include <string>

namespace simt {

struct Settings {
  int64_t seed = -1;        // SIMT_SEED; -1: not given
  int64_t resident = 0;     // SIMT_RESIDENT; 0: what the device has room for
  int64_t preempt = 0;      // SIMT_PREEMPT; one access in so many lets another thread run
  int64_t stack = 64 << 10; // SIMT_STACK, bytes for each thread
  int64_t fail_allocation = 0;  // SIMT_FAIL_ALLOCATION; the allocation, counted from now, that fails
  int64_t fault_launch = 1;     // which launch of `fault_kernel` faults
  int64_t trace = 0;            // SIMT_TRACE
  int64_t eager = 0;            // SIMT_EAGER
  int64_t background = 0;       // SIMT_BACKGROUND, milliseconds
  int64_t multiprocessors = 0;  // SIMT_MULTIPROCESSORS; 0: as many as the device has
  std::string fault_kernel;     // SIMT_FAULT_KERNEL, "name" or "name:n"
  std::string device = "h100";  // SIMT_DEVICE
  std::string kernels;          // SIMT_KERNELS, the directory of the twins
};

Settings &settings();

// Sets what the environment variable `name` would set; false if there is no such setting.
bool configure(const std::string &name, const std::string &value);

}  // namespace simt
