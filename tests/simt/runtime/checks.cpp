// Every access of a checked twin comes here: g++ puts a call before each, as for its own thread
// sanitizer, and this library supplies the functions that are called.
#include "checks.h"

#include <cstdio>
#include <cstring>
#include <unordered_map>

#include "clocks.h"
#include "execution.h"
#include "memory.h"
#include "shadow.h"

namespace simt {

// What is known of one kind of shared memory of a block.
struct SharedRecord {
  std::vector<uint8_t> initialised;  // per byte
  Shadow shadow;

  void reset(const void *begin, size_t bytes) {
    initialised.assign(bytes, 0);
    shadow.forget();
    shadow.cover(begin, bytes);
  }
};

struct BlockChecks {
  BlockClocks clocks;
  SharedRecord static_shared, dynamic_shared;
};

void DeleteBlockChecks::operator()(BlockChecks *checks) const { delete checks; }

namespace {

// Knowledge takes room for each warp of the grid; larger grids are not checked for races.
constexpr uint64_t most_tracked_warps = 1 << 17;
// Atomic loads while nobody gets anywhere or says that it waits.
constexpr uint64_t most_loads_without_spin = 1 << 20;

bool checking;         // the launch that runs is of a checked twin
bool checking_races;   // and its grid is not too large
uint64_t atomic_loads;
uint64_t progress_at_last_load;

// An address of shared memory means another word in each block.
struct Word {
  uintptr_t address;
  uint64_t block;
  bool operator==(const Word &other) const {
    return address == other.address && block == other.block;
  }
};
struct HashWord {
  size_t operator()(const Word &word) const { return word.address * 31 + word.block * 0x9e3779b1; }
};
constexpr uint64_t every_block = ~uint64_t(0);
// What was published through each word that an atomic operation wrote.
std::unordered_map<Word, SharedKnowledge, HashWord> published;

struct Access {
  const char *address;
  uint32_t bytes;
  uint32_t kind;  // SIMT_READ or SIMT_WRITE, or both
  bool atomic;
  const void *code;

