#include "memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <map>

namespace simt {
namespace {

constexpr size_t heap_bytes = size_t(1) << 40;
constexpr size_t page_bytes = 4096;
constexpr size_t alignment = 256;
constexpr int canary = 0xc5;
constexpr int poison = 0xff;
// How far beside an allocation bytes are looked at. Further away, writes by mistake are rare, and what
// they hit is not the simulator's.
constexpr ptrdiff_t watched_bytes = 256;

struct Heap {
  char *begin = nullptr, *top = nullptr;
  size_t live = 0;
  // By the end of their pages, so that upper_bound finds the allocation around an address.
  std::map<const char *, std::unique_ptr<Allocation>> allocations;
  Allocation *last_found = nullptr;
};

Heap &heap() {
  static Heap *heap = new Heap;  // alive until the process ends: hosts release memory late
  return *heap;
}

std::string describe(const Allocation &allocation) {
  return std::to_string(allocation.bytes) + " bytes of " +
         (allocation.kind == MemoryKind::device ? "device" : "pinned host") + " memory";
}

// Whether all bytes from `begin` to `end` are the canary; they are so afterwards.
bool restore_canary(char *begin, char *end) {
  unsigned char difference = 0;
  for (const char *byte = begin; byte < end; byte++) {
    difference |= static_cast<unsigned char>(*byte) ^ canary;
  }
  if (difference == 0) return true;
  std::memset(begin, canary, size_t(end - begin));
  return false;
}

bool restore_canaries(Allocation &allocation) {
  if (allocation.kind == MemoryKind::registered) return true;
  char *end = allocation.base + allocation.bytes;
  const bool before = restore_canary(
      std::max(allocation.first_page, allocation.base - watched_bytes), allocation.base);
  const bool after = restore_canary(end, std::min(allocation.end_page, end + watched_bytes));
  return before && after;
}

void insert(std::unique_ptr<Allocation> allocation) {
  const char *end = allocation->end_page;
  heap().allocations.emplace(end, std::move(allocation));
  heap().last_found = nullptr;
}

}  // namespace

char *allocate(size_t bytes, MemoryKind kind) {
  Heap &heap = simt::heap();
  if (heap.begin == nullptr) {
    void *reserved = mmap(nullptr, heap_bytes, PROT_NONE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (reserved == MAP_FAILED) return nullptr;
    heap.begin = heap.top = static_cast<char *>(reserved);
  }
  // An unmapped page on both sides; the bytes end as near to the upper one as alignment allows.
  if (bytes > heap_bytes / 2) return nullptr;
  const size_t mapped = (bytes + alignment - 1 + page_bytes - 1) / page_bytes * page_bytes;
  char *first_page = heap.top + page_bytes, *end_page = first_page + mapped;
  if (end_page + page_bytes > heap.begin + heap_bytes) return nullptr;
  if (mprotect(first_page, mapped, PROT_READ | PROT_WRITE) != 0) return nullptr;
  heap.top = end_page;
  char *base = reinterpret_cast<char *>(reinterpret_cast<uintptr_t>(end_page - bytes) &
                                        ~uintptr_t(alignment - 1));
  std::memset(first_page, canary, size_t(base - first_page));
  std::memset(base, poison, bytes);
  std::memset(base + bytes, canary, size_t(end_page - base) - bytes);

  auto allocation = std::make_unique<Allocation>();
  allocation->base = base;
  allocation->bytes = bytes;
  allocation->kind = kind;
  allocation->first_page = first_page;
  allocation->end_page = end_page;
  if (kind == MemoryKind::device) {
    allocation->initialised.assign(bytes, 0);
    heap.live += bytes;
  }
  insert(std::move(allocation));
  return base;
}

bool release(void *base, MemoryKind kind) {
  Allocation *allocation = find_allocation(base);
  if (allocation == nullptr || allocation->base != base || allocation->kind != kind) return false;
  const size_t mapped = size_t(allocation->end_page - allocation->first_page);
  madvise(allocation->first_page, mapped, MADV_DONTNEED);
  mprotect(allocation->first_page, mapped, PROT_NONE);
  if (kind == MemoryKind::device) heap().live -= allocation->bytes;
  heap().last_found = nullptr;
  heap().allocations.erase(allocation->end_page);
  return true;
}

bool register_host_memory(void *base, size_t bytes) {
  char *first = static_cast<char *>(base);
  if (bytes == 0 || find_allocation(first) != nullptr ||
      find_allocation(first + bytes - 1) != nullptr) {
    return false;
  }
  auto allocation = std::make_unique<Allocation>();
  allocation->base = allocation->first_page = first;
  allocation->bytes = bytes;
  allocation->end_page = first + bytes;
  allocation->kind = MemoryKind::registered;
  insert(std::move(allocation));
  return true;
}

bool unregister_host_memory(void *base) {
  Allocation *allocation = find_allocation(base);
  if (allocation == nullptr || allocation->base != base ||
      allocation->kind != MemoryKind::registered) {
    return false;
  }
  heap().last_found = nullptr;
  heap().allocations.erase(allocation->end_page);
  return true;
}

Allocation *find_allocation(const void *address) {
  Heap &heap = simt::heap();
  const char *byte = static_cast<const char *>(address);
  Allocation *last = heap.last_found;
  if (last != nullptr && byte >= last->first_page && byte < last->end_page) return last;
  const auto found = heap.allocations.upper_bound(byte);
  if (found == heap.allocations.end() || byte < found->second->first_page) return nullptr;
  return heap.last_found = found->second.get();
}

Allocation *find_range(const void *address, size_t bytes) {
  Allocation *allocation = find_allocation(address);
  return allocation != nullptr && allocation->contains(address, bytes) ? allocation : nullptr;
}

bool in_heap(const void *address) {
  const char *byte = static_cast<const char *>(address);
  return heap().begin != nullptr && byte >= heap().begin && byte < heap().begin + heap_bytes;
}

void mark_initialised(const void *address, size_t bytes) {
  Allocation *allocation = find_range(address, bytes);
  if (allocation == nullptr || allocation->initialised.empty() || bytes == 0) return;
  const size_t first = size_t(static_cast<const char *>(address) - allocation->base);
  std::memset(&allocation->initialised[first], 1, bytes);
}

std::string find_damage() {
  std::string damage;
  for (auto &[end, allocation] : heap().allocations) {
    if (!restore_canaries(*allocation) && damage.empty()) {
      damage = "bytes beside " + describe(*allocation) + " were written";
    }
  }
  return damage;
}

size_t live_device_bytes() { return heap().live; }

void begin_shadow_epoch() {
  for (auto &[end, allocation] : heap().allocations) allocation->shadow.forget();
}

}  // namespace simt
