#include "block.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace simt {
namespace {

constexpr size_t page_bytes = 4096;
constexpr int poison = 0xff;

}  // namespace

bool Place::operator==(const Place &other) const {
  return line == other.line && (file == other.file || std::strcmp(file, other.file) == 0);
}

DynamicShared::~DynamicShared() {
  if (mapped_ != nullptr) munmap(mapped_, mapped_bytes_);
}

char *DynamicShared::reset(size_t bytes) {
  const size_t needed = (bytes + 127 + page_bytes - 1) / page_bytes * page_bytes + page_bytes;
  if (needed > mapped_bytes_) {
    if (mapped_ != nullptr) munmap(mapped_, mapped_bytes_);
    void *mapped = mmap(nullptr, needed, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) {
      std::fprintf(stderr, "simulator: no memory for shared memory\n");
      std::abort();
    }
    mapped_ = static_cast<char *>(mapped);
    mapped_bytes_ = needed;
    mprotect(mapped_ + mapped_bytes_ - page_bytes, page_bytes, PROT_NONE);
  }
  const uintptr_t end = reinterpret_cast<uintptr_t>(mapped_ + mapped_bytes_ - page_bytes);
  char *begin = reinterpret_cast<char *>((end - bytes) & ~uintptr_t(127));
  std::memset(begin, poison, reinterpret_cast<char *>(end) - begin);
  return begin;
}

void Block::start_spinning(const Thread &thread) {
  warps[thread.warp].spinning |= 1u << thread.lane;
  spinning_warps |= 1u << thread.warp;
}

bool Block::wake_spinning() {
  if (spinning_warps == 0) return false;
  for (uint32_t rest = spinning_warps; rest != 0; rest &= rest - 1) {
    const uint32_t warp = uint32_t(__builtin_ctz(rest));
    wake(warp, warps[warp].spinning);
    warps[warp].spinning = 0;
  }
  spinning_warps = 0;
  return true;
}

}  // namespace simt
