// The stand-in driver: streams, events, captures, pinned memory, and what tests can make it do. And the
// stand-in NVRTC.
#include <cstring>
#include <thread>

#include "host.h"

enum nvrtcResult : uint32_t { NVRTC_SUCCESS = 0, NVRTC_ERROR_COMPILATION = 6 };
typedef struct _nvrtcProgram *nvrtcProgram;
extern "C" {
nvrtcResult nvrtcCreateProgram(nvrtcProgram *, const char *, const char *, int, const char *const *,
                               const char *const *);
nvrtcResult nvrtcCompileProgram(nvrtcProgram, int, const char *const *);
nvrtcResult nvrtcDestroyProgram(nvrtcProgram *);
nvrtcResult nvrtcGetProgramLogSize(nvrtcProgram, size_t *);
nvrtcResult nvrtcGetProgramLog(nvrtcProgram, char *);
nvrtcResult nvrtcGetCUBINSize(nvrtcProgram, size_t *);
nvrtcResult nvrtcGetCUBIN(nvrtcProgram, char *);
}

namespace {

struct ScaleArguments {
  float *values;
  uint32_t *done;
  uint32_t count;
  float factor;
};

constexpr uint32_t count = 256;

void scale(const Buffer &values, float factor, CUstream stream) {
  launch("scale", {2, 128, 0, stream}, ScaleArguments{values.as<float>(), nullptr, count, factor});
}

// Two streams, of which the second needs what the first wrote. Returns how often the result was wrong.
int wrong_results(bool with_event) {
  int wrong = 0;
  for (int seed = 1; seed <= 40; seed++) {
    simt_configure("SIMT_SEED", std::to_string(seed).c_str());
    const Buffer values(std::vector<float>(count, 1.0f)), copy(count * sizeof(float));
    CUstream first = new_stream(), second = new_stream();
    CUevent event;
    EXPECT_OK(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
    scale(values, 2.0f, first);
    EXPECT_OK(cuEventRecord(event, first));
    if (with_event) EXPECT_OK(cuStreamWaitEvent(second, event, 0));
    EXPECT_OK(cuMemcpyDtoDAsync_v2(copy.address(), values.address(), count * sizeof(float), second));
    EXPECT_OK(cuStreamSynchronize(second));
    wrong += copy.read<float>()[0] != 2.0f;
    EXPECT_OK(cuStreamSynchronize(first));
    EXPECT_OK(cuStreamDestroy_v2(first));
    EXPECT_OK(cuStreamDestroy_v2(second));
  }
  return wrong;
}

void a_missing_event_wait_shows() { EXPECT(wrong_results(false) > 5); }
void an_event_orders_streams() { EXPECT(wrong_results(true) == 0); }

void work_runs_only_when_awaited() {
  void *host;
  EXPECT_OK(cuMemHostAlloc(&host, count * sizeof(float), 0));
  const Buffer values(std::vector<float>(count, 3.0f));
  CUstream stream = new_stream();
  scale(values, 2.0f, stream);
  EXPECT_OK(cuMemcpyDtoHAsync_v2(host, values.address(), count * sizeof(float), stream));
  EXPECT(static_cast<float *>(host)[0] != 6.0f);
  EXPECT_RESULT(cuStreamQuery(stream), CUDA_ERROR_NOT_READY);
  EXPECT_OK(cuStreamSynchronize(stream));
  EXPECT(static_cast<float *>(host)[count - 1] == 6.0f);
  EXPECT_OK(cuMemFreeHost(host));
}

void pageable_sources_are_staged() {
  const Buffer values(count * sizeof(float));
  CUstream stream = new_stream();
  std::vector<float> source(count, 5.0f);
  EXPECT_OK(cuMemcpyHtoDAsync_v2(values.address(), source.data(), count * sizeof(float), stream));
  source.assign(count, 0.0f);
  EXPECT_OK(cuStreamSynchronize(stream));
  EXPECT(values.read<float>()[0] == 5.0f);
}

void pinned_memory_is_addressed_by_kernels() {
  void *values, *done;
  EXPECT_OK(cuMemHostAlloc(&values, count * sizeof(float), 0));
  EXPECT_OK(cuMemHostAlloc(&done, sizeof(uint32_t), 0));
  for (uint32_t i = 0; i < count; i++) static_cast<float *>(values)[i] = 1.5f;
  std::memset(done, 0, sizeof(uint32_t));
  launch("scale", {2, 128},
         ScaleArguments{static_cast<float *>(values), static_cast<uint32_t *>(done), count, 2.0f});
  EXPECT_OK(cuCtxSynchronize());
  EXPECT(static_cast<float *>(values)[count - 1] == 3.0f);
  EXPECT(*static_cast<uint32_t *>(done) == 1);
  uint32_t type;
  const auto address = reinterpret_cast<CUdeviceptr>(values);
  EXPECT_OK(cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, address));
  EXPECT(type == CU_MEMORYTYPE_HOST);
  EXPECT_RESULT(cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE,
                                      reinterpret_cast<CUdeviceptr>(&type)),
                CUDA_ERROR_INVALID_VALUE);
}

