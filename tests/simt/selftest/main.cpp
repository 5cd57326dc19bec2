// Runs the simulator's tests, each in a process of its own and with several seeds. Arguments: "plain" or
// "checked", the build that LD_LIBRARY_PATH leads to, and optionally the name of one test.
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>

#include "host.h"

namespace {

constexpr int seeds = 12;
constexpr int seconds = 60;

std::vector<Test> &tests() {
  static std::vector<Test> tests;
  return tests;
}

struct Outcome {
  int status;
  std::string report;
};

Outcome run_in_child(const Test &test, int seed) {
  int ends[2];
  if (pipe(ends) != 0) std::abort();
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    alarm(seconds);
    dup2(ends[1], STDERR_FILENO);
    close(ends[0]);
    close(ends[1]);
    simt_configure("SIMT_SEED", std::to_string(seed).c_str());
    simt_configure("SIMT_PREEMPT", seed % 3 == 2 ? "10" : "0");
    if (test.setting != nullptr) simt_configure(test.setting, "1");
    EXPECT_OK(cuInit(0));
    CUcontext context;
    EXPECT_OK(cuDevicePrimaryCtxRetain(&context, 0));
    EXPECT_OK(cuCtxPushCurrent_v2(context));
    test.run();
    std::exit(0);
  }
  close(ends[1]);
  Outcome outcome{0, {}};
  char bytes[4096];
  for (ssize_t count; (count = read(ends[0], bytes, sizeof bytes)) > 0;) {
    outcome.report.append(bytes, size_t(count));
  }
  close(ends[0]);
  waitpid(child, &outcome.status, 0);
  return outcome;
}

bool passes(const Test &test, const Outcome &outcome) {
  if (outcome.status != 0) return false;
  return test.report[0] == '\0' ? outcome.report.empty()
                                : outcome.report.find(test.report) != std::string::npos;
}

bool passes_for_all_seeds(const Test &test) {
  for (int seed = 0; seed < seeds; seed++) {
    const Outcome outcome = run_in_child(test, seed);
    if (passes(test, outcome)) continue;
    std::printf("FAILED %s with seed %d (status %d)\n", test.name, seed, outcome.status);
    if (test.report[0] != '\0') std::printf("expected the report: %s\n", test.report);
    std::printf("%s\n", outcome.report.c_str());
    return false;
  }
  return true;
}

}  // namespace

Tests::Tests(std::initializer_list<Test> added) {
  tests().insert(tests().end(), added.begin(), added.end());
}

void expect_result(const char *file, int line, const char *call, CUresult result, CUresult expected) {
  if (result == expected) return;
  std::fprintf(stderr, "%s:%d: %s gave %u, expected %u\n", file, line, call, result, expected);
  std::exit(1);
}

CUstream new_stream() {
  CUstream stream;
  EXPECT_OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
  return stream;
}

CUfunction function(const char *name) {
  int major;
  EXPECT_OK(cuDeviceGetAttribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, 0));
  static std::vector<CUmodule> modules;  // loaded once: a capture forbids it
  for (size_t i = 0; i < 2; i++) {
    if (modules.size() == i) {
      const std::string image = std::string("simulated kernels\nprogram ") +
                                (i == 0 ? "good.cu" : "bad.cu") + "\narchitecture " +
                                std::to_string(major * 10) + "\n";
      modules.emplace_back();
      EXPECT_OK(cuModuleLoadData(&modules.back(), image.c_str()));
    }
    CUfunction function;
    if (cuModuleGetFunction(&function, modules[i], name) == CUDA_SUCCESS) return function;
  }
  std::fprintf(stderr, "there is no kernel %s\n", name);
  std::exit(1);
}

int main(int count, char **values) {
  const bool checked = count > 1 && std::strcmp(values[1], "checked") == 0;
  int passed = 0, failed = 0;
  for (const Test &test : tests()) {
    if (test.checked_only && !checked) continue;
    if (count > 2 && std::strcmp(values[2], test.name) != 0) continue;
    ++(passes_for_all_seeds(test) ? passed : failed);
  }
  std::printf("the %s build: %d passed", checked ? "checked" : "plain", passed);
  if (failed != 0) std::printf(", %d failed", failed);
  std::printf("\n");
  return failed == 0 && passed != 0 ? 0 : 1;
}
