// The kernels that g++ compiled, by name.
#pragma once

#include <string>

#include "../face/abi.h"

namespace simt {

struct Twin : simt_twin {
  std::string source_name;  // the kernel file without its directory
  // All of the twin's library, which holds the constants of its kernels.
  const char *library_begin, *library_end;

  size_t shared_bytes() const { return size_t(shared_end - shared_begin); }
};

// Loads every library in SIMT_KERNELS, or in `kernels` beside the library that this code is in.
void load_twins();
const Twin *find_twin(const std::string &name);

}  // namespace simt