// A host that polls a word without calling the driver.
void a_background_thread_runs_work() {
  void *done;
  EXPECT_OK(cuMemHostAlloc(&done, sizeof(uint32_t), 0));
  std::memset(done, 0, sizeof(uint32_t));
  const Buffer values(std::vector<float>(count, 1.0f));
  CUstream stream = new_stream();
  launch("scale", {2, 128, 0, stream},
         ScaleArguments{values.as<float>(), static_cast<uint32_t *>(done), count, 2.0f});
  while (*static_cast<volatile uint32_t *>(done) == 0) std::this_thread::yield();
  EXPECT_OK(cuStreamSynchronize(stream));
}

void copies_find_out_where_their_ends_are() {
  const std::vector<float> source(count, 7.0f);
  std::vector<float> target(count, 0.0f);
  const Buffer values(count * sizeof(float));
  EXPECT_OK(cuMemcpy(values.address(), reinterpret_cast<CUdeviceptr>(source.data()), count * sizeof(float)));
  EXPECT_OK(cuMemcpy(reinterpret_cast<CUdeviceptr>(target.data()), values.address(), count * sizeof(float)));
  EXPECT(target == source);
}

CUgraphExec instantiate(CUgraph graph) {
  CUgraphExec executable;
  EXPECT_OK(cuGraphInstantiateWithFlags(&executable, graph, 0));
  EXPECT_OK(cuGraphDestroy(graph));
  return executable;
}

void a_graph_replays_with_copied_arguments() {
  const Buffer values(std::vector<float>(count, 1.0f));
  CUstream stream = new_stream();
  CUgraph graph;
  function("scale");  // loads its module
  EXPECT_OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
  {
    ScaleArguments arguments{values.as<float>(), nullptr, count, 3.0f};
    launch("scale", {2, 128, 0, stream}, arguments);
    arguments = ScaleArguments{};
  }
  EXPECT_OK(cuStreamEndCapture(stream, &graph));
  const CUgraphExec executable = instantiate(graph);
  EXPECT(values.read<float>()[0] == 1.0f);  // capturing ran nothing
  CUstream other = new_stream();
  EXPECT_OK(cuGraphLaunch(executable, other));
  EXPECT_OK(cuGraphLaunch(executable, other));
  EXPECT_OK(cuStreamSynchronize(other));
  EXPECT(values.read<float>()[count - 1] == 9.0f);
  EXPECT_OK(cuGraphExecDestroy(executable));
}

