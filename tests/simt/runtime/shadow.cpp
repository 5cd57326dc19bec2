#include "shadow.h"

namespace simt {

void Shadow::cover(const void *begin, size_t bytes) {
  const uintptr_t first = reinterpret_cast<uintptr_t>(begin);
  const size_t count = size_t((first + bytes + page_bytes - 1) / page_bytes - first / page_bytes);
  if (first_page_ == first / page_bytes && pages_.size() >= count) return;
  if (first_page_ != first / page_bytes) forget();
  first_page_ = first / page_bytes;
  if (pages_.size() < count) pages_.resize(count);
}

void Shadow::Page::clear(uint64_t new_generation) {
  generation = new_generation;
  cells.fill(Cell{});
  split.fill(whole);
  of_bytes.clear();
}

std::array<Cell, word_bytes> &Shadow::Page::bytes_of(uint32_t word) {
  if (split[word] == whole) {
    split[word] = uint32_t(of_bytes.size());
    of_bytes.emplace_back();
    of_bytes.back().fill(cells[word]);
  }
  return of_bytes[split[word]];
}

void Shadow::renew(std::unique_ptr<Page> &page) const {
  if (page == nullptr) page = std::make_unique<Page>();
  page->clear(generation_);
}

}  // namespace simt
