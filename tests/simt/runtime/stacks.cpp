#include "stacks.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#ifndef __x86_64__
#error "the simulator switches stacks with x86-64 instructions"
#endif

asm(R"(
    .text
    .globl simt_switch_stack
    .hidden simt_switch_stack
    .type simt_switch_stack, @function
simt_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size simt_switch_stack, . - simt_switch_stack
)");

namespace simt {
namespace {

constexpr size_t saved_registers = 6;
constexpr size_t cache_line = 64;
constexpr size_t chunk_stacks = 256;
constexpr size_t kept_chunks = 32;

}  // namespace

void *prepare_stack(char *low, size_t bytes, void (*entry)()) {
  // Tops at different places within a page: otherwise all of them would compete for a few cache lines.
  const size_t stagger = reinterpret_cast<uintptr_t>(low) / bytes % 32 * cache_line;
  void **top = reinterpret_cast<void **>(low + bytes - cache_line - stagger);
  *--top = nullptr;  // the return address of `entry`; also aligns the stack as at a call
  *--top = reinterpret_cast<void *>(entry);
  for (size_t i = 0; i < saved_registers; i++) *--top = nullptr;
  return top;
}

void StackPool::reset(size_t bytes) {
  if (bytes != bytes_) {
    for (char *chunk : chunks_) munmap(chunk, chunk_stacks * bytes_);
    chunks_.clear();
    bytes_ = bytes;
  }
  // Pages that a large launch touched are not kept.
  while (chunks_.size() > kept_chunks) {
    munmap(chunks_.back(), chunk_stacks * bytes_);
    chunks_.pop_back();
  }
  free_.clear();
  for (char *chunk : chunks_) {
    for (size_t i = 0; i < chunk_stacks; i++) free_.push_back(chunk + i * bytes_);
  }
}

char *StackPool::take() {
  if (free_.empty()) {
    void *chunk = mmap(nullptr, chunk_stacks * bytes_, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (chunk == MAP_FAILED) {
      std::fprintf(stderr, "simulator: no memory for the stacks of threads\n");
      std::abort();
    }
    chunks_.push_back(static_cast<char *>(chunk));
    for (size_t i = chunk_stacks; i-- > 0;) free_.push_back(chunks_.back() + i * bytes_);
  }
  char *low = free_.back();
  free_.pop_back();
  return low;
}

}  // namespace simt
