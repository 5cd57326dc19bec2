// The memory that kernels may touch: device memory, and host memory that is pinned. Addresses are
// those of the process, so a kernel's twin dereferences them directly.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "shadow.h"

namespace simt {

enum class MemoryKind {
  device,
  pinned,      // allocated pinned
  registered,  // the host's own, pinned by cuMemHostRegister
};

struct Allocation {
  char *base;
  size_t bytes;
  MemoryKind kind;
  // The mapped pages around it; only of memory that is allocated here.
  char *first_page, *end_page;
  // Per byte, whether device memory was written; empty for host memory, which the host may write
  // without our seeing it.
  std::vector<uint8_t> initialised;
  // The accesses of the launch that runs; see races.h.
  Shadow shadow;

  bool contains(const void *address, size_t count) const {
    const char *first = static_cast<const char *>(address);
    return first >= base && count <= bytes && size_t(first - base) <= bytes - count;
  }
};

// Never gives out an address twice, so that a use after release finds an unmapped page. New bytes are
// 0xff: a NaN in every float format.
char *allocate(size_t bytes, MemoryKind kind);
// False if `base` is not the start of a live allocation of this kind.
bool release(void *base, MemoryKind kind);
bool register_host_memory(void *base, size_t bytes);
bool unregister_host_memory(void *base);

// The live allocation whose pages contain `address`, or null. The address may lie beside the bytes.
Allocation *find_allocation(const void *address);
// The live allocation that contains all of the bytes, or null.
Allocation *find_range(const void *address, size_t bytes);
// Whether the address lies where allocations are made, live or not.
bool in_heap(const void *address);

void mark_initialised(const void *address, size_t bytes);

// Describes the first live allocation with bytes around it that someone wrote; empty if there is none.
// The bytes are then as they were.
std::string find_damage();

size_t live_device_bytes();

// Marks the accesses of earlier launches as past.
void begin_shadow_epoch();

}  // namespace simt
