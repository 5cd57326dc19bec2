// How a twin makes its kernels known to the runtime when its library is loaded.
#pragma once

#include "execution.h"

// Set by the linker, one pair for each library.
extern "C" __attribute__((visibility("hidden"))) char __bss_start[], _end[];

namespace simt {

#ifdef SIMT_CHECKED
constexpr bool checked = true;
#else
constexpr bool checked = false;
#endif

template <class Arguments, void (*kernel)(const Arguments &)>
SIMT_UNCHECKED void run(const void *arguments) {
  kernel(*static_cast<const Arguments *>(arguments));
}

}  // namespace simt

// The kernel gets a reference to the launch's copy of its arguments: constant memory on hardware.
#define SIMT_KERNEL(threads, kernel, Arguments)                                              \
  static void kernel(const Arguments &arguments);                                            \
  __attribute__((constructor)) static void simt_register_##kernel() {                        \
    const simt_twin twin = {#kernel, __FILE__, simt::run<Arguments, kernel>,                 \
                            sizeof(Arguments), threads, __bss_start, _end, simt::checked};   \
    simt_register(&twin);                                                                    \
  }                                                                                          \
  static void kernel(const Arguments &arguments)
