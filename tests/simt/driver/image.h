// Reads the images that modules are made from, as far as the simulator needs them: which kernels there
// are, and, from the machine code of a cubin, what each of them uses.
#pragma once

#include <map>
#include <string>

namespace simt {

struct KernelResources {
  int registers = 0, static_shared = 0, most_threads = 0;
  std::map<int, int> parameter_bytes;  // by the number of the parameter
};

struct Image {
  enum class Kind { cubin, fatbin, ptx, from_source, unknown } kind = Kind::unknown;
  int capability = 0;       // of a cubin or of an image made from source
  std::string source_name;  // of an image made from source: the name of its program
  // The kernels in it; of a fatbin, which may be compressed, they are not known.
  std::map<std::string, KernelResources> kernels;
};

// What the stand-in NVRTC writes in place of machine code begins with this line.
constexpr char source_image_mark[] = "simulated kernels\n";

Image read_image(const void *data);

}  // namespace simt
