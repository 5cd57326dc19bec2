#include "async_copy.h"

#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "checks.h"
#include "execution.h"

namespace simt {
namespace {

struct Copy {
  char *to;
  const char *from;
  uint32_t bytes, source_bytes;
};

}  // namespace

struct AsyncCopies {
  std::vector<Copy> copies;
  std::vector<size_t> group_ends;  // committed groups, as positions in `copies`
  size_t landed_copies = 0, landed_groups = 0;

  void clear() {
    copies.clear();
    group_ends.clear();
    landed_copies = landed_groups = 0;
  }
};

namespace {

constexpr int poison = 0xff;

std::vector<std::unique_ptr<AsyncCopies>> spare;

AsyncCopies &copies_of(Thread &thread) {
  if (thread.copies == nullptr) {
    if (spare.empty()) spare.push_back(std::make_unique<AsyncCopies>());
    thread.copies = spare.back().release();
    spare.pop_back();
  }
  return *thread.copies;
}

void land(const Copy &copy) {
  note_copy_landing(copy.to, copy.bytes);
  std::memcpy(copy.to, copy.from, copy.source_bytes);
  std::memset(copy.to + copy.source_bytes, 0, copy.bytes - copy.source_bytes);
}

}  // namespace

void discard_copies(Thread &thread) {
  if (thread.copies == nullptr) return;
  thread.copies->clear();
  spare.emplace_back(thread.copies);
  thread.copies = nullptr;
}

}  // namespace simt

using namespace simt;

#define RUNTIME extern "C" __attribute__((visibility("default")))

RUNTIME void simt_copy_async(void *shared, const void *global, uint32_t bytes,
                             uint32_t source_bytes) {
  Thread &thread = current_thread();
  const auto addresses = reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(global);
  if ((addresses & (bytes - 1)) != 0) {
    fail(Fault::misaligned_address, "cp.async with a misaligned address",
         "  at\n" + describe_code(__builtin_return_address(0)));
  }
  check_copy(shared, bytes, global, source_bytes, __builtin_return_address(0));
  std::memset(shared, poison, bytes);
  copies_of(thread).copies.push_back(
      {static_cast<char *>(shared), static_cast<const char *>(global), bytes, source_bytes});
}

RUNTIME void simt_copy_async_commit() {
  AsyncCopies &copies = copies_of(current_thread());
  copies.group_ends.push_back(copies.copies.size());
}

RUNTIME void simt_copy_async_wait(uint32_t pending_groups) {
  Thread &thread = current_thread();
  if (thread.copies == nullptr) return;
  AsyncCopies &copies = *thread.copies;
  while (copies.group_ends.size() - copies.landed_groups > pending_groups) {
    const size_t end = copies.group_ends[copies.landed_groups++];
    while (copies.landed_copies < end) land(copies.copies[copies.landed_copies++]);
  }
  if (copies.landed_copies == copies.copies.size() &&
      copies.landed_groups == copies.group_ends.size()) {
    copies.clear();
  }
}
