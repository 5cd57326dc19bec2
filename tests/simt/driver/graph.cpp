// Capture of streams, with the rules that real captures have, and graphs that replay what was captured.
#include <algorithm>

#include "state.h"

namespace simt {
namespace {

thread_local CUstreamCaptureMode thread_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;

std::set<std::shared_ptr<Capture>> captures() {
  std::set<std::shared_ptr<Capture>> captures;
  for (CUstream stream : driver().streams) {
    if (stream->capture) captures.insert(stream->capture);
  }
  return captures;
}

// Whether `capture` forbids this thread to make calls that might disturb it.
bool forbids_unsafe_calls(const Capture &capture) {
  const bool own = capture.owner == std::this_thread::get_id();
  switch (thread_mode) {
    case CU_STREAM_CAPTURE_MODE_GLOBAL:
      return own ? capture.mode != CU_STREAM_CAPTURE_MODE_RELAXED
                 : capture.mode == CU_STREAM_CAPTURE_MODE_GLOBAL;
    case CU_STREAM_CAPTURE_MODE_THREAD_LOCAL:
      return own && capture.mode != CU_STREAM_CAPTURE_MODE_RELAXED;
    case CU_STREAM_CAPTURE_MODE_RELAXED: return false;
  }
  return false;
}

// The nodes that must have run when those of `frontier` have.
std::vector<bool> ancestors(const std::vector<GraphNode> &nodes, const Frontier &frontier) {
  std::vector<bool> covered(nodes.size(), false);
  for (size_t node : frontier) covered[node] = true;
  for (size_t i = nodes.size(); i-- > 0;) {
    if (!covered[i]) continue;
    for (size_t before : nodes[i].after) covered[before] = true;
  }
  return covered;
}

bool is_joined(const Capture &capture) {
  const std::vector<bool> covered = ancestors(capture.nodes, capture.origin->frontier);
  for (CUstream stream : driver().streams) {
    if (stream->capture.get() != &capture || stream == capture.origin) continue;
    for (size_t node : stream->frontier) {
      if (!covered[node]) return false;
    }
  }
  return true;
}

// An order in which the nodes may run; one of all that are possible is drawn.
std::vector<size_t> draw_order(const std::vector<GraphNode> &nodes) {
  std::vector<size_t> order, able;
  std::vector<size_t> missing(nodes.size());
  std::vector<std::vector<size_t>> followers(nodes.size());
  for (size_t i = 0; i < nodes.size(); i++) {
    missing[i] = nodes[i].after.size();
    for (size_t before : nodes[i].after) followers[before].push_back(i);
    if (missing[i] == 0) able.push_back(i);
  }
  while (!able.empty()) {
    const size_t drawn = driver().random.below(able.size());
    const size_t node = able[drawn];
    able.erase(able.begin() + ptrdiff_t(drawn));
    order.push_back(node);
    for (size_t follower : followers[node]) {
      if (--missing[follower] == 0) able.push_back(follower);
    }
  }
  return order;
}

}  // namespace

void invalidate(Capture &capture) { capture.invalid = true; }

CUresult unsafe_call_status() {
  CUresult status = CUDA_SUCCESS;
  for (const auto &capture : captures()) {
    if (!forbids_unsafe_calls(*capture)) continue;
    invalidate(*capture);
    status = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  }
  return status;
}

CUresult context_wait_status() {
  CUresult status = CUDA_SUCCESS;
  for (const auto &capture : captures()) {
    invalidate(*capture);
    status = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  }
  return status;
}

CUresult legacy_stream_status() {
  CUresult status = CUDA_SUCCESS;
  for (CUstream stream : driver().streams) {
    if (!stream->capture || !stream->blocking()) continue;
    invalidate(*stream->capture);
    status = CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
  }
  return status;
}

}  // namespace simt

using namespace simt;

