#include "execution.h"

#include <dlfcn.h>
#include <ucontext.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>

#include "async_copy.h"
#include "checks.h"
#include "memory.h"
#include "settings.h"

extern "C" {
__attribute__((visibility("default"))) simt_thread_view *simt_current;
}

namespace simt {

Statistics statistics;
Execution execution;

namespace {

constexpr uint64_t stack_mark = 0x57ac57ac57ac57ac;
// How often all spinning threads may look in vain, with nobody else able to run, before the launch
// counts as stuck.
constexpr uint32_t most_idle_rounds = 4096;
// Blocks that run side by side where blocks are drawn and nothing needs more.
constexpr size_t interleaved_blocks = 4;

StackPool stacks;
// Blocks that have room for reuse, with their vectors.
std::vector<std::unique_ptr<Block>> spare_blocks;

void mark_stack(char *stack) { std::memcpy(stack, &stack_mark, sizeof stack_mark); }

void check_stack(const Thread &thread) {
  if (std::memcmp(thread.stack, &stack_mark, sizeof stack_mark) != 0) {
    fail(Fault::launch_failed, "a thread used more stack than SIMT_STACK allows");
  }
}

void finish(Thread &thread) {
  check_stack(thread);
  Block &block = *thread.owner;
  thread.state = ThreadState::finished;
  discard_copies(thread);
  block.alive--;
  block.warp_of(thread).alive &= ~(1u << thread.lane);
  execution.progress++;
  statistics.threads++;
  complete_barrier_without(block);
}

// Runs threads to their ends, on this stack as long as the next one has not started yet.
void run_threads() {
  for (;;) {
    Thread &thread = current_thread();
    execution.launch.twin->run(execution.launch.arguments);
    finish(thread);
    Thread *next = take_ready(*execution.block);
    if (next != nullptr && next->state == ThreadState::fresh) {
      next->stack = thread.stack;
      next->state = ThreadState::ready;
      simt_current = next;
      continue;
    }
    stacks.give_back(thread.stack);
    void *abandoned;
    simt_current = next;
    if (next == nullptr) {
      simt_switch_stack(&abandoned, execution.scheduler_stack);
    } else {
      next->state = ThreadState::ready;
      statistics.switches++;
      simt_switch_stack(&abandoned, next->stack_top);
    }
  }
}

void switch_to(void **saved, Thread &thread) {
  if (thread.state == ThreadState::fresh) {
    thread.stack = stacks.take();
    mark_stack(thread.stack);
    thread.stack_top = prepare_stack(thread.stack, execution.stack_bytes, run_threads);
  }
  thread.state = ThreadState::ready;
  simt_current = &thread;
  statistics.switches++;
  simt_switch_stack(saved, thread.stack_top);
}

}  // namespace

// Where threads are drawn, so are the moments at which another block goes on. They are rarer where much
// static shared memory must be copied to and fro for it.
bool leaves_block() {
  if (execution.live.size() <= 1) return false;
  const uint64_t pages = execution.launch.twin->shared_bytes() / 4096;
  return execution.draw->below(16 + 8 * pages) == 0;
}

void start_or_leave(Thread &thread, Thread *next) {
  if (next == &thread) {
    thread.state = ThreadState::ready;
  } else if (next != nullptr) {
    switch_to(&thread.stack_top, *next);
  } else {
    simt_current = nullptr;
    simt_switch_stack(&thread.stack_top, execution.scheduler_stack);
  }
}

void fail(Fault fault, const std::string &what, const std::string &detail) {
  execution.fault = fault;
  execution.report = "simulator: " + what + "\n  kernel " + execution.launch.twin->name + ", " +
                     describe_thread(current_thread()) + "\n" + detail;
  simt_current = nullptr;
  void *abandoned;
  simt_switch_stack(&abandoned, execution.scheduler_stack);
  __builtin_unreachable();
}

std::string describe_thread(const Thread &thread) {
  const simt_index &block = thread.block->block_index, &index = thread.index;
  char text[128];
  std::snprintf(text, sizeof text, "block (%u,%u,%u), thread (%u,%u,%u)", block.x, block.y, block.z,
                index.x, index.y, index.z);
  return text;
}

std::string describe_place(const Place &place) {
  const std::string code = describe_code(place.code);
  if (!code.empty()) return code;
  return std::string("    ") + place.file + ":" + std::to_string(place.line) + "\n";
}

std::string describe_code(const void *instruction) {
  Dl_info info;
  if (instruction == nullptr || dladdr(instruction, &info) == 0) return {};
  const size_t offset = size_t(static_cast<const char *>(instruction) -
                               static_cast<const char *>(info.dli_fbase));
  char command[4096];
  std::snprintf(command, sizeof command, "addr2line -Cfipe '%s' 0x%zx 2>/dev/null", info.dli_fname,
                offset - 1);
  std::string text;
  if (FILE *output = popen(command, "r")) {
    char line[4096];
    while (std::fgets(line, sizeof line, output) != nullptr) text += std::string("    ") + line;
    pclose(output);
  }
  return text;
}

namespace {

// ---- Faults of the processor ------------------------------------------------------------------------

void on_memory_fault(int signal, siginfo_t *info, void *context) {
  if (simt_current == nullptr) {  // not ours
    struct sigaction fallback {};
    fallback.sa_handler = SIG_DFL;
    sigaction(signal, &fallback, nullptr);
    return;
  }
  const void *address = info->si_addr;
  const char *what = "is not device memory";
  if (in_heap(address)) what = "lies beside device memory, or was released";
  else if (current_thread().owner->dynamic_shared.near(address)) what = "lies past shared memory";
  char text[128];
  std::snprintf(text, sizeof text, "illegal address: %p %s", address, what);
  const auto *registers = static_cast<const ucontext_t *>(context);
  const auto instruction = registers->uc_mcontext.gregs[REG_RIP] + 1;
  fail(Fault::illegal_address, text,
       "  at\n" + describe_code(reinterpret_cast<const void *>(instruction)));
}

// Catches memory faults while a launch runs. The host's own handlers are back afterwards.
class FaultHandlers {
 public:
  FaultHandlers() {
    static char *memory = new char[stack_bytes];  // one launch runs at a time
    stack_t stack{};
    stack.ss_sp = memory;
    stack.ss_size = stack_bytes;
    sigaltstack(&stack, &old_stack_);
    struct sigaction action {};
    action.sa_sigaction = on_memory_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, &old_segv_);
    sigaction(SIGBUS, &action, &old_bus_);
  }
  ~FaultHandlers() {
    sigaction(SIGSEGV, &old_segv_, nullptr);
    sigaction(SIGBUS, &old_bus_, nullptr);
    sigaltstack(&old_stack_, nullptr);
  }
  FaultHandlers(const FaultHandlers &) = delete;
  FaultHandlers &operator=(const FaultHandlers &) = delete;

