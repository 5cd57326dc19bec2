// Measures how fast the simulator runs, so that a change that slows it down is seen.
#include <ctime>

#include "../selftest/host.h"

namespace {

struct SpeedArguments {
  const uint16_t *left, *right;
  float *result;
  uint32_t rows, columns;
};

CUfunction find(const char *name) {
  int major;
  EXPECT_OK(cuDeviceGetAttribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, 0));
  static CUmodule module = nullptr;
  if (module == nullptr) {
    const std::string image =
        "simulated kernels\nprogram speed.cu\narchitecture " + std::to_string(major * 10) + "\n";
    EXPECT_OK(cuModuleLoadData(&module, image.c_str()));
  }
  CUfunction function;
  EXPECT_OK(cuModuleGetFunction(&function, module, name));
  return function;
}

// Of this process: other work on the machine does not count.
double processor_seconds() {
  timespec now;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return double(now.tv_sec) + 1e-9 * double(now.tv_nsec);
}

// Seconds of one launch.
double time(const char *name, Shape shape, SpeedArguments arguments) {
  const CUfunction kernel = find(name);
  void *parameters[] = {&arguments};
  int launches = 0;
  const double begin = processor_seconds();
  double elapsed = 0.0;
  while (elapsed < 0.5) {
    EXPECT_OK(cuLaunchKernel(kernel, shape.blocks, 1, 1, shape.threads, 1, 1, shape.dynamic_shared,
                             nullptr, parameters, nullptr));
    EXPECT_OK(cuCtxSynchronize());
    launches++;
    elapsed = processor_seconds() - begin;
  }
  return elapsed / launches;
}

}  // namespace

void expect_result(const char *file, int line, const char *call, CUresult result, CUresult expected) {
  if (result == expected) return;
  std::fprintf(stderr, "%s:%d: %s gave %u, expected %u\n", file, line, call, result, expected);
  std::exit(1);
}

int main(int count, char **values) {
  EXPECT_OK(cuInit(0));
  CUcontext context;
  EXPECT_OK(cuDevicePrimaryCtxRetain(&context, 0));
  EXPECT_OK(cuCtxPushCurrent_v2(context));
  constexpr uint32_t rows = 512, columns = 2048, repetitions = 1000;
  const Buffer left(std::vector<uint16_t>(rows * columns, 0x3f80));
  const Buffer right(std::vector<uint16_t>(rows * columns, 0x3f80));
  const Buffer result(std::vector<float>(rows * columns, 0.0f));

  struct Measurement {
    const char *what, *unit;
    double work;  // of one launch, in the unit
    const char *kernel;
    Shape shape;
    uint32_t rows, columns;
  };
  const Measurement measurements[] = {
      {"launches of one block", "thousand/s", 1e-3, "start_and_end", {1, 32}, 0, 0},
      {"threads that exit at once", "million/s", 65536e-6, "start_and_end", {256, 256}, 0, 0},
      {"threads that write", "million/s", 65536e-6, "start_and_end", {256, 256}, rows, 0},
      {"arrivals at a barrier", "million/s", 256e-6 * repetitions, "barriers", {1, 256}, 0,
       repetitions},
      {"shuffles of a lane", "million/s", 256e-6 * repetitions, "shuffles", {1, 256}, 0, repetitions},
      {"rows of 2048 normalised", "thousand/s", 64e-3, "normalise_rows", {64, 256}, rows, columns},
      {"product with a vector", "GFLOP/s", 2e-9 * rows * columns, "multiply_vector", {16, 256}, rows,
       columns},
      {"product of matrices", "GFLOP/s", 32e-9 * rows * columns, "multiply_tiles", {rows / 32, 128},
       rows, columns},
  };
  for (const Measurement &measurement : measurements) {
    if (count > 1 && std::string(values[1]) != measurement.kernel) continue;
    const SpeedArguments arguments{left.as<uint16_t>(), right.as<uint16_t>(), result.as<float>(),
                                   measurement.rows, measurement.columns};
    const double seconds = time(measurement.kernel, measurement.shape, arguments);
    std::printf("%-26s %8.2f %s\n", measurement.what, measurement.work / seconds, measurement.unit);
  }
}