DRIVER_API cuStreamBeginCapture_v2(CUstream handle, CUstreamCaptureMode mode) {
  SIMT_ENTER_CONTEXT();
  CUstream stream = stream_of(handle);
  SIMT_REQUIRE(is_stream(stream), CUDA_ERROR_INVALID_HANDLE);
  SIMT_REQUIRE(mode <= CU_STREAM_CAPTURE_MODE_RELAXED, CUDA_ERROR_INVALID_VALUE);
  SIMT_REQUIRE(stream != &driver().legacy_stream, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
  SIMT_REQUIRE(!stream->capture, CUDA_ERROR_ILLEGAL_STATE);
  stream->capture = std::make_shared<Capture>();
  stream->capture->id = driver().next_capture++;
  stream->capture->origin = stream;
  stream->capture->mode = mode;
  stream->capture->owner = std::this_thread::get_id();
  stream->frontier.clear();
  return CUDA_SUCCESS;
}

DRIVER_API cuStreamEndCapture(CUstream handle, CUgraph *graph) {
  SIMT_ENTER_CONTEXT();
  CUstream stream = stream_of(handle);
  SIMT_REQUIRE(graph != nullptr, CUDA_ERROR_INVALID_VALUE);
  *graph = nullptr;
  SIMT_REQUIRE(is_stream(stream), CUDA_ERROR_INVALID_HANDLE);
  SIMT_REQUIRE(stream->capture, CUDA_ERROR_ILLEGAL_STATE);
  const std::shared_ptr<Capture> capture = stream->capture;
  if (capture->origin != stream) {
    invalidate(*capture);
    return CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
  }
  if (capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED &&
      capture->owner != std::this_thread::get_id()) {
    return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
  }
  const bool joined = is_joined(*capture);
  for (CUstream other : driver().streams) {
    if (other->capture != capture) continue;
    other->capture.reset();
    other->frontier.clear();
  }
  SIMT_REQUIRE(!capture->invalid, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
  SIMT_REQUIRE(joined, CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
  *graph = new CUgraph_st{std::move(capture->nodes)};
  return CUDA_SUCCESS;
}

DRIVER_API cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus *result) {
  SIMT_ENTER_CONTEXT();
  CUstream stream = stream_of(handle);
  SIMT_REQUIRE(is_stream(stream), CUDA_ERROR_INVALID_HANDLE);
  if (stream == &driver().legacy_stream) {
    if (const CUresult status = legacy_stream_status()) return status;
  }
  *result = !stream->capture            ? CU_STREAM_CAPTURE_STATUS_NONE
            : stream->capture->invalid ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                                        : CU_STREAM_CAPTURE_STATUS_ACTIVE;
  return CUDA_SUCCESS;
}

// The graph that grows, and the nodes that the next one depends on, are not given out.
DRIVER_API cuStreamGetCaptureInfo_v2(CUstream handle, CUstreamCaptureStatus *result, uint64_t *id,
                                     CUgraph *graph, const CUgraphNode **nodes, size_t *node_count) {
  if (const CUresult status = cuStreamIsCapturing(handle, result)) return status;
  SIMT_ENTER_CONTEXT();
  CUstream stream = stream_of(handle);
  if (id != nullptr) *id = stream->capture ? stream->capture->id : 0;
  if (graph != nullptr) *graph = nullptr;
  if (nodes != nullptr) *nodes = nullptr;
  if (node_count != nullptr) *node_count = 0;
  return CUDA_SUCCESS;
}
DRIVER_API cuStreamGetCaptureInfo_v3(CUstream handle, CUstreamCaptureStatus *result, uint64_t *id,
                                     CUgraph *graph, const CUgraphNode **nodes, const void **edges,
                                     size_t *node_count) {
  if (edges != nullptr) *edges = nullptr;
  return cuStreamGetCaptureInfo_v2(handle, result, id, graph, nodes, node_count);
}
DRIVER_API cuStreamGetCaptureInfo(CUstream handle, CUstreamCaptureStatus *result, uint64_t *id) {
  return cuStreamGetCaptureInfo_v2(handle, result, id, nullptr, nullptr, nullptr);
}

DRIVER_API cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode *mode) {
  SIMT_ENTER();
  SIMT_REQUIRE(mode != nullptr && *mode <= CU_STREAM_CAPTURE_MODE_RELAXED, CUDA_ERROR_INVALID_VALUE);
  std::swap(*mode, thread_mode);
  return CUDA_SUCCESS;
}

DRIVER_API cuGraphInstantiateWithFlags(CUgraphExec *executable, CUgraph graph, unsigned long long) {
  SIMT_ENTER_CONTEXT();
  SIMT_REQUIRE(executable != nullptr && graph != nullptr, CUDA_ERROR_INVALID_VALUE);
  *executable = new CUgraphExec_st{graph->nodes};
  return CUDA_SUCCESS;
}
DRIVER_API cuGraphInstantiate_v2(CUgraphExec *executable, CUgraph graph, CUgraphNode *, char *,
                                 size_t) {
  return cuGraphInstantiateWithFlags(executable, graph, 0);
}

DRIVER_API cuGraphGetNodes(CUgraph graph, CUgraphNode *nodes, size_t *count) {
  SIMT_ENTER_CONTEXT();
  SIMT_REQUIRE(graph != nullptr && count != nullptr, CUDA_ERROR_INVALID_VALUE);
  SIMT_REQUIRE(nodes == nullptr, CUDA_ERROR_NOT_SUPPORTED);
  *count = graph->nodes.size();
  return CUDA_SUCCESS;
}

DRIVER_API cuGraphUpload(CUgraphExec, CUstream) { return CUDA_SUCCESS; }

DRIVER_API cuGraphLaunch(CUgraphExec executable, CUstream handle) {
  SIMT_ENTER_CONTEXT();
  CUstream stream = stream_of(handle);
  SIMT_REQUIRE(executable != nullptr && is_stream(stream), CUDA_ERROR_INVALID_HANDLE);
  for (size_t node : draw_order(executable->nodes)) {
    if (const CUresult status = enqueue(stream, executable->nodes[node].operation)) return status;
  }
  return CUDA_SUCCESS;
}

DRIVER_API cuGraphDestroy(CUgraph graph) {
  delete graph;
  return CUDA_SUCCESS;
}

DRIVER_API cuGraphExecDestroy(CUgraphExec executable) {
  std::lock_guard<std::recursive_mutex> lock(driver().mutex);
  delete executable;
  return CUDA_SUCCESS;
}
