#include "settings.h"

#include <cstdlib>

namespace simt {
namespace {

struct Number {
  const char *name;
  int64_t Settings::*field;
};
constexpr Number numbers[] = {
    {"SIMT_SEED", &Settings::seed},
    {"SIMT_RESIDENT", &Settings::resident},
    {"SIMT_PREEMPT", &Settings::preempt},
    {"SIMT_STACK", &Settings::stack},
    {"SIMT_FAIL_ALLOCATION", &Settings::fail_allocation},
    {"SIMT_TRACE", &Settings::trace},
    {"SIMT_BACKGROUND", &Settings::background},
    {"SIMT_EAGER", &Settings::eager},
    {"SIMT_MULTIPROCESSORS", &Settings::multiprocessors},
};

bool set(Settings &settings, const std::string &name, const std::string &value) {
  for (const Number &number : numbers) {
    if (name == number.name) {
      settings.*number.field = std::strtoll(value.c_str(), nullptr, 10);
      return true;
    }
  }
  if (name == "SIMT_FAULT_KERNEL") {
    const size_t colon = value.find(':');
    settings.fault_kernel = value.substr(0, colon);
    settings.fault_launch = colon == std::string::npos ? 1 : std::atoll(&value[colon + 1]);
    return true;
  }
  if (name == "SIMT_DEVICE") settings.device = value;
  else if (name == "SIMT_KERNELS") settings.kernels = value;
  else return false;
  return true;
}

Settings from_environment() {
  Settings settings;
  for (const Number &number : numbers) {
    if (const char *value = std::getenv(number.name)) set(settings, number.name, value);
  }
  for (const char *name : {"SIMT_FAULT_KERNEL", "SIMT_DEVICE", "SIMT_KERNELS"}) {
    if (const char *value = std::getenv(name)) set(settings, name, value);
  }
  return settings;
}

}  // namespace

Settings &settings() {
  static Settings settings = from_environment();
  return settings;
}

bool configure(const std::string &name, const std::string &value) {
  return set(settings(), name, value);
}

}  // namespace simt
