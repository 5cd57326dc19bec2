// What tests may ask of the simulator itself. A real driver has none of these functions.
#include "../runtime/settings.h"
#include "state.h"

using namespace simt;

#define CONTROL extern "C" __attribute__((visibility("default")))

CONTROL int simt_is_simulator() { return 1; }

// Sets what the environment variable `name` would have set; 0 if there is no such setting.
CONTROL int simt_configure(const char *name, const char *value) {
  std::lock_guard<std::recursive_mutex> lock(driver().mutex);
  const bool known = configure(name, value);
  if (known && std::string(name) == "SIMT_SEED") {
    driver().random = Random(uint64_t(std::max<int64_t>(settings().seed, 1)));
  }
  return known;
}

// Forgets a fault, and with it all work that was enqueued, so that one process can test several.
CONTROL void simt_reset_error() { forget_work(); }

CONTROL void simt_statistics(uint64_t *launches, uint64_t *threads, uint64_t *switches,
                             double *seconds) {
  std::lock_guard<std::recursive_mutex> lock(driver().mutex);
  *launches = statistics.launches;
  *threads = statistics.threads;
  *switches = statistics.switches;
  *seconds = statistics.seconds;
}