 private:
  static constexpr size_t stack_bytes = 256 << 10;
  stack_t old_stack_;
  struct sigaction old_segv_, old_bus_;
};

// ---- Blocks -----------------------------------------------------------------------------------------

uint32_t threads_of(const Launch &launch) {
  return launch.block.x * launch.block.y * launch.block.z;
}

void create_threads(Block &block, const Launch &launch) {
  const uint32_t threads = threads_of(launch);
  block.threads.resize(threads);
  block.warps.assign((threads + warp_lanes - 1) / warp_lanes, Warp{});
  simt_index index{0, 0, 0};
  for (uint32_t i = 0; i < threads; i++) {
    Thread &thread = block.threads[i];
    thread = Thread{};
    thread.index = index;
    thread.linear = i;
    thread.warp = i / warp_lanes;
    thread.lane = i % warp_lanes;
    thread.block = &block.view;
    thread.owner = &block;
    thread.state = ThreadState::fresh;
    block.warps[thread.warp].existing |= 1u << thread.lane;
    if (++index.x == launch.block.x) {
      index.x = 0;
      if (++index.y == launch.block.y) {
        index.y = 0;
        index.z++;
      }
    }
  }
  block.alive = threads;
  block.ready_warps = block.spinning_warps = block.current_warp = 0;
  for (uint32_t i = 0; i < block.warps.size(); i++) {
    block.warps[i].alive = block.warps[i].existing;
    block.wake(i, block.warps[i].existing);
  }
}

// Which block's static shared memory is in the twin's data, and which blocks can run.
class Schedule {
 public:
  explicit Schedule(const Launch &launch) : launch_(launch) {
    blocks_ = uint64_t(launch.grid.x) * launch.grid.y * launch.grid.z;
    limit_ = std::min(blocks_, launch.most_resident);
    if (execution.draw != nullptr) {
      first_ = execution.draw->below(blocks_);
      do stride_ = 1 + execution.draw->below(blocks_);
      while (std::gcd(stride_, blocks_) != 1);
    }
  }