// A second stream joins the capture through an event, and is joined again.
void a_graph_forks_and_joins() {
  const Buffer first_values(std::vector<float>(count, 1.0f));
  const Buffer second_values(std::vector<float>(count, 1.0f));
  CUstream first = new_stream(), second = new_stream();
  CUevent fork, join;
  EXPECT_OK(cuEventCreate(&fork, CU_EVENT_DISABLE_TIMING));
  EXPECT_OK(cuEventCreate(&join, CU_EVENT_DISABLE_TIMING));
  CUgraph graph;
  EXPECT_OK(cuStreamBeginCapture_v2(first, CU_STREAM_CAPTURE_MODE_RELAXED));
  EXPECT_OK(cuEventRecord(fork, first));
  EXPECT_OK(cuStreamWaitEvent(second, fork, 0));
  scale(first_values, 2.0f, first);
  scale(second_values, 5.0f, second);
  EXPECT_OK(cuEventRecord(join, second));
  EXPECT_OK(cuStreamWaitEvent(first, join, 0));
  EXPECT_OK(cuMemcpyDtoDAsync_v2(first_values.address(), second_values.address(), 4, first));
  EXPECT_OK(cuStreamEndCapture(first, &graph));
  const CUgraphExec executable = instantiate(graph);
  EXPECT_OK(cuGraphLaunch(executable, first));
  EXPECT_OK(cuStreamSynchronize(first));
  EXPECT(first_values.read<float>()[0] == 5.0f);
  EXPECT(first_values.read<float>()[1] == 2.0f);
}

template <class Violate>
void expect_violation(CUresult of_call, CUresult of_end, Violate violate) {
  CUstream stream = new_stream();
  CUgraph graph;
  EXPECT_OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
  EXPECT_RESULT(violate(stream), of_call);
  EXPECT_RESULT(cuStreamEndCapture(stream, &graph), of_end);
  EXPECT(graph == nullptr);
  EXPECT_OK(cuStreamDestroy_v2(stream));
}

void captures_are_violated_as_on_hardware() {
  CUdeviceptr address;
  CUevent outside, inside;
  CUstream other = new_stream();
  EXPECT_OK(cuEventCreate(&outside, CU_EVENT_DISABLE_TIMING));
  EXPECT_OK(cuEventCreate(&inside, CU_EVENT_DISABLE_TIMING));
  EXPECT_OK(cuEventRecord(outside, other));
  const CUresult unsupported = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  const CUresult invalidated = CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  expect_violation(unsupported, invalidated,
                   [&](CUstream) { return cuMemAlloc_v2(&address, 256); });
  expect_violation(unsupported, invalidated,
                   [&](CUstream stream) { return cuStreamSynchronize(stream); });
  expect_violation(unsupported, invalidated, [&](CUstream stream) { return cuStreamQuery(stream); });
  expect_violation(unsupported, invalidated, [&](CUstream) { return cuCtxSynchronize(); });
  expect_violation(unsupported, invalidated,
                   [&](CUstream) { return cuMemcpyHtoD_v2(0, nullptr, 0); });
  expect_violation(CUDA_ERROR_STREAM_CAPTURE_ISOLATION, invalidated,
                   [&](CUstream stream) { return cuStreamWaitEvent(stream, outside, 0); });
  expect_violation(CUDA_ERROR_CAPTURED_EVENT, invalidated, [&](CUstream stream) {
    EXPECT_OK(cuEventRecord(inside, stream));
    return cuEventQuery(inside);
  });
  expect_violation(CUDA_SUCCESS, CUDA_ERROR_STREAM_CAPTURE_UNJOINED, [&](CUstream stream) {
    const static Buffer *values = nullptr;
    CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
    EXPECT_OK(cuThreadExchangeStreamCaptureMode(&mode));
    if (values == nullptr) values = new Buffer(count * sizeof(float));
    EXPECT_OK(cuThreadExchangeStreamCaptureMode(&mode));
    EXPECT_OK(cuEventRecord(inside, stream));
    EXPECT_OK(cuStreamWaitEvent(other, inside, 0));
    return cuMemsetD32Async(values->address(), 0, count, other);
  });
  // In relaxed mode the host may allocate.
  CUstream stream = new_stream();
  CUgraph graph;
  EXPECT_OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_RELAXED));
  EXPECT_OK(cuMemAlloc_v2(&address, 256));
  EXPECT_OK(cuStreamEndCapture(stream, &graph));
}