  bool reads() const { return (kind & SIMT_READ) != 0; }
  bool writes() const { return (kind & SIMT_WRITE) != 0; }
};

std::string describe(const Access &access) {
  const char *kind = access.atomic                       ? "atomic operation"
                     : !access.writes()                  ? "read"
                     : !access.reads()                   ? "write"
                                                         : "update";
  return std::string(kind) + " of " + std::to_string(access.bytes) + " bytes";
}

[[noreturn]] void fail_access(Fault fault, const Access &access, const std::string &what,
                              const std::string &more = {}) {
  fail(fault, what + ": " + describe(access), "  at\n" + describe_code(access.code) + more);
}

Block &current_block() { return *current_thread().owner; }
BlockClocks &clocks() { return current_block().checks->clocks; }

// ---- Races ------------------------------------------------------------------------------------------

Stamp stamp_of(const Access &access) {
  const Thread &thread = current_thread();
  const auto offset = static_cast<const char *>(access.code) - execution.launch.twin->library_begin;
  Stamp stamp = clocks().stamp(thread, uint32_t(offset));
  stamp.atomic = access.atomic;
  return stamp;
}

std::string describe(const Stamp &stamp, const char *kind) {
  const simt_index &grid = execution.launch.grid, &size = execution.launch.block;
  const uint32_t block = stamp.block(), thread = stamp.thread();
  char text[200];
  std::snprintf(text, sizeof text, "  and, before it, the %s by block (%u,%u,%u), thread (%u,%u,%u), at\n",
                kind, block % grid.x, block / grid.x % grid.y, block / grid.x / grid.y, thread % size.x,
                thread / size.x % size.y, thread / size.x / size.y);
  return text + describe_code(execution.launch.twin->library_begin + stamp.code);
}

struct Conflict {
  const char *what = nullptr;
  Stamp earlier;
  const char *earlier_kind;
};

Conflict find_conflict(const Cell &cell, const Access &access) {
  if (cell.write.in_flight) {
    return {"the destination of a cp.async that was not waited for", cell.write, "copy"};
  }
  const Thread &thread = current_thread();
  const auto unordered = [&](const Stamp &stamp) {
    return stamp.present() && !(stamp.atomic && access.atomic) &&
           !clocks().happened_before(stamp, thread);
  };
  if (unordered(cell.write)) {
    return {access.writes() ? "race, two writes" : "race, a read after a write", cell.write, "write"};
  }
  if (!access.writes()) return {};
  for (const Stamp &read : cell.reads) {
    if (unordered(read)) return {"race, a write after a read", read, "read"};
  }
  return {};
}

void record(Cell &cell, const Access &access, const Stamp &stamp) {
  if (!access.writes()) {
    cell.add_read(stamp);
    return;
  }
  cell.write = stamp;
  // Atomic operations may leave reads behind that are not ordered before them.
  if (!access.atomic) cell.reads[0] = cell.reads[1] = Stamp{};
}

void check_races(Shadow &shadow, const Access &access, const char *memory) {
  const Stamp stamp = stamp_of(access);
  Conflict conflict;
  shadow.visit(access.address, access.bytes, [&](Cell &cell) {
    conflict = find_conflict(cell, access);
    if (conflict.what != nullptr) return false;
    record(cell, access, stamp);
    return true;
  });
  if (conflict.what == nullptr) return;
  fail_access(Fault::launch_failed, access, std::string(memory) + " memory: " + conflict.what,
              describe(conflict.earlier, conflict.earlier_kind));
}

// ---- Bounds, initialisation, alignment --------------------------------------------------------------

void check_alignment(const Access &access) {
  const bool power_of_two = (access.bytes & (access.bytes - 1)) == 0;
  if (!power_of_two || access.bytes > 16) return;
  if ((reinterpret_cast<uintptr_t>(access.address) & (access.bytes - 1)) != 0) {
    fail_access(Fault::misaligned_address, access, "misaligned address");
  }
}

void check_initialisation(uint8_t *initialised, const Access &access, const char *memory) {
  if (access.reads() && std::memchr(initialised, 0, access.bytes) != nullptr) {
    fail_access(Fault::launch_failed, access,
                std::string(memory) + " memory that was never written");
  }
  if (access.writes()) std::memset(initialised, 1, access.bytes);
}

void check_shared(SharedRecord &record, const char *begin, const Access &access) {
  const size_t offset = size_t(access.address - begin);
  if (offset + access.bytes > record.initialised.size()) {
    fail_access(Fault::illegal_address, access, "past the end of shared memory");
  }
  check_alignment(access);
  if (checking_races) check_races(record.shadow, access, "shared");
  check_initialisation(&record.initialised[offset], access, "shared");
}

void check_allocation(Allocation &allocation, const Access &access) {
  if (!allocation.contains(access.address, access.bytes)) {
    fail_access(Fault::illegal_address, access,
                "out of bounds, at offset " + std::to_string(access.address - allocation.base) +
                    " of " + std::to_string(allocation.bytes) + " bytes of " +
                    (allocation.kind == MemoryKind::device ? "device" : "pinned host") + " memory");
  }
  check_alignment(access);
  if (checking_races) {
    allocation.shadow.cover(allocation.base, allocation.bytes);
    check_races(allocation.shadow, access, "global");
  }
  // The host may have written its own memory.
  if (allocation.initialised.empty()) return;
  check_initialisation(&allocation.initialised[size_t(access.address - allocation.base)], access,
                       "device");
}

// ---- Which memory an access is to -------------------------------------------------------------------

bool within(const char *address, const void *begin, size_t bytes) {
  return size_t(address - static_cast<const char *>(begin)) < bytes;
}

SharedRecord *shared_record(const char *address, const char **begin) {
  const Block &block = current_block();
  const Twin &twin = *execution.launch.twin;
  if (within(address, twin.shared_begin, twin.shared_bytes())) {
    *begin = twin.shared_begin;
    return &block.checks->static_shared;
  }
  if (block.dynamic_shared.near(address) && address >= block.view.dynamic_shared) {
    *begin = block.view.dynamic_shared;
    return &block.checks->dynamic_shared;
  }
  return nullptr;
}

// One access in so many lets other threads run first.
void maybe_preempt() {
  if (execution.preempt <= 0 || execution.random.below(uint64_t(execution.preempt)) != 0) return;
  Thread &thread = current_thread();
  thread.owner->wake(thread.warp, 1u << thread.lane);
  suspend();
}

void check(const Access &access) {
  const char *begin;
  // Never preempted there: the operands of an atomic operation may be on the stack.
  if (within(access.address, current_thread().stack, execution.stack_bytes)) return;
  maybe_preempt();
  if (SharedRecord *record = shared_record(access.address, &begin)) {
    check_shared(*record, begin, access);
    return;
  }
  if (Allocation *allocation = find_allocation(access.address)) {
    check_allocation(*allocation, access);
    return;
  }
  const Twin &twin = *execution.launch.twin;
  const bool constant =
      within(access.address, twin.library_begin, size_t(twin.library_end - twin.library_begin)) ||
      within(access.address, execution.launch.arguments, twin.argument_bytes);
  if (constant && !access.writes()) return;
  char where[64];
  std::snprintf(where, sizeof where, "illegal address %p, ", access.address);
  fail_access(Fault::illegal_address, access,
              std::string(where) + (constant ? "which is constant"
                                    : in_heap(access.address)
                                        ? "which was released or lies between allocations"
                                        : "which is not device memory"));
}

void check_plain(const void *address, size_t bytes, uint32_t kind, const void *code) {
  if (simt_current == nullptr || execution.exchanging || bytes == 0) return;
  check({static_cast<const char *>(address), uint32_t(bytes), kind, false, code});
}

// A thread that only looks and never says so would hang the plain build.
void count_atomic_load(const Access &access) {
  if (progress_at_last_load != execution.progress) atomic_loads = 0;
  progress_at_last_load = execution.progress;
  if (++atomic_loads > most_loads_without_spin) {
    fail_access(Fault::launch_failed, access, "a loop that waits without spin_hint()");
  }
}

void check_atomic(const void *address, uint32_t bytes, uint32_t kind, uint32_t order,
                  const void *code) {
  if (simt_current == nullptr) return;
  const Access access{static_cast<const char *>(address), bytes, kind, true, code};
  check(access);
  if (!access.writes()) count_atomic_load(access);
  if (!checking_races) return;
  const char *begin;
  const bool shared = shared_record(access.address, &begin) != nullptr;
  const Word word{reinterpret_cast<uintptr_t>(address),
                  shared ? current_block().number : every_block};
  clocks().atomic(current_thread(), published[word], kind, order);
}

}  // namespace

// ---- What the runtime tells -------------------------------------------------------------------------

void note_spin() { atomic_loads = 0; }

void begin_launch_checks(const Launch &launch) {
  checking = launch.twin->checked;
  if (!checking) return;
  const uint64_t blocks = uint64_t(launch.grid.x) * launch.grid.y * launch.grid.z;
  const uint64_t threads = uint64_t(launch.block.x) * launch.block.y * launch.block.z;
  checking_races = blocks < most_stamped_blocks &&
                   blocks * ((threads + warp_lanes - 1) / warp_lanes) <= most_tracked_warps;
  published.clear();
  begin_shadow_epoch();
}

void begin_block_checks(Block &block) {
  if (!checking) return;
  if (block.checks == nullptr) block.checks.reset(new BlockChecks);
  const simt_index &grid = execution.launch.grid;
  const Twin &twin = *execution.launch.twin;
  block.checks->clocks.reset(block, uint64_t(grid.x) * grid.y * grid.z);
  block.checks->static_shared.reset(twin.shared_begin, twin.shared_bytes());
  block.checks->dynamic_shared.reset(block.view.dynamic_shared, block.view.dynamic_shared_bytes);
}

void note_warp_barrier(Block &block, uint32_t warp, uint32_t lanes) {
  if (checking) block.checks->clocks.meet(block, warp, lanes);
}

void note_block_barrier(Block &block, const Barrier &barrier) {
  if (checking) block.checks->clocks.complete_barrier(block, barrier);
}

void check_copy(void *to, uint32_t bytes, const void *from, uint32_t source_bytes,
                const void *code) {
  if (!checking) return;
  if (source_bytes != 0) check_plain(from, source_bytes, SIMT_READ, code);
  const char *begin;
  const Access access{static_cast<const char *>(to), bytes, SIMT_WRITE, false, code};
  SharedRecord *record = shared_record(access.address, &begin);
  if (record == nullptr) {
    fail_access(Fault::illegal_address, access, "cp.async to what is not shared memory");
  }
  check(access);
  std::memset(&record->initialised[size_t(access.address - begin)], 0, bytes);
  if (!checking_races) return;
  record->shadow.visit(to, bytes, [](Cell &cell) {
    cell.write.in_flight = 1;
    return true;
  });
}

void note_copy_landing(void *to, uint32_t bytes) {
  if (!checking) return;
  const char *begin;
  SharedRecord *record = shared_record(static_cast<const char *>(to), &begin);
  std::memset(&record->initialised[size_t(static_cast<const char *>(to) - begin)], 1, bytes);
  if (!checking_races) return;
  const Thread &thread = current_thread();
  record->shadow.visit(to, bytes, [&](Cell &cell) {
    cell.write = clocks().stamp(thread, cell.write.code);
    return true;
  });
}

void check_matrix_row(const void *row, const void *code) {
  if (!checking) return;
  constexpr uint32_t row_bytes = 16;
  const char *begin;
  const Access access{static_cast<const char *>(row), row_bytes, SIMT_READ, false, code};
  if (shared_record(access.address, &begin) == nullptr) {
    fail_access(Fault::illegal_address, access, "ldmatrix of what is not shared memory");
  }
  check(access);
}

}  // namespace simt

