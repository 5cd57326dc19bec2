// For each word of memory, the last accesses of the launch that runs. Bytes that are accessed by
// themselves get records of their own.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "clocks.h"

namespace simt {

struct Cell {
  Stamp write;
  Stamp reads[2];  // since the write, by different warps, the later first

  void add_read(const Stamp &read) {
    if (reads[0].present() && (reads[0].who ^ read.who) >= warp_lanes) reads[1] = reads[0];
    reads[0] = read;
  }
};

constexpr uint32_t word_bytes = 4;

class Shadow {
 public:
  // Forgets all accesses; takes constant time.
  void forget() { generation_++; }
  // Must be called before an access at an address for the first time, and when the memory moves.
  void cover(const void *begin, size_t bytes);

  // Calls `visit(Cell &)` for the records of an access, until it returns false.
  template <class Visit>
  void visit(const void *address, uint32_t bytes, Visit visit_cell);

 private:
  static constexpr uint32_t page_bytes = 1024;
  static constexpr uint32_t whole = ~0u;
  struct Page {
    uint64_t generation = 0;
    std::array<Cell, page_bytes / word_bytes> cells;
    // For a word that was split: where its four cells are in `of_bytes`; else `whole`.
    std::array<uint32_t, page_bytes / word_bytes> split;
    std::vector<std::array<Cell, word_bytes>> of_bytes;

    void clear(uint64_t new_generation);
    std::array<Cell, word_bytes> &bytes_of(uint32_t word);
  };
  Page &page_at(uintptr_t address) {
    std::unique_ptr<Page> &page = pages_[address / page_bytes - first_page_];
    if (page == nullptr || page->generation != generation_) renew(page);
    return *page;
  }
  void renew(std::unique_ptr<Page> &page) const;

  uintptr_t first_page_ = 0;
  uint64_t generation_ = 1;
  std::vector<std::unique_ptr<Page>> pages_;
};

template <class Visit>
void Shadow::visit(const void *address, uint32_t bytes, Visit visit_cell) {
  uintptr_t at = reinterpret_cast<uintptr_t>(address);
  const uintptr_t end = at + bytes;
  while (at < end) {
    Page &page = page_at(at);
    const uintptr_t end_in_page = std::min(end, (at / page_bytes + 1) * page_bytes);
    while (at < end_in_page) {
      const uint32_t word = uint32_t(at % page_bytes / word_bytes);
      const uint32_t first = uint32_t(at % word_bytes);
      const uint32_t count = uint32_t(std::min<uintptr_t>(word_bytes - first, end_in_page - at));
      if (count == word_bytes && page.split[word] == whole) {
        if (!visit_cell(page.cells[word])) return;
      } else {
        std::array<Cell, word_bytes> &cells = page.bytes_of(word);
        for (uint32_t i = 0; i < count; i++) {
          if (!visit_cell(cells[first + i])) return;
        }
      }
      at += count;
    }
  }
}

}  // namespace simt