void other_threads_heed_global_captures_only() {
  CUstream stream = new_stream();
  CUcontext context;
  EXPECT_OK(cuDevicePrimaryCtxRetain(&context, 0));
  for (const bool global : {false, true}) {
    CUgraph graph;
    EXPECT_OK(cuStreamBeginCapture_v2(stream, global ? CU_STREAM_CAPTURE_MODE_GLOBAL
                                                     : CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
    std::thread([=] {
      EXPECT_OK(cuCtxPushCurrent_v2(context));
      CUdeviceptr address;
      EXPECT_RESULT(cuMemAlloc_v2(&address, 256),
                    global ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED : CUDA_SUCCESS);
    }).join();
    EXPECT_RESULT(cuStreamEndCapture(stream, &graph),
                  global ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : CUDA_SUCCESS);
  }
}

void a_chosen_allocation_fails() {
  CUdeviceptr first, second;
  EXPECT(simt_configure("SIMT_FAIL_ALLOCATION", "2") == 1);
  EXPECT_OK(cuMemAlloc_v2(&first, 256));
  EXPECT_RESULT(cuMemAlloc_v2(&second, 256), CUDA_ERROR_OUT_OF_MEMORY);
  EXPECT_OK(cuMemAlloc_v2(&second, 256));
}

void a_chosen_launch_faults() {
  const Buffer values(std::vector<float>(count, 1.0f));
  EXPECT(simt_configure("SIMT_FAULT_KERNEL", "scale:2") == 1);
  scale(values, 2.0f, nullptr);
  EXPECT_OK(cuCtxSynchronize());
  scale(values, 2.0f, nullptr);
  EXPECT_RESULT(cuCtxSynchronize(), CUDA_ERROR_ILLEGAL_ADDRESS);
  CUdeviceptr address;
  EXPECT_RESULT(cuMemAlloc_v2(&address, 256), CUDA_ERROR_ILLEGAL_ADDRESS);
  simt_reset_error();
  EXPECT_OK(cuMemAlloc_v2(&address, 256));
}

void launches_have_limits() {
  const Buffer values(std::vector<float>(count, 1.0f));
  const ScaleArguments arguments{values.as<float>(), nullptr, count, 1.0f};
  EXPECT_RESULT(try_launch("scale", {1, 129}, arguments), CUDA_ERROR_INVALID_VALUE);
  EXPECT_RESULT(try_launch("scale", {0, 128}, arguments), CUDA_ERROR_INVALID_VALUE);
  EXPECT_RESULT(try_launch("scale", {1, 128, 100000}, arguments), CUDA_ERROR_INVALID_VALUE);
  EXPECT_OK(cuFuncSetAttribute(function("scale"), CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                               100000));
  EXPECT_RESULT(cuFuncSetAttribute(function("scale"),
                                   CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 300000),
                CUDA_ERROR_INVALID_VALUE);
  Shape shape{1000000, 128};
  shape.cooperative = true;
  EXPECT_RESULT(try_launch("scale", shape, arguments), CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE);
}

void functions_are_found_by_name() {
  void *function = nullptr;
  EXPECT_OK(cuGetProcAddress_v2("cuMemAlloc", &function, 12000, 0, nullptr));
  EXPECT(function == reinterpret_cast<void *>(cuMemAlloc_v2));
  EXPECT_RESULT(cuGetProcAddress_v2("cuNothing", &function, 12000, 0, nullptr), CUDA_ERROR_NOT_FOUND);
}

struct Compiled {
  nvrtcResult result;
  std::string log, image;
};

Compiled compile(const char *source) {
  const char *header = "#pragma once\n#define KERNEL(threads, name, Arguments) void name()\n";
  const char *header_name = "device.cuh";
  const char *options[] = {"--gpu-architecture=sm_90a"};
  nvrtcProgram program;
  EXPECT(nvrtcCreateProgram(&program, source, "some.cu", 1, &header, &header_name) == NVRTC_SUCCESS);
  Compiled compiled;
  compiled.result = nvrtcCompileProgram(program, 1, options);
  size_t bytes;
  EXPECT(nvrtcGetProgramLogSize(program, &bytes) == NVRTC_SUCCESS);
  compiled.log.resize(bytes);
  EXPECT(nvrtcGetProgramLog(program, &compiled.log[0]) == NVRTC_SUCCESS);
  if (compiled.result == NVRTC_SUCCESS) {
    EXPECT(nvrtcGetCUBINSize(program, &bytes) == NVRTC_SUCCESS);
    compiled.image.resize(bytes);
    EXPECT(nvrtcGetCUBIN(program, &compiled.image[0]) == NVRTC_SUCCESS);
  }
  EXPECT(nvrtcDestroyProgram(&program) == NVRTC_SUCCESS);
  return compiled;
}

void sources_become_modules() {
  const Compiled compiled = compile("#include \"device.cuh\"\nKERNEL(128, scale, Scale) {}\n");
  EXPECT(compiled.result == NVRTC_SUCCESS);
  CUmodule module;
  CUfunction function;
  EXPECT_OK(cuModuleLoadData(&module, compiled.image.data()));
  EXPECT_OK(cuModuleGetFunction(&function, module, "scale"));
  EXPECT_RESULT(cuModuleGetFunction(&function, module, "convert"), CUDA_ERROR_NOT_FOUND);
  EXPECT_OK(cuModuleUnload(module));
  EXPECT_RESULT(cuModuleLoadData(&module, "no image at all"), CUDA_ERROR_INVALID_IMAGE);
}

void sources_that_do_not_compile_say_why() {
  const Compiled missing = compile("#include \"other.cuh\"\n");
  EXPECT(missing.result == NVRTC_ERROR_COMPILATION);
  EXPECT(missing.log.find("some.cu(1): error: could not open source file \"other.cuh\"") !=
         std::string::npos);
  const Compiled error = compile("/* text */\n#error not here\n");
  EXPECT(error.result == NVRTC_ERROR_COMPILATION);
  EXPECT(error.log.find("some.cu(2): error: #error not here") != std::string::npos);
  EXPECT(compile("#ifdef NEVER\n#error not here\n#endif\n").result == NVRTC_SUCCESS);
}

const Tests tests{
    {"a missing event wait shows", a_missing_event_wait_shows, "", false},
    {"an event orders streams", an_event_orders_streams, "", false},
    {"work runs only when awaited", work_runs_only_when_awaited, "", false},
    {"pageable sources are staged", pageable_sources_are_staged, "", false},
    {"pinned memory is addressed by kernels", pinned_memory_is_addressed_by_kernels, "", false},
    {"a background thread runs work", a_background_thread_runs_work, "", false, "SIMT_BACKGROUND"},
    {"copies find out where their ends are", copies_find_out_where_their_ends_are, "", false},
    {"a graph replays with copied arguments", a_graph_replays_with_copied_arguments, "", false},
    {"a graph forks and joins", a_graph_forks_and_joins, "", false},
    {"captures are violated as on hardware", captures_are_violated_as_on_hardware, "", false},
    {"other threads heed global captures only", other_threads_heed_global_captures_only, "", false},
    {"a chosen allocation fails", a_chosen_allocation_fails, "", false},
    {"a chosen launch faults", a_chosen_launch_faults, "faults as SIMT_FAULT_KERNEL asks", false},
    {"launches have limits", launches_have_limits, "", false},
    {"functions are found by name", functions_are_found_by_name, "", false},
    {"sources become modules", sources_become_modules, "", false},
    {"sources that do not compile say why", sources_that_do_not_compile_say_why, "", false},
};

}  // namespace