  void run();

 private:
  bool can_start() const { return started_ < blocks_ && execution.live.size() < limit_; }
  void start_block();
  void queue(Block *block) {
    if (block->queued) return;
    block->queued = true;
    runnable_.push_back(block);
  }
  Block *take_runnable();
  void enter(Block *block);
  void load_shared(Block *block);
  void retire(Block *block);
  bool wake_spinning();
  void report_stuck(bool spinning);

  const Launch &launch_;
  uint64_t blocks_, limit_;
  // Block number first + i * stride, modulo the number of blocks, is the i-th to start.
  uint64_t first_ = 0, stride_ = 1;
  uint64_t started_ = 0;
  std::vector<Block *> runnable_;
  size_t next_runnable_ = 0;
  Block *loaded_ = nullptr;
};

void Schedule::start_block() {
  if (spare_blocks.empty()) spare_blocks.push_back(std::make_unique<Block>());
  Block *block = spare_blocks.back().release();
  spare_blocks.pop_back();
  block->number = (first_ + started_++ * stride_) % blocks_;
  const simt_index &grid = launch_.grid;
  const uint64_t plane = block->number / grid.x;
  block->view.block_index = {uint32_t(block->number % grid.x), uint32_t(plane % grid.y),
                             uint32_t(plane / grid.y)};
  block->view.block_size = launch_.block;
  block->view.grid_size = grid;
  block->view.dynamic_shared_bytes = launch_.dynamic_shared_bytes;
  block->view.dynamic_shared = block->dynamic_shared.reset(launch_.dynamic_shared_bytes);
  block->saved_shared.assign(launch_.twin->shared_bytes(), char(0xff));
  std::memset(block->barriers, 0, sizeof block->barriers);
  block->queued = false;
  create_threads(*block, launch_);
  begin_block_checks(*block);
  execution.live.push_back(block);
  queue(block);
}

Block *Schedule::take_runnable() {
  if (next_runnable_ == runnable_.size()) {
    runnable_.clear();
    next_runnable_ = 0;
    return nullptr;
  }
  if (execution.draw != nullptr) {
    const size_t drawn =
        next_runnable_ + execution.draw->below(runnable_.size() - next_runnable_);
    std::swap(runnable_[next_runnable_], runnable_[drawn]);
  }
  Block *block = runnable_[next_runnable_++];
  block->queued = false;
  return block;
}

void Schedule::load_shared(Block *block) {
  const size_t bytes = launch_.twin->shared_bytes();
  if (loaded_ == block || bytes == 0) return;
  if (loaded_ != nullptr) std::memcpy(loaded_->saved_shared.data(), launch_.twin->shared_begin, bytes);
  std::memcpy(launch_.twin->shared_begin, block->saved_shared.data(), bytes);
  loaded_ = block;
}

void Schedule::enter(Block *block) {
  load_shared(block);
  execution.block = block;
  if (Thread *thread = take_ready(*block)) {
    switch_to(&execution.scheduler_stack, *thread);
  }
  if (execution.fault != Fault::none) return;
  if (block->alive == 0) retire(block);
  else if (block->ready_warps != 0) queue(block);
}

void Schedule::retire(Block *block) {
  if (loaded_ == block) loaded_ = nullptr;
  for (Block *&live : execution.live) {
    if (live == block) {
      live = execution.live.back();
      execution.live.pop_back();
      break;
    }
  }
  spare_blocks.emplace_back(block);
}

bool Schedule::wake_spinning() {
  bool any = false;
  for (Block *block : execution.live) {
    if (block->wake_spinning()) {
      any = true;
      queue(block);
    }
  }
  return any;
}

// Threads that wait for the same at the same place make one line of the report.
struct Waiting {
  const Thread *first;
  uint32_t count;
};

std::string describe_waiting(const Waiting &waiting) {
  const Thread &thread = *waiting.first;
  const char *what = thread.state == ThreadState::in_meeting   ? "for other lanes"
                     : thread.state == ThreadState::at_barrier ? "at a barrier"
                                                               : "in a loop that spins";
  std::string text = "  " + describe_thread(thread);
  if (waiting.count > 1) text += ", and " + std::to_string(waiting.count - 1) + " more";
  return text + ": " + what + "\n" + describe_place(thread.place);
}

void Schedule::report_stuck(bool spinning) {
  std::vector<Waiting> groups;
  for (const Block *block : execution.live) {
    for (const Thread &thread : block->threads) {
      if (thread.state == ThreadState::finished) continue;
      const auto group = std::find_if(groups.begin(), groups.end(), [&](const Waiting &other) {
        return other.first->state == thread.state && other.first->place == thread.place;
      });
      if (group != groups.end()) group->count++;
      else groups.push_back({&thread, 1});
    }
  }
  execution.fault = Fault::launch_failed;
  execution.report = std::string("simulator: ") +
                     (spinning ? "livelock: nobody gives what the spinning threads wait for"
                               : "deadlock: no thread can run") +
                     "\n  kernel " + launch_.twin->name + ", whose threads wait:\n";
  for (const Waiting &group : groups) execution.report += describe_waiting(group);
}

void Schedule::run() {
  uint32_t idle_rounds = 0;
  uint64_t seen_progress = 0;
  start_block();
  while (execution.fault == Fault::none && !execution.live.empty()) {
    if (execution.draw != nullptr && can_start() && execution.live.size() < interleaved_blocks) {
      start_block();
    }
    Block *block = take_runnable();
    if (block == nullptr && can_start()) {
      start_block();
      block = take_runnable();
    }
    if (block == nullptr) {
      const bool spinning = wake_spinning();
      if (execution.progress != seen_progress) idle_rounds = 0;
      seen_progress = execution.progress;
      if (spinning && ++idle_rounds < most_idle_rounds) continue;
      report_stuck(spinning);
      break;
    }
    enter(block);
    if (execution.live.empty() && execution.fault == Fault::none && started_ < blocks_) start_block();
  }
}

// Whether this launch is the one that SIMT_FAULT_KERNEL names.
bool must_fault(const Launch &launch) {
  Settings &asked = settings();
  return asked.fault_kernel == launch.twin->name && --asked.fault_launch == 0;
}

uint64_t seed_of_launch(bool checked, bool *in_order) {
  const int64_t seed = settings().seed;
  *in_order = seed == 0 || (seed < 0 && !checked);
  return uint64_t(seed < 0 ? 1 : seed) ^ statistics.launches * 0xd1b54a32d192ed03;
}

}  // namespace