// ---- What checked twins call ------------------------------------------------------------------------

using namespace simt;

#define RUNTIME extern "C" __attribute__((visibility("default")))

RUNTIME void simt_check_access(const void *address, uint32_t bytes, uint32_t access) {
  check_plain(address, bytes, access, __builtin_return_address(0));
}

RUNTIME void simt_check_atomic(const void *address, uint32_t bytes, uint32_t access,
                               uint32_t order) {
  check_atomic(address, bytes, access, order, __builtin_return_address(0));
}

RUNTIME void simt_check_fence() {
  if (simt_current != nullptr && checking_races) clocks().fence(current_thread());
}

#define SIMT_TSAN(bytes)                                                                  \
  RUNTIME void __tsan_read##bytes(void *address) {                                        \
    check_plain(address, bytes, SIMT_READ, __builtin_return_address(0));                  \
  }                                                                                       \
  RUNTIME void __tsan_write##bytes(void *address) {                                       \
    check_plain(address, bytes, SIMT_WRITE, __builtin_return_address(0));                 \
  }                                                                                       \
  RUNTIME void __tsan_unaligned_read##bytes(void *address) {                              \
    check_plain(address, bytes, SIMT_READ, __builtin_return_address(0));                  \
  }                                                                                       \
  RUNTIME void __tsan_unaligned_write##bytes(void *address) {                             \
    check_plain(address, bytes, SIMT_WRITE, __builtin_return_address(0));                 \
  }                                                                                       \
  RUNTIME void __tsan_volatile_read##bytes(void *address) {                               \
    check_atomic(address, bytes, SIMT_READ, 0, __builtin_return_address(0));              \
  }                                                                                       \
  RUNTIME void __tsan_volatile_write##bytes(void *address) {                              \
    check_atomic(address, bytes, SIMT_WRITE, 0, __builtin_return_address(0));             \
  }
