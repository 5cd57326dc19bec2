// What checked twins report to, and what the rest of the runtime tells the checkers. With plain twins
// the functions here do next to nothing.
#pragma once

#include <cstdint>

namespace simt {

struct Barrier;
struct Block;
struct BlockChecks;
struct Launch;
struct Thread;

// Owned by a block; made when it first runs a checked twin.
struct DeleteBlockChecks {
  void operator()(BlockChecks *checks) const;
};

void begin_launch_checks(const Launch &launch);
void begin_block_checks(Block &block);

void note_warp_barrier(Block &block, uint32_t warp, uint32_t lanes);
void note_block_barrier(Block &block, const Barrier &barrier);

// A thread says that it waits.
void note_spin();

// cp.async: the destination is nobody's until the copy lands.
void check_copy(void *to, uint32_t bytes, const void *from, uint32_t source_bytes, const void *code);
void note_copy_landing(void *to, uint32_t bytes);

// A row of a matrix in shared memory, which the calling lane reads.
void check_matrix_row(const void *row, const void *code);

}  // namespace simt