Fault run(const Launch &launch) {
  const auto begin = std::chrono::steady_clock::now();
  statistics.launches++;
  if (must_fault(launch)) {
    std::fprintf(stderr, "simulator: %s faults as SIMT_FAULT_KERNEL asks\n", launch.twin->name);
    return Fault::illegal_address;
  }
  bool in_order;
  execution.random = Random(seed_of_launch(launch.twin->checked, &in_order));
  execution.draw = in_order ? nullptr : &execution.random;
  execution.launch = launch;
  execution.progress = 0;
  execution.preempt = settings().preempt;
  execution.stack_bytes = size_t(settings().stack);
  execution.exchanging = false;
  execution.fault = Fault::none;
  execution.report.clear();

  Schedule schedule(launch);
  stacks.reset(execution.stack_bytes);
  begin_launch_checks(launch);
  {
    FaultHandlers handlers;
    schedule.run();
  }
  simt_current = nullptr;
  for (Block *block : execution.live) {
    for (Thread &thread : block->threads) discard_copies(thread);
    spare_blocks.emplace_back(block);
  }
  execution.live.clear();
  if (execution.fault != Fault::none) std::fputs(execution.report.c_str(), stderr);
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin;
  statistics.seconds += elapsed.count();
  return execution.fault;
}

}  // namespace simt

extern "C" __attribute__((visibility("default"))) void simt_fail(const char *file, int line,
                                                                 const char *what) {
  simt::fail(simt::Fault::launch_failed, what,
             std::string("  at ") + file + ":" + std::to_string(line) + "\n");
}
