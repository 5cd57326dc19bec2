// What the stand-in driver knows: the device, contexts, streams, events, graphs and modules. All of it
// is guarded by one lock, which is also held while a kernel runs.
#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "../runtime/execution.h"
#include "../runtime/random.h"
#include "cuda_types.h"

#define DRIVER_API extern "C" __attribute__((visibility("default"))) CUresult

namespace simt {

// ---- The device -------------------------------------------------------------------------------------

struct Device {
  const char *setting, *name;
  int capability;  // 90 for 9.0
  int multiprocessors, shared_per_block, shared_per_multiprocessor, threads_per_multiprocessor,
      blocks_per_multiprocessor, l2_bytes;
  size_t memory;
};
constexpr int registers_per_multiprocessor = 65536;
constexpr int default_shared_per_block = 49152;
constexpr int reserved_shared_per_block = 1024;
const Device &device();
int multiprocessors();

// ---- Operations, streams, graphs --------------------------------------------------------------------

struct Operation {
  std::string name;
  std::function<CUresult()> run;
};

struct GraphNode {
  Operation operation;
  std::vector<size_t> after;  // nodes that must run before
};

// The recording of streams: one stream begins it, others join through events.
struct Capture {
  uint64_t id;
  CUstream origin;
  CUstreamCaptureMode mode;
  std::thread::id owner;
  bool invalid = false;
  std::vector<GraphNode> nodes;
};

// Where an event or a stream stands in a capture: what comes next depends on these nodes.
typedef std::vector<size_t> Frontier;

struct Queued {
  Operation operation;            // may be empty
  CUevent awaits = nullptr;       // runs once the event completed this often
  uint64_t awaited_completions = 0;
  CUevent completes = nullptr;
};

}  // namespace simt

struct CUctx_st {
  bool primary;
  unsigned flags;
};

struct CUstream_st {
  unsigned flags = 0;
  int priority = 0;
  uint64_t number = 0;
  CUcontext context = nullptr;
  std::deque<simt::Queued> queue;
  std::shared_ptr<simt::Capture> capture;
  simt::Frontier frontier;

  bool blocking() const { return (flags & CU_STREAM_NON_BLOCKING) == 0; }
};

struct CUevent_st {
  unsigned flags = 0;
  uint64_t recorded = 0, completed = 0;
  std::chrono::steady_clock::time_point time;
  std::weak_ptr<simt::Capture> capture;  // of its last record, if that was captured
  simt::Frontier frontier;
};

struct CUgraph_st {
  std::vector<simt::GraphNode> nodes;
};
struct CUgraphExec_st {
  std::vector<simt::GraphNode> nodes;
};

// What is known of a kernel besides its twin.
struct CUfunc_st {
  const simt::Twin *twin;
  int registers, static_shared, most_threads;
  int most_dynamic_shared;
};

namespace simt {

struct Driver {
  std::recursive_mutex mutex;
  bool initialised = false;
  // The first error of a kernel; every later call returns it, as with a context that is lost.
  CUresult sticky = CUDA_SUCCESS;
  CUctx_st primary{true, 0};
  int primary_references = 0;
  std::set<CUcontext> contexts;  // without the primary
  CUstream_st legacy_stream;
  std::set<CUstream> streams;  // without the legacy stream
  std::set<CUevent> events;
  uint64_t next_stream = 1, next_capture = 1;
  Random random;
};
Driver &driver();
CUcontext current_context();

// ---- The beginning of every call --------------------------------------------------------------------

CUresult entry_status();
CUresult context_status();
#define SIMT_ENTER()                                                            \
  std::lock_guard<std::recursive_mutex> driver_lock(simt::driver().mutex);      \
  if (const CUresult status = simt::entry_status()) return status
#define SIMT_ENTER_CONTEXT() \
  SIMT_ENTER();              \
  if (const CUresult status = simt::context_status()) return status
#define SIMT_REQUIRE(condition, error) \
  if (!(condition)) return error

// ---- Streams ----------------------------------------------------------------------------------------

CUstream stream_of(CUstream handle);
bool is_stream(CUstream stream);
CUresult enqueue(CUstream stream, Operation operation);
// Runs operations, of whatever stream is drawn, until `done`.
CUresult drain(const std::function<bool()> &done);
// Runs one operation that can run; false if there is none.
bool run_one();
CUresult drain_stream(CUstream stream);
CUresult drain_everything();
// Forgets a fault and everything that is enqueued or captured.
void forget_work();
// Starts the thread that runs operations by itself, if SIMT_BACKGROUND asks for it.
void start_background();

// ---- Captures ---------------------------------------------------------------------------------------

// The error of a call that must not be made while a stream is captured, by the rules of capture modes;
// the captures concerned are then invalid.
CUresult unsafe_call_status();
void invalidate(Capture &capture);
// Of a call that waits for everything in a context.
CUresult context_wait_status();
// Of work for the legacy stream, which would wait for streams that are captured.
CUresult legacy_stream_status();

int occupancy(const CUfunc_st &function, int threads, size_t dynamic_shared);

}  // namespace simt
