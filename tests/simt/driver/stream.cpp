// Streams and events. An operation runs only when someone waits for it, and which of the streams goes
// on is drawn: a missing wait shows.
#include <cstdio>

#include "../runtime/memory.h"
#include "../runtime/settings.h"
#include "state.h"

namespace simt {
namespace {

bool can_run(CUstream stream) {
  if (stream->queue.empty()) return false;
  const Queued &next = stream->queue.front();
  return next.awaits == nullptr || next.awaits->completed >= next.awaited_completions;
}

void trace(CUstream stream, const Operation &operation) {
  if (settings().trace == 0) return;
  std::fprintf(stderr, "simulator: stream %llu: %s\n", (unsigned long long)stream->number,
               operation.name.c_str());
}

void run_next(CUstream stream) {
  const Queued next = std::move(stream->queue.front());
  stream->queue.pop_front();
  if (next.operation.run && driver().sticky == CUDA_SUCCESS) {
    trace(stream, next.operation);
    driver().sticky = next.operation.run();
  }
  if (next.completes != nullptr) {
    next.completes->completed++;
    next.completes->time = std::chrono::steady_clock::now();
  }
}

// Reports bytes that were written beside an allocation, which the plain build finds late.
CUresult damage_status() {
  static uint64_t launches_seen = 0;
  if (driver().sticky != CUDA_SUCCESS) return driver().sticky;
  if (launches_seen == statistics.launches) return CUDA_SUCCESS;
  launches_seen = statistics.launches;
  const std::string damage = find_damage();
  if (damage.empty()) return CUDA_SUCCESS;
  std::fprintf(stderr, "simulator: %s\n", damage.c_str());
  return driver().sticky = CUDA_ERROR_ILLEGAL_ADDRESS;
}

// The legacy stream and the blocking streams wait for each other.
CUresult order_against_legacy_stream(CUstream stream) {
  if (stream == &driver().legacy_stream) {
    for (CUstream other : driver().streams) {
      if (!other->blocking() || other->queue.empty()) continue;
      if (const CUresult status = drain_stream(other)) return status;
    }
  } else if (stream->blocking() && !driver().legacy_stream.queue.empty()) {
    return drain_stream(&driver().legacy_stream);
  }
  return CUDA_SUCCESS;
}

}  // namespace

CUstream stream_of(CUstream handle) {
  constexpr uintptr_t last_special_handle = 2;  // the legacy stream and the per-thread stream
  const bool special = reinterpret_cast<uintptr_t>(handle) <= last_special_handle;
  return special ? &driver().legacy_stream : handle;
}

bool is_stream(CUstream stream) {
  return stream == &driver().legacy_stream || driver().streams.count(stream) != 0;
}

CUresult enqueue(CUstream stream, Operation operation) {
  if (stream->capture) {
    Capture &capture = *stream->capture;
    if (capture.invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    capture.nodes.push_back({std::move(operation), stream->frontier});
    stream->frontier = {capture.nodes.size() - 1};
    return CUDA_SUCCESS;
  }
  if (stream == &driver().legacy_stream) {
    if (const CUresult status = legacy_stream_status()) return status;
  }
  if (const CUresult status = order_against_legacy_stream(stream)) return status;
  stream->queue.push_back({std::move(operation)});
  return settings().eager != 0 ? drain_stream(stream) : CUDA_SUCCESS;
}

bool run_one() {
  std::vector<CUstream> able;
  if (can_run(&driver().legacy_stream)) able.push_back(&driver().legacy_stream);
  for (CUstream stream : driver().streams) {
    if (can_run(stream)) able.push_back(stream);
  }
  if (able.empty()) return false;
  const bool in_order = settings().seed == 0;
  run_next(able[in_order ? 0 : driver().random.below(able.size())]);
  return true;
}

CUresult drain(const std::function<bool()> &done) {
  while (!done()) {
    if (!run_one()) {
      std::fprintf(stderr, "simulator: streams wait for an event that nothing records\n");
      return driver().sticky = CUDA_ERROR_LAUNCH_TIMEOUT;
    }
  }
  return driver().sticky;
}

CUresult drain_stream(CUstream stream) {
  const CUresult status = drain([stream] { return stream->queue.empty(); });
  return status != CUDA_SUCCESS ? status : damage_status();
}

void forget_work() {
  std::lock_guard<std::recursive_mutex> lock(driver().mutex);
  driver().sticky = CUDA_SUCCESS;
  driver().legacy_stream.queue.clear();
  for (CUstream stream : driver().streams) {
    stream->queue.clear();
    stream->capture.reset();
    stream->frontier.clear();
  }
  for (CUevent event : driver().events) event->completed = event->recorded;
}

void start_background() {
  const std::chrono::milliseconds pause(settings().background);
  if (pause.count() <= 0) return;
  std::thread([pause] {
    for (;;) {
      std::this_thread::sleep_for(pause);
      std::lock_guard<std::recursive_mutex> lock(driver().mutex);
      run_one();
    }
  }).detach();
}

CUresult drain_everything() {
  const CUresult status = drain([] {
    if (!driver().legacy_stream.queue.empty()) return false;
    for (CUstream stream : driver().streams) {
      if (!stream->queue.empty()) return false;
    }
    return true;
  });
  return status != CUDA_SUCCESS ? status : damage_status();
}

}  // namespace simt

using namespace simt;

DRIVER_API cuStreamCreateWithPriority(CUstream *stream, unsigned flags, int priority) {
  SIMT_ENTER_CONTEXT();
  SIMT_REQUIRE(stream != nullptr && flags <= CU_STREAM_NON_BLOCKING, CUDA_ERROR_INVALID_VALUE);
  *stream = new CUstream_st;
  (*stream)->flags = flags;
  (*stream)->priority = priority;
  (*stream)->number = driver().next_stream++;
  (*stream)->context = current_context();
  driver().streams.insert(*stream);
  return CUDA_SUCCESS;
}
DRIVER_API cuStreamCreate(CUstream *stream, unsigned flags) {
  return cuStreamCreateWithPriority(stream, flags, 0);
}

DRIVER_API cuStreamDestroy_v2(CUstream stream) {
  std::lock_guard<std::recursive_mutex> lock(driver().mutex);
  SIMT_REQUIRE(driver().streams.count(stream) != 0, CUDA_ERROR_INVALID_HANDLE);
  if (stream->capture) invalidate(*stream->capture);
  // The real one returns at once and the work goes on; here it is done before.
  const CUresult status = driver().sticky != CUDA_SUCCESS ? driver().sticky : drain_stream(stream);
  driver().streams.erase(stream);
  delete stream;
  return status;
}

DRIVER_API cuStreamGetCtx(CUstream handle, CUcontext *context) {
  SIMT_ENTER_CONTEXT();
  CUstream stream = stream_of(handle);
  SIMT_REQUIRE(is_stream(stream), CUDA_ERROR_INVALID_HANDLE);
  *context = stream->context != nullptr ? stream->context : current_context();
  return CUDA_SUCCESS;
}

DRIVER_API cuStreamGetFlags(CUstream handle, unsigned *flags) {
  SIMT_ENTER_CONTEXT();
  SIMT_REQUIRE(is_stream(stream_of(handle)), CUDA_ERROR_INVALID_HANDLE);
  *flags = stream_of(handle)->flags;
  return CUDA_SUCCESS;
}

DRIVER_API cuStreamGetPriority(CUstream handle, int *priority) {
  SIMT_ENTER_CONTEXT();
  SIMT_REQUIRE(is_stream(stream_of(handle)), CUDA_ERROR_INVALID_HANDLE);
  *priority = stream_of(handle)->priority;
  return CUDA_SUCCESS;
}

DRIVER_API cuStreamSynchronize(CUstream handle) {
  SIMT_ENTER_CONTEXT();
  CUstream stream = stream_of(handle);
  SIMT_REQUIRE(is_stream(stream), CUDA_ERROR_INVALID_HANDLE);
  if (stream->capture) {
    invalidate(*stream->capture);
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  }
  return drain_stream(stream);
}

// Each query lets one operation run, so that a host that polls gets on.
DRIVER_API cuStreamQuery(CUstream handle) {
  SIMT_ENTER_CONTEXT();
  CUstream stream = stream_of(handle);
  SIMT_REQUIRE(is_stream(stream), CUDA_ERROR_INVALID_HANDLE);
  if (stream->capture) {
    invalidate(*stream->capture);
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  }
  if (stream->queue.empty()) return CUDA_SUCCESS;
  run_one();
  if (driver().sticky != CUDA_SUCCESS) return driver().sticky;
  return stream->queue.empty() ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

DRIVER_API cuStreamWaitEvent(CUstream handle, CUevent event, unsigned) {
  SIMT_ENTER_CONTEXT();
  CUstream stream = stream_of(handle);
  SIMT_REQUIRE(is_stream(stream) && driver().events.count(event) != 0, CUDA_ERROR_INVALID_HANDLE);
  const std::shared_ptr<Capture> captured = event->capture.lock();
  if (captured == nullptr) {
    if (stream->capture) {  // a captured stream cannot wait for what is outside
      invalidate(*stream->capture);
      return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
    }
    stream->queue.push_back({{}, event, event->recorded});
    return CUDA_SUCCESS;
  }
  if (stream->capture && stream->capture != captured) {
    invalidate(*stream->capture);
    invalidate(*captured);
    return CUDA_ERROR_STREAM_CAPTURE_MERGE;
  }
  SIMT_REQUIRE(stream != &driver().legacy_stream, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
  stream->capture = captured;
  stream->frontier.insert(stream->frontier.end(), event->frontier.begin(), event->frontier.end());
  return CUDA_SUCCESS;
}

DRIVER_API cuEventCreate(CUevent *event, unsigned flags) {
  SIMT_ENTER_CONTEXT();
  SIMT_REQUIRE(event != nullptr, CUDA_ERROR_INVALID_VALUE);
  *event = new CUevent_st;
  (*event)->flags = flags;
  driver().events.insert(*event);
  return CUDA_SUCCESS;
}

DRIVER_API cuEventDestroy_v2(CUevent event) {
  std::lock_guard<std::recursive_mutex> lock(driver().mutex);
  SIMT_REQUIRE(driver().events.erase(event) != 0, CUDA_ERROR_INVALID_HANDLE);
  // Not deleted where queued operations may still name it.
  if (event->completed == event->recorded && driver().sticky == CUDA_SUCCESS) {
    bool awaited = false;
    for (CUstream stream : driver().streams) {
      for (const Queued &queued : stream->queue) awaited = awaited || queued.awaits == event;
    }
    if (!awaited) delete event;
  }
  return CUDA_SUCCESS;
}

DRIVER_API cuEventRecord(CUevent event, CUstream handle) {
  SIMT_ENTER_CONTEXT();
  CUstream stream = stream_of(handle);
  SIMT_REQUIRE(is_stream(stream) && driver().events.count(event) != 0, CUDA_ERROR_INVALID_HANDLE);
  if (stream->capture) {
    event->capture = stream->capture;
    event->frontier = stream->frontier;
    return CUDA_SUCCESS;
  }
  event->capture.reset();
  event->recorded++;
  Queued record;
  record.completes = event;
  stream->queue.push_back(std::move(record));
  return CUDA_SUCCESS;
}
DRIVER_API cuEventRecordWithFlags(CUevent event, CUstream stream, unsigned) {
  return cuEventRecord(event, stream);
}

DRIVER_API cuEventSynchronize(CUevent event) {
  SIMT_ENTER_CONTEXT();
  SIMT_REQUIRE(driver().events.count(event) != 0, CUDA_ERROR_INVALID_HANDLE);
  if (const auto capture = event->capture.lock()) {
    invalidate(*capture);
    return CUDA_ERROR_CAPTURED_EVENT;
  }
  return drain([event] { return event->completed >= event->recorded; });
}

DRIVER_API cuEventQuery(CUevent event) {
  SIMT_ENTER_CONTEXT();
  SIMT_REQUIRE(driver().events.count(event) != 0, CUDA_ERROR_INVALID_HANDLE);
  if (const auto capture = event->capture.lock()) {
    invalidate(*capture);
    return CUDA_ERROR_CAPTURED_EVENT;
  }
  if (event->completed >= event->recorded) return CUDA_SUCCESS;
  run_one();
  if (driver().sticky != CUDA_SUCCESS) return driver().sticky;
  return event->completed >= event->recorded ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

DRIVER_API cuEventElapsedTime(float *milliseconds, CUevent start, CUevent end) {
  SIMT_ENTER_CONTEXT();
  SIMT_REQUIRE(driver().events.count(start) != 0 && driver().events.count(end) != 0,
               CUDA_ERROR_INVALID_HANDLE);
  SIMT_REQUIRE(((start->flags | end->flags) & CU_EVENT_DISABLE_TIMING) == 0 &&
                   start->recorded != 0 && end->recorded != 0,
               CUDA_ERROR_INVALID_HANDLE);
  SIMT_REQUIRE(start->completed == start->recorded && end->completed == end->recorded,
               CUDA_ERROR_NOT_READY);
  *milliseconds = std::chrono::duration<float, std::milli>(end->time - start->time).count();
  return CUDA_SUCCESS;
}
DRIVER_API cuEventElapsedTime_v2(float *milliseconds, CUevent start, CUevent end) {
  return cuEventElapsedTime(milliseconds, start, end);
}

DRIVER_API cuLaunchHostFunc(CUstream handle, void (*function)(void *), void *user) {
  SIMT_ENTER_CONTEXT();
  SIMT_REQUIRE(is_stream(stream_of(handle)) && function != nullptr, CUDA_ERROR_INVALID_HANDLE);
  return enqueue(stream_of(handle), {"host function", [=] {
                                       function(user);
                                       return CUDA_SUCCESS;
                                     }});
}