SIMT_TSAN(1)
SIMT_TSAN(2)
SIMT_TSAN(4)
SIMT_TSAN(8)
SIMT_TSAN(16)

RUNTIME void __tsan_read_range(void *address, unsigned long bytes) {
  check_plain(address, bytes, SIMT_READ, __builtin_return_address(0));
}
RUNTIME void __tsan_write_range(void *address, unsigned long bytes) {
  check_plain(address, bytes, SIMT_WRITE, __builtin_return_address(0));
}
RUNTIME void *__tsan_memcpy(void *to, const void *from, unsigned long bytes) {
  check_plain(from, bytes, SIMT_READ, __builtin_return_address(0));
  check_plain(to, bytes, SIMT_WRITE, __builtin_return_address(0));
  return std::memcpy(to, from, bytes);
}
RUNTIME void *__tsan_memset(void *to, int value, unsigned long bytes) {
  check_plain(to, bytes, SIMT_WRITE, __builtin_return_address(0));
  return std::memset(to, value, bytes);
}
RUNTIME void __tsan_init() {}
RUNTIME void __tsan_func_entry(void *) {}
RUNTIME void __tsan_func_exit() {}

// Called by the code of -fsanitize=alignment, with a description of the place.
struct MisalignedPlace {
  const char *file;
  uint32_t line, column;
  const void *type;
  uint8_t log_alignment, kind;
};
RUNTIME void __ubsan_handle_type_mismatch_v1(MisalignedPlace *place, uintptr_t address) {
  if (simt_current == nullptr) return;
  char what[100];
  std::snprintf(what, sizeof what, "misaligned address: %p needs %u bytes",
                reinterpret_cast<void *>(address), 1u << place->log_alignment);
  fail(Fault::misaligned_address, what,
       std::string("  at ") + place->file + ":" + std::to_string(place->line) + "\n");
}
