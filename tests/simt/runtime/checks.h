// What checked twins report to, and what the rest of the runtime tells the checkers. With plain twins
// the functions here do nothing.
#pragma once

#include <cstdint>

namespace simt {

struct Barrier;
struct Block;
struct Launch;
struct Thread;

inline void begin_launch_checks(const Launch &) {}
inline void end_launch_checks() {}
inline void begin_block_checks(Block &) {}
inline void end_block_checks(Block &) {}
inline void note_warp_barrier(Block &, uint32_t, uint32_t) {}
inline void note_barrier_arrival(Thread &, Barrier &) {}
inline void note_block_barrier(Block &, Barrier &) {}
inline void note_copy_landing(void *, uint32_t) {}
inline void check_copy(void *, uint32_t, const void *, uint32_t, const void *) {}
inline void check_matrix_row(const void *, const void *) {}

}  // namespace simt
